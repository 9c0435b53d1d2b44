import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankscope.data.forms import understand
from rankscope.data.presets import find_preset
from rankscope.data.readers import Row
from rankscope.data.sources import Rows
from rankscope.errors import UserError


def rows(*values, origin="files", preset=None, stated=True):
    found = [Row(row, "data.jsonl", line) for line, row in enumerate(values, start=1)]
    return Rows(found, origin, find_preset(preset) if preset else None, stated)


def one(row, columns=None, **options):
    understood = understand(rows(row, **options), columns)
    return understood.form, understood.contents[0]


USER = {"role": "user", "content": "How?"}
ASSISTANT = {"role": "assistant", "content": "So."}


@pytest.mark.parametrize(
    ("row", "form", "turns", "answer"),
    [
        ({"messages": [USER, ASSISTANT]}, "messages", (("user", "How?"),), "So."),
        (
            {"messages": [{"role": "system", "content": "S"}, USER, ASSISTANT, USER, {**ASSISTANT, "content": "End."}]},
            "messages",
            (("system", "S"), ("user", "How?"), ("assistant", "So."), ("user", "How?")),
            "End.",
        ),
        ({"prompt": [USER], "completion": [ASSISTANT]}, "prompt_completion", (("user", "How?"),), "So."),
        ({"instruction": "Do", "input": "", "output": "Done"}, "alpaca", (("user", "Do"),), "Done"),
        ({"instruction": "Do", "input": "this", "output": "Done"}, "alpaca", (("user", "Do\n\nthis"),), "Done"),
        (
            {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "system": "S"},
            "sharegpt",
            (("system", "S"), ("user", "Q")),
            "A",
        ),
        ({"question": "Q", "answer": "A"}, "question_answer", (("user", "Q"),), "A"),
        ({"question": "Q", "answer": 42}, "question_answer", (("user", "Q"),), "42"),
        ({"question": "Q", "response": "A"}, "question_answer", (("user", "Q"),), "A"),
        ({"question": "Q", "context": "P.", "answer": "A"}, "question_answer", (("user", "P.\n\nQ"),), "A"),
        ({"question": "Q", "context": {"x": 1}, "answer": "A"}, "question_answer", (("user", "Q"),), "A"),
        ({"instruction": "Do", "context": "P.", "response": "Done"}, "alpaca", (("user", "P.\n\nDo"),), "Done"),
        ({"instruction": "Do", "context": "", "response": "Done"}, "alpaca", (("user", "Do"),), "Done"),
        (
            {"question": "Q", "context": "P.", "choices": ["x", "y"], "answer": 1},
            "multiple_choice",
            (("user", "P.\n\nQ"),),
            "y",
        ),
        ({"context": "P.", "choices": ["x", "y"], "answer": 1}, "multiple_choice", (("user", "P."),), "y"),
        ({"question": "Q", "choices": '["x", "y"]', "answer": "1"}, "multiple_choice", (("user", "Q"),), "y"),
        ({"question": "Q", "choices": '{"A": "x", "B": "y"}', "answer": "B"}, "multiple_choice", (("user", "Q"),), "y"),
        ({"question": "Q", "choices": "['x', \"y's\"]", "answer": "1"}, "multiple_choice", (("user", "Q"),), "y's"),
        ({"question": "Q", "choices": "['\\d', 'y']", "answer": "0"}, "multiple_choice", (("user", "Q"),), "\\d"),
    ],
)
def test_forms_are_found_by_their_fields(row, form, turns, answer):
    found, content = one(row)
    assert (found, content.turns, content.answer, content.verbatim) == (form, turns, answer, None)


def test_strings_of_prompt_and_completion_are_taken_as_they_are():
    form, content = one({"prompt": "2 + 2 = ", "completion": "4"})
    assert (form, content.verbatim, content.answer, content.turns) == ("prompt_completion", "2 + 2 = ", "4", ())


def test_plain_text_has_no_prompt():
    form, content = one({"text": " A story.\n", "id": 7, "category": "tale"})
    assert (form, content.verbatim, content.answer) == ("text", "", " A story.\n")
    assert (content.row_id, content.category) == ("7", "tale")


