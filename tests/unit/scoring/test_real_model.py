"""Scoring a really pretrained model on real items: what random weights may hide."""

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rankscope.data.tokens import Tokenizer
from rankscope.scoring.likelihoods import Choice, OptionTrees, checked_option_trees, option_log_likelihoods
from rankscope.scoring.losses import completion_losses

SHARED = Path(os.environ.get("RANKSCOPE_SHARED") or Path(__file__).resolve().parents[4] / "shared")
pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="the folder of real data is absent"),
]


@pytest.fixture(scope="module")
def stories():
    folder = SHARED / "data/models/stories3M"
    return AutoModelForCausalLM.from_pretrained(folder).eval(), Tokenizer.from_folder(folder)


def test_trees_equal_separate_rows_on_medical_questions(stories):
    model, tokenizer = stories
    with (SHARED / "data/paper/medmcqa/dev.jsonl").open() as stream:
        rows = [json.loads(next(stream)) for _ in range(40)]
    choices = []
    for row in rows:
        prompt = f"Question: {row['question']}\nAnswer:"
        pairs = tokenizer.encode_pairs([(prompt, f" {row[key]}") for key in ("opa", "opb", "opc", "opd")])
        choices.append(Choice(tuple(pairs[0][0]), tuple(tuple(completion) for _, completion in pairs)))
    assert checked_option_trees(model, choices, 512, 8192) == OptionTrees(None)
    trees = option_log_likelihoods(model, choices, OptionTrees(None), 512, 8192)
    separate = option_log_likelihoods(model, choices, OptionTrees("for the test"), 512, 8192)
    for choice, one, other in zip(choices, trees.log_likelihoods, separate.log_likelihoods, strict=True):
        for option, a, b in zip(choice.option_ids, one, other, strict=True):
            assert a == pytest.approx(b, abs=1e-5 * len(option))


def test_the_loss_on_stories_is_that_of_transformers_and_of_a_model_that_knows_them(stories):
    model, tokenizer = stories
    with (SHARED / "data/retention/tinystories/stories.jsonl").open() as stream:
        texts = [json.loads(next(stream))["text"] for _ in range(40)]
    pairs = tokenizer.encode_pairs([("", text) for text in texts])
    losses = completion_losses(model, pairs, 512, 8192)
    assert all(len(ids) < 512 for _, ids in pairs)
    for (prompt, ids), loss in zip(pairs, losses, strict=True):
        tokens = torch.tensor([[*prompt, *ids]])
        with torch.no_grad():
            expected = model(tokens, labels=tokens).loss.item()
        assert loss.nll_nats / loss.num_scored_tokens == pytest.approx(expected, abs=1e-5)
    # The folder's README has about 1.37 nats per token on stories of this kind.
    assert sum(loss.nll_nats for loss in losses) / sum(loss.num_scored_tokens for loss in losses) < 1.4
