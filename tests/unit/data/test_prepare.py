import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import datasets
import huggingface_hub.constants
import pytest

from model_folders import CHATML, write_tokenizer
from rankscope.data.contamination import TrainingWords
from rankscope.data.examples import items_frame, items_from_frame
from rankscope.data.prepare import prepare_task, prepare_training_set
from rankscope.data.summaries import summary_lines
from rankscope.data.tokens import Tokenizer
from rankscope.errors import UserError
from rankscope.runs import evaluation_hash
from rankscope.spec import Task, TrainingSet

QA = [{"question": f"What is {number} plus 1?", "answer": f"It is {number + 1}"} for number in range(40)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return Tokenizer.from_folder(write_tokenizer(tmp_path_factory.mktemp("plain"), bos=True))


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = write_tokenizer(tmp_path_factory.mktemp("chat"), chat=CHATML)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 4]}))
    return Tokenizer.from_folder(folder)


@pytest.fixture
def source(tmp_path):
    def write(rows, name="data.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def train(tokenizer, source, max_length=128, batch_size=2, **options):
    spec = TrainingSet(source=source, **options)
    return prepare_training_set("base", "ours", spec, tokenizer, max_length, batch_size)


def task(tokenizer, source, **options):
    return prepare_task("base", "ours", Task(source=source, **options), tokenizer)


def test_questions_become_plain_prompts_and_end_with_the_end_token(plain, source):
    data = train(plain, source(QA))
    assert len(data.examples) == len(data.texts) == data.summaries[0].num_used
    assert len(data.texts) + len(data.validation_texts) == 40
    for text, example in zip(data.texts, data.examples, strict=True):
        number = int(text.prompt.split()[3])
        assert text.prompt == f"Question: What is {number} plus 1?\nAnswer:"
        assert text.completion == f" It is {number + 1}"
        assert list(example.input_ids) == [*plain.encode(text.prompt + text.completion), plain.eos_token_id]
        assert list(example.input_ids[: example.num_prompt_tokens]) == plain.encode(text.prompt)
        assert example.example_id == text.example_id


def test_questions_go_through_the_chat_template(chat, source):
    data = train(chat, source(QA))
    text, example = data.texts[0], data.examples[0]
    assert text.prompt.startswith("<|im_start|>user\nWhat is")
    assert text.prompt.endswith("<|im_start|>assistant\n")
    assert text.completion == "It is 1"
    # Exactly the answer and what closes the turn are learned.
    assert chat.decode(example.input_ids[example.num_prompt_tokens :], skip_special_tokens=False) == "It is 1<|im_end|>"
    assert chat.decode(example.input_ids, skip_special_tokens=False) == text.prompt + "It is 1<|im_end|>"


def test_several_turns_without_a_chat_template(plain, source):
    turns = [("system", "Be brief."), ("user", "One?"), ("assistant", "1"), ("user", "Two?"), ("assistant", "2")]
    rows = [{"messages": [{"role": role, "content": text + extra} for role, text in turns]} for extra in ("", "!", ".")]
    data = train(plain, source(rows), validation={"fraction": 0.01})
    texts = data.texts + data.validation_texts
    prompt = "Be brief.\n\nQuestion: One?\nAnswer: 1\n\nQuestion: Two?\nAnswer:"
    assert (prompt, " 2") in [(text.prompt, text.completion) for text in texts]
    assert data.validation_settings.scoring == "loss"


def test_validation_is_the_same_for_every_base_and_does_not_move(plain, chat, source):
    lines = {
        name: {text.line for text in train(tokenizer, source(QA)).validation_texts}
        for name, tokenizer in (("plain", plain), ("chat", chat))
    }
    assert lines["plain"] == lines["chat"] != set()
    more = train(plain, source([*QA, {"question": "Another?", "answer": "Yes"}]))
    assert {text.line for text in more.validation_texts} - {41} == lines["plain"]


def test_validation_of_its_own(plain, source):
    own = source([{"question": "Own?", "answer": "Yes"}] * 2, "own.jsonl")
    data = train(plain, source(QA), validation={"source": own, "max_examples": 1})
    assert len(data.texts) == 40
    assert [item.prompt for item in data.validation_items] == ["Question: Own?\nAnswer:"]
    assert data.summaries[1].role == "validation"
    other_split = train(plain, "smallworld:medical_new", validation={"split": "validation"})
    assert other_split.validation_settings.scoring == "multiple_choice"
    assert other_split.validation_settings.kind == "recall"


def test_held_out_rows_beyond_the_most_that_are_used_are_not_trained_on(plain, source):
    rows = [{"question": f"Is {number} a number?", "answer": "yes"} for number in range(300)]
    few = train(plain, source(rows), validation={"fraction": 0.5, "max_examples": 10})
    many = train(plain, source(rows), validation={"fraction": 0.5})
    assert few.fingerprint == many.fingerprint
    assert len(few.validation_items) == 10


def test_summaries_count_what_was_understood(plain, source):
    data = train(plain, source(QA))
    summary = data.summaries[0]
    assert summary.num_rows == 40
    assert summary.num_tokens == sum(len(example.input_ids) for example in data.examples)
    assert summary.num_scored_tokens == sum(example.num_scored_tokens for example in data.examples)
    assert summary.longest_tokens == max(len(example.input_ids) for example in data.examples)
    assert (summary.form, summary.role) == ("question_answer", "train")
    assert summary.sample_prompt + summary.sample_trained == f"<s>{data.texts[0].prompt}{data.texts[0].completion}</s>"


def test_fields_that_are_not_read_are_shown(plain, source):
    rows = [{**row, "passage": "P", "index": 3} for row in QA]
    (line,) = [line for line in summary_lines(task(plain, source(rows)).summary) if "not read" in line]
    assert line.strip() == "not read of its rows: passage, index"
    assert not any("not read" in line for line in summary_lines(task(plain, source(QA)).summary))


def test_fingerprint_is_of_the_trained_tokens(plain, source):
    first = train(plain, source(QA)).fingerprint
    assert train(plain, source(QA)).fingerprint == first
    assert train(plain, source([*QA[:-1], {**QA[-1], "answer": "It is not"}])).fingerprint != first


def test_multiple_choice_teaches_the_right_text_and_compares_all(plain, source):
    rows = [{"question": f"{n}?", "choices": ["red", "green"], "answer": n % 2, "id": f"q{n}"} for n in range(20)]
    assert {text.completion for text in train(plain, source(rows)).texts} == {" red", " green"}
    scored = task(plain, source(rows))
    assert scored.settings.scoring == "multiple_choice"
    item = scored.items[3]
    assert (item.item_id, item.prompt, item.options) == ("q3", "Question: 3?\nAnswer:", (" red", " green"))
    assert (item.target, item.target_index) == (" green", 1)
    free = task(plain, source(rows), scoring="generate")
    assert (free.items[3].options, free.items[3].target, free.items[3].target_index) == ((), " green", None)
    assert (free.settings.answer, free.settings.stop) == ("text", ("\n",))
    loss = task(plain, source(rows), scoring="loss")
    assert (loss.items[3].prompt, loss.items[3].target) == ("Question: 3?\nAnswer:", " green")


def test_options_are_listed_by_letter_where_the_preset_says_so(plain, chat, source):
    rows = [{"question": "Which?", "choices": ["red", "green"], "answer": 1, "subject": "x"}]
    item = task(plain, source(rows), preset="mmlu_letters").items[0]
    assert item.prompt == "Which?\nA. red\nB. green\nAnswer:"
    assert (item.options, item.target, item.category) == ((" A", " B"), " B", "x")
    item = task(chat, source(rows), preset="mmlu_letters").items[0]
    assert "Which?\nA. red\nB. green<|im_end|>" in item.prompt
    assert item.options == ("A", "B")


def test_braces_in_the_data_are_only_text(plain, source):
    item = task(plain, source([{"question": "{options} {question} {0}", "answer": "{x}"}])).items[0]
    assert (item.prompt, item.target) == ("Question: {options} {question} {0}\nAnswer:", " {x}")


@pytest.mark.parametrize(
    ("answers", "kind", "stop"),
    [
        (["a\n#### 4", "b\n#### 5"], "number", ("Question:",)),
        (["4", "1,250.5"], "number", ("\n",)),
        (["A", "B"], "letter", ("\n",)),
        (["Paris", "4"], "text", ("\n",)),
        (["one\ntwo", "three"], "text", ("Question:",)),
    ],
)
def test_generated_answers_are_read_as_all_right_answers_look(plain, source, answers, kind, stop):
    settings = task(plain, source([{"question": str(n), "answer": text} for n, text in enumerate(answers)])).settings
    assert (settings.scoring, settings.answer, settings.stop) == ("generate", kind, stop)


def test_plain_text_is_scored_and_trained_whole(plain, source):
    rows = [{"text": f"Story {number}. The end."} for number in range(30)]
    scored = task(plain, source(rows))
    assert (scored.settings.scoring, scored.settings.kind) == ("loss", "text")
    assert (scored.items[0].prompt, scored.items[0].target) == ("", "Story 0. The end.")
    example = train(plain, source(rows)).examples[0]
    assert example.num_prompt_tokens == 1
    assert example.input_ids[0] == plain.bos_token_id


def test_prompt_and_completion_are_taken_as_written(chat, source):
    rows = [{"prompt": f"{number} + 1 = ", "completion": str(number + 1)} for number in range(30)]
    data = train(chat, source(rows))
    texts = {(text.prompt, text.completion) for text in (*data.texts, *data.validation_texts)}
    assert texts == {(f"{number} + 1 = ", str(number + 1)) for number in range(30)}
    assert data.validation_settings.scoring == "loss"
    scored = task(chat, source(rows))
    assert (scored.items[0].prompt, scored.items[0].target) == ("0 + 1 = ", "1")


def test_ids_are_made_of_the_content_and_unique(plain, source):
    forwards, backwards = train(plain, source([*QA, QA[0]])), train(plain, source([QA[0], *QA][::-1]))
    for data in (forwards, backwards):
        assert len({text.example_id for text in data.texts}) == len(data.texts)
    assert {text.example_id for text in forwards.texts} == {text.example_id for text in backwards.texts}
    ids = [item.item_id for item in task(plain, source([{**QA[0], "id": name} for name in ("a", "a", "a-2")])).items]
    assert len(set(ids)) == 3


# What is unusual is counted and said ---------------------------------------------------------------------------------


def test_duplicates_are_counted(plain, source):
    data = train(plain, source(QA * 2))
    assert data.summaries[0].num_duplicates == len(data.texts) / 2 > 0
    assert any("are repetitions" in warning for warning in data.warnings)
    text = f"{len(QA)} of {2 * len(QA)} items are repetitions; intervals and the verdict count {len(QA)} items"
    assert task(plain, source(QA * 2)).warnings == [f"evaluate.ours: {text}"]
    passages = [{**row, "cluster": str(number // 2)} for number, row in enumerate(QA)]
    counted = (len(QA) + 1) // 2
    text = f"the {len(QA)} items are of {counted} clusters; intervals and the verdict count {counted} items"
    assert task(plain, source(passages)).warnings == [f"evaluate.ours: {text}"]
    assert train(plain, source(QA)).warnings == task(plain, source(QA)).warnings == []


def test_long_examples_are_cut_on_the_right_and_counted(plain, source):
    rows = [{"question": f"{number}?", "answer": "a b c d e f g h i j k l m n o p"} for number in range(20)]
    whole, cut = train(plain, source(rows)), train(plain, source(rows), max_length=20)
    assert any(warning.endswith("are longer than 20 tokens") for warning in cut.warnings)
    assert cut.summaries[0].num_truncated == len(cut.examples) == len(whole.examples)
    for long, short in zip(whole.examples, cut.examples, strict=True):
        assert short.input_ids == long.input_ids[:20]
        assert short.num_prompt_tokens == long.num_prompt_tokens


def test_examples_whose_prompt_fills_everything_are_left_out_and_counted(plain, source):
    rows = [*QA, {"question": "very " * 200, "answer": "long"}]
    data = train(plain, source(rows), validation={"fraction": 0.01})
    assert len(data.texts) == len(data.examples)
    assert any("1 of" in warning and "are left out" in warning for warning in data.warnings)
    assert (data.summaries[0].num_refused, data.summaries[0].num_truncated) == (1, 0)  # what is left out is not cut


def test_items_that_do_not_fit_the_model_are_counted(plain, source):
    scored = task(plain, source([*QA, {"question": "very " * 400, "answer": "long"}]))
    assert scored.summary.num_truncated == 1
    assert any("1 of 41 items are longer than the model's 256 positions" in text for text in scored.warnings)


def test_items_of_one_passage_and_items_that_stand_there_twice_are_a_cluster(plain, source):
    choices = {"choices": ["red", "blue"], "answer": 0}
    rows = [
        {"question": "Which color?", **choices, "passage": "one"},
        {"question": "Which paint?", **choices, "passage": "one"},
        {"question": "Which ink?", "choices": ["red", "blue"], "answer": 1, "passage": None},
        {"question": "which  ink?", "choices": ["blue", "red"], "answer": 0, "passage": None},
        {"question": "Which ink?", "choices": ["grey", "black"], "answer": 1, "passage": None},
    ]
    items = task(plain, source(rows), columns={"cluster": "passage"}).items
    one, two, *twins, other = [item.cluster for item in items]
    assert one == two == "one"
    assert twins[0] == twins[1] and twins[0] is not None
    assert other is None
    assert items_from_frame(items_frame(items)) == items


def test_options_that_repeat_are_counted(plain, source):
    rows = [{"question": "Q", "choices": list(options), "answer": 0} for options in ("xyy", "xyz")]
    assert task(plain, source(rows)).warnings == ["evaluate.ours: 1 of 2 items have two options with the same text"]


def test_test_items_in_the_training_set_are_counted(plain, source):
    data = train(plain, source(QA))
    asked = [text.prompt for text in data.texts]
    seen = {"question": asked[0].split(": ")[1].split("\n")[0].upper() + " ", "answer": "something else"}
    scored = task(plain, source([seen, {"question": "New?", "answer": "Yes"}], "test.jsonl"))
    assert TrainingWords(data.said).overlaps({"t": scored.said}) == {"t": (1, 0)}
    texts = [{"text": f"Story {number}."} for number in range(20)]
    data = train(plain, source(texts))
    scored = task(plain, source(texts))
    assert TrainingWords(data.said).overlaps({"t": scored.said}) == {"t": (len(data.texts), 0)}


def test_validation_items_in_the_training_set_are_counted(plain, source):
    data = train(plain, source(QA), validation={"source": source(QA[:3], "own.jsonl")})
    assert any("3 of 3 validation items are in the training set too" in warning for warning in data.warnings)


# Conversations -------------------------------------------------------------------------------------------------------

TALK = [("system", "Be kind."), ("user", "One?"), ("assistant", "1"), ("user", "Two?"), ("assistant", "2")]


def talks(number):
    def messages(index):
        return [{"role": role, "content": f"{text}{index}" if role == "user" else text} for role, text in TALK]

    return [{"messages": messages(index)} for index in range(number)]


def test_all_answers_of_a_conversation_can_be_learned(chat, source):
    last = train(chat, source(talks(30)))
    every = train(chat, source(talks(30)), assistant_turns="all")
    assert len(every.texts) == 2 * len(last.texts)
    # The same conversations are held out, and each answer has the very turns before it.
    assert [text.prompt for text in every.validation_texts] == [text.prompt for text in last.validation_texts]
    first, second = every.texts[:2]
    assert (first.completion, second.completion) == ("1", "2")
    assert second.prompt == last.texts[0].prompt
    assert second.prompt.startswith(f"{first.prompt}1")
    assert len({text.example_id for text in every.texts}) == len(every.texts)


def test_a_system_prompt_stands_first_where_there_is_none(chat, plain, source):
    own = train(chat, source(talks(30)), system_prompt="Be brief.")
    assert all("Be kind." in text.prompt and "Be brief." not in text.prompt for text in own.texts)
    for text in train(chat, source(QA), system_prompt="Be brief.").texts:
        assert text.prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    data = train(plain, source(QA), system_prompt="Be brief.")
    prompts = [text.prompt for text in data.texts] + [item.prompt for item in data.validation_items]
    assert all(prompt.startswith("Be brief.\n\nQuestion: ") for prompt in prompts)
    assert task(plain, source(QA), system_prompt="Be brief.").items[0].prompt.startswith("Be brief.\n\nQuestion: ")


@pytest.mark.parametrize("row", [{"text": "T"}, {"prompt": "P", "completion": "C"}])
def test_a_system_prompt_has_no_place_in_what_is_taken_as_written(plain, source, row):
    with pytest.raises(UserError, match="taken as they are written") as caught:
        train(plain, source([row] * 20), system_prompt="Be brief.")
    assert caught.value.where == "train.ours.system_prompt"


def test_columns_of_a_validation_source_of_its_own(plain, source):
    own = source([{"ask": f"Own {n}?", "say": "Yes"} for n in range(3)], "own.jsonl")
    columns = {"question": "ask", "answer": "say"}
    data = train(plain, source(QA), validation={"source": own, "columns": columns})
    assert [text.completion for text in data.validation_texts] == [" Yes"] * 3


# Which version of the data it is --------------------------------------------------------------------------------------


def test_settings_say_which_version_of_the_data_was_read(plain, source):
    path = source(QA)
    data, scored = train(plain, path), task(plain, path)
    content = hashlib.sha256(hashlib.sha256(Path(path).read_bytes()).digest()).hexdigest()
    for version in (data.version, scored.settings.data, data.validation_settings.data):
        assert (version.source, version.sha256, version.commit) == (path, content, None)
    world = task(plain, "smallworld:general_recall", split="test").settings.data
    assert (world.source, world.split, len(world.sha256)) == ("smallworld:general_recall", "test", 64)


def test_the_same_items_from_elsewhere_are_scored_as_before(plain, source):
    here, there = (task(plain, source(QA, name)).settings for name in ("here.jsonl", "there.jsonl"))
    assert here != there
    assert evaluation_hash(here, "model") == evaluation_hash(there, "model")


# What is malformed is refused ----------------------------------------------------------------------------------------


def test_fewer_examples_than_a_batch_are_refused_with_both_numbers(plain, source):
    with pytest.raises(UserError, match=r"has \d+ examples, fewer than the batch of 64") as caught:
        train(plain, source(QA), batch_size=64)
    assert caught.value.where == "train.ours"
    assert "batch_size" in caught.value.mend


def test_rows_that_all_ask_the_same_are_not_told_to_be_more(plain, source):
    rows = [{"question": "Write a poem.", "answer": f"Poem {number}"} for number in range(50)]
    for options in ({}, {"part": "train"}):
        with pytest.raises(UserError, match="the 50 rows ask only 1 different things") as caught:
            train(plain, source(rows), **options)
        assert "columns" in caught.value.mend


def test_prompts_that_fill_everything_are_named_as_the_reason(plain, source):
    rows = [{"question": f"{number} " + "very " * 100, "answer": "long"} for number in range(20)]
    with pytest.raises(UserError, match=r"the prompts of \d+ of \d+ rows fill all of 40 tokens.*no examples") as caught:
        train(plain, source(rows), max_length=40, batch_size=1)
    assert "max_length" in caught.value.mend and "batch_size" not in caught.value.mend


def test_nothing_to_validate_on_is_refused(plain, source):
    for options in ({"fraction": 0.0}, {"fraction": 1.0}):
        with pytest.raises(UserError, match="leaves none") as caught:
            train(plain, source(QA), validation=options)
        assert "validation" in caught.value.mend
    with pytest.raises(UserError, match="leaves none to train on"):
        train(plain, source(QA[:1]), batch_size=1)


def test_validation_that_does_not_fit_is_refused(plain, source):
    own = source([{"question": "very " * 100, "answer": "long"}], "own.jsonl")
    with pytest.raises(UserError, match="no validation row fits"):
        train(plain, source(QA), max_length=40, validation={"source": own})


def test_a_split_that_is_not_looked_for_in_a_file_is_said(plain, tmp_path):
    for name, split, is_said in (
        ("ours", "test", True), ("train", "test", True), ("ours_test", "test", False), ("dev", "validation", False),
        ("ours", None, False),
    ):  # fmt: skip
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps({"question": "Q", "answer": "A"}) + "\n")
        said = prepare_task("base", "ours", Task(source=str(path), split=split), plain).warnings
        assert said == (
            [f"evaluate.ours: {path} is one file, read whole whatever `split: test` asks for"] if is_said else []
        )
    rows = "".join(json.dumps({"question": f"Q{n}", "answer": "A"}) + "\n" for n in range(40))
    path.write_text(rows)
    spec = TrainingSet(source=str(path), split="train")
    assert any("read whole" in text for text in prepare_training_set("base", "ours", spec, plain, 64, 1).warnings)


def test_a_tag_whose_commit_nothing_here_knows_is_said(plain, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    table = datasets.Dataset.from_list([{"question": "Q", "answer": "A"}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_arguments, **_options: table)
    (said,) = prepare_task("base", "ours", Task(source="org/set", revision="v1"), plain).warnings
    assert said.startswith("evaluate.ours: which commit `revision: v1` is")


def test_scoring_that_does_not_fit_the_rows_is_refused(plain, source):
    with pytest.raises(UserError, match="no options to choose from") as caught:
        task(plain, source(QA), scoring="multiple_choice")
    assert "generate" in caught.value.mend


@pytest.mark.parametrize("content", ["", "{\n", '{"question": "Q"}\n'])
def test_malformed_files_are_refused_by_both(plain, tmp_path, content):
    (tmp_path / "bad.jsonl").write_text(content)
    for prepare in (train, task):
        with pytest.raises(UserError) as caught:
            prepare(plain, str(tmp_path / "bad.jsonl"))
        assert "bad.jsonl" in caught.value.where
        assert caught.value.mend


def test_nothing_here_imports_torch_or_transformers():
    code = (
        "import sys, rankscope.data.prepare, rankscope.data.hub, rankscope.data.order\n"
        "loaded = {'torch', 'transformers', 'peft', 'datasets', 'huggingface_hub'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_fifteen_thousand_questions_take_seconds(plain, source):
    rows = [
        {"question": f"What is the capital of place {n}, in the north?", "choices": list("abcd"), "answer": n % 4}
        for n in range(15_000)
    ]
    path = source(rows)
    start = time.process_time()
    task(plain, path)
    assert time.process_time() - start < 20  # processor time, on a machine that may be busy; about 3 s of wall time


def test_of_rows_sorted_by_category_the_first_of_each_are_taken_in_turn(plain, source, tmp_path):
    """The first 6 rows of MMLU would be 6 of its first subject."""

    def asked(names):
        return [
            {"question": f"q{i}", "choices": ["a", "b"], "answer": 0, "category": name} for i, name in enumerate(names)
        ]

    def taken(rows, number):
        return [item.category for item in task(plain, source(rows), max_examples=number).items]

    blocks = ["law"] * 4 + ["physics"] * 2 + ["art"] * 4
    assert taken(asked(blocks), 6) == ["law"] * 2 + ["physics"] * 2 + ["art"] * 2
    assert taken(asked(blocks), 8) == ["law"] * 3 + ["physics"] * 2 + ["art"] * 3
    assert taken(asked(blocks), 20) == blocks
    mixed = ["law", "art", "law", "law", "art", "art"]
    assert taken(asked(mixed), 3) == mixed[:3], "rows that are not sorted are taken from the top"
    assert taken(asked([None] * 5), 2) == [None] * 2
    for name in ("anatomy", "virology"):  # a file for each subject, as MMLU was published
        lines = "".join(f"{name} {i},a,b,c,d,A\n" for i in range(5))
        (tmp_path / "mmlu" / "test").mkdir(parents=True, exist_ok=True)
        (tmp_path / "mmlu" / "test" / f"{name}_test.csv").write_text(
            "question,choice0,choice1,choice2,choice3,answer\n" + lines
        )
    found = task(plain, str(tmp_path / "mmlu" / "test"), preset="mmlu", max_examples=4)
    assert [item.category for item in found.items] == ["anatomy"] * 2 + ["virology"] * 2
