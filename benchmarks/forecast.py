"""What `plan` forecast for a study, beside what the study then took: time, processor time, memory and disk, in one run.

    python benchmarks/forecast.py --out build/forecast                          # the demo
    python benchmarks/forecast.py studies/pocket_paper.yaml --set model=... --out build/forecast

Time of day means something on an idle machine only; processor time, all processes added up, is steadier.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

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
    status = subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode
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


def main() -> None:
    """Measure one study and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    demo = Path(str(files("rankscope.data.smallworld") / "study.yaml"))
    parser.add_argument("study", type=Path, nargs="?", default=demo)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path("build/forecast"))
    options = parser.parse_args()
    load = os.getloadavg()[0]
    lines = measure(options.study, options.set, options.out / "study")
    text = [f"other work on the machine at the start: {load:.1f} of {os.cpu_count()} cores", ""]
    text += ["| | forecast | measured | error |", "|---|---|---|---|"]
    text += [f"| {x.name} | {x.forecast:,.1f} {x.unit} | {x.measured:,.1f} {x.unit} | {x.error:+.0%} |" for x in lines]
    print("\n".join(text))
    document = [asdict(line) | {"error": line.error} for line in lines]
    (options.out / "forecast.json").write_text(json.dumps(document, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
