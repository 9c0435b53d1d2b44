"""No tensor of batch x length x vocabulary is made, in training, scoring or generation, forward or backward."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from rankscope.data.examples import TokenisedExample
from rankscope.models.heads import _MAX_LOGITS
from rankscope.models.joined import can_join
from rankscope.models.methods.making import make_trainable
from rankscope.runs import RunSettings
from rankscope.scoring.likelihoods import Choice, OptionTrees, checked_option_trees, option_log_likelihoods
from rankscope.scoring.losses import completion_losses
from rankscope.train.loop import accumulate_gradients, mean_loss
from tiny import full_run, lora_run

VOCAB, LENGTH = 150_000, 1024
IDS = tuple(7 * index % VOCAB for index in range(LENGTH))
# All scored, and a few: the shortest completion and the longest.
EXAMPLES = [TokenisedExample("long", IDS, 1), TokenisedExample("short", IDS, LENGTH - 5)]


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation puts out, those of the backward pass among them."""

    num_values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = (leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
        self.num_values = max(self.num_values, *sizes, 0)
        return result


def wide_model() -> PreTrainedModel:
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=VOCAB, tie_word_embeddings=True, max_position_embeddings=LENGTH, **shape)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval().requires_grad_(False)


def test_the_measurement_sees_what_plain_code_makes() -> None:
    ids = torch.tensor([IDS[:128]])
    with Largest() as seen, torch.no_grad():
        wide_model()(ids)
    assert seen.num_values == 128 * VOCAB > _MAX_LOGITS


@pytest.mark.parametrize("run", [full_run(1e-3, 0, 1), lora_run(4, 1e-3, 0, 1)], ids=["full", "lora"])
def test_training(run: RunSettings) -> None:
    model = wide_model()
    with Largest() as seen:  # the first step's checks of the head and of joined rows too
        accumulate_gradients(make_trainable(model, [run]), {0: EXAMPLES}, 10_000)
    assert can_join(model)
    assert VOCAB * 100 < seen.num_values <= _MAX_LOGITS


def test_validation_and_scoring() -> None:
    model = wide_model()
    pack = make_trainable(model, [full_run(1e-3, 0, 1)])
    choice = Choice(IDS[:100], tuple(IDS[start : start + 100] for start in (200, 400)))
    with Largest() as seen:  # the checks of the head, of joined rows and of trees too
        mean_loss(pack, 0, EXAMPLES[1:], 10_000)
        completion_losses(model, [([1], list(IDS[1:]))], LENGTH, 10_000)
        for trees in (checked_option_trees(model, [choice], LENGTH, 10_000), OptionTrees("for the test")):
            option_log_likelihoods(model, [choice], trees, LENGTH, 10_000)
    assert VOCAB * 100 < seen.num_values <= _MAX_LOGITS
