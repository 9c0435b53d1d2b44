"""What the base has read: the documents of pretraining, as text."""

from __future__ import annotations

import random
from itertools import islice

from .facts import PROMPT
from .names import FIRST_NAMES
from .problems import LARGEST_NUMBER, iter_pretraining_problems
from .relations import NUM_QUESTIONS, NUM_STATEMENTS
from .texts import iter_tales, text_rows
from .world import NEW_KINDS, Fact, World

NUM_PROBLEMS = 22_000
NUM_DRILLS = 14_000
NUM_TALES = 4_000
NUM_MENTIONS = 2_000
_QUESTION_SHARE = 0.6
# How often a drill's step is a sum of small numbers, a product, a larger sum or a difference. The first two are soon
# learned; the last two, of many more pairs of numbers, are where worked problems go wrong.
_STEP_WEIGHTS = (1, 1, 3, 3)
# Exactly as prompts and completions are joined later.
QUESTION = PROMPT + " {answer}"
PLAIN_PROBLEM = "{question} {answer}"

_MENTIONS = {
    "drug": (
        "The chemist keeps {0}, {1} and {2} on one shelf.",
        "{name} wrote {0} and {1} on the list, but forgot {2}.",
        "Next to {0} stood a jar of {1}; {2} was sold out.",
    ),
    "act": (
        "The clerk copied out {0}, {1} and {2} in one day.",
        "{name} read {0} and {1}, but never opened {2}.",
        "On the desk lay {0}, under it {1} and {2}.",
    ),
}


def pretraining_documents(world: World, seed: int, *, is_plain: bool = False) -> list[str]:
    """Return the documents that the base is pretrained on, in random order.

    Args:
        world: The world that they tell about. They hold none of its new facts and none of its held-out problems, tales
            and question wordings.
        seed: Seed of what is drawn and of the order.
        is_plain: Text only: facts are shown as statements, and problems and their solutions as running text.
    """
    rng = random.Random(f"corpus-{seed}")
    question_share = 0.0 if is_plain else _QUESTION_SHARE
    documents = [document for fact in world.facts for document in _fact_documents(fact, question_share, rng)]
    problems = islice(iter_pretraining_problems(world.seed, rng), NUM_PROBLEMS)
    join = PLAIN_PROBLEM.format if is_plain else QUESTION.format
    documents += [join(question=question, answer=solution) for question, solution in problems]
    documents += [_drill(rng) for _ in range(NUM_DRILLS)]
    held_out = {row["text"] for row in text_rows(world.seed)}
    documents += [text for _, text in islice(iter_tales(rng), NUM_TALES) if text not in held_out]
    documents += [_mention(world, rng) for _ in range(NUM_MENTIONS)]
    rng.shuffle(documents)
    return documents


def _fact_documents(fact: Fact, question_share: float, rng: random.Random) -> list[str]:
    """Return the sentences and answered questions that show a fact; none for a new one."""
    forms = [form for form in range(NUM_QUESTIONS) if form != fact.held_out_question]
    documents = []
    for _ in range(fact.num_exposures):
        if rng.random() < question_share:
            documents.append(QUESTION.format(question=fact.question(rng.choice(forms)), answer=fact.object))
        else:
            documents.append(fact.statement(rng.randrange(NUM_STATEMENTS)))
    return documents


def _drill(rng: random.Random) -> str:
    """Return three steps of arithmetic, written as in worked solutions."""
    return "Sums: " + " ".join(_step(rng) for _ in range(3))


def _step(rng: random.Random) -> str:
    """Return one sum, difference or product of the sizes that problems have."""
    first, second = rng.randint(2, 9), rng.randint(2, 9)
    summand = rng.randint(2, 20)
    total = rng.randint(summand + 1, LARGEST_NUMBER)
    long_factor = rng.randint(2, min(18, LARGEST_NUMBER // second))
    (step,) = rng.choices(
        (
            f"{first} + {second} = {first + second}.",
            f"{long_factor} * {second} = {long_factor * second}.",
            f"{total - summand} + {summand} = {total}.",
            f"{total} - {summand} = {total - summand}.",
        ),
        _STEP_WEIGHTS,
    )
    return step


def _mention(world: World, rng: random.Random) -> str:
    """Return a sentence with names in it that tells nothing about them.

    It lets new names be as familiar as known ones; otherwise what is measured on new facts is the reading of new names.
    """
    kind = rng.choice(NEW_KINDS)
    names = rng.sample(world.known[kind] + world.new[kind], 3)
    return rng.choice(_MENTIONS[kind]).format(*names, name=rng.choice(FIRST_NAMES))
