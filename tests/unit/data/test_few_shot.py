import json

import pytest

from model_folders import CHATML, write_tokenizer
from rankscope.data.prepare import prepare_task
from rankscope.data.tokens import Tokenizer
from rankscope.errors import UserError
from rankscope.spec import Task


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return Tokenizer.from_folder(write_tokenizer(tmp_path_factory.mktemp("plain"), bos=True))


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return Tokenizer.from_folder(write_tokenizer(tmp_path_factory.mktemp("chat"), chat=CHATML))


def question(number, **more):
    return {"question": f"What is {number} plus 1?", "answer": f"It is {number + 1}", **more}


@pytest.fixture
def folder(tmp_path):
    def write(train, test, name="set"):
        for split, rows in (("train", train), ("test", test)):
            path = tmp_path / name / f"{split}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return write


def items(tokenizer, source, few_shot, **more):
    return prepare_task("base", "t", Task(source=source, few_shot=few_shot, **more), tokenizer).items


def test_the_first_examples_of_the_split_come_before_every_item(plain, folder):
    source = folder([question(n) for n in range(10, 14)], [question(n) for n in range(3)])
    first, *others = items(plain, source, {"number": 2, "split": "train"})
    shots = "Question: What is 10 plus 1?\nAnswer: It is 11\n\nQuestion: What is 11 plus 1?\nAnswer: It is 12\n\n"
    assert first.prompt == shots + "Question: What is 0 plus 1?\nAnswer:"
    assert first.target == " It is 1"
    assert all(item.prompt.startswith(shots) for item in others)
    again = items(plain, source, {"number": 2, "split": "train"})
    assert [item.prompt for item in again] == [first.prompt, *(item.prompt for item in others)]


def test_with_a_chat_template_they_are_turns(chat, folder):
    source = folder([question(7)], [question(1)])
    (item,) = items(chat, source, {"number": 1, "split": "train"}, system_prompt="Be brief.")
    turns = [
        ("system", "Be brief."),
        ("user", "What is 7 plus 1?"),
        ("assistant", "It is 8"),
        ("user", "What is 1 plus 1?"),
    ]
    messages = [{"role": role, "content": text} for role, text in turns]
    assert item.prompt == chat.render_chat(messages, add_generation_prompt=True)
    assert item.target == "It is 2"


def test_a_row_that_the_task_asks_is_never_an_example(plain, folder):
    source = folder(
        [question(1), {**question(2), "question": "WHAT is  2 plus 1?"}, question(8)], [question(1), question(2)]
    )
    for item in items(plain, source, {"number": 1, "split": "train"}):
        assert item.prompt.startswith("Question: What is 8 plus 1?\nAnswer: It is 9\n\n")
    with pytest.raises(UserError, match="asks for 2 examples, and 1 of 3 rows"):
        items(plain, source, {"number": 2, "split": "train"})


def test_examples_are_of_the_items_category_where_it_has_enough(plain, folder):
    train = [question(10, category="a"), question(11, category="b"), question(12, category="b")]
    source = folder(train, [question(1, category="b"), question(2, category="a"), question(3)])
    of_b, of_a, of_none = items(plain, source, {"number": 2, "split": "train"})
    assert "What is 11" in of_b.prompt and "What is 12" in of_b.prompt and "What is 10" not in of_b.prompt
    for item in (of_a, of_none):  # too few of their own: the first ones of all
        assert "What is 10" in item.prompt and "What is 11" in item.prompt


def test_examples_of_other_categories_make_no_other_item_of_a_repeated_one(plain, folder):
    train = [question(10, category="a"), question(11, category="b")]
    source = folder(train, [question(1, category="a"), question(1, category="b"), question(2, category="b")])
    spec = Task(source=source, few_shot={"number": 1, "split": "train"})
    found = prepare_task("base", "t", spec, plain)
    one, twin, other = found.items
    assert one.prompt != twin.prompt
    assert one.cluster == twin.cluster is not None and other.cluster is None
    assert found.summary.num_duplicates == 1
    assert "evaluate.t: 1 of 3 items are repetitions; intervals and the verdict count 2 items" in found.warnings


def test_templates_of_presets_hold_for_the_examples_too(plain, tmp_path):
    for split in ("dev", "test"):
        path = tmp_path / "mmlu" / split / f"law_{split}.csv"
        path.parent.mkdir(parents=True)
        path.write_text(f"Which {split}?,red,green,blue,grey,{'B' if split == 'dev' else 'C'}\n")
    (item,) = items(plain, str(tmp_path / "mmlu"), 1, preset="mmlu_letters")
    listed = "A. red\nB. green\nC. blue\nD. grey\nAnswer:"
    assert item.prompt == f"Which dev?\n{listed} B\n\nWhich test?\n{listed}"
    assert (item.options, item.target) == ((" A", " B", " C", " D"), " C")
    (item,) = items(plain, str(tmp_path / "mmlu"), 1)
    assert item.prompt == "Question: Which dev?\nAnswer: green\n\nQuestion: Which test?\nAnswer:"


def test_a_description_is_said_once_and_first(plain, chat, tmp_path):
    folder = tmp_path / "legalbench" / "proa"
    folder.mkdir(parents=True)
    (folder / "train.tsv").write_text("index\tanswer\ttext\n0\tNo\tAs is.\n1\tYes\tMay sue.\n")
    (folder / "test.tsv").write_text("index\tanswer\ttext\n0\tNo\tOne.\n1\tYes\tTwo.\n")
    source = str(tmp_path / "legalbench")
    item = items(plain, source, 1, subset="proa")[0]
    said = "Say whether the clause of a statute gives a private right of action."
    assert item.prompt == f"{said}\n\nAs is.\nAnswer: No\n\nOne.\nAnswer:"
    assert item.options == (" No", " Yes")
    assert items(chat, source, 1, subset="proa")[0].prompt.count(said) == 1


def test_prompts_that_are_taken_as_written_stand_one_after_another(plain, folder):
    source = folder([{"prompt": "1+1=", "completion": "2"}], [{"prompt": "2+2=", "completion": "4"}])
    assert items(plain, source, {"number": 1, "split": "train"})[0].prompt == "1+1=2\n\n2+2="


@pytest.mark.parametrize(
    ("few_shot", "message"),
    [
        (1, "not said where"),
        ({"number": 1, "split": "test"}, "rows of the task itself"),
        ({"number": 9, "split": "train"}, "asks for 9 examples"),
        ({"number": 1, "split": "extra"}, "no split 'extra'"),
    ],
)
def test_examples_that_cannot_be_had_are_refused(plain, folder, few_shot, message):
    source = folder([question(7)], [question(1)])
    with pytest.raises(UserError, match=message) as caught:
        items(plain, source, few_shot)
    assert caught.value.where and caught.value.mend


def test_examples_of_another_form_or_of_text_are_refused(plain, folder):
    source = folder([{"text": "T"}], [question(1)])
    with pytest.raises(UserError, match="the form text, the task question_answer"):
        items(plain, source, {"number": 1, "split": "train"})
    source = folder([{"text": "T"}], [{"text": "U"}], "texts")
    with pytest.raises(UserError, match="nothing to show examples of"):
        items(plain, source, {"number": 1, "split": "train"})


def test_zero_examples_are_none(plain, folder):
    assert Task(source="x", few_shot=0).few_shot is None
