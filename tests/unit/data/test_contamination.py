import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankscope.data.contamination import NUM_WORDS, Overlap, Said, TrainingWords, overlap_warning
from rankscope.data.content import Content
from rankscope.data.forms import understand
from rankscope.data.presets import find_preset
from rankscope.data.readers import Row
from rankscope.data.sources import Rows
from rankscope.data.splits import normalised

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen"


def overlap(training, items):
    said = [[row if isinstance(row, Said) else Said(row, "") for row in rows] for rows in (training, items)]
    return TrainingWords(said[0]).overlaps({"task": said[1]})["task"]


@pytest.mark.parametrize(
    ("training", "item", "shared"),
    [
        ("What is it?", "what  IS it?", (1, 0)),
        (LONG, LONG, (1, 1)),
        (f"before {LONG} after", f"other {LONG.upper()}, words", (0, 1)),
        (" ".join(LONG.split()[:12]), f"{LONG} on", (0, 0)),
        (f"a {' '.join(LONG.split()[:12])} b", f"c {' '.join(LONG.split()[:12])} d", (0, 0)),
        (" ".join(reversed(LONG.split())), LONG, (0, 0)),
    ],
)
def test_questions_and_runs_of_thirteen_words(training, item, shared):
    assert overlap([training], [item]) == shared


def test_question_and_answer_are_one_text():
    words = LONG.split()
    training = [Said(" ".join(words[:10]), " ".join(words[10:]))]
    assert overlap(training, [Said(" ".join(words[:6]), " ".join(words[6:]))]) == (0, 1)


def test_an_item_counts_once_however_often_it_is_found():
    training = [f"x {LONG} y", f"z {LONG} w", f"{LONG} {LONG}"]
    assert overlap(training, [f"q {LONG} {LONG}", "short", f"r {LONG}"]) == (0, 2)


def test_nothing_is_shared_with_nothing():
    assert overlap([], [LONG]) == overlap([LONG], []) == (0, 0)


def runs(text):
    words = "".join(c if c.isalnum() or c == "_" else " " for c in text.casefold()).split()
    return {tuple(words[i : i + NUM_WORDS]) for i in range(len(words) - NUM_WORDS + 1)}


@given(st.randoms(use_true_random=False), st.integers(2, 5))
@settings(max_examples=40, deadline=None)
def test_against_sets_of_words(rng, vocabulary):
    """Texts of so few words that runs coincide by chance, against Python's own sets."""

    def text():
        return " ".join(f"w{rng.randrange(vocabulary)}" for _ in range(rng.randrange(10, 40)))

    training, items = [text() for _ in range(20)], [text() for _ in range(15)]
    known = set().union(*map(runs, training))
    exact = sum(normalised(item) in set(map(normalised, training)) for item in items)
    assert overlap(training, items) == (exact, sum(bool(runs(item) & known) for item in items))


def test_many_rows_are_compared_in_pieces():
    rng = random.Random(0)
    training = [" ".join(str(rng.randrange(10**6)) for _ in range(20)) for _ in range(5000)]
    items = [f"x {training[number]} y" for number in (0, 1999, 2000, 4999)] + ["y " * 30]
    assert overlap(training, items) == (0, 4)


ROW = Row({}, "f", 1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (Content(ROW, (("system", "S"), ("user", "Q"), ("assistant", "A"), ("user", "R")), "B"), Said("Q\nA\nR", "B")),
        (Content(ROW, (), "Text.", verbatim=""), Said("Text.", "")),
        (Content(ROW, (), "4", verbatim="2+2="), Said("2+2=", "4")),
    ],
)
def test_templates_and_system_turns_are_not_compared(content, said):
    assert Said.of(content) == said


def test_sentences_with_the_same_words_before_a_blank_are_not_the_same():
    def said(sentence, *options):
        row = {"sentence": sentence, "option1": options[0], "option2": options[1], "answer": "1"}
        rows = Rows([Row(row, "f", 1)], "hub", find_preset("winogrande"), True)
        return Said.of(understand(rows).contents[0])

    trained = said("So _ ran, as Bo slept.", "Ann", "Bo")
    assert overlap(
        [trained], [said("So _ won the race.", "Kim", "Lee"), said("so _ ran,  as Bo slept.", "Kim", "Lee")]
    ) == (1, 0)


@pytest.mark.parametrize(
    ("shared", "text"),
    [
        ((3, 0), "e.t: 3 of 9 items are in train.s too"),
        ((3, 3), "e.t: 3 of 9 items are in train.s too"),
        ((3, 5), "e.t: 3 of 9 items are in train.s too, 5 share 13 words in a row with it"),
        ((0, 2), "e.t: 2 of 9 items share 13 words in a row with train.s"),
    ],
)
def test_what_is_said_of_it(shared, text):
    assert overlap_warning("e.t", "items", 9, shared, "train.s") == text


def test_an_overlap_without_items_needs_no_word():
    names = {"base": "b", "training_set": "s", "part": "train", "task": "t", "num_items": 9}
    assert Overlap(**names, num_exact=0, num_ngram=0).warning is None
    assert "validation rows of train.s" in Overlap(**{**names, "part": "validation"}, num_exact=1, num_ngram=0).warning
