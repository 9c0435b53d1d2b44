"""A task's rows and measures, by hand."""

import math

import polars as pl
import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from rankscope.data.examples import Item
from rankscope.errors import UserError
from rankscope.models.text_trees import TextTree
from rankscope.scoring import tasks
from rankscope.scoring.generation import Generation
from rankscope.scoring.likelihoods import OptionScores, OptionTrees
from rankscope.scoring.tasks import ITEM_SCHEMA, score_task

FORMAT = [
    "item_id", "category", "is_correct", "prediction", "target", "is_invalid", "option_log_likelihoods",
    "num_scored_tokens", "nll_nats",
]  # fmt: skip


def test_the_columns_are_those_of_the_format(make_llama, tokenizer, make_settings, choice_items):
    for scoring in ("multiple_choice", "generate", "loss"):
        scored = score_task(make_llama(), tokenizer, choice_items, make_settings(scoring), 512)
        assert scored.items.schema == pl.Schema(ITEM_SCHEMA)
        assert scored.items.columns[: len(FORMAT)] == FORMAT
        assert scored.items["item_id"].to_list() == [item.item_id for item in choice_items]
        assert scored.items["category"].to_list() == [item.category for item in choice_items]
        empty = score_task(make_llama(), tokenizer, [], make_settings(scoring), 512)
        assert empty.items.schema == pl.Schema(ITEM_SCHEMA)
        assert empty.values == {}


def test_multiple_choice(make_llama, tokenizer, make_settings, choice_items):
    model = make_llama()
    scored = score_task(model, tokenizer, choice_items, make_settings(), 512)
    assert (scored.scored_by, scored.note, scored.num_truncated) == ("option_tree", None, 0)
    num_right = num_right_per_byte = num_tokens = 0
    nll = mass = 0.0
    for item, row in zip(choice_items, scored.items.iter_rows(named=True), strict=True):
        values = []
        for option in item.options:
            prompt, completion = tokenizer.encode_pair(item.prompt, option)
            with torch.no_grad():
                logits = torch.log_softmax(model(torch.tensor([prompt + completion])).logits[0], dim=-1)
            values.append(sum(logits[len(prompt) - 1 + at, token].item() for at, token in enumerate(completion)))
        assert row["option_log_likelihoods"] == pytest.approx(values, abs=1e-9)
        best = item.options[values.index(max(values))]
        per_byte = [value / len(option.lstrip().encode()) for value, option in zip(values, item.options, strict=True)]
        assert row["prediction"] == best
        assert row["is_correct"] == (best == item.options[0])
        assert row["is_correct_per_byte"] == (item.options[per_byte.index(max(per_byte))] == item.options[0])
        assert row["num_scored_tokens"] == len(tokenizer.encode_pair(item.prompt, item.options[0])[1])
        assert row["nll_nats"] == pytest.approx(-values[0], abs=1e-9)
        assert row["is_invalid"] is None
        num_right += row["is_correct"]
        num_right_per_byte += row["is_correct_per_byte"]
        nll, num_tokens = nll - values[0], num_tokens + row["num_scored_tokens"]
        mass += sum(math.exp(value) for value in dict(zip(item.options, values, strict=True)).values())
    assert scored.values == pytest.approx(
        {
            "accuracy": num_right / 10,
            "accuracy_per_byte": num_right_per_byte / 10,
            "loss_nats_per_token": nll / num_tokens,
            "option_mass": mass / 10,
        }
    )


def test_ties_go_to_the_first_and_twins_are_one_answer(make_llama, tokenizer, make_settings, monkeypatch):
    items = [
        Item("tie", "p", (" a", " b"), " b", 1),
        Item("first", "p", (" a", " b"), " a", 0),
        Item("twin", "p", (" a", " b", " a"), " a", 2),
    ]
    fixed = OptionScores(((-1.0, -1.0), (-1.0, -1.0), (-1.0, -2.0, -1.0)), 0, "option_tree")
    monkeypatch.setattr(tasks, "option_log_likelihoods", lambda *_: fixed)
    scored = score_task(make_llama(), tokenizer, items, make_settings(), 512)
    assert scored.items["prediction"].to_list() == [" a", " a", " a"]
    assert scored.items["is_correct"].to_list() == [False, True, True]


