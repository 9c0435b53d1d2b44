"""What a tracker is told of a study: everything, once, also when the study is stopped and run again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rankscope.decide import stage as decide
from rankscope.decide.rates import update_rates
from rankscope.store import Store
from rankscope.track.follower import VERDICTS, Follower
from synthetic import ARMS, Arm, Synthetic, write_study


class Kept:
    """A tracker that keeps what it is told, and does not forget between calls."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str, int], float] = {}
        self.texts: dict[tuple[str, str], str] = {}
        self.configs: dict[str, dict] = {}
        self.open: set[str] = set()
        self.begun: list[tuple[str, str | None]] = []

    def begin(self, name: str, config: dict, known: str | None) -> str:
        assert name not in self.open
        self.open.add(name)
        self.begun.append((name, known))
        self.configs[name] = dict(config)
        return known or f"id of {name}"

    def numbers(self, name: str, step: int, values: dict[str, float]) -> None:
        assert name in self.open
        for key, value in values.items():
            assert (name, key, step) not in self.values, "told twice"
            self.values[name, key, step] = value

    def text(self, name: str, key: str, text: str) -> None:
        assert name in self.open
        self.texts[name, key] = text

    def end(self, name: str) -> None:
        self.open.remove(name)


@pytest.fixture
def study(tmp_path: Path) -> Synthetic:
    broken = Arm("lora", 4, (1e-4, 3e-4, 1e-3), diverged=(1e-3,), failed_seeds=(2,))
    study = write_study(tmp_path / "study", arms=(broken, ARMS[1]))
    update_rates(study.store, study.plan)
    return study


def follow(study: Synthetic, kept: Kept) -> Follower:
    return Follower(study.store, study.plan, kept, "tensorboard")


def test_every_step_and_score_is_told(study: Synthetic) -> None:
    kept = Kept()
    follower = follow(study, kept)
    follower.tell()
    follower.tell()  # nothing is told twice: `Kept` says so
    follower.close()
    assert not kept.open
    store: Store = study.store
    trained = [run for run in study.plan.runs if store.read_train(run.run_id)]
    assert len(trained) == 10
    for run in trained:
        lines = (store.train(run.run_id) / "steps.jsonl").read_text().splitlines()
        for row in map(json.loads, lines):
            assert kept.values[run.run_id, "train/loss_nats_per_token", row["step"]] == row["loss_nats_per_token"]
        for task in ("validation", "taught", "legal", "general", "text"):
            record = store.read_evaluate(store.task(run.run_id, task))
            for key, value in (record.values if record else {}).items():
                assert kept.values[run.run_id, f"scores/{task}/{key}", run.num_steps] == value
    base = store.read_evaluate(store.base_task("small", "taught"))
    assert kept.values["base-small", "scores/taught/accuracy", 0] == base.values["accuracy"]
    diverged = next(run for run in trained if run.learning_rate == 1e-3 and run.arm.label == "lora-r4")
    assert kept.texts[diverged.run_id, "status"] == "diverged: loss_too_high"
    assert "failed: out of memory" in kept.texts.values()
    config = kept.configs[diverged.run_id]
    assert config["arm"] == "lora-r4" and config["learning_rate"] == 1e-3 and config["option/r"] == 4


def test_losses_come_while_a_run_trains(study: Synthetic) -> None:
    run = study.plan.runs[0]
    path = study.store.train(run.run_id) / "steps.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    (study.store.train(run.run_id) / "record.json").unlink()
    path.write_text("".join(lines[:2]) + lines[2][:10])  # a line that is being written
    kept = Kept()
    follower = follow(study, kept)
    follower.tell()
    steps = {step for name, key, step in kept.values if name == run.run_id and key.startswith("train/")}
    assert steps == {1, 2} and run.run_id in kept.open
    path.write_text("".join(lines))
    follower.tell()
    assert {step for name, _, step in kept.values if name == run.run_id} >= set(range(1, len(lines) + 1))


def test_a_study_that_is_run_again_goes_on_where_its_tracker_is(study: Synthetic) -> None:
    kept = Kept()
    follow(study, kept).close()
    number = len(kept.values)
    kept.begun.clear()
    follow(study, kept).close()
    assert len(kept.values) == number and kept.begun == []
    # A run that goes on from a checkpoint writes its earlier steps anew, and more.
    run = study.plan.runs[0]
    path = study.store.train(run.run_id) / "steps.jsonl"
    last = json.loads(path.read_text().splitlines()[-1])
    path.write_text(path.read_text() + json.dumps(last | {"step": last["step"] + 1}) + "\n")
    follow(study, kept).close()
    assert len(kept.values) == number + 3
    assert kept.begun == [(run.run_id, f"id of {run.run_id}")]


def test_verdicts_are_told_with_their_intervals(study: Synthetic) -> None:
    record = decide.run(study.store, study.study, study.plan)
    kept = Kept()
    follower = follow(study, kept)
    follower.tell_verdicts()
    follower.close()
    (verdict,) = record.verdicts
    arm = next(one for one in verdict.arms if one.arm == "lora-r16")
    place = "small/new/lora-r16"
    assert kept.values[VERDICTS, f"{place}/gain", 0] == arm.gain.value
    assert kept.values[VERDICTS, f"{place}/forgetting_low", 0] == arm.forgetting.low
    assert verdict.rule in kept.texts[VERDICTS, "small/new"]
    follow(study, kept).tell_verdicts()  # the same ones are not told again


def test_a_damaged_memory_tells_all_again_and_loses_nothing(study: Synthetic) -> None:
    follow(study, Kept()).close()
    path = study.store.root / "tracking" / "tensorboard.json"
    path.write_text(path.read_text()[:-20])
    kept = Kept()
    follow(study, kept).close()
    assert len(kept.values) > 100
