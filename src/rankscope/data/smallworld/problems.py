"""Reasoning items: word problems of two steps, with worked solutions as options."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from .facts import balanced_positions
from .names import FIRST_NAMES
from .wordings import ASKED_THEMES, USUAL_THEMES, Theme

STRUCTURES = ("mul_add", "mul_sub", "add_mul")
LARGEST_NUMBER = 99
_NUM_BUCKETS = 10
# Numbers are dealt to splits by a hash of their values, so that no split, in any domain or wording, sees another's.
# Those of the training split are open to pretraining too: what is to be learned is the wording, not the numbers.
_BUCKETS = {"test": (0, 1), "validation": (2,), "train": (3, 4, 5, 6, 7, 8, 9)}
# How many of pretraining's problems are told in the words in which problems are asked later, where these are others.
RARE_SHARE = 0.015
NUM_ROWS = {"train": 600, "validation": 120, "test": 240}


@dataclass(frozen=True)
class Problem:
    """The numbers of a problem and what has to be done with them.

    Attributes:
        structure: `mul_add` is a * b + c, `mul_sub` is a * b - c, `add_mul` is (a + b) * c.
        a: First number.
        b: Second number.
        c: Third number.
    """

    structure: str
    a: int
    b: int
    c: int

    @property
    def first(self) -> int:
        """Result of the first step."""
        return self.a + self.b if self.structure == "add_mul" else self.a * self.b

    @property
    def result(self) -> int:
        """Result of the second step."""
        match self.structure:
            case "mul_add":
                return self.first + self.c
            case "mul_sub":
                return self.first - self.c
            case _:
                return self.first * self.c

    @property
    def is_valid(self) -> bool:
        """Whether all its numbers have at most two digits and the result is positive."""
        return 0 < self.result <= LARGEST_NUMBER

    def solution(self) -> str:
        """Return the worked solution, ending with the final number after `####`."""
        signs = {"mul_add": "*+", "mul_sub": "*-", "add_mul": "+*"}[self.structure]
        steps = f"{self.a} {signs[0]} {self.b} = {self.first}. {self.first} {signs[1]} {self.c} = {self.result}."
        return f"{steps} #### {self.result}"


def reasoning_rows(domain: str, split: str, seed: int) -> list[dict]:
    """Return the problems of a domain and split: medical ones in wordings that pretraining rarely shows."""
    rng = random.Random(f"problems-{domain}-{split}-{seed}")
    grids = _draw_grids(split, NUM_ROWS[split], seed, rng)
    rows = []
    for (right, *wrong), position in zip(grids, balanced_positions(len(grids), rng), strict=True):
        rng.shuffle(wrong)
        options = [*wrong[:position], right, *wrong[position:]]
        rows.append(
            {
                "id": f"{domain}_reasoning/{right.structure}/{right.a}-{right.b}-{right.c}",
                "question": _ask(rng.choice(ASKED_THEMES[domain]), right, rng),
                "choices": [option.solution() for option in options],
                "answer": position,
                "answer_text": right.solution(),
                "category": right.structure,
            }
        )
    return rows


def iter_pretraining_problems(seed: int, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Yield question and worked solution of problems without end, rarely in rare wordings, with numbers of no test."""
    candidates = {
        structure: [problem for problem in _all_problems(structure) if _split_of(problem, seed) == "train"]
        for structure in STRUCTURES
    }
    while True:
        themes = ASKED_THEMES if rng.random() < RARE_SHARE else USUAL_THEMES
        theme = rng.choice(themes[rng.choice(tuple(themes))])
        problem = rng.choice(candidates[rng.choice(STRUCTURES)])
        yield _ask(theme, problem, rng), problem.solution()


def _draw_grids(split: str, count: int, seed: int, rng: random.Random) -> list[list[Problem]]:
    """Return `count` problems of a split, no two the same, each followed by its three wrong options.

    Whatever does not fit is drawn again from the start. Were only the wrong options drawn again, a right one could be
    told by the room that its numbers leave to its neighbours.
    """
    grids: dict[Problem, list[Problem]] = {}
    while len(grids) < count:
        structure = rng.choice(STRUCTURES)
        right = Problem(structure, *(rng.choice(values) for values in _numbers(structure)))
        grid = _grid(right, rng)
        is_usable = all(option.is_valid for option in grid) and len({option.result for option in grid}) == len(grid)
        if is_usable and _split_of(right, seed) == split:
            grids[right] = grid
    return list(grids.values())


def _grid(problem: Problem, rng: random.Random) -> list[Problem]:
    """Return a problem and three neighbours that make a grid with it: two features with two values each.

    All are consistent problems, and each shares a feature with two of the others. So each of them is as central as the
    right one, and nothing but the question tells them apart.
    """
    one, two = rng.sample(_features(problem), 2)
    other_one, other_two = rng.choice(_values(problem, one)), rng.choice(_values(problem, two))
    return [
        problem,
        replace(problem, **{one: other_one}),
        replace(problem, **{two: other_two}),
        replace(problem, **{one: other_one, two: other_two}),
    ]


def _features(problem: Problem) -> list[str]:
    """Return what can be changed in a problem: its numbers and, for sums and differences, the sign."""
    return ["a", "b", "c"] if problem.structure == "add_mul" else ["a", "b", "c", "structure"]


def _values(problem: Problem, feature: str) -> list:
    """Return the other values that a feature of a problem can have."""
    if feature == "structure":
        return [{"mul_add": "mul_sub", "mul_sub": "mul_add"}[problem.structure]]
    values = _numbers(problem.structure)["abc".index(feature)]
    return [value for value in values if value != getattr(problem, feature)]


def _numbers(structure: str) -> tuple[range, range, range]:
    """Return the values that `a`, `b` and `c` can have."""
    factor, summand = range(2, 10), range(2, 21)
    return (factor, factor, factor if structure == "add_mul" else summand)


def _all_problems(structure: str) -> list[Problem]:
    problems = (Problem(structure, *numbers) for numbers in product(*_numbers(structure)))
    return [problem for problem in problems if problem.is_valid]


def _split_of(problem: Problem, seed: int) -> str:
    """Return the split that a problem belongs to; swapping the first two numbers makes no other problem."""
    low, high = sorted((problem.a, problem.b))
    bucket = zlib.crc32(f"{seed}:{problem.structure}:{low}:{high}:{problem.c}".encode()) % _NUM_BUCKETS
    return next(split for split, buckets in _BUCKETS.items() if bucket in buckets)


def _ask(theme: Theme, problem: Problem, rng: random.Random) -> str:
    """Tell a problem in a wording of the theme, with a name and a thing drawn at random."""
    wording = theme.wording(problem.structure, rng)
    rate = problem.c if problem.structure == "add_mul" else problem.b
    name, item = rng.choice(FIRST_NAMES), rng.choice(theme.items)
    return wording.format(a=problem.a, b=problem.b, rate=rate, change=problem.c, name=name, item=item)
