"""Virtual tokens: a prompt model scores and generates as PEFT's own model does, text by text, whatever the padding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from rankscope.data.tokens import Tokenizer
from rankscope.models.methods.pack import TrainablePack
from rankscope.models.methods.prompt import PromptModel
from rankscope.scoring.generation import generate
from rankscope.scoring.likelihoods import Choice, OptionTrees, option_log_likelihoods
from rankscope.scoring.losses import completion_losses
from rankscope.scoring.rows import context_length
from solo import IDS, trained
from tiny import method_run, tiny_llama

NUM_VIRTUAL = 5
METHODS = ["prompt_tuning", "p_tuning", "prefix_tuning"]
TEXTS = [list(range(3, 3 + length)) for length in (4, 9, 6)]


def tuned(method: str, folder: Path) -> tuple[TrainablePack, PeftModel]:
    """A trained run in our model, and in PEFT's own from its folder."""
    pack, _ = trained(tiny_llama(torch.float64), [method_run(method, 5e-2, 0, 4, num_virtual_tokens=NUM_VIRTUAL)])
    pack.save(0, folder)
    pack.route((0,), (1,), is_training=False)
    return pack, PeftModel.from_pretrained(tiny_llama(torch.float64), str(folder / "adapter"))


@torch.no_grad()
def peft_nll(theirs: PeftModel, text: list[int], num_prompt: int) -> float:
    logits = theirs(input_ids=torch.tensor([text])).logits[0, -len(text) :].double()
    log_p = torch.log_softmax(logits, dim=-1)
    return -sum(log_p[index - 1, text[index]].item() for index in range(num_prompt, len(text)))


@pytest.mark.parametrize("method", METHODS)
def test_losses_and_options_are_pefts(method: str, tmp_path: Path) -> None:
    pack, theirs = tuned(method, tmp_path)
    assert isinstance(pack.model, PromptModel)
    losses = completion_losses(pack.model, [(text[:2], text[2:]) for text in TEXTS], 40, 1000)
    for loss, text in zip(losses, TEXTS, strict=True):
        assert loss.nll_nats == pytest.approx(peft_nll(theirs, text, 2), abs=1e-6)
    choice = Choice((5, 6, 7), ((8, 9), (10, 11, 12)))
    refusal = OptionTrees(method_run(method, 1e-3, 0, 1, num_virtual_tokens=2).arm.capabilities.own_rows)
    scores = option_log_likelihoods(pack.model, [choice], refusal, 40, 1000)
    assert scores.scored_by == "separate_rows"
    expected = [-peft_nll(theirs, [*choice.prompt_ids, *option], 3) for option in choice.option_ids]
    assert scores.log_likelihoods[0] == pytest.approx(expected, abs=1e-6)


class Numbers(Tokenizer):
    """A tokenizer whose texts are numbers with blanks between."""

    context_length = None
    eos_token_ids = (0,)

    def __init__(self) -> None:
        pass

    def encode_pairs(self, pairs: list[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        return [([int(word) for word in prompt.split()], []) for prompt, _ in pairs]

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


@pytest.mark.parametrize("method", METHODS)
def test_generation_is_pefts_whatever_the_padding(method: str, tmp_path: Path) -> None:
    pack, theirs = tuned(method, tmp_path)
    found = generate(pack.model, Numbers(), [" ".join(map(str, text)) for text in TEXTS], 6, (), 1000)
    for generation, text in zip(found, TEXTS, strict=True):
        ids = list(text)
        for _ in range(6):  # without a cache, each token from the whole text
            ids.append(int(theirs(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == 0:
                break
        assert list(generation.ids) == ids[len(text) :]


@pytest.mark.parametrize("method", METHODS)
def test_the_base_is_untouched_and_has_fewer_positions_left(method: str, tmp_path: Path) -> None:
    pack, _ = tuned(method, tmp_path)
    assert context_length(pack.model, 1000) == 64 - NUM_VIRTUAL
    base = pack.model.peft.get_base_model()
    assert context_length(base, 1000) == 64
    pack.close()
    assert torch.equal(base(IDS).logits, tiny_llama(torch.float64)(IDS).logits)