def test_an_option_is_as_long_as_its_bytes_without_what_stands_before_it(
    make_llama, tokenizer, make_settings, monkeypatch
):
    items = [Item("bytes", "p", (" éé", " abc"), " éé", 0), Item("space", "p", (" a", " bcd"), " bcd", 1)]
    # Per byte -3.9 / 4 against -3.2 / 3, and -1 / 1 against -2.5 / 3; per character the first one turns.
    fixed = OptionScores(((-3.9, -3.2), (-1.0, -2.5)), 0, "option_tree")
    monkeypatch.setattr(tasks, "option_log_likelihoods", lambda *_: fixed)
    scored = score_task(make_llama(), tokenizer, items, make_settings(), 512)
    assert scored.items["is_correct_per_byte"].to_list() == [True, True]
    assert scored.items["is_correct"].to_list() == [False, False]


def test_a_refusal_of_trees_is_kept_with_its_reason(make_llama, tokenizer, make_settings, choice_items):
    model = make_llama()
    first = score_task(model, tokenizer, choice_items, make_settings(), 512)
    assert first.trees == OptionTrees(None)
    refused = score_task(model, tokenizer, choice_items, make_settings(), 512, OptionTrees("because"))
    assert (refused.scored_by, refused.note, refused.trees) == ("separate_rows", "because", OptionTrees("because"))
    assert refused.items["prediction"].to_list() == first.items["prediction"].to_list()


def test_cut_items_count_and_are_counted(make_llama, tokenizer, make_settings):
    long = "The court held that the statute of limitations had run. " * 8
    long_options = (" yes it had", " no it had not")
    items = [Item("long", long, long_options, " yes it had", 0), Item("short", "Anna", (" b", " c"), " b", 0)]
    scored = score_task(make_llama(context=40), tokenizer, items, make_settings(), 512)
    assert scored.num_truncated == 1
    assert len(scored.items) == 2
    losses = score_task(make_llama(context=40), tokenizer, items, make_settings("loss"), 512)
    assert losses.num_truncated == 1


def test_losses_of_texts(make_llama, tokenizer, make_settings):
    model = make_llama()
    texts = ["Once upon a time there was a girl.", "Straße in Berlin", ""]
    items = [Item(f"t{number}", "", (), text) for number, text in enumerate(texts)]
    scored = score_task(model, tokenizer, items, make_settings("loss"), 512)
    total, tokens = 0.0, 0
    for text, row in zip(texts, scored.items.iter_rows(named=True), strict=True):
        ids = tokenizer.encode(text)  # opens with <s>
        assert ids[0] == tokenizer.bos_token_id
        with torch.no_grad():
            logits = torch.log_softmax(model(torch.tensor([ids])).logits[0], dim=-1)
        nll = -sum(logits[at - 1, ids[at]].item() for at in range(1, len(ids)))
        assert row["nll_nats"] == pytest.approx(nll, abs=1e-9)
        assert row["num_scored_tokens"] == len(ids) - 1
        assert row["num_bytes"] == len(text.encode())
        assert row["is_correct"] is None
        total, tokens = total + nll, tokens + len(ids) - 1
    assert scored.values["loss_nats_per_token"] == pytest.approx(total / tokens)
    num_bytes = sum(len(text.encode()) for text in texts)
    assert scored.values["bits_per_byte"] == pytest.approx(total / math.log(2) / num_bytes)
    assert (scored.num_truncated, scored.num_unfinished, scored.scored_by) == (0, None, None)


