"""A user's own scorer, found without running it: the file is there and has a function of that name."""

from __future__ import annotations

import ast
import hashlib

from rankscope.data.paths import user_path
from rankscope.errors import UserError, line_of, near_miss
from rankscope.runs import ScorerSettings


def find_scorer(named: str) -> ScorerSettings:
    """The function that `file.py:function` names, pinned by a hash of its file. Nothing of the file is run.

    Args:
        named: As the study file says it.

    Raises:
        UserError: There is no such file or function, or the file is no Python.
    """
    path_text, _, function = named.rpartition(":")
    path = user_path(path_text)
    try:
        content = path.read_bytes()
    except OSError as error:
        mend = "name a Python file, from where you are: scorer.py:function"
        raise UserError(f"'{path}' cannot be read ({error.strerror})", key=("scorer",), mend=mend) from None
    try:
        tree = ast.parse(content, filename=str(path))
    except (SyntaxError, ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None)  # null bytes are a ValueError without a line
        raise UserError(f"no valid Python ({error})", where=line_of(path, line), mend="correct the file") from None
    known = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    if function not in known:
        mend = near_miss(function, known) or f"it has {', '.join(known) or 'none'} at its top level"
        raise UserError(f"'{path}' has no function '{function}'", key=("scorer",), mend=mend)
    return ScorerSettings(path=str(path.resolve()), function=function, sha256=hashlib.sha256(content).hexdigest())
