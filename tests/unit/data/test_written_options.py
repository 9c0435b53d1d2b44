"""Options inside a text: found where every row has them, and never taken out of what the row says."""

import pytest

from rankscope.data.forms import understand
from rankscope.data.readers import Row
from rankscope.data.sources import Rows
from rankscope.data.written_options import written_options
from rankscope.errors import UserError

LINES = "What grows?\nA) a tree\nB) a stone\nC) the letter B) itself"


def read(*values):
    return understand(Rows([Row(row, "data.jsonl", number) for number, row in enumerate(values, start=1)], "files"))


@pytest.mark.parametrize(
    ("text", "labels", "options"),
    [
        ("A. 38\nB. vitamin B. complex\nC. 9", "ABC", ["38", "vitamin B. complex", "9"]),
        ("a ) 38 , b ) 27.5 , c ) 9", "abc", ["38", "27.5", "9"]),
        ("Which? (A) yes, it is; (B) no", "AB", ["yes, it is", "no"]),
        ("[A] one [B] two", "AB", ["one", "two"]),
        (LINES, "ABC", ["a tree", "a stone", "the letter B) itself"]),
        ("A) only one", "", []),
        ("A) one C) three", "", []),
        ("Dr. A. Smith and Dr. C. Jones", "", []),
        ("1) one 2) two", "", []),
        ("", "", []),
    ],
)
def test_letters_from_a_on_without_a_gap_are_options(text, labels, options):
    found = written_options(text)
    assert [label for label, _ in found] == list(labels)
    assert [option for _, option in found] == options


@pytest.mark.parametrize(
    ("answer", "options", "index"),
    [
        ("B", ("A", "B", "C"), 1), ("(c)", ("(a)", "(b)", "(c)"), 2), ("A.", ("A.", "B.", "C."), 0),
        ("a stone", ("a tree", "a stone", "the letter B) itself"), 1),
        ("B) a stone", ("A) a tree", "B) a stone", "C) the letter B) itself"), 1),
        ("(A) a tree", ("(A) a tree", "(B) a stone", "(C) the letter B) itself"), 0),
    ],
)  # fmt: skip
def test_questions_with_options_inside_stay_as_they_are_and_can_be_chosen(answer, options, index):
    found = read({"question": LINES, "answer": answer})
    (content,) = found.contents
    assert found.form == "multiple_choice"
    assert content.turns == (("user", LINES),)
    assert (content.answer, content.options, content.answer_index) == (answer, options, index)


@pytest.mark.parametrize(
    "other",
    [
        {"question": "What grows?", "answer": "B"},
        {"question": LINES, "answer": "B, since it is written so"},
        {"question": LINES, "answer": "B) a tree"},
    ],
)
def test_one_row_without_them_leaves_all_free_answers(other):
    found = read({"question": LINES, "answer": "B"}, other)
    assert found.form == "question_answer"
    assert all(not content.options for content in found.contents)


@pytest.mark.parametrize("letter", ["D", "(e)", "Z."])
def test_a_letter_outside_of_the_options_inside_is_refused(letter):
    with pytest.raises(UserError, match="none of the 3 options in its question") as caught:
        read({"question": LINES, "answer": "B"}, {"question": LINES, "answer": letter})
    assert caught.value.where == "data.jsonl:2" and caught.value.mend


def test_a_column_of_options_may_be_one_text():
    rows = [{"question": "How much?", "options": "a ) 38 , b ) 27.5", "answer": answer} for answer in ("b", "38")]
    for row, index in zip(rows, (1, 0), strict=True):
        (content,) = read(row).contents
        assert (content.options, content.answer_index, content.question) == (("38", "27.5"), index, "How much?")
    with pytest.raises(UserError, match="'options' is one text, and no list of options") as caught:
        read({"question": "How much?", "options": "yes, no", "answer": "yes"})
    assert "A) yes  B) no" in caught.value.mend


def test_a_file_without_options_is_not_searched_to_its_end(monkeypatch):
    searched = []
    monkeypatch.setattr("rankscope.data.written_options.written_options", lambda text: searched.append(text) or [])
    read(*({"question": f"Q{number}", "answer": "A"} for number in range(9)))
    assert searched == ["Q0"]
