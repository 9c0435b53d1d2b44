"""The report stage: reads the study directory, writes the page, its tables and its figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from rankscope.errors import UserError
from rankscope.report.across import Study, counts, findings
from rankscope.report.across_figure import standings
from rankscope.report.across_page import render_across
from rankscope.report.figures import group_names, make_figures
from rankscope.report.page import render_page
from rankscope.report.reading import read_contents
from rankscope.report.static import render_svgs
from rankscope.report.tables import make_tables
from rankscope.store import Store, write_text


def run(store: Store) -> Path:
    """Write the report of a study from its records alone, finished or not, and return the page's path.

    Raises:
        UserError: The directory holds no plan, so it is no study.
    """
    contents = read_contents(store)
    tables = make_tables(contents)
    folder = store.report
    for name, table in tables.items():
        write_text(folder / "tables" / f"{name}.csv", _csv(table))
    figures = make_figures(tables, contents)
    for name, svg in render_svgs(figures, list(group_names(contents).values())):
        write_text(folder / "figures" / f"{name}.svg", svg)
    page = folder / "index.html"
    write_text(page, render_page(contents, tables, figures))
    return page


def run_across(stores: Sequence[Store], out: Path) -> Path:
    """Write what several studies say of each setting, from their records alone, and return the page's path.

    Args:
        stores: The study directories.
        out: A folder for the page and its tables.

    Raises:
        UserError: One of them holds no study, or two have one name and folder.
    """
    names = [store.root.resolve().name for store in stores]
    if repeated := [name for name in names if names.count(name) > 1]:
        names = [str(store.root) for store in stores]
        if len(set(names)) < len(names):
            raise UserError(f"'{repeated[0]}' is named twice", where="report", mend="name each study directory once")
    studies = [Study(name, read_contents(store)) for name, store in zip(names, stores, strict=True)]
    found = findings(studies)
    counted, stood = counts(found), standings(studies)
    write_text(out / "tables" / "standings.csv", _csv(stood))
    write_text(out / "tables" / "settings.csv", _csv(counted))
    write_text(out / "tables" / "findings.csv", _csv(found))
    page = out / "across.html"
    write_text(page, render_across(studies, found, counted, stood))
    return page


def _csv(table: pl.DataFrame) -> str:
    """A table as CSV; a list within a cell is written as JSON, for CSV has no lists."""
    lists = [name for name, dtype in table.schema.items() if isinstance(dtype, pl.List)]
    as_json = [
        pl.col(name).map_elements(lambda values: json.dumps(list(values)), return_dtype=pl.String) for name in lists
    ]
    return table.with_columns(as_json).write_csv()