OPTIONS = ["red", "green", "blue"]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Q", "choices": OPTIONS, "answer": 1},
        {"question": "Q", "choices": OPTIONS, "answer": 1.0},
        {"question": "Q", "choices": OPTIONS, "answer": "B"},
        {"question": "Q", "choices": OPTIONS, "answer": "(b)"},
        {"question": "Q", "choices": OPTIONS, "answer": "green"},
        {"question": "Q", "options": OPTIONS, "label": "1"},
        {"question": "Q", "choices": {"text": OPTIONS, "label": ["1", "2", "3"]}, "answerKey": "2"},
        {"question": "Q", "choices": {"text": OPTIONS, "label": ["A", "B", "C"]}, "answerKey": "B"},
        {"question": "Q", "options": {"A": "red", "B": "green", "C": "blue"}, "answer": "B"},
        {"question": "Q", "choice0": "red", "choice1": "green", "choice2": "blue", "answer": "1"},
        {"question": "Q", "choice1": "red", "choice2": "green", "choice3": "blue", "answer": "B"},
        {"question": "Q", "A": "red", "B": "green", "C": "blue", "answer": "B"},
        {"question": "Q", "opa": "red", "opb": "green", "opc": "blue", "cop": "B"},
    ],
)
def test_multiple_choice_in_its_usual_spellings(row):
    form, content = one(row)
    assert form == "multiple_choice"
    assert (content.turns, content.options) == ((("user", "Q"),), tuple(OPTIONS))
    assert (content.answer_index, content.answer) == (1, "green")


def test_options_in_columns_are_counted_even_where_they_are_numbers():
    row = {"question": "2 + 1?", "choice0": "1", "choice1": "0", "choice2": "3", "choice3": "2", "answer": "2"}
    assert one(row)[1].answer == "3"


def test_an_answer_with_two_meanings_is_refused():
    with pytest.raises(UserError, match="different options") as caught:
        one({"question": "2 + 1?", "choices": ["1", "0", "3", "2"], "answer": "2"})
    assert caught.value.where == "data.jsonl:1"
    # Beside a row that only one reading fits there is no doubt.
    rest = {"question": "2 + 1?", "choices": ["7", "8", "9"], "answer": "8"}
    both = understand(rows({"question": "2 + 1?", "choices": ["1", "0", "3", "2"], "answer": "2"}, rest))
    assert [content.answer for content in both.contents] == ["2", "8"]


def test_an_answer_among_numbers_may_be_a_number():
    """Options that are numbers: an answer that could count them and could be one of them is refused, not counted."""
    with pytest.raises(UserError, match="different options") as caught:
        one({"question": "2 + 1?", "choices": [1, 0, 3, 2], "answer": 2})
    assert "in quotes" in caught.value.mend
    assert one({"question": "2 + 5?", "choices": [6, 7, 8], "answer": 7})[1].answer == "7"
    assert one({"question": "2 + 5?", "choices": [0, 1, 7], "answer": 1})[1].answer == "1"  # both readings agree
    # Texts are counted by numbers, as everywhere.
    assert one({"question": "2 + 1?", "choices": ["1", "0", "3", "2"], "answer": 2})[1].answer == "3"
    assert one({"question": "Half?", "choices": [0.5, 1.5], "answer": 1.5})[1].answer == "1.5"


def test_numbers_of_medmcqa_say_themselves_where_they_start():
    options = {"question": "Q", "opa": "a", "opb": "b", "opc": "c", "opd": "d"}
    from_one = understand(rows({**options, "cop": 1}, {**options, "cop": 4}))
    assert [content.answer for content in from_one.contents] == ["a", "d"]
    from_zero = understand(rows({**options, "cop": 0}, {**options, "cop": 3}))
    assert [content.answer for content in from_zero.contents] == ["a", "d"]
    with pytest.raises(UserError, match="preset: medmcqa"):
        understand(rows({**options, "cop": 2}))
    assert one({**options, "cop": 2}, preset="medmcqa")[1].answer == "b"
    assert one({**options, "cop": 2}, preset="medmcqa", origin="hub")[1].answer == "c"
    saved = understand(rows({**options, "cop": 0}, {**options, "cop": 2}, preset="medmcqa"))
    assert [content.answer for content in saved.contents] == ["a", "c"]


