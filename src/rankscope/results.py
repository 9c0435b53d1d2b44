"""A study's numbers as data frames, for a notebook."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl


def load_results(directory: str | Path) -> dict[str, pl.DataFrame]:
    """The tables of a study, finished or not: those that lie as CSV beside its report.

    Args:
        directory: A study directory.

    Returns:
        By name (`arms`, `comparisons`, `rates`, `scores`, `losses`, ...), tidy frames; each row says in `source` which
        file of the directory it was read from.

    Raises:
        UserError: The directory holds no study that was started.
    """
    # Drawing libraries come with the report; whoever only imports the package need not wait for them.
    from rankscope.report.reading import read_contents
    from rankscope.report.tables import make_tables
    from rankscope.store import Store

    return make_tables(read_contents(Store(directory)))
