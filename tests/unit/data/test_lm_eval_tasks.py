import subprocess
import sys
from importlib import metadata

import pytest

from lm_eval_tasks import NAMES, rows, write_tasks
from model_folders import CHATML, write_tokenizer
from rankscope.data.prepare import prepare_task
from rankscope.data.tokens import Tokenizer
from rankscope.errors import UserError
from rankscope.runs import evaluation_hash
from rankscope.spec import Task

pytest.importorskip("lm_eval", reason="lm_eval is not installed (extra: dev)")
pytestmark = pytest.mark.filterwarnings("ignore")  # of lm_eval and datasets, which are not ours to mend


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("lm_eval"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return Tokenizer.from_folder(write_tokenizer(tmp_path_factory.mktemp("plain"), bos=True))


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return Tokenizer.from_folder(write_tokenizer(tmp_path_factory.mktemp("chat"), chat=CHATML))


def prepare(tokenizer, tasks, name, allow_code=False, **options):
    spec = Task(lm_eval=name, include_path=str(tasks), **options)
    return prepare_task("base", "t", spec, tokenizer, allow_code=allow_code)


def test_the_kinds_of_tasks_become_items(plain, tasks):
    first = {name: prepare(plain, tasks, name).items[1] for name in NAMES}
    row = rows(2)[1]
    choice = first["ours_choice"]
    assert choice.prompt == f"Question: {row['q']}\nAnswer:"
    assert (choice.options, choice.target_index) == (tuple(f" {option}" for option in row["options"]), 1)
    blank = first["ours_blank"]
    assert blank.prompt == "" and blank.options[1] == "The a claim of the court  were in the house."
    word = first["ours_last_word"]
    assert (word.prompt, word.options, word.target_index) == (row["q"], (f" {row['options'][1]}",), 0)
    text = first["ours_text"]
    assert (text.prompt, text.target) == ("", f"{row['q']} {row['options'][0]} {row['q']}")
    assert (first["ours_sum"].target, first["ours_sum"].options) == ("1", ())


def test_settings_say_how_they_are_scored(plain, tasks):
    found = {name: prepare(plain, tasks, name).settings for name in NAMES}
    scoring = {name: settings.scoring for name, settings in found.items()}
    assert scoring == {
        "ours_choice": "multiple_choice", "ours_exact_choice": "multiple_choice", "ours_blank": "multiple_choice",
        "ours_last_word": "multiple_choice", "ours_text": "loss", "ours_sum": "generate",
    }  # fmt: skip
    assert (found["ours_text"].kind, found["ours_sum"].answer) == ("text", "number")
    harness = found["ours_choice"].harness
    assert (harness.task, harness.num_fewshot, harness.limit) == ("ours_choice", None, None)
    assert harness.version == metadata.version("lm_eval")


def test_a_change_of_the_task_files_is_scored_anew(plain, tmp_path):
    hashes = []
    for text in ("", "# another\n"):
        tasks = write_tasks(tmp_path / (text[2:4] or "first"))
        (tasks / "utils.py").write_text(text)
        settings = prepare(plain, tasks, "ours_choice").settings
        hashes.append((settings.fingerprint, evaluation_hash(settings, "model")))
    assert hashes[0][0] == hashes[1][0]
    assert hashes[0][1] != hashes[1][1]


def test_examples_and_the_chat_template_are_lm_evals(plain, chat, tasks):
    item = prepare(plain, tasks, "ours_choice", few_shot=2).items[0]
    assert item.prompt.count("Question: ") == 3 and item.prompt.count("\n\n") == 2
    assert prepare(plain, tasks, "ours_choice", few_shot=2).items[0] == item
    templated = prepare(chat, tasks, "ours_choice", apply_chat_template=True).items[0]
    assert templated.prompt.startswith("<|im_start|>user\nQuestion: ")
    assert not prepare(chat, tasks, "ours_choice").items[0].prompt.startswith("<|im_start|>")


def write(tmp_path, name, **changes):
    """A task file with something else in it."""
    tasks = write_tasks(tmp_path)
    text = (tasks / f"{name}.yaml").read_text()
    for old, new in changes.values():
        assert old in text
        text = text.replace(old, new)
    (tasks / f"{name}.yaml").write_text(text)
    return tasks


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("ours_sum", ("do_sample: false", "do_sample: true"), "at random"),
        ("ours_sum", ("metric: exact_match", "metric: bleu"), "none of which says"),
        ("ours_sum", ("output_type", "unsafe_code: true\noutput_type"), "runs the code that a model writes"),
        ("ours_choice", ("test_split: test", "test_split: nowhere"), "cannot load the task"),
        ("ours_choice", ("dataset_path: json", "dataset_path: ./no/such/set"), "cannot load the task"),
    ],
)
def test_what_cannot_be_scored_is_refused(plain, tmp_path, name, change, message):
    with pytest.raises(UserError, match=message) as caught:
        prepare(plain, write(tmp_path, name, change=change), name)
    assert caught.value.where == "evaluate.t.lm_eval" and caught.value.mend


def test_tasks_that_are_not_there_are_refused(plain, tasks, tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        prepare(plain, tmp_path / "nowhere", "ours_choice")
    with pytest.raises(UserError, match="own file says where its examples come from"):
        prepare(plain, tasks, "ours_choice", few_shot={"number": 2, "split": "shots"})


def test_lm_eval_that_is_not_installed_is_named_with_the_mend(plain, tasks, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(UserError, match="need the package lm_eval") as caught:
        prepare(plain, tasks, "ours_choice")
    assert "pip install" in caught.value.mend


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "and has neither"),
        ({"source": "x", "lm_eval": "y"}, "and not both"),
        ({"source": "x", "include_path": "y"}, "'include_path' belongs to tasks of lm_eval"),
        ({"source": "x", "apply_chat_template": True}, "'apply_chat_template' belongs"),
        ({"lm_eval": "y", "split": "test"}, "'split' cannot be set"),
        ({"lm_eval": "y", "scorer": "a.py:f"}, "'scorer' cannot be set"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Task(**options)


def test_nothing_of_torch_is_imported_to_plan():
    code = "import sys, lm_eval.tasks; sys.exit(len({'torch', 'transformers'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