def test_options_written_inside_the_text():
    text = "How much ? The options: ['A ) 2 : 3', 'B ) 4 , 5']"
    content = one({"instruction": text, "answer": "B"}, preset="mathqa")[1]
    assert (content.question, content.options, content.answer_index) == ("How much ?", ("2 : 3", "4 , 5"), 1)
    text = "Please choose the correct answer to the question: Which?\n\nAnswer1: a b. Answer2: c.\n\nAnswer format: x"
    content = one({"instruction": text, "answer": "answer2"}, preset="arc_easy")[1]
    assert (content.question, content.options, content.answer_index) == ("Which?", ("a b.", "c."), 1)


def test_headings_go_with_the_text_below_them():
    texts = (" = Title = ", " First. ", " Second. ", " = = Part = = ", " = End = ", " Last. ")
    understood = understand(rows(*({"text": text} for text in texts), preset="wikitext"))
    assert [content.answer for content in understood.contents] == [
        " = Title = \n \n First. ", " Second. ", " = = Part = = \n \n = End = \n \n Last. "
    ]  # fmt: skip
    assert [content.row.line for content in understood.contents] == [1, 3, 4]


def test_a_name_that_only_suggests_a_preset_does_not_force_it():
    assert one({"question": "Q", "response": "A"}, preset="mmlu", stated=False)[0] == "question_answer"
    with pytest.raises(UserError, match="preset 'mmlu' does not know"):
        one({"question": "Q", "response": "A"}, preset="mmlu")


def test_columns_named_by_hand():
    form, content = one({"q": "Q", "a": "A", "text": "T"}, {"question": "q", "answer": "a"})
    assert (form, content.question, content.answer) == ("question_answer", "Q", "A")
    columns = {"question": "q", "choices": "list", "answer": "key"}
    form, content = one({"q": "Q", "list": ["x", "y"], "key": "B"}, columns)
    assert (form, content.answer) == ("multiple_choice", "y")
    columns = {"question": "q", "choices": ("best", "poor"), "answer": "gold"}
    form, content = one({"q": "Q", "best": "x", "poor": "y", "gold": "y"}, columns)
    assert (form, content.options, content.answer) == ("multiple_choice", ("x", "y"), "y")
    form, content = one({"a": {"q": "Q"}, "b": "A"}, {"question": "a.q", "answer": "b"})
    assert (form, content.question, content.answer) == ("question_answer", "Q", "A")
    form, content = one({"messages": [USER], "story": "T"}, {"text": "story"})
    assert (form, content.answer) == ("text", "T")


def test_a_row_of_another_form_is_found_far_down():
    with pytest.raises(UserError, match="form messages, the first one question_answer") as caught:
        understand(rows(*[{"question": "Q", "answer": "A"}] * 30, {"messages": [USER, ASSISTANT]}))
    assert caught.value.where == "data.jsonl:31"


