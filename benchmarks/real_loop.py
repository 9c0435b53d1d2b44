"""What a loop over TRL, PEFT and lm-eval would take for the real study: one run and its scores, then multiplied.

    python benchmarks/real_loop.py results/smollm2 --arm lora-r64

Both stacks do the same in turn on this machine, nothing else beside them: train the arm at its chosen rate and score it
on every task of the study. rankscope has two seeds and always two pieces of work, one on each core, as in the study, so
that a run's time is half of what its pieces took; the loop has all cores for one run. Training is multiplied by tokens,
scoring by scored models. The result goes to docs/smollm2/loop.json, and from there into docs/findings.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peer
import polars as pl
import transformers
from work import Run, Work

from rankscope.data.hub import model_folder
from rankscope.plan import Plan
from rankscope.results import load_results
from rankscope.spec import Study
from rankscope.store import EXAMPLES, PROMPTS, Store, read_model
from rankscope.study_file import dump_study, load_study

ROOT = Path(__file__).resolve().parent.parent
# Found best by `bench.py` for options of questions; excerpts of cases are long.
_BATCH_SIZES = {"casehold": 4}
_BATCH_SIZE = 16


def main() -> None:
    """Measure both and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="the study's directory")
    parser.add_argument("--arm", default="lora-r64")
    parser.add_argument("--training-set", default="medmcqa")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "real_loop")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "smollm2" / "loop.json")
    arguments = parser.parse_args()
    store = Store(arguments.results)
    plan = read_model(store.plan_file, Plan)
    if plan is None:
        raise FileNotFoundError(store.plan_file)
    rate = _chosen_rate(store, arguments.training_set, arguments.arm)
    shutil.rmtree(arguments.folder, ignore_errors=True)
    arguments.folder.mkdir(parents=True)
    ours = measure_ours(store, arguments.folder, arguments.training_set, arguments.arm, rate)
    theirs = measure_loop(store, plan, arguments.folder, arguments.training_set, arguments.arm, rate)
    label = f"{arguments.arm} at {rate:g} on {arguments.training_set}"
    found = {"run": label, **ours, **theirs}
    found |= multiplied(store, plan, found)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


def _chosen_rate(store: Store, training_set: str, arm: str) -> float:
    choices = store.read_rates().choices
    return next(c.learning_rate for c in choices if (c.training_set, c.arm) == (training_set, arm) and c.learning_rate)


