"""Reasoning items: word problems of two steps, with worked solutions as options."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from .facts import balanced_positions
from .names import FIRST_NAMES
from .wordings import ITEMS, KNOWN_WORDINGS, NEW_WORDINGS

STRUCTURES = ("mul_add", "mul_sub", "add_mul")
LARGEST_NUMBER = 99
_NUM_BUCKETS = 10
# Numbers are dealt to splits by a hash of their values, so that no split, in any domain or wording, sees another's. What
# trains is open to pretraining too: what it teaches is the wording, not the numbers.
_BUCKETS = {"test": (0, 1), "validation": (2,), "train": (3, 4, 5, 6, 7, 8, 9)}
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
    """Return the problems of a domain and split: medical ones in wordings that pretraining never shows."""
    rng = random.Random(f"problems-{domain}-{split}-{seed}")
    wordings = {key[1]: texts for key, texts in (KNOWN_WORDINGS | NEW_WORDINGS).items() if key[0] == domain}
    problems = []
    for structure in STRUCTURES:
        candidates = [problem for problem in _all_problems(structure) if _split_of(problem, seed) == split]
        problems += rng.sample(candidates, NUM_ROWS[split] // len(STRUCTURES))
    rng.shuffle(problems)
    positions = balanced_positions(len(problems), rng)
    rows = []
    for problem, position in zip(problems, positions, strict=True):
        form = rng.randrange(len(wordings[problem.structure]))
        rows.append(
            {
                "id": f"{domain}_reasoning/{problem.structure}/{problem.a}-{problem.b}-{problem.c}",
                "question": _ask(wordings[problem.structure][form], domain, problem, rng),
                "choices": [option.solution() for option in _options(problem, position, rng)],
                "answer": position,
                "answer_text": problem.solution(),
                "category": problem.structure,
            }
        )
    return rows


def iter_pretraining_problems(seed: int, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Yield question and worked solution of problems without end, in known wordings and with numbers of no test."""
    candidates = {
        structure: [problem for problem in _all_problems(structure) if _split_of(problem, seed) == "train"]
        for structure in STRUCTURES
    }
    keys = list(KNOWN_WORDINGS)
    while True:
        domain, structure = rng.choice(keys)
        problem = rng.choice(candidates[structure])
        wording = rng.choice(KNOWN_WORDINGS[domain, structure])
        yield _ask(wording, domain, problem, rng), problem.solution()


def _options(problem: Problem, position: int, rng: random.Random) -> list[Problem]:
    """Return four problems with the right one at `position`, as a grid of two features with two values each.

    All options are consistent solutions of neighbouring problems, and each shares one feature with two others. So each
    of them is as central as the right one, and nothing but the question tells them apart.
    """
    while True:
        first, second = rng.sample(_features(problem), 2)
        (one, other), (this, that) = ((feature, rng.choice(_values(problem, feature))) for feature in (first, second))
        grid = [
            problem,
            replace(problem, **{one: other}),
            replace(problem, **{this: that}),
            replace(problem, **{one: other, this: that}),
        ]
        if all(option.is_valid for option in grid) and len({option.result for option in grid}) == len(grid):
            break
    right, *wrong = grid
    rng.shuffle(wrong)
    wrong.insert(position, right)
    return wrong


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


def _ask(wording: str, domain: str, problem: Problem, rng: random.Random) -> str:
    """Fill a wording with the numbers of a problem and with a name and a thing drawn at random."""
    name, item = rng.choice(FIRST_NAMES), rng.choice(ITEMS[domain])
    return wording.format(a=problem.a, b=problem.b, c=problem.c, name=name, item=item)
