"""Whether the modules that an arm names exist in a base, found from its tensors' names before a model is loaded."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

from rankscope.data.shapes import layer_matrices
from rankscope.errors import UserError

_ALL = "all-linear"
_HEADS = ("lm_head", "embed_out")  # adapted like a layer where they are named; files leave them out where they are tied
# Files of some models leave out what their class puts in front: h.0.attn.c_attn is transformer.h.0.attn.c_attn.
_PREFIXES = ("", "model.", "transformer.", "gpt_neox.")


def check_targets(
    arms: Mapping[str, str | Sequence[str]], shapes: Mapping[str, dict[str, tuple[int, ...]]]
) -> None:
    """Compare the `target_modules` of arms with the modules of every base, by PEFT's rules.

    Args:
        arms: By label, `target_modules`: names, a regular expression, or `all-linear`.
        shapes: By base, the shapes of its tensors.

    Raises:
        UserError: A name is in no base, or a base has nothing of what an arm names; with the nearest names.
    """
    modules = {base: _modules(of_base) for base, of_base in shapes.items()}
    for arm, targets in arms.items():
        if isinstance(targets, str) and targets.lower() == _ALL:
            continue
        wanted = [targets] if isinstance(targets, str) else list(targets)
        for target in wanted:
            if not any(_matches(target, names, is_pattern=isinstance(targets, str)) for names in modules.values()):
                raise _unknown(arm, target, {name for names in modules.values() for name in names})
        for base, names in modules.items():
            if not any(_matches(target, names, is_pattern=isinstance(targets, str)) for target in wanted):
                raise _unknown(arm, ", ".join(wanted), names, f" in base {base}")


def _modules(shapes: dict[str, tuple[int, ...]]) -> set[str]:
    return {name.removesuffix(".weight") for name in layer_matrices(shapes)} | set(_HEADS)


def _matches(target: str, names: Iterable[str], *, is_pattern: bool) -> bool:
    """PEFT's rule: a name is the end of a module's path, a pattern is all of it."""
    paths = (prefix + name for name in names for prefix in _PREFIXES)
    if not is_pattern:
        return any(path == target or path.endswith(f".{target}") for path in paths)
    try:
        pattern = re.compile(target)
    except re.error as error:
        raise UserError(
            f"'{target}' is no regular expression ({error})",
            where="target_modules",
            mend="mend the expression, or write module names as a list: [q_proj, v_proj]",
        ) from None
    return any(pattern.fullmatch(path) for path in paths)


def _unknown(arm: str, target: str, names: set[str], where: str = "") -> UserError:
    ends = sorted({name.rsplit(".", 1)[-1] for name in names if name not in _HEADS})
    wanted = target.rsplit(".", 1)[-1]
    if wanted in ends:
        mend = f"a text is a regular expression for a whole path; write names as a list: [{wanted}]"
    elif close := difflib.get_close_matches(wanted, ends, n=3, cutoff=0.5):
        mend = f"did you mean {' or '.join(repr(name) for name in close)}? There are {', '.join(ends)}"
    else:
        mend = f"name some of {', '.join(ends)}, or leave it out: all of them are adapted"
    return UserError(f"no module{where} is called '{target}'", where=f"arm {arm}, target_modules", mend=mend)
