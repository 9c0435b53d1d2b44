"""Both stacks in turn on the same work, on this machine: how long, how much host memory, how much of the machine.

    python benchmarks/bench.py                                    everything that is possible here
    python benchmarks/bench.py --part scoring --base stories3M    one part again; the other results stay

Every measurement is a process of its own. The stacks take turns (`--repeats` times) so that other work on the machine
meets both; what counts is the median. Processor seconds are there for machines that others use too. A GPU's own memory
is not measured. Results go to benchmarks/results.json, with the layout that rankscope ran in; the table beside it. One
part has no other stack: `derive` sets a curve of derived models beside the training it came from (derived.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import psutil
from arithmetic import matrix_product_rate, training_arithmetic
from derived import Curve, curves, line_of
from table import write_table
from work import BASES, NEEDS_SHARED, SHARED, Work, derived_study, dump_study_file, prepare

from rankscope.plan import Plan
from rankscope.store import Store, read_model

HERE = Path(__file__).resolve().parent
PARTS = ("training", "scoring", "text", "spectra", "study", "derive")
STACKS = ("rankscope", "peer")
_PEER_ENVIRONMENT: dict[str, str] = {}
_OUR_ENVIRONMENT: dict[str, str] = {}
_SAMPLE_SECONDS = 1.0  # a look costs tens of milliseconds of the processors that are measured


def main() -> None:
    """Measure what was asked for, one part after another; each is written as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", choices=[*BASES], action="append")
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--peer-threads", type=int, help="all cores where not given; 1 where others use them too")
    parser.add_argument("--folder", type=Path, default=HERE.parent / "build" / "bench")
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    arguments = parser.parse_args()
    if arguments.peer_threads:
        _PEER_ENVIRONMENT["OMP_NUM_THREADS"] = str(arguments.peer_threads)
    for base in arguments.base or BASES:
        if base in NEEDS_SHARED and not SHARED.is_dir():
            print(f"{base}: left out, there is no folder of real data at {SHARED} (name it in RANKSCOPE_SHARED)")
            continue
        folder = arguments.folder / base
        work = prepare(base, folder)
        for part in arguments.part or PARTS:
            if part == "derive":
                result = measure_derived(base, folder, arguments.repeats)
                said = line_of(Curve(**result["curve"]))
            else:
                result = measure(part, folder, work, arguments.repeats)
                said = f"{result['ratio']:.2f} times faster, {result['processor_ratio']:.2f} in processor time"
            _keep(arguments.results, base, part, result)
            write_table(arguments.results, arguments.results.with_suffix(".md"))
            print(f"{base} {part}: {said}", flush=True)


def measure(part: str, folder: Path, work: Work, repeats: int) -> dict:
    """Seconds and host memory of both stacks in one part."""
    if not (folder / "peer.json").exists():
        _peer("calibrate", folder)
    if part in ("scoring", "text", "spectra"):  # they need trained models
        if not (folder / "trained").exists():
            _ours("training", folder)
        if not (folder / "peer").exists():
            _peer("training", folder)
    rate = matrix_product_rate()
    taken: dict[str, list[dict]] = {stack: [] for stack in STACKS}
    for _ in range(repeats):
        taken["rankscope"].append(_ours(part, folder))
        taken["peer"].append(_peer(part, folder))
    threads = _PEER_ENVIRONMENT.get("OMP_NUM_THREADS", os.cpu_count())
    result: dict = {"matrix_product_rate": rate, "num_cores": os.cpu_count(), "peer_threads": int(threads or 1)}
    result["load_average"] = os.getloadavg()[0]
    # A whole study plans for itself; the other parts read the plan that `trained` has a copy of.
    result["layout"] = _layout(Store(folder / ("out" if part == "study" else "trained")))
    for stack, values in taken.items():
        seconds = [value["seconds"] for value in values]
        memory = [value["peak_memory_bytes"] for value in values]
        processor = [value["processor_seconds"] for value in values]
        result[stack] = {
            "seconds": statistics.median(seconds),
            "processor_seconds": statistics.median(processor),
            "all_seconds": seconds,
            "peak_memory_bytes": max(memory),
        }
        if part == "training":
            share = training_arithmetic(work) / (result[stack]["seconds"] * rate)
            result[stack]["share_of_matrix_product_rate"] = share
    result["ratio"] = result["peer"]["seconds"] / result["rankscope"]["seconds"]
    result["processor_ratio"] = result["peer"]["processor_seconds"] / result["rankscope"]["processor_seconds"]
    result["memory_ratio"] = result["peer"]["peak_memory_bytes"] / result["rankscope"]["peak_memory_bytes"]
    return result


