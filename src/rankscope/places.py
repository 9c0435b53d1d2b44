"""The study file's line for mistakes that show only when model or data are at hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rankscope.errors import UserError
from rankscope.expansion import expand_arms
from rankscope.spec import Study
from rankscope.study_file import place_of


@contextmanager
def naming_lines(path: Path, study: Study, overrides: Sequence[str] = ()) -> Iterator[None]:
    """Inside, an error about a key of the study gets the file and the line in front: `study.yaml:6: arm lora-r2`.

    One about a file that a key asks for keeps the file's own line in front, and says below who asked for it.

    Args:
        path: The study file.
        study: What was read from it.
        overrides: The settings laid over it, which are named instead of a line where they are meant.

    Raises:
        UserError: As it was raised inside, with its place.
    """
    try:
        yield
    except UserError as error:
        keys = error.asked_by or error.key or tuple((error.where or "").split("."))
        place = place_of(path, _numbered(keys, study), overrides) if keys[0] in Study.model_fields else None
        if place is None:
            raise
        if error.asked_by is not None:
            error.named_in = f"{place}: {'.'.join(keys)}"
            raise
        raise UserError(error.what, where=f"{place}: {error.where}", mend=error.mend) from error


def _numbered(keys: Sequence[str], study: Study) -> list[str]:
    """The keys with an arm's place in the file for its label."""
    if keys[0] != "arms" or len(keys) == 1:
        return list(keys)
    numbers = {settings.label: str(study.arms.index(arm)) for settings, arm in expand_arms(study)}
    return [keys[0], numbers.get(keys[1], keys[1]), *keys[2:]]
