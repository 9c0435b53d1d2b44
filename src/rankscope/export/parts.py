"""The parts of an export, by the names that the command line takes."""

from __future__ import annotations

from typing import Literal, get_args

Part = Literal["tables", "records", "latex", "figures", "results", "models"]
PARTS: tuple[Part, ...] = get_args(Part)
