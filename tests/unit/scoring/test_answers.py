"""Reading answers: lm-eval's GSM8K rules, and no answer inside a longer word."""

import pytest

from rankscope.scoring.answers import flexible_number, judge, normalised_text, option_letter, strict_number

GENERATIONS = [
    "6 * 4 = 24. 24 + 6 = 30. #### 30",
    "#### 1,234",
    "#### 30.",
    "#### $30",
    "####30",
    "The answer is 30.",
    "The answer is $1,234.50.",
    "30 apples and 4 pears",
    "It costs 5...",
    "no number here, sorry",
    "no number here, ...",
    "",
    "#### -7",
    "-7",
    "#### 12 and then #### 13",
    "3.0",
    "7 8",
    "x7y",
    "#### 30 apples.\nQuestion: 99",
]
TARGETS = ["#### 30", "5 + 25 = 30\n#### 30", "30", "1234", "#### 1,234.50", "-7", "12", "7"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("text", GENERATIONS)
def test_numbers_are_judged_as_lm_eval_judges_gsm8k(text, target):
    metrics = pytest.importorskip("lm_eval.api.metrics", reason="lm_eval is not installed (extra: dev)")
    extraction = pytest.importorskip("lm_eval.filters.extraction", reason="lm_eval is not installed (extra: dev)")
    strict = extraction.RegexFilter(r"#### (\-?[0-9\.\,]+)")
    flexible = extraction.RegexFilter(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1)
    judgement = judge(text, target, "number")
    for pattern, is_correct in ((strict, judgement.is_correct_strict), (flexible, judgement.is_correct)):
        read = next(iter(pattern.apply([[text]], [{}])))[0]
        expected = metrics.exact_match_hf_evaluate(
            [read], [target], regexes_to_ignore=[",", r"\$", "(?s).*#### ", r"\.$"], ignore_case=True
        )
        assert is_correct == bool(expected["exact_match"])


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("24 + 6 = 30. #### 30", "30", "30"),
        ("#### 1,234", "1234", "1234"),
        ("#### 30.", "30", "30"),
        ("so $1,234.50.", None, "1234.50"),
        ("#### 12, no, 13", "12", "13"),
        ("5 apples, ...", None, None),  # lm-eval takes the dots for the last number: wrong there, unreadable here
        ("none", None, None),
        ("", None, None),
    ],
)
def test_numbers(text, strict, flexible):
    assert (strict_number(text), flexible_number(text)) == (strict, flexible)


def test_an_unreadable_number_is_invalid_and_wrong():
    judgement = judge("I do not know", "#### 3", "number")
    assert (judgement.is_invalid, judgement.is_correct, judgement.is_correct_strict) == (True, False, False)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (" B", "B"),
        ("b", "B"),
        ("(b)", "B"),
        ("[C]", "C"),
        ("B.", "B"),
        ("**B**", "B"),
        ("B) Berlin", "B"),
        ("B. Berlin", "B"),
        ("B: Berlin", "B"),
        ("B\nbecause it is a capital", "B"),
        ("(A) is right", "A"),
        ("The answer is B.", "B"),
        ("The answer is (b)", "B"),
        ("Answer: C", "C"),
        ("answer is: **D**", "D"),
        ("The correct option is A", "A"),
        ("I think it must be D", "D"),
        ("The answer is A because of that", "A"),
        ("The option I would choose is B", "B"),
        ("A. A dog", "A"),
        # Nothing is found inside a word.
        ("Berlin", None),
        ("Berlin is in Brandenburg", None),
        ("The answer is Berlin", None),
        ("The answer is a dog", None),
        ("A dog", None),
        ("A", "A"),
        ("I am not sure", None),
        ("I'd say none", None),
        ("vitamin-B", None),
        ("B12", None),
        ("B-cells", None),
        ("Dr. Who", None),
        # Several answers are none.
        ("B or C", None),
        ("The answer is B. No, the answer is C.", None),
        ("The answer is B. Yes, the answer is B.", "B"),
        ("", None),
        ("  \n ", None),
        ("é", None),
    ],
)
def test_letters(text, letter):
    assert option_letter(text) == letter


@pytest.mark.parametrize("target", ["B", " B", "(B)", "B."])
def test_a_letter_is_right_however_the_reference_is_written(target):
    assert judge("The answer is B", target, "letter").is_correct
    assert not judge("The answer is C", target, "letter").is_correct
    assert judge("Berlin", target, "letter").is_invalid


@pytest.mark.parametrize(
    ("text", "target", "is_correct"),
    [
        (" Paris", "Paris", True),
        ("paris.", " Paris", True),
        ("  New \n York ", "new york", True),
        ("Paris, France", "Paris", False),
        ("Not Paris", "Paris", False),
        ("Par", "Paris", False),
        ("STRASSE", "straße", True),
        ("Paris!", "Paris", False),
    ],
)
def test_texts(text, target, is_correct):
    judgement = judge(text, target, "text")
    assert judgement.is_correct == is_correct == judgement.is_correct_strict
    assert not judgement.is_invalid


def test_nothing_is_no_text():
    assert normalised_text(" . ") is None
    judgement = judge("  ", "", "text")
    assert (judgement.is_invalid, judgement.is_correct) == (True, False)
