import hashlib

import pytest

from rankscope.data.examples import Item
from rankscope.data.scorers import find_scorer
from rankscope.errors import UserError
from rankscope.runs import ScorerSettings
from rankscope.scoring.answers import Judgement
from rankscope.scoring.tasks import score_task
from rankscope.scoring.user_scorer import load_scorer

ITEM = Item("i1", "How many?", (), " 42", category="sums")
CODE = """
def ends_alike(text, target, item):
    return text.endswith(target)

def reads(text, target, item):
    answer = text.split()[-1] if text.split() else None
    return (None if answer is None else answer == target, answer)

def told(text, target, item):
    return (item == {"item_id": "i1", "prompt": "How many?", "category": "sums"}, target)

def counts(text, target, item):
    return 0.5
"""


@pytest.fixture
def scorer(tmp_path):
    path = tmp_path / "ours.py"
    path.write_text(CODE)
    return lambda name: find_scorer(f"{path}:{name}")


@pytest.mark.parametrize(
    ("name", "text", "judgement"),
    [
        ("ends_alike", "It is 42", Judgement("It is 42", True, True)),
        ("ends_alike", "It is 41", Judgement("It is 41", False, False)),
        ("reads", "It is 42", Judgement("42", True, True)),
        ("reads", " ", Judgement(None, False, False)),
        ("told", "", Judgement("42", True, True)),
    ],
)
def test_the_function_judges(scorer, name, text, judgement):
    assert load_scorer(scorer(name))(text, ITEM) == judgement


def test_another_return_value_is_refused(scorer):
    with pytest.raises(UserError, match="returned float") as caught:
        load_scorer(scorer("counts"))("x", ITEM)
    assert "ours.py:counts" in caught.value.where


def test_a_file_that_changed_is_not_run(scorer, tmp_path):
    settings = scorer("told")
    mark = tmp_path / "ran"
    (tmp_path / "ours.py").write_text(CODE + f"open({str(mark)!r}, 'w')")
    with pytest.raises(UserError, match="changed since"):
        load_scorer(settings)
    assert not mark.exists()


def test_a_task_is_scored_with_it(scorer, make_llama, make_settings, tokenizer):
    items = [
        Item(str(number), f"Anna buys {number}", (), " e" if number else " nothing like it") for number in range(4)
    ]
    own = scorer("ends_alike")
    settings = make_settings("generate", max_new_tokens=6, scorer=own, answer="number")
    scored = score_task(make_llama(), tokenizer, items, settings, 512)
    expected = [text.endswith(item.target.strip()) for text, item in zip(scored.items["generated"], items, strict=True)]
    assert scored.items["is_correct"].to_list() == expected
    assert scored.values["accuracy"] == sum(expected) / 4
    assert "accuracy_strict" not in scored.values


def test_the_function_is_found_without_being_run(tmp_path):
    path, mark = tmp_path / "ours.py", tmp_path / "ran"
    path.write_text(f"open({str(mark)!r}, 'w')\ndef judge(text, target, item): return True\n")
    found = find_scorer(f"{path}:judge")
    assert found == ScorerSettings(
        path=str(path), function="judge", sha256=hashlib.sha256(path.read_bytes()).hexdigest()
    )
    assert not mark.exists()
    for named, content, message in (
        (f"{path}:judges", None, "no function 'judges'"),
        (f"{tmp_path}/no.py:judge", None, "cannot be read"),
        (f"{path}:judge", "def judge(:\n", "no valid Python"),
    ):
        if content is not None:
            path.write_text(content)
        with pytest.raises(UserError, match=message) as caught:
            find_scorer(named)
        assert caught.value.where and caught.value.mend
