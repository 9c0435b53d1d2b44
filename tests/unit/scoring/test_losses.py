"""Losses against a hand computation."""

import pytest
import torch

from rankscope.data.examples import TokenisedExample
from rankscope.scoring.losses import completion_losses, example_losses


def by_hand(model, tokens, scored):
    with torch.no_grad():
        logits = torch.log_softmax(model(torch.tensor([tokens])).logits[0], dim=-1)
    return -sum(logits[at - 1, tokens[at]].item() for at in scored)


def test_completions_given_prompts(make_llama):
    model = make_llama()
    pairs = [([4, 5, 6], [7, 8]), ([4], [9, 10, 11, 12]), ([4, 5], [])]
    losses = completion_losses(model, pairs, 128, 512)
    for (prompt, completion), loss in zip(pairs, losses, strict=True):
        scored = range(len(prompt), len(prompt) + len(completion))
        assert loss.nll_nats == pytest.approx(by_hand(model, [*prompt, *completion], scored), abs=1e-10)
        assert loss.num_scored_tokens == len(completion)


def test_long_texts_are_read_in_windows_that_score_each_token_once(make_llama):
    model = make_llama(context=10)
    ids = torch.randint(2, 300, (27,), generator=torch.Generator().manual_seed(0)).tolist()
    (loss,) = completion_losses(model, [([0], ids)], 10, 512)
    tokens = [0, *ids]
    # Each window but the last predicts 10 tokens; the last reads the 10 tokens before its end.
    expected = (
        by_hand(model, tokens[0:11], range(1, 11))
        + by_hand(model, tokens[10:21], range(1, 11))
        + by_hand(model, tokens[17:28], range(4, 11))
    )
    assert loss.num_scored_tokens == 27
    assert loss.nll_nats == pytest.approx(expected, abs=1e-10)


def test_examples_lose_on_their_completion_only(make_llama):
    model = make_llama()
    examples = [TokenisedExample("a", (4, 5, 6, 7, 1), 3), TokenisedExample("text", (4, 5, 6), 0)]
    prompted, text = example_losses(model, examples, 512)
    assert prompted.nll_nats == pytest.approx(by_hand(model, [4, 5, 6, 7, 1], [3, 4]), abs=1e-10)
    assert prompted.num_scored_tokens == 2
    # Nothing stands before a text's first token, so nothing predicts it.
    assert text.nll_nats == pytest.approx(by_hand(model, [4, 5, 6], [1, 2]), abs=1e-10)
    assert text.num_scored_tokens == 2
    assert example_losses(model, [], 512) == []
