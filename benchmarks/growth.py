"""What a study costs as it grows: more arms, more items, longer prompts; each point is a whole `rankscope run`.

    python benchmarks/growth.py

A study of one arm pays for the start, the base's own scores and the report; an arm more pays for itself alone. That is
what the plot has to show: the marginal arm costs less than a run alone. Where it does not, the script ends with an
error. The first study is run once before anything is timed: it fills caches that all the others find full.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
from bench import run_process
from work import HERE, dump_study_file, few_shot_items

ARMS = (1, 2, 4, 8, 16)
ITEMS = (25, 50, 100, 200)
SHOTS = (0, 2, 4, 8)
_RANKS = tuple(range(1, 17))


def points(folder: Path, arms: Sequence[int], items: Sequence[int], shots: Sequence[int]) -> Iterator[dict[str, Any]]:
    """One measured study after another."""
    for number in arms:
        yield {"grows": "arms", "value": number, **measure(folder, _study(number, 100, 0, folder))}
    for number in items:
        yield {"grows": "items", "value": number, **measure(folder, _study(1, number, 0, folder))}
    for number in shots:
        yield {"grows": "examples in the prompt", "value": number, **measure(folder, _study(1, 100, number, folder))}


def measure(folder: Path, study: dict[str, Any]) -> dict[str, float]:
    """Seconds of a study from its start to its report."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    path = dump_study_file(folder / "study.yaml", study)
    found = run_process(["-m", "rankscope", "run", str(path), "--out", str(out)], accepted=(0, 3))
    return {"seconds": found["seconds"], "processor_seconds": found["processor_seconds"]}


def _study(num_arms: int, num_items: int, num_shots: int, folder: Path) -> dict[str, Any]:
    """So many ranks on the small world, scored on so many items behind so many worked examples."""
    items = few_shot_items(folder / f"items-{num_items}-{num_shots}.jsonl", num_items, num_shots)
    return {
        "study": "growth",
        "model": "smallworld:base",
        "train": {"set": {"source": "smallworld:medical_new", "max_examples": 320, "validation": {"max_examples": 20}}},
        "arms": [{"method": "lora", "rank": list(_RANKS[:num_arms]), "learning_rate": [1e-3]}],
        "optimization": {"max_steps": 40, "batch_size": 8, "num_validations": 1},
        "seeds": [0],
        "evaluate": {"items": {"source": str(items), "in_domain_for": ["set"]}},
        "analyse": {"attention": False, "representations": False, "neurons": False},
    }


def chart(frame: pl.DataFrame) -> alt.HConcatChart:
    """Time against each of the three, and for arms what as many runs alone would take."""
    alone = frame.filter((pl.col("grows") == "arms") & (pl.col("value") == 1))["seconds"].item()
    charts = []
    for grows in frame["grows"].unique(maintain_order=True):
        part = frame.filter(pl.col("grows") == grows)
        x = alt.X("value:Q", title=grows)
        chart = alt.Chart(part).mark_line(point=True).encode(x, alt.Y("seconds:Q", title="seconds, whole study"))
        if grows == "arms":
            each = part.with_columns((pl.col("value") * alone).alias("seconds"))
            chart += alt.Chart(each).mark_line(strokeDash=[4, 4]).encode(x, y="seconds:Q")
        charts.append(chart.properties(width=220, height=200))
    return alt.hconcat(*charts)


def main() -> None:
    """Measure, and write the numbers and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", type=int, nargs="*", default=ARMS)
    parser.add_argument("--items", type=int, nargs="*", default=ITEMS)
    parser.add_argument("--shots", type=int, nargs="*", default=SHOTS, help="worked examples in the prompt")
    parser.add_argument("--out", type=Path, default=HERE / "growth.json")
    parser.add_argument("--plot", type=Path, default=HERE.parent / "docs/images/growth.svg")
    parser.add_argument("--folder", type=Path, default=HERE.parent / "build" / "growth")
    arguments = parser.parse_args()
    if len(arguments.arms) < 2 or arguments.arms[0] != 1:
        parser.error("--arms begins with 1, a run alone, and names another number")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    measure(arguments.folder, _study(1, 100, 0, arguments.folder))
    rows = []
    for row in points(arguments.folder, arguments.arms, arguments.items, arguments.shots):
        rows.append(row)
        print(row, flush=True)
    arms = [row["seconds"] for row in rows if row["grows"] == "arms"]
    marginal = (arms[-1] - arms[0]) / (arguments.arms[-1] - arguments.arms[0])
    print(f"a run alone: {arms[0]:.1f} s; an arm more: {marginal:.1f} s")
    document = {"alone_seconds": arms[0], "marginal_arm_seconds": marginal, "points": rows}
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")
    chart(pl.DataFrame(rows)).save(arguments.plot)
    if marginal >= arms[0]:
        raise SystemExit(f"an arm more costs {marginal:.1f} s, no less than a study of one arm with {arms[0]:.1f} s")


if __name__ == "__main__":
    main()
