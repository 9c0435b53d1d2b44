"""What `plan` forecast for a study, beside what the study then took: time, processor time, memory and disk, in one run.

    python benchmarks/forecast.py                       the demo, and the pocket paper study where there is real data
    python benchmarks/forecast.py STUDY --set model=... another one

The clock means something on an idle machine only; processor time, all processes added up, is steadier. A study that was
measured goes into benchmarks/forecast.json and .md; those of others stay.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from work import HERE, SHARED

from rankscope.cost.estimate import START_SECONDS
from rankscope.plan import Plan
from rankscope.planning import make_plan
from rankscope.study_file import load_study


@dataclass(frozen=True)
class Line:
    """A quantity as it was forecast and as it was measured."""

    name: str
    forecast: float
    measured: float
    unit: str

    @property
    def error(self) -> float:
        """Forecast over measured, less one."""
        return self.forecast / self.measured - 1 if self.measured else 0.0


def processor_seconds(plan: Plan) -> float:
    """All processes of a study together: what is done once, every piece of work, and the start of each worker."""
    once = sum(plan.estimate.seconds_by_stage.values())
    return once * plan.layout.threads_per_worker + START_SECONDS * (plan.layout.num_workers - 1)


def size_of(folder: Path) -> int:
    """Bytes of all files, those aside that go while they are looked at."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def measure(study: Path, overrides: list[str], out: Path) -> list[Line]:
    """Plan a study, run it, and compare."""
    plan, _ = make_plan(load_study(study, overrides))
    command = [sys.executable, "-m", "rankscope", "run", str(study), "--out", str(out)]
    command += [text for override in overrides for text in ("--set", override)]
    largest, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            largest[0] = max(largest[0], size_of(out))

    watcher = threading.Thread(target=watch)
    watcher.start()
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = os.environ | {"RANKSCOPE_CACHE": str(out.with_suffix(".cache"))}  # nothing is decomposed yet
    status = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, env=environment).returncode
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    ended.set()
    watcher.join()
    if status not in {0, 3}:
        raise SystemExit(f"the study ended with status {status}")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    records = [json.loads(path.read_text()) for path in out.rglob("record.json")]
    memory = max(record.get("peak_memory_bytes") or 0 for record in records)
    cost = plan.estimate
    lines = [
        Line("time", cost.seconds or 0.0, seconds, "s"),
        Line("processor time", processor_seconds(plan), used, "s"),
        Line("memory", (cost.memory_bytes or 0) / 1e6, memory / 1e6, "MB"),
        Line("disk, at most", cost.disk_bytes / 1e6, largest[0] / 1e6, "MB"),
    ]
    for stage, kind in (("train", "train"), ("evaluate", "evaluate"), ("analyse", "analyse")):
        taken = sum(record["seconds"] for record in records if record["kind"] == kind)
        lines.append(Line(f"{stage}, by the records", cost.seconds_by_stage[stage], taken, "s"))
    return lines


def usual_studies() -> dict[Path, list[str]]:
    """The demo and, where real data are at hand, the pocket paper study on them; each with its overrides."""
    found: dict[Path, list[str]] = {Path(str(files("rankscope.data.smallworld") / "study.yaml")): []}
    if SHARED.is_dir():
        sources = json.loads((HERE / "pocket_sources.json").read_text(encoding="utf-8"))
        found[HERE.parent / "studies" / "pocket_paper.yaml"] = [f"{key}={SHARED / p}" for key, p in sources.items()]
    return found


def table(document: dict[str, dict[str, Any]]) -> str:
    """Every study that was measured, for people."""
    text = []
    for name, found in document.items():
        text += [f"**{name}**, other work at the start: {found['load']:.1f} of {found['num_cores']} cores", ""]
        text += ["| | forecast | measured | error |", "|---|---|---|---|"]
        for line in (Line(**fields) for fields in found["lines"]):
            cells = (line.name, f"{line.forecast:,.1f} {line.unit}", f"{line.measured:,.1f} {line.unit}")
            text.append(f"| {' | '.join(cells)} | {line.error:+.0%} |")
        text.append("")
    return "\n".join(text)


def main() -> None:
    """Measure one study after another, and keep what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, nargs="?")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--folder", type=Path, default=HERE.parent / "build" / "forecast")
    parser.add_argument("--results", type=Path, default=HERE / "forecast.json")
    options = parser.parse_args()
    studies = usual_studies() if options.study is None else {options.study: options.set}
    for study, overrides in studies.items():
        name, load = load_study(study, overrides).study, os.getloadavg()[0]
        shutil.rmtree(options.folder / name, ignore_errors=True)
        shutil.rmtree(options.folder / f"{name}.cache", ignore_errors=True)
        lines = [asdict(line) for line in measure(study, overrides, options.folder / name)]
        document = json.loads(options.results.read_text(encoding="utf-8")) if options.results.exists() else {}
        document[name] = {"load": load, "num_cores": os.cpu_count(), "lines": lines}
        options.results.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        options.results.with_suffix(".md").write_text(table(document), encoding="utf-8")
        print(table({name: document[name]}), flush=True)


if __name__ == "__main__":
    main()