CHOICE = {"question": "Q", "choices": ["x", "y"]}
REFUSED = {
    "unknown form": ([{"foo": 1}], "no form that is known"),
    "mixed forms": ([{"text": "T"}, {"question": "Q", "answer": "A"}], "the first one text"),
    "no question": ([{"question": "Q", "answer": "A"}, {"answer": "A"}], "'question' is missing"),
    "no answer": ([{"question": "Q", "answer": "A"}, {"question": "Q"}], "'answer' is missing"),
    "null answer": ([{"question": "Q", "answer": "A"}, {"question": "Q", "answer": None}], "'answer' is null"),
    "empty answer": ([{"question": "Q", "answer": "A"}, {"question": "Q", "answer": " "}], "'answer' is empty"),
    "list as answer": ([{"question": "Q", "answer": "A"}, {"question": "Q", "answer": ["A"]}], "is list, not text"),
    "empty completion": ([{"prompt": "P", "completion": "C"}, {"prompt": "P", "completion": ""}], "is empty"),
    "no output": ([{"instruction": "I", "output": "O"}, {"instruction": "I"}], "'output' is missing"),
    "empty text": ([{"text": "T"}, {"text": "\n"}], "'text' is empty"),
    "number above": ([{**CHOICE, "answer": 0}, {**CHOICE, "answer": 2}], "none of the 2 options"),
    "number below": ([{**CHOICE, "answer": 0}, {**CHOICE, "answer": -1}], "none of the 2 options"),
    "letter above": ([{**CHOICE, "answer": "A"}, {**CHOICE, "answer": "C"}], "none of the 2 options"),
    "number and letter": (
        [{**CHOICE, "answer": 0}, {**CHOICE, "answer": 1}, {**CHOICE, "answer": "B"}],
        "a letter, where",
    ),
    "unknown text": ([{**CHOICE, "answer": "x"}, {**CHOICE, "answer": "zebra"}], "none of the 2 options"),
    "true as answer": ([{**CHOICE, "answer": 0}, {**CHOICE, "answer": True}], "none of the 2 options"),
    "no right option": ([{**CHOICE, "answer": 0}, CHOICE], "'answer' is missing"),
    "one option": ([{"question": "Q", "choices": ["x"], "answer": 0}], "two or more"),
    "empty option": ([{"question": "Q", "choices": ["x", ""], "answer": 0}], "option 2 that is empty"),
    "null option": ([{"question": "Q", "choices": ["x", None], "answer": 0}], "option 2 that is no text"),
    "options as text": ([{"question": "Q", "choices": "x, y", "answer": 0}], "no list of options"),
    "half a pair in a cell": ([{"question": "Q", "choices": '["\\ud800", "x"]', "answer": 0}], "no list of options"),
    "code in a cell": ([{"question": "Q", "choices": "[open('x'), 2]", "answer": 0}], "no list of options"),
    "deep cell": ([{"question": "Q", "choices": "[" * 9000, "answer": 0}], "no list of options"),
    "labels and texts": ([{"question": "Q", "choices": {"text": ["x", "y"], "label": [1]}, "answer": 1}], "1 label"),
    "no turns": ([{"messages": []}], "is empty"),
    "turns as text": ([{"messages": "hello"}], "no list of turns"),
    "turn without role": ([{"messages": [{"content": "x"}]}], "without 'role'"),
    "turn of parts": ([{"messages": [{"role": "user", "content": [{"type": "text"}]}]}], "'content' is no text"),
    "user has the last word": ([{"messages": [USER]}], "nothing to learn"),
    "nobody asks": ([{"messages": [ASSISTANT]}], "no turn of the user"),
    "empty last turn": ([{"messages": [USER, {**ASSISTANT, "content": ""}]}], "an empty answer"),
    "human among messages": (
        [{"messages": [{**USER, "role": "human"}, ASSISTANT]}],
        "1 of the unknown role 'human'",
    ),
    "unknown role": (
        [{"messages": [USER, {**USER, "role": "critic"}, ASSISTANT]}],
        "2 of the unknown role 'critic'",
    ),
    "unknown speaker": ([{"conversations": [{"from": "cat", "value": "miaow"}]}], "nobody known"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_malformed_rows_are_refused_with_file_line_field_and_mend(name):
    values, message = REFUSED[name]
    with pytest.raises(UserError, match=message) as caught:
        understand(rows(*values))
    assert caught.value.where == f"data.jsonl:{len(values)}"
    assert caught.value.mend


def test_the_mend_of_an_unknown_role_says_which_are_known():
    for role, mend in (("human", "write 'user' for 'human'; "), ("Assistant", "write 'assistant' for "), ("cat", "")):
        with pytest.raises(UserError) as caught:
            one({"messages": [USER, {**USER, "role": role}, ASSISTANT]})
        assert caught.value.mend.startswith(f"{mend}")
        assert caught.value.mend.endswith("roles are system, developer, user, assistant, tool, function")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"question": "nope"}, "no field 'nope'"),
        ({"quest": "question"}, "nothing that a column can be"),
        ({"question": ("question", "answer")}, "one column, not several"),
        ({"choices": ("question", "nope")}, "no field 'nope'"),
    ],
)
def test_wrong_columns_are_refused(columns, message):
    with pytest.raises(UserError, match=message) as caught:
        one({"question": "Q", "answer": "A"}, columns)
    assert caught.value.mend


