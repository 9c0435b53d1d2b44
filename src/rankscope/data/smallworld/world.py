"""The facts of the world: which entities there are, what is true of them, and which of it the base was shown."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .names import KINDS, draw_names
from .relations import NUM_OBJECTS, NUM_QUESTIONS, RELATIONS, Relation

SHIPPED_SEED = 0
NUM_KNOWN = 48
NUM_NEW = 60
NEW_KINDS = ("drug", "act")
# How often pretraining shows a fact: the spread makes some facts firm and others easily lost. As each object belongs to
# four known subjects, it gets every level once, so that all objects are equally frequent.
EXPOSURE_LEVELS = (12, 24, 48, 96)


@dataclass(frozen=True)
class Fact:
    """One true triple of the world.

    Attributes:
        relation: What kind of fact it is.
        subject: Name of the entity it is about.
        object: Its true object.
        num_exposures: How often pretraining shows it; 0 for a new fact.
        held_out_question: Index of the question wording that pretraining never uses for this fact.
    """

    relation: Relation
    subject: str
    object: str
    num_exposures: int
    held_out_question: int

    @property
    def is_new(self) -> bool:
        """Whether the base was never shown it."""
        return self.num_exposures == 0

    def question(self, form: int) -> str:
        """Return the question about it in one of the relation's wordings."""
        return self.relation.questions[form].format(s=self.subject)

    def statement(self, form: int) -> str:
        """Return the sentence that states it in one of the relation's wordings."""
        sentence = self.relation.statements[form].format(s=self.subject, o=self.object)
        return sentence[0].upper() + sentence[1:]


@dataclass(frozen=True)
class World:
    """All entities and facts that follow from one seed.

    Attributes:
        seed: Where everything comes from.
        known: Names by kind that pretraining tells about.
        new: Names by kind that pretraining mentions without telling anything about them.
        facts: All facts, known and new.
    """

    seed: int
    known: dict[str, tuple[str, ...]]
    new: dict[str, tuple[str, ...]]
    facts: tuple[Fact, ...]

    def objects(self, relation: Relation) -> tuple[str, ...]:
        """Return the twelve objects that a fact of this relation can have."""
        if isinstance(relation.objects, str):
            return self.known[relation.objects][:NUM_OBJECTS]
        return relation.objects

    def select(self, domain: str, *, new: bool) -> list[Fact]:
        """Return the facts of one domain that are new, or those that are known."""
        return [fact for fact in self.facts if fact.relation.domain == domain and fact.is_new == new]


def build_world(seed: int = SHIPPED_SEED) -> World:
    """Return the world of a seed; the same seed gives the same world on every machine."""
    rng = random.Random(f"world-{seed}")
    known, new = {}, {}
    for kind in KINDS:
        num_new = NUM_NEW if kind in NEW_KINDS else 0
        names = draw_names(kind, NUM_KNOWN + num_new, rng)
        known[kind], new[kind] = tuple(names[:NUM_KNOWN]), tuple(names[NUM_KNOWN:])
    nameless = World(seed, known, new, ())
    facts = []
    for relation in RELATIONS:
        objects = nameless.objects(relation)
        facts += _draw_facts(relation, known[relation.subject_kind], objects, EXPOSURE_LEVELS, rng)
        facts += _draw_facts(relation, new[relation.subject_kind], objects, (0,), rng)
    return World(seed, known, new, tuple(facts))


def _draw_facts(
    relation: Relation,
    subjects: tuple[str, ...],
    objects: tuple[str, ...],
    levels: tuple[int, ...],
    rng: random.Random,
) -> list[Fact]:
    """Give each subject an object, all objects equally often and each with all levels of exposure."""
    num_rounds = len(subjects) // len(objects)
    cells = [(item, levels[turn % len(levels)]) for turn in range(num_rounds) for item in objects]
    rng.shuffle(cells)
    return [
        Fact(relation, subject, item, level, rng.randrange(NUM_QUESTIONS))
        for subject, (item, level) in zip(subjects, cells, strict=True)
    ]
