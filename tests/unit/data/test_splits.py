from hypothesis import given
from hypothesis import strategies as st

from rankscope.data.content import Content
from rankscope.data.readers import Row
from rankscope.data.splits import held_out, in_part, num_duplicates, split_position

QUESTIONS = st.lists(st.text(max_size=20), min_size=1, max_size=40)


@given(QUESTIONS, QUESTIONS, st.floats(0.05, 0.95))
def test_nothing_moves_when_rows_are_added(first, more, fraction):
    alone, together = held_out(first, fraction), held_out(first + more, fraction)
    # The one exception: a set so small that chance held out nothing gives up its lowest row until it has others.
    if any(split_position(question) < fraction for question in first):
        assert together[: len(first)] == alone


@given(QUESTIONS, st.floats(0.05, 0.95), st.randoms(use_true_random=False))
def test_order_does_not_matter_and_twins_fall_on_one_side(questions, fraction, random):
    both = questions + [question.upper().lower() + " " for question in questions]
    sides = dict(zip(both, held_out(both, fraction), strict=True))
    order = list(range(len(both)))
    random.shuffle(order)
    shuffled = held_out([both[index] for index in order], fraction)
    assert [sides[both[index]] for index in order] == shuffled


def test_twins_differ_in_case_and_blanks_only():
    assert split_position("What  is\nit?") == split_position(" what is it? ") != split_position("What is it")


def test_about_the_fraction_is_held_out():
    held = held_out([f"question {number}" for number in range(20_000)], 0.1)
    # Four standard deviations of a binomial: sqrt(20000 * 0.1 * 0.9) = 42.
    assert abs(sum(held) - 2000) < 170


def test_something_is_always_held_out_unless_nothing_shall_be():
    assert sum(held_out(["a", "b", "c"], 1e-9)) == 1
    assert held_out(["a", "b"], 0.0) == [False, False]
    assert held_out(["a", "b"], 1.0) == [True, True]
    assert held_out([], 0.5) == []


def test_duplicates_are_those_that_came_before():
    assert num_duplicates(["a", "b", "a", "a"]) == 2


def test_parts_cover_everything_once_in_their_shares() -> None:
    questions = [f"What is number {number}?" for number in range(5000)]
    parts = {part: [q for q in questions if in_part(q, part)] for part in ("train", "validation", "test")}
    assert sorted(q for part in parts.values() for q in part) == sorted(questions)
    assert abs(len(parts["train"]) / 5000 - 0.8) < 0.02
    assert abs(len(parts["test"]) / 5000 - 0.1) < 0.02
    assert in_part("WHAT is   number 3?", "train") == in_part("What is number 3?", "train")


def test_a_system_turn_moves_no_twin_to_the_other_side() -> None:
    row = Row({}, "data.jsonl", 1)
    asked = (("user", "Hi, my camera was billed twice."),)
    plain, ordered = Content(row, asked, "Sorry!"), Content(row, (("system", "You are kind."), *asked), "Sorry!")
    assert plain.question == ordered.question == "Hi, my camera was billed twice."
    assert Content(row, (("system", "Greet."),), "Hello!").question == "Greet.", "where nothing else is said"