def test_rows_that_do_not_follow_a_preset_are_refused():
    with pytest.raises(UserError, match="not written as"):
        one({"instruction": "no options here", "answer": "A"}, preset="mathqa")
    with pytest.raises(UserError, match="no '_' to fill"):
        one({"sentence": "S", "option1": "a", "option2": "b", "answer": "1"}, preset="winogrande")
    with pytest.raises(UserError, match="there are no rows"):
        understand(Rows([], "files"))


NAMES = [
    "messages", "conversations", "question", "choices", "answer", "prompt", "completion", "text", "opa", "opb",
    "mc1_targets", "question_stem", "answerKey", "endings", "label", "ctx_a", "ctx_b", "activity_label", "context",
    "final_decision", "page",
]  # fmt: skip
KEYS = ["role", "content", "from", "value", "text", "label", "labels", "choices", "stem", "contexts"]
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just("A"))
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    ),
    max_leaves=8,
)


@given(
    st.lists(st.dictionaries(st.sampled_from(NAMES), TREES, max_size=4), min_size=1, max_size=4),
    st.sampled_from(
        [
            None,
            "medmcqa",
            "mmlu",
            "arc_easy",
            "winogrande",
            "wikitext",
            "truthfulqa_mc",
            "openbookqa",
            "hellaswag",
            "pubmedqa",
            "legalbench",
            "casehold",
        ]
    ),
)
@settings(max_examples=300, deadline=None)
def test_no_rows_whatever_raise_anything_but_a_users_error(values, preset):
    try:
        understood = understand(rows(*values, preset=preset, stated=False))
    except UserError as error:
        assert error.where
        assert error.mend
        return
    for content in understood.contents:
        assert content.answer.strip()
        assert content.answer_index is None or content.options[content.answer_index] == content.answer
        json.dumps(content.turns)


@pytest.mark.parametrize(
    ("row", "columns", "unread"),
    [
        ({"id": 1, "question": "Q", "answer": "A", "passage": "P", "note": None, "url": "u"}, None, ("passage", "url")),
        ({"question": "Q", "context": "P", "answer": "A", "category": "c", "cluster": "k"}, None, ()),
        ({"question": "Q", "choices": ["x", "y"], "answer": 0, "explanation": "E"}, None, ("explanation",)),
        ({"question": "Q", "opa": "x", "opb": "y", "cop": 2, "exp": "E"}, None, ("exp",)),
        ({"q": "Q", "item": {"gold": "A"}, "hint": "H"}, {"question": "q", "answer": "item.gold"}, ("hint",)),
        ({"q": "Q", "a": "x", "b": "y", "key": 0}, {"question": "q", "choices": ("a", "b"), "answer": "key"}, ()),
        ({"messages": [USER, ASSISTANT], "tools": "[]"}, None, ("tools",)),
        ({"text": "T", "url": "u"}, None, ("url",)),
        ({"": "0", "text": "T"}, None, ()),
    ],
)  # fmt: skip
def test_fields_of_which_nothing_is_read_are_named(row, columns, unread):
    assert understand(rows(row, row), columns).unread == unread


def test_a_field_that_only_later_rows_fill_is_named_too():
    found = rows({"instruction": "Q", "input": "", "output": "A"}, {"instruction": "Q", "input": "P", "output": "A"})
    assert understand(found, {"question": "instruction", "answer": "output"}).unread == ("input",)
    assert understand(found).unread == ()  # as Alpaca's form it is read


def test_a_preset_says_itself_what_its_fields_are():
    row = {"question": "Q", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 1, "exp": "E", "subject_name": "law"}
    preset = find_preset("medmcqa")
    assert understand(Rows([Row(row, "f", 1)], "files", preset, True)).unread == ()
