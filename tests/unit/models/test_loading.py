"""A model is loaded if it looks back alone: what sees a text's end cannot be asked how likely that is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel, XLNetConfig, XLNetLMHeadModel

from architectures import CONFIGS, SHARED, tiny_model
from rankscope.errors import UserError
from rankscope.models.loading import load_model

SIZE = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.mark.parametrize("name", [*CONFIGS, *SHARED])
def test_every_architecture_looks_back(name: str, tmp_path: Path) -> None:
    tiny_model(name).save_pretrained(tmp_path)
    assert load_model(tmp_path, torch.float32, "cpu").config.model_type == CONFIGS.get(name, (name,))[0]


@pytest.mark.filterwarnings("ignore")  # of XLNet's own
@pytest.mark.parametrize("kind", ["bert", "xlnet"])
def test_a_model_that_looks_ahead_is_refused(kind: str, tmp_path: Path) -> None:
    models: dict[str, PreTrainedModel] = {
        "bert": BertForMaskedLM(BertConfig(vocab_size=61, num_hidden_layers=2, initializer_range=0.1, **SIZE)),
        "xlnet": XLNetLMHeadModel(XLNetConfig(vocab_size=61, d_model=32, n_layer=2, n_head=4, initializer_range=0.1)),
    }
    models[kind].save_pretrained(tmp_path)
    with pytest.raises(UserError, match="sees what comes later in a text") as caught:
        load_model(tmp_path, torch.float32, "cpu")
    assert str(tmp_path) in caught.value.message()
