"""A million rows that something is wrong with: a mend with its place, or they are understood; no traceback."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from rankscope.data.forms import understand
from rankscope.data.presets import all_presets
from rankscope.data.readers import read_file
from rankscope.data.sources import Rows
from rankscope.errors import UserError

TURNS = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "She."}]
GOOD = [
    {"messages": TURNS},
    {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "She."}]},
    {"prompt": "Who? ", "completion": "She."},
    {"prompt": TURNS[:1], "completion": TURNS[1:]},
    {"instruction": "Say who.", "input": "x", "output": "She."},
    {"question": "Who?\nA) he\nB) she", "answer": "B"},
    {"question": "Who?", "choices": ["he", "she"], "answer": 1},
    {"question": "Who?", "choices": {"text": ["he", "she"], "label": ["A", "B"]}, "answerKey": "B"},
    {"question": "Who?", "context": "She came.", "answer": "She."},
    {"question": "Who?", "opa": "he", "opb": "she", "opc": "it", "opd": "they", "cop": 2},
    {"question": "Who?", "options": "a ) he , b ) she", "answer": "b"},
    {"text": "She came."},
]
KEYS = sorted(
    {key for row in GOOD for key in row} | {"cluster", "id", "category", "answerKey", "label", "role", "from"}
)
LEAVES = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2.5,
    float("nan"),
    10**400,
    "",
    " ",
    "B",
    "b ) x",
    "\ud800",
    "\0",
    [],
    {},
    ["x"],
    [[]],
]


def damaged(value: object, draw: random.Random, depth: int = 0) -> object:
    """A value with something left out, put in or put in the place of something else."""
    if depth > 3 or draw.random() < 0.15:
        return draw.choice(LEAVES)
    if isinstance(value, dict):
        found = {key: damaged(inner, draw, depth + 1) if draw.random() < 0.2 else inner for key, inner in value.items()}
        if found and draw.random() < 0.3:
            found.pop(draw.choice(list(found)))
        if draw.random() < 0.3:
            found[draw.choice(KEYS)] = draw.choice([*LEAVES, *(inner for row in GOOD for inner in row.values())])
        return found
    if isinstance(value, list) and value:
        return [damaged(inner, draw, depth + 1) if draw.random() < 0.5 else inner for inner in value]
    return value


def content(rows: list[object], ending: str, draw: random.Random) -> bytes:
    """The rows as a file of that ending has them, now and then with some bytes that are others."""
    lines = [json.dumps(row) for row in rows]
    if ending in {".csv", ".tsv"}:
        separator = "," if ending == ".csv" else "\t"
        names = list(rows[0]) if isinstance(rows[0], dict) else ["text"]
        cells = [[json.dumps(v) for v in row.values()] if isinstance(row, dict) else ["x"] for row in rows]
        lines = [separator.join(each) for each in [names, *cells]]
    text = f"[{','.join(lines)}]" if ending == ".json" else "\n".join(lines)
    found = bytearray(text.encode("utf-8"))
    for _ in range(draw.choice([0, 0, 0, 1, 5])):
        found[draw.randrange(len(found))] = draw.randrange(256)
    return bytes(found)


def check(path: Path, preset: str | None) -> bool:
    """Whether a file is understood; what is wrong with it has to be said with its place and a mend."""
    try:
        rows = read_file(path)
        known = None if preset is None else all_presets()[preset]
        understood = understand(Rows(rows, "files", known))
    except UserError as error:
        assert error.where and error.mend, f"{error}: {path.read_bytes()[:300]!r}"
        return False
    for each in understood.contents:
        assert each.answer.strip()
        assert each.answer_index is None or each.options[each.answer_index] == each.answer
    return True


@pytest.mark.parametrize("number", [4_000, pytest.param(1_000_000, marks=pytest.mark.heavy)])
def test_rows_that_something_is_wrong_with(tmp_path: Path, number: int) -> None:
    draw, left, understood, refused = random.Random(0), number, 0, 0
    while left > 0:
        size = min(left, draw.choice([1, 2, 5, 20, 100]))
        good = draw.choice(GOOD)
        share = draw.choice([0.0, 0.02, 1.0])
        rows = [damaged(good, draw) if draw.random() < share else good for _ in range(size)]
        path = tmp_path / f"rows{draw.choice(['.jsonl', '.json', '.csv', '.tsv', '.txt'])}"
        path.write_bytes(content(rows, path.suffix, draw))
        if check(path, draw.choice([None, None, *all_presets()])):
            understood += 1
        else:
            refused += 1
        left -= size
    assert understood > 20 and refused > 20
