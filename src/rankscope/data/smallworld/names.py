"""Invented names of the world's people, towns, drugs, diseases, acts and courts."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product

FIRST_NAMES = (
    "Mara", "Tobin", "Elsa", "Ruben", "Ines", "Oskar", "Lena", "Felix", "Nora", "Emil", "Greta", "Hugo",
    "Alma", "Jonas", "Vera", "Anton", "Selma", "Bruno", "Irma", "Pavel", "Olga", "Viktor", "Edith", "Simon",
)  # fmt: skip
_LAST_NAMES = (
    "Teslin", "Harrow", "Quint", "Velmar", "Osgood", "Drummer", "Calder", "Winslow", "Ferrin", "Maddox", "Orrick",
    "Pember", "Stroud", "Tarn", "Ulmer", "Yardley",
)  # fmt: skip
_TOWN_STEMS = ("Ash", "Bram", "Corn", "Dun", "Elm", "Fen", "Gors", "Hol", "Kel", "Lor", "Mill", "Wen")
_TOWN_ENDINGS = ("by", "ford", "ton", "wick", "ham", "dale")
_DRUG_STEMS = ("Zor", "Tal", "Bri", "Mel", "Vos", "Kar", "Len", "Dup", "Fex", "Gam", "Hil", "Jor", "Nar", "Pol")
_DRUG_MIDDLES = ("va", "mi", "xo", "le", "tu")
_DRUG_ENDINGS = ("dine", "zol", "mab", "pril")
_DISEASE_STEMS = (
    "Aldous", "Bexley", "Corwin", "Dorset", "Eskel", "Farrow", "Gilder", "Hexham", "Jarvis", "Kestrel", "Lomond",
    "Morley", "Norwell", "Ostrow", "Penrith", "Rowan",
)  # fmt: skip
_DISEASE_ENDINGS = ("fever", "palsy", "cough", "rash")
_ACT_STEMS = (
    "Abbot", "Barlow", "Carver", "Denham", "Easton", "Finch", "Garland", "Hobart", "Irving", "Jessop", "Kirby",
    "Larkin", "Mercer", "Nolan", "Oakes", "Parrish", "Quayle", "Ripley", "Sutton", "Tolbert", "Upton", "Vaughan",
    "Weller", "Yates", "Ambler", "Brandt", "Colby", "Draper", "Ellery", "Fulton",
)  # fmt: skip
_ACT_ENDINGS = ("Act", "Charter", "Code", "Statute")
_COURT_STEMS = (
    "Northgate", "Southgate", "Castle", "Harbour", "Bridge", "Market", "Abbey", "Tower", "Forest", "Meadow",
    "Quarry", "Garden", "Chapel", "Canal", "Orchard", "Lantern",
)  # fmt: skip
_COURT_ENDINGS = ("Court", "Bench", "Tribunal", "Chamber")

_PARTS: dict[str, tuple[tuple[tuple[str, ...], ...], Callable[..., str]]] = {
    "person": ((FIRST_NAMES, _LAST_NAMES), "{} {}".format),
    "town": ((_TOWN_STEMS, _TOWN_ENDINGS), "{}{}".format),
    "drug": ((_DRUG_STEMS, _DRUG_MIDDLES, _DRUG_ENDINGS), "{}{}{}".format),
    "disease": ((_DISEASE_STEMS, _DISEASE_ENDINGS), "{} {}".format),
    "act": ((_ACT_STEMS, _ACT_ENDINGS), "the {} {}".format),
    "court": ((_COURT_STEMS, _COURT_ENDINGS), "the {} {}".format),
}
KINDS = tuple(_PARTS)


def draw_names(kind: str, count: int, rng: random.Random) -> list[str]:
    """Return `count` different names of one kind of entity, such as drugs.

    Names share their parts, so that a name has to be read whole: knowing the first half of it is not enough.

    Raises:
        ValueError: If the parts do not make that many names.
    """
    parts, join = _PARTS[kind]
    names = [join(*chosen) for chosen in product(*parts)]
    return rng.sample(names, count)
