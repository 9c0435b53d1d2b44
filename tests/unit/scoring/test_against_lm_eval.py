"""The same numbers as lm-evaluation-harness' own scorer of Hugging Face models."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from rankscope.data.examples import Item
from rankscope.scoring.tasks import score_task

huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="lm_eval is not installed (extra: dev)")


def harness(model, tokenizer_folder, batch_size=4):
    return huggingface.HFLM(
        pretrained=model, tokenizer=AutoTokenizer.from_pretrained(tokenizer_folder), batch_size=batch_size, device="cpu"
    )


def requests(*arguments):
    return [SimpleNamespace(args=each) for each in arguments]


@pytest.mark.parametrize("context", [128, 24])
def test_option_log_likelihoods(make_llama, tokenizer, tokenizer_folder, make_settings, choice_items, context):
    """Context 24: most prompts are cut from the left, by both in the same place."""
    model = make_llama(torch.float32, context=context)
    # lm-eval refuses nothing less: an option may not be longer than the context.
    items = [item for item in choice_items if all(len(tokenizer.encode(option)) < 24 for option in item.options)]
    assert len(items) >= 6
    pairs = [(item.prompt, option) for item in items for option in item.options]
    expected = [value for value, _ in harness(model, tokenizer_folder).loglikelihood(requests(*pairs), True)]
    scored = score_task(model, tokenizer, items, make_settings(), 512)
    assert (scored.num_truncated > 0) == (context == 24)
    ours = [value for row in scored.items["option_log_likelihoods"] for value in row]
    for (prompt, option), value, reference in zip(pairs, ours, expected, strict=True):
        assert value == pytest.approx(reference, abs=1e-5 * len(tokenizer.encode_pair(prompt, option)[1]))


@pytest.mark.parametrize("context", [128, 16])
def test_text_losses(make_llama, tokenizer, tokenizer_folder, make_settings, choice_items, context):
    """Rolling likelihoods; context 16: in windows."""
    model = make_llama(torch.float32, context=context)
    texts = [item.prompt for item in choice_items if item.prompt] + ["é" * 20]
    reference = harness(model, tokenizer_folder)
    # Told not to open texts itself, lm-eval opens them once, with its prefix token; else this tokenizer's <s> comes
    # twice and the second is scored.
    reference.add_bos_token = False
    expected = reference.loglikelihood_rolling(requests(*((text,) for text in texts)), True)
    items = [Item(str(number), "", (), text) for number, text in enumerate(texts)]
    scored = score_task(model, tokenizer, items, make_settings("loss"), 512)
    for row, value in zip(scored.items.iter_rows(named=True), expected, strict=True):
        assert row["nll_nats"] == pytest.approx(-value, abs=1e-5 * row["num_scored_tokens"])


def test_generated_texts(make_llama, tokenizer, tokenizer_folder, make_settings):
    model = make_llama()
    prompts = ["Anna buys 6 boxes", "The court held that the claim", "Once upon a time", "6 * 4 ="]
    gen = {"until": ["e", "</s>"], "do_sample": False, "max_gen_toks": 20}
    reference = harness(model, tokenizer_folder, batch_size=1)
    expected = reference.generate_until(requests(*((prompt, dict(gen)) for prompt in prompts)), True)
    items = [Item(str(number), prompt, (), "x") for number, prompt in enumerate(prompts)]
    settings = make_settings("generate", max_new_tokens=20, stop=("e",))
    scored = score_task(model, tokenizer, items, settings, 512)
    # lm-eval strips nothing but the stop text; special tokens are left out by both.
    assert scored.items["generated"].to_list() == expected
