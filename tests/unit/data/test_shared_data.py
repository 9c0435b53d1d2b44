"""The real data beside the repository: every layout loads, whole, with the right answers."""

import csv
import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from rankscope.data.contamination import TrainingWords
from rankscope.data.prepare import prepare_task, prepare_training_set
from rankscope.data.tokens import Tokenizer
from rankscope.errors import UserError
from rankscope.spec import Task, TrainingSet

SHARED = Path(os.environ.get("RANKSCOPE_SHARED", Path(__file__).parents[4] / "shared")) / "data"
pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data is not at {SHARED}"),
]

MMLU_REPETITIONS = 105

# folder, split, items, scoring, kind, options an item
TASKS = [
    ("paper/gsm8k", "train", 7473, "generate", "reasoning", {0}),
    ("paper/gsm8k", None, 1319, "generate", "reasoning", {0}),
    ("paper/mathqa", None, 2985, "multiple_choice", "reasoning", {5}),
    ("paper/mmlu", None, 14042, "multiple_choice", "recall", {4}),
    ("paper/mmlu", "dev", 285, "multiple_choice", "recall", {4}),
    ("paper/medmcqa", None, 4183, "multiple_choice", "recall", {4}),
    ("paper/casehold", None, 1000, "multiple_choice", "recall", {5}),
    ("retention/arc_challenge", "train", 1119, "multiple_choice", "recall", {3, 4, 5}),
    ("retention/arc_challenge", None, 1172, "multiple_choice", "recall", {3, 4, 5}),
    ("retention/arc_easy", "train", 2251, "multiple_choice", "recall", {3, 4, 5}),
    ("retention/arc_easy", None, 2376, "multiple_choice", "recall", {3, 4, 5}),
    ("retention/piqa", None, 1838, "multiple_choice", "recall", {2}),
    ("retention/winogrande", None, 1267, "multiple_choice", "recall", {2}),
    ("retention/tinystories", None, 1000, "loss", "text", {0}),
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_folder(SHARED / "models" / "stories3M")


@pytest.mark.parametrize(("folder", "split", "number", "scoring", "kind", "options"), TASKS)
def test_every_layout_loads_whole(tokenizer, folder, split, number, scoring, kind, options):
    task = prepare_task("base", "task", Task(source=str(SHARED / folder), split=split), tokenizer)
    assert len(task.items) == number
    assert (task.settings.scoring, task.settings.kind) == (scoring, kind)
    assert {len(item.options) for item in task.items} <= options
    assert len({item.item_id for item in task.items}) == number
    for item in task.items:
        if item.options:
            assert item.options[item.target_index] == item.target


def rows_of(path):
    text = (SHARED / path).read_text(encoding="utf-8")
    return json.loads(text) if path.endswith(".json") else [json.loads(line) for line in text.splitlines()]


def items_of(tokenizer, folder):
    return prepare_task("base", "task", Task(source=str(SHARED / folder)), tokenizer).items


def test_medmcqa_counts_from_one(tokenizer):
    items = items_of(tokenizer, "paper/medmcqa")
    for row, item in zip(rows_of("paper/medmcqa/dev.jsonl"), items, strict=True):
        assert item.target == " " + row["op" + "abcd"[row["cop"] - 1]].strip()
        assert item.category == row["subject_name"]


def test_gsm8k_keeps_the_worked_answer(tokenizer):
    task = prepare_task("base", "task", Task(source=str(SHARED / "paper/gsm8k")), tokenizer)
    for row, item in zip(rows_of("paper/gsm8k/test.jsonl"), task.items, strict=True):
        assert (item.prompt, item.target) == (f"Question: {row['question']}\nAnswer:", f" {row['answer']}")
    assert (task.settings.answer, task.settings.stop) == ("number", ("Question:",))


def test_mathqa_options_are_cut_out_of_the_text(tokenizer):
    items = items_of(tokenizer, "paper/mathqa")
    for row, item in zip(rows_of("paper/mathqa/test.json"), items, strict=True):
        assert item.target_index == "ABCDE".index(row["answer"])
        assert "options" not in item.prompt.lower().removesuffix("answer:") or "The options:" not in item.prompt
        place = re.escape(f"{row['answer']} )") + r"\s*" + re.escape(item.target.strip())
        assert re.search(place, row["instruction"])


@pytest.mark.parametrize("name", ["arc_easy", "arc_challenge", "piqa", "winogrande"])
def test_right_options_are_those_that_the_text_numbers(tokenizer, name):
    items = items_of(tokenizer, f"retention/{name}")
    for row, item in zip(rows_of(f"retention/{name}/test.json"), items, strict=True):
        assert int(row["answer"][-1]) == item.target_index + 1
        shown = re.split(rf"{row['answer'][:-1]}\d:", row["instruction"], flags=re.IGNORECASE)[item.target_index + 1]
        if name == "winogrande":
            sentence = row["instruction"].split("sentence: ")[1].split("\n")[0]
            option = shown.split("Answer format")[0].strip()
            assert " ".join((item.prompt + item.target).split()) == " ".join(sentence.replace("_", option, 1).split())
        else:
            assert shown.strip().startswith(item.target.strip())


def test_mmlu_has_57_subjects_and_counts_from_zero(tokenizer):
    items = items_of(tokenizer, "paper/mmlu")
    subjects = Counter(item.category for item in items)
    assert len(subjects) == 57
    assert subjects["anatomy"] == 135
    first = next(item for item in items if item.category == "anatomy")
    assert (first.target_index, first.target) == (0, " paralysis of the facial muscles.")


def test_casehold_answers_are_texts(tokenizer):
    items = items_of(tokenizer, "paper/casehold")
    for row, item in zip(rows_of("paper/casehold/case_hold.jsonl"), items, strict=True):
        assert item.target == " " + row["answer"].strip()


def test_the_repetitions_of_mmlu_are_counted(tokenizer):
    task = prepare_task("base", "task", Task(source=str(SHARED / "paper/mmlu")), tokenizer)
    # Items whose question, options and right option have all been there before: counted by hand from the files.
    seen, repeated = set(), 0
    for path in sorted((SHARED / "paper/mmlu/test").glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                cells = tuple(row[name].strip() for name in ("question", "choice0", "choice1", "choice2", "choice3"))
                key = (*cells, row["answer"])
                repeated += key in seen
                seen.add(key)
    assert task.summary.num_duplicates == repeated == MMLU_REPETITIONS
    assert any(f"{repeated} of 14042 items are repetitions" in warning for warning in task.warnings)


def test_the_long_rows_of_casehold_are_counted(tokenizer):
    """299 of the first 300 exceed 512 tokens of this small vocabulary, with their prompts alone."""
    source = str(SHARED / "paper/casehold")
    task = prepare_task("base", "t", Task(source=source, max_examples=300), tokenizer)
    assert task.summary.num_truncated == 299
    assert any("299 of 300 items are longer than the model's 512 positions" in text for text in task.warnings)
    spec = TrainingSet(source=source, max_examples=300, validation={"source": source})
    with pytest.raises(UserError, match="the prompts of 299 of 300 rows fill all of 512 tokens") as caught:
        prepare_training_set("base", "ours", spec, tokenizer, 512, 8)
    assert "max_length" in caught.value.mend
    data = prepare_training_set("base", "ours", spec, tokenizer, 1024, 8)
    summary = data.summaries[0]
    assert summary.num_rows == 300 and summary.num_used + summary.num_refused == 300
    texts = [
        f"Question: {row['input_text']}\nAnswer: {row['answer']}" for row in rows_of("paper/casehold/case_hold.jsonl")
    ]
    longer = sum(len(tokenizer.encode(text)) + 1 > 1024 for text in texts[:300])
    assert summary.num_truncated + summary.num_refused == longer > 0
    assert any("are longer than 1024 tokens" in warning for warning in data.warnings)


def test_questions_of_gsm8k_are_found_in_themselves_and_not_in_others(tokenizer):
    """Against sets of Python's own, on real text."""
    source = str(SHARED / "paper/gsm8k")
    train, test = (
        prepare_task("base", "t", Task(source=source, split=split, max_examples=300), tokenizer).said
        for split in ("train", "test")
    )

    def runs(said):
        words = re.findall(r"\w+", said.text.casefold())
        return {tuple(words[start : start + 13]) for start in range(len(words) - 12)}

    known = set().union(*map(runs, train))
    expected = sum(bool(runs(said) & known) for said in test)
    assert TrainingWords(train).overlaps({"test": test, "train": train}) == {"test": (0, expected), "train": (300, 300)}


def test_worked_examples_of_mmlu_are_of_the_items_subject(tokenizer):
    task = prepare_task(
        "base",
        "t",
        Task(source=str(SHARED / "paper/mmlu"), few_shot={"number": 5, "split": "dev"}, max_examples=300),
        tokenizer,
    )
    item = next(item for item in task.items if item.category == "anatomy")
    with (SHARED / "paper/mmlu/dev/anatomy_dev.csv").open(newline="", encoding="utf-8") as stream:
        dev = next(csv.DictReader(stream))
    assert item.prompt.count("Question: ") == 6
    assert item.prompt.startswith(f"Question: {dev['question']}\nAnswer: ")


def test_wikitext_is_read_by_sections_and_loses_no_word(tokenizer):
    items = items_of(tokenizer, "retention/wikitext2")
    text = (SHARED / "retention/wikitext2/test.txt").read_text(encoding="utf-8")
    assert "\n".join(item.target for item in items).split() == text.split()
    assert not any(re.fullmatch(r"\s*=.*=\s*", item.target) for item in items)


@pytest.mark.parametrize(("folder", "split"), [("paper/gsm8k", "train"), ("paper/medmcqa", "dev")])
def test_training_sets_are_split_whole(tokenizer, folder, split):
    spec = TrainingSet(source=str(SHARED / folder), split=split, max_examples=2000)
    data = prepare_training_set("base", "ours", spec, tokenizer, 512, 8)
    assert data.summaries[0].num_rows == 2000
    # About a tenth is held out: within four standard deviations.
    assert abs(2000 - len(data.texts) - 200) < 60
    assert len(data.validation_items) <= 200
    for example in data.examples[:200]:
        assert example.input_ids[0] == tokenizer.bos_token_id
        assert example.input_ids[-1] == tokenizer.eos_token_id or len(example.input_ids) == 512