def test_generations(make_llama, tokenizer, make_settings, monkeypatch):
    written = iter(["1 + 1 = 2. #### 2", "so 2", "nothing"])

    seen = {}

    def fake(model, tokenizer, prompts, **options):
        seen.update(options, prompts=prompts)
        return [Generation((), next(written), is_truncated=False, is_unfinished=prompt != "p1") for prompt in prompts]

    monkeypatch.setattr(tasks, "generate", fake)
    items = [Item(f"i{number}", f"p{number}", (), "1 + 1 = 2. #### 2") for number in range(3)]
    settings = make_settings("generate", "number", stop=("Question:",))
    scored = score_task(make_llama(), tokenizer, items, settings, 512)
    assert seen == {"prompts": ["p0", "p1", "p2"], "max_new_tokens": 16, "stop": ("Question:",), "max_tokens": 512}
    assert (scored.num_truncated, scored.num_unfinished) == (0, 2)
    assert scored.items["prediction"].to_list() == ["2", "2", None]
    assert scored.items["is_correct"].to_list() == [True, True, False]
    assert scored.items["is_correct_strict"].to_list() == [True, False, False]
    assert scored.items["is_invalid"].to_list() == [False, False, True]
    assert scored.items["generated"].to_list() == ["1 + 1 = 2. #### 2", "so 2", "nothing"]
    assert scored.values == pytest.approx({"accuracy": 2 / 3, "accuracy_strict": 1 / 3, "invalid_fraction": 1 / 3})


def test_generation_end_to_end(make_llama, tokenizer, make_settings):
    items = [Item("a", "Anna buys", (), "pens"), Item("b", "The court", (), "held")]
    scored = score_task(make_llama(), tokenizer, items, make_settings("generate"), 512)
    assert all(scored.items["generated"])
    assert set(scored.values) == {"accuracy", "invalid_fraction"}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (Item("x", "p", (), "t"), "no options"),
        (Item("x", "p", (" a", " b"), " a", None), "no options"),
        (Item("x", "p", (" a", ""), " a", 0), "adds no tokens"),
    ],
)
def test_what_cannot_be_scored_is_said(make_llama, tokenizer, make_settings, item, message):
    with pytest.raises(UserError, match=message) as raised:
        score_task(make_llama(), tokenizer, [item], make_settings(), 512)
    assert raised.value.where == "task task, item x"


@pytest.mark.parametrize("first", ["no worked examples", "letters behind worked examples"])
def test_a_form_of_tree_is_compared_in_the_task_that_first_has_it(
    make_llama, tokenizer, make_settings, choice_items, monkeypatch, first
):
    """What was found right of options behind a prompt, or of items without options to read, says nothing of both."""
    shots = "Question: How many pens are there in 6 boxes of 4?\nAnswer: 6 * 4 = 24\n"
    assert len(tokenizer.encode(shots)) > 32  # what sharing begins at
    few_shot = [Item(i.item_id, shots + i.prompt, i.options, i.target, 0) for i in choice_items[:4]]
    ends = TextTree.ends

    def leaking(tree, start=0):
        is_nested = any(branch.branches for branch in tree.branches)
        return [10**6] * tree.total if is_nested else ends(tree, start)

    model = make_llama(torch.float32)
    monkeypatch.setattr(TextTree, "ends", leaking)
    letters = [Item(f"i{number}", f"{shots}{number}?\nAnswer:", ("A", "B"), "A", 0) for number in range(4)]
    assert all(len(tokenizer.encode_pair(item.prompt, letter)[1]) == 1 for item in letters for letter in "AB")
    items = choice_items[:3] if first == "no worked examples" else letters
    trees = score_task(model, tokenizer, items, make_settings(), 512).trees
    assert trees == OptionTrees(None)
    scored = score_task(model, tokenizer, few_shot, make_settings(), 512, trees)
    assert scored.scored_by == "separate_rows" and scored.note.startswith("option trees differed from separate rows")


def test_items_deeper_than_the_sliding_window_say_so(tokenizer, make_settings, choice_items):
    options = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MistralConfig(vocab_size=tokenizer.vocab_size, num_key_value_heads=2, sliding_window=4, **options)
    scored = score_task(MistralForCausalLM(config).eval(), tokenizer, choice_items[:2], make_settings(), 512)
    assert scored.scored_by == "separate_rows"
    assert scored.note == "no item fits the model's context and sliding window with its options"