def measure_ours(store: Store, folder: Path, training_set: str, arm: str, rate: float) -> dict[str, float]:
    """Seconds of one run's training and scoring, of two that are at work side by side."""
    study = load_study(store.study_file).model_dump(mode="json", exclude_none=True)
    rank = int(arm.partition("-r")[2])
    study["arms"] = [{"method": "lora", "rank": [rank], "target_modules": "all-linear", "learning_rate": [rate]}]
    study["train"] = {training_set: {**study["train"][training_set], "arms": None}}
    for task in study["evaluate"].values():
        task["in_domain_for"] = [name for name in task.get("in_domain_for") or () if name == training_set] or None
    study |= {
        "study": "loop",
        "derive": {},
        "analyse": dict.fromkeys(("spectra", "subspaces", "attention", "representations", "neurons"), False),
    }
    file = folder / "study.yaml"
    file.write_text(dump_study(Study.model_validate(_without_none(study))), encoding="utf-8")
    out = folder / "ours"
    command = [sys.executable, "-m", "rankscope", "run", str(file), "--out", str(out)]
    if subprocess.run(command, check=False).returncode not in (0, 3):
        raise RuntimeError("the study of one arm failed")
    frames, plan = load_results(out), read_model(Store(out).plan_file, Plan)
    runs = frames["runs"]
    workers = min(plan.layout.num_workers if plan else 1, runs.height)
    records = [Store(out).read_evaluate(path.parent) for path in out.glob("runs/*/evaluate/*/record.json")]
    scoring = sum(record.seconds for record in records if record and not record.task.startswith("validation"))
    return {
        "train_seconds": float(runs["train_seconds"].sum()) / workers / runs.height,
        "score_seconds": scoring / workers / runs.height,
        "num_tokens": float(runs["num_tokens"].mean()),
    }


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def measure_loop(store: Store, plan: Plan, folder: Path, training_set: str, arm: str, rate: float) -> dict[str, float]:
    """Seconds of the same run's training with TRL and PEFT, and of its scoring with lm-eval's HFLM."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    run = next(
        run
        for run in plan.runs
        if (run.training_set.name, run.arm.label, run.learning_rate, run.seed) == (training_set, arm, rate, 0)
    )
    base = run.base.name
    examples = pl.read_parquet(store.training_data(base, training_set) / EXAMPLES)
    order = pl.read_parquet(store.run(run.run_id) / "order.parquet")
    rows = order.join(examples.unique("example_id"), on="example_id", how="left", maintain_order="left")
    rows.select("prompt", "completion").write_ndjson(folder / "examples.jsonl")
    work = Work(
        base=base,
        model=str(Path(model_folder(run.base.source, run.base.revision)).resolve()),
        examples=str(folder / "examples.jsonl"),
        runs=[Run(arm, run.arm.rank, rate)],
        tasks={name: str(store.base_task(base, name) / PROMPTS) for name in plan.tasks[base]},
        text="",
        num_steps=run.num_steps,
        batch_size=run.optimization.batch_size,
        max_length=run.optimization.max_length,
        warmup_ratio=run.optimization.warmup_ratio,
    )
    started = time.perf_counter()
    peer.train(work, folder / "peer", {})
    trained = time.perf_counter()
    model = peer.harness_model(work, peer.tuned_model(work, folder / "peer", work.runs[0]), 1)
    for name, settings in plan.tasks[base].items():
        size = _BATCH_SIZES.get(name, _BATCH_SIZE)
        if settings.scoring == "loss":
            _score_text(model, Path(work.tasks[name]), size)
        else:
            peer.score_task(model, work, name, size)
    return {"peer_train_seconds": trained - started, "peer_score_seconds": time.perf_counter() - trained}


def _score_text(model: Any, prompts: Path, size: int) -> None:
    items = pl.read_parquet(prompts).to_dicts()
    model.batch_size_per_gpu = size
    if any(item["prompt"] for item in items):
        model.loglikelihood([SimpleNamespace(args=(i["prompt"], i["target"])) for i in items], disable_tqdm=True)
    else:
        model.loglikelihood_rolling([SimpleNamespace(args=(i["target"],)) for i in items], disable_tqdm=True)


def multiplied(store: Store, plan: Plan, measured: dict[str, float]) -> dict[str, float]:
    """What all training and scoring of the study would take each, by trained tokens and scored models."""
    runs = load_results(store.root)["runs"]
    whole = runs.filter(pl.col("state") == "complete").group_by("training_set").agg(pl.col("num_tokens").max())
    tokens = dict(whole.iter_rows())
    in_full = sum(tokens[run.training_set.name] for run in plan.runs if run.seed in plan.search_seeds)
    later = runs.filter(~pl.col("seed").is_in(list(plan.search_seeds)))["num_tokens"].sum()
    num_models = 1 + runs.filter(pl.col("is_chosen")).height
    trained = float(runs["num_tokens"].sum()) / measured["num_tokens"]
    in_full = (in_full + float(later)) / measured["num_tokens"]
    ours, theirs = (
        (measured[f"{whose}train_seconds"], num_models * measured[f"{whose}score_seconds"]) for whose in ("", "peer_")
    )
    return {
        "num_trained_steps": float(runs["num_steps"].sum()),
        "num_scored_models": float(num_models),
        "multiplied_seconds": trained * ours[0] + ours[1],
        "peer_multiplied_seconds": trained * theirs[0] + theirs[1],
        "peer_multiplied_without_halving_seconds": in_full * theirs[0] + theirs[1],
        "study_seconds": _study_seconds(store),
    }


def _study_seconds(store: Store) -> float:
    """The seconds of all its work, added up over the records, on the workers that it had."""
    records = [json.loads(path.read_text()) for path in store.root.glob("*/**/record.json")]
    plan = read_model(store.plan_file, Plan)
    workers = plan.layout.num_workers if plan else 1
    return sum(record["seconds"] for record in records) / workers


if __name__ == "__main__":
    main()
