"""Recall items: questions about single facts, as multiple choice and as free answer."""

from __future__ import annotations

import random

from .world import Fact, World

# Which question wordings teach a new fact, and which one validates and tests what was taught.
TAUGHT_FORMS = {"train": (0, 1, 2), "validation": (3,), "test": (4,)}
NUM_OPTIONS = 4
PROMPT = "Question: {question}\nAnswer:"


def known_rows(world: World, domain: str) -> list[dict]:
    """Return one question for each known fact of a domain, in a wording that pretraining never used for it."""
    rng = random.Random(f"known-{domain}-{world.seed}")
    asked = [(fact, fact.held_out_question) for fact in world.select(domain, new=False)]
    return _recall_rows(world, f"{domain}_recall", asked, rng)


def new_rows(world: World, domain: str, split: str) -> list[dict]:
    """Return questions about the new facts of a domain, in the wordings that belong to a split."""
    rng = random.Random(f"new-{domain}-{split}-{world.seed}")
    asked = [(fact, form) for fact in world.select(domain, new=True) for form in TAUGHT_FORMS[split]]
    return _recall_rows(world, f"{domain}_new", asked, rng)


def _recall_rows(world: World, task: str, asked: list[tuple[Fact, int]], rng: random.Random) -> list[dict]:
    """Turn facts and question wordings into rows, in an order that mixes relations."""
    rng.shuffle(asked)
    positions = balanced_positions(len(asked), rng)
    rows = []
    for (fact, form), position in zip(asked, positions, strict=True):
        choices = rng.sample([item for item in world.objects(fact.relation) if item != fact.object], NUM_OPTIONS - 1)
        choices.insert(position, fact.object)
        rows.append(
            {
                "id": f"{task}/{fact.relation.name}/{_slug(fact.subject)}/{form}",
                "question": fact.question(form),
                "choices": choices,
                "answer": position,
                "answer_text": fact.object,
                "category": fact.relation.name,
            }
        )
    return rows


def balanced_positions(count: int, rng: random.Random) -> list[int]:
    """Return where the right option goes in each of `count` items: every place equally often, in random order."""
    positions = [index % NUM_OPTIONS for index in range(count)]
    rng.shuffle(positions)
    return positions


def _slug(name: str) -> str:
    return name.removeprefix("the ").lower().replace(" ", "-")