def measure_derived(base: str, folder: Path, repeats: int) -> dict:
    """The largest rank of the base's work, cut to six lower ones: the repetition in which they cost the median."""
    study = dump_study_file(folder / "derive.yaml", derived_study(base, folder))
    found = []
    out = folder / "derived"
    for _ in range(repeats):
        shutil.rmtree(out, ignore_errors=True)
        run_process(["-m", "rankscope", "run", str(study), "--out", str(out)], accepted=(0, 3))
        found += curves(Store(out))
    middle = sorted(found, key=lambda curve: curve.share)[(len(found) - 1) // 2]
    shares = [curve.share for curve in found]
    about = {"num_cores": os.cpu_count(), "load_average": os.getloadavg()[0], "all_shares": shares}
    return {"curve": asdict(middle), "share": middle.share, "layout": _layout(Store(out)), **about}


def _layout(store: Store) -> dict[str, int]:
    """How rankscope divided the machine, by the plan that it worked from."""
    plan = read_model(store.plan_file, Plan)
    if plan is None:
        raise FileNotFoundError(store.plan_file)
    return plan.layout.model_dump(include={"num_workers", "threads_per_worker", "pack_size"})


def _ours(part: str, folder: Path) -> dict:
    # Nothing that an earlier repetition decomposed: the other stack keeps nothing either. The script that draws plots
    # is no result, and stays as an installed file would.
    shutil.rmtree(folder / "cache" / "decompositions", ignore_errors=True)
    _OUR_ENVIRONMENT["RANKSCOPE_CACHE"] = str(folder / "cache")
    if part != "study":
        return run_process([str(HERE / "ours.py"), part, str(folder)])
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    arguments = ["-m", "rankscope", "run", str(folder / "study" / "study.yaml"), "--out", str(out)]
    return run_process(arguments, accepted=(0, 3))  # 3: done and undecided


def _peer(part: str, folder: Path) -> dict:
    return run_process([str(HERE / "peer.py"), part, str(folder)])


def run_process(arguments: list[str], *, accepted: tuple[int, ...] = (0,)) -> dict:
    """Run a process and return what it says of itself, with the most host memory that it and its children held."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        log = Path(folder) / "log.txt"
        command = [sys.executable, *arguments] if arguments[0] == "-m" else [sys.executable, *arguments, str(out)]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment |= _PEER_ENVIRONMENT if "peer.py" in command[1] else _OUR_ENVIRONMENT
        started, used = time.perf_counter(), _used_by_children()
        with log.open("w") as stream:
            process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment, cwd=HERE)
            with _watched(process.pid) as peak:
                status = process.wait()
        seconds = time.perf_counter() - started
        if status not in accepted:
            raise SystemExit(f"{' '.join(command)} ended with status {status}\n{log.read_text()[-4000:]}")
        result = {} if not out.exists() else json.loads(out.read_text())
    whole = {"seconds": seconds, "processor_seconds": _used_by_children() - used}
    # A part is timed from where its libraries are imported; a study from the start of its process to its end.
    found = result | whole if "study" in arguments else whole | result
    return found | {"peak_memory_bytes": peak[0]}


def _used_by_children() -> float:
    """Processor seconds of all processes that have ended, their own children among them."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@contextlib.contextmanager
def _watched(pid: int) -> Iterator[list[int]]:
    """Samples the host memory of a process and its children: pages that several hold are counted once."""
    peak = [0]
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(_SAMPLE_SECONDS):
            peak[0] = max(peak[0], _memory(pid))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def _memory(pid: int) -> int:
    """Bytes of the host's memory; what lies on a GPU is not among them."""
    total = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # it ended just now
                memory = each.memory_full_info()
                # Linux shares a page's size among those who hold it; elsewhere what is a process's own is the nearest.
                total += memory.pss if psutil.LINUX else memory.uss
    return total


def _keep(path: Path, base: str, part: str, result: dict) -> None:
    results = json.loads(path.read_text()) if path.exists() else {}
    results.setdefault(base, {})[part] = result
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
