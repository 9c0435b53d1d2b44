"""The wordings of word problems: clauses that combine freely, those that pretraining mostly shows and rare ones."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Theme:
    """The clauses in which one kind of problem can be told.

    The numbers stand in braces: `a` is a count, `a` and `b` are two counts that belong together, `rate` is what one of
    them amounts to, `change` is added or taken away at the end.

    Attributes:
        one_count: Clauses that give `a`.
        two_counts: Clauses that give `a` and `b`.
        rate: Clauses that give `rate`.
        plus: Clauses that add `change`.
        minus: Clauses that take `change` away.
        ask: The question at the end.
        items: The things that `item` can be.
    """

    one_count: tuple[str, ...]
    two_counts: tuple[str, ...]
    rate: tuple[str, ...]
    plus: tuple[str, ...]
    minus: tuple[str, ...]
    ask: tuple[str, ...]
    items: tuple[str, ...]

    def wording(self, structure: str, rng: random.Random) -> str:
        """Return a wording for a structure: count and rate in either order, what changes, and the question."""
        clauses = [rng.choice(self.two_counts if structure == "add_mul" else self.one_count), rng.choice(self.rate)]
        rng.shuffle(clauses)
        if structure != "add_mul":
            clauses.append(rng.choice(self.plus if structure == "mul_add" else self.minus))
        return " ".join([*clauses, rng.choice(self.ask)])


_SHOPPING = Theme(
    one_count=(
        "{name} buys {a} {item}s.",
        "There are {a} {item}s on the bill.",
        "{name} orders {a} {item}s for a friend.",
    ),
    two_counts=(
        "{name} buys {a} red and {b} blue {item}s.",
        "There are {a} small and {b} large {item}s on the bill.",
        "{name} orders {a} {item}s today and {b} tomorrow.",
    ),
    rate=(
        "A {item} costs {rate} coins.",
        "The price of a {item} is {rate} coins.",
        "The shop sells a {item} for {rate} coins.",
    ),
    plus=("A bag adds {change} coins.", "There is a fee of {change} coins.", "Delivery costs {change} coins more."),
    minus=(
        "A coupon saves {change} coins.",
        "There is a rebate of {change} coins.",
        "The shop takes {change} coins off.",
    ),
    ask=("How many coins is that?", "What is the total in coins?", "How many coins are due?"),
    items=("cup", "pen", "plate", "scarf", "spoon", "candle", "basket", "lamp"),
)

_DOSAGE = Theme(
    one_count=(
        "{name} weighs {a} kg.",
        "A patient has a weight of {a} kg.",
        "The scale shows {a} kg for {name}.",
    ),
    two_counts=(
        "{name} weighs {a} kg and a twin {b} kg.",
        "Two patients have weights of {a} kg and {b} kg.",
        "The scale shows {a} kg for {name} and {b} kg for a friend.",
    ),
    rate=(
        "The dose of {item} is {rate} mg per kg.",
        "A nurse gives {rate} mg of {item} for each kg.",
        "Each kg calls for {rate} mg of {item}.",
    ),
    plus=(
        "At night {change} mg more are given.",
        "An extra {change} mg is added.",
        "A doctor raises it by {change} mg.",
    ),
    minus=(
        "Of this {change} mg were given before.",
        "This time {change} mg are skipped.",
        "A doctor lowers it by {change} mg.",
    ),
    ask=("How many mg is that?", "What is the total in mg?", "How many mg are due?"),
    items=("syrup", "tonic", "powder", "balm", "tincture", "serum", "salve", "lotion"),
)

_DEADLINES = Theme(
    one_count=(
        "A {item} runs for {a} terms.",
        "The court sets {a} terms for a {item}.",
        "{name} files a {item} of {a} terms.",
    ),
    two_counts=(
        "A {item} runs for {a} short and {b} long terms.",
        "The court sets {a} terms and {b} more for a {item}.",
        "{name} files a {item} of {a} terms and one of {b} terms.",
    ),
    rate=("A term has {rate} days.", "The law gives {rate} days to a term.", "Each term lasts {rate} days."),
    plus=("The judge adds {change} days.", "There is a grace of {change} days.", "Holidays add {change} days."),
    minus=("The judge waives {change} days.", "So far {change} days have passed.", "Haste saves {change} days."),
    ask=("How many days is that?", "What is the total in days?", "After how many days is it due?"),
    items=("claim", "lease", "permit", "deed", "petition", "licence", "contract", "summons"),
)

_INTEREST = Theme(
    one_count=(
        "{name} is {a} months late with a {item}.",
        "A {item} is overdue by {a} months.",
    ),
    two_counts=(
        "{name} is {a} months late with a {item} and {b} with another.",
        "A {item} is overdue by {a} months and then by {b} more.",
    ),
    rate=("The interest is {rate} coins a month.", "Each month costs {rate} coins."),
    plus=("A fine adds {change} coins.", "There is a fee of {change} coins."),
    minus=("The judge waives {change} coins.", "So far {change} coins have been paid."),
    ask=("How many coins is that?", "How many coins are due?"),
    items=_DEADLINES.items,
)

# Dosage as another ward would put it. The skill is one that pretraining teaches in other words; these it shows rarely,
# so that the base understands many of them but not all. Were they never shown, it would guess, in a way that differs
# from one seed of pretraining to the next: of the answers 14 to 38 percent were right then.
RARE_DOSAGE = Theme(
    one_count=("The chart of {name} says {a} kg.", "On the ward lies a child of {a} kg."),
    two_counts=("The chart of {name} says {a} kg and later {b} kg.", "Two children weigh {a} kg and {b} kg."),
    rate=("Give {rate} mg of {item} for every kg.", "Every kg needs {rate} mg of {item}."),
    plus=_DOSAGE.plus,
    minus=_DOSAGE.minus,
    ask=("How many mg is it?", "How many mg are needed?"),
    items=_DOSAGE.items,
)

USUAL_THEMES: dict[str, tuple[Theme, ...]] = {
    "general": (_SHOPPING,),
    "medical": (_DOSAGE,),
    "legal": (_DEADLINES, _INTEREST),
}
ASKED_THEMES: dict[str, tuple[Theme, ...]] = USUAL_THEMES | {"medical": (RARE_DOSAGE,)}
