"""General text: short tales of the world's people, with neither facts nor problems in them."""

from __future__ import annotations

import random
from collections.abc import Iterator

from .names import FIRST_NAMES

NUM_TEST_TEXTS = 240

_SLOTS = {
    "time": (
        "One morning", "Late in autumn", "On a quiet evening", "After the rain", "Before sunrise", "One winter day",
        "On the first of May", "At noon",
    ),
    "weather": (
        "the wind blew over the hills", "snow lay on the roofs", "the sun stood over the fields",
        "fog covered the road", "the leaves fell softly", "stars shone above the barn", "thunder rolled far away",
    ),
    "walk": (
        "went down to the river", "climbed the old wall", "walked into the woods", "sat under the apple tree",
        "opened the garden gate", "followed the narrow path", "waited by the well",
    ),
    "animal": (
        "a grey cat", "a small dog", "a lame fox", "a white goose", "an old donkey", "a young owl", "a brown hen",
    ),
    "doing": (
        "slept in the grass", "looked for food", "hid behind a stone", "called for its mother",
        "drank from a pool", "stared at the moon", "ran in circles",
    ),
    "feeling": ("was glad", "felt sorry", "laughed aloud", "kept very still", "was a little afraid", "smiled"),
    "act": (
        "gave it some bread", "sang a slow song", "carried it home", "told nobody about it", "made a bed of straw",
        "shared a piece of cake", "lit a small fire",
    ),
    "friend": ("a neighbour", "an uncle", "the old teacher", "a cousin", "the shepherd", "a stranger"),
    "saying": (
        "it went well", "tomorrow will be warmer", "the road is long", "good things take time",
        "it is late already", "nobody should hurry",
    ),
    "end": (
        "they went home together", "the lights went out one by one", "the village fell asleep",
        "supper was on the table", "the bells rang twice", "everything was as before",
    ),
}  # fmt: skip

_TALES = {
    "animal": (
        "{time} {weather}. {name} {walk} and found {animal} that {doing}. {name} {feeling} and {act}. Then {end}."
    ),
    "talk": (
        "{time} {name} {walk} with {friend}. There {weather}, and {animal} {doing}. "
        '"I think {saying}," said {name}. In the end {end}.'
    ),
    "journey": (
        "{name} {walk}, for {weather}. {time} {friend} came by and {feeling}. "
        "{name} {act} and said that {saying}. Soon {end}."
    ),
    "memory": (
        "{friend} remembered how {animal} once {doing} while {weather}. {name} listened and {feeling}. "
        '"Perhaps {saying}," {name} thought, and {act}. Later {end}.'
    ),
}


def iter_tales(rng: random.Random) -> Iterator[tuple[str, str]]:
    """Yield category and text of tales without end."""
    while True:
        category = rng.choice(tuple(_TALES))
        filled = {slot: rng.choice(values) for slot, values in _SLOTS.items()}
        text = _TALES[category].format(name=rng.choice(FIRST_NAMES), **filled)
        yield category, text[0].upper() + text[1:]


def text_rows(seed: int) -> list[dict]:
    """Return the held-out tales, on which the loss of a model is measured."""
    tales = iter_tales(random.Random(f"texts-test-{seed}"))
    return [
        {"id": f"general_text/{category}/{index}", "text": text, "category": category}
        for index, (category, text) in zip(range(NUM_TEST_TEXTS), tales, strict=False)
    ]
