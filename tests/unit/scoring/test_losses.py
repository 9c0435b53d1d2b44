"""Losses against a hand computation."""

import pytest
import torch

from rankscope.scoring.losses import completion_losses


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
