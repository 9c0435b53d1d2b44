"""A user's own function that judges generated answers: the one place where code that a study names is run."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rankscope.data.examples import Item
from rankscope.errors import UserError
from rankscope.runs import ScorerSettings
from rankscope.scoring.answers import Judgement

Scorer = Callable[[str, Item], Judgement]


def load_scorer(settings: ScorerSettings) -> Scorer:
    """Run the file of a user's scorer and make its function judge items.

    A study that does not say `allow_code: true` is refused before it has such settings. The function is called with
    the generated text, the reference answer, and a mapping with `item_id`, `prompt` and `category`. It returns whether
    the text is right, or None where no answer can be read from it; or a pair of that and the answer that it read.

    Raises:
        UserError: The file is not what it was when the study was planned.
    """
    path = Path(settings.path)
    if hashlib.sha256(path.read_bytes()).hexdigest() != settings.sha256:
        raise UserError("has changed since the study was planned", where=path, mend="run the same command again")
    spec = importlib.util.spec_from_file_location("rankscope_user_scorer", path)
    assert spec is not None and spec.loader is not None, "a file that ends in .py has a loader"
    module = importlib.util.module_from_spec(spec)
    writes_none, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # nothing is written beside the user's file
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = writes_none
    function = vars(module)[settings.function]

    def judge(text: str, item: Item) -> Judgement:
        told = {"item_id": item.item_id, "prompt": item.prompt, "category": item.category}
        return _judgement(function(text, item.target.strip(), told), text, f"{path}:{settings.function}")

    return judge


def _judgement(said: Any, text: str, where: str) -> Judgement:
    is_correct, prediction = said if isinstance(said, tuple) and len(said) == 2 else (said, text.strip())
    if not isinstance(is_correct, bool) and is_correct is not None:
        what = f"returned {type(is_correct).__name__} where True, False or None is expected"
        raise UserError(what, where=where, mend="return whether the text is right, or (is_right, answer)")
    read = None if is_correct is None else str(prediction)
    return Judgement(read, bool(is_correct), bool(is_correct))
