"""A small study from its file to its report, through real processes; stopped, killed, changed and run again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from peft import PeftModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from rankscope.cli import DONE, INTERRUPTED, UNDECIDED, USER_ERROR, main
from rankscope.data.hub import model_folder
from rankscope.models.loading import load_model
from rankscope.store import Store
from rankscope.study_file import dump_study, load_study
from studies import COMMAND, STUDY, assert_same_results, plan_of, run, write_study


def stop_when(study: Path, out: Path, is_time: Callable[[], bool], kind: signal.Signals) -> int:
    """Start a study, send a signal to its process when the time has come, and return its exit status."""
    process = subprocess.Popen([*COMMAND, "run", str(study), "--out", str(out)], stdout=subprocess.DEVNULL)
    while not is_time():
        assert process.poll() is None, "the study was over before it could be stopped"
        time.sleep(0.02)
    process.send_signal(kind)
    return process.wait(timeout=120)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("finished")
    study = write_study(folder)
    return study, folder / "out", run(study, folder / "out", "--set", "report_to=tensorboard")


def test_a_study_from_its_file_to_its_report(finished: tuple) -> None:
    _, out, done = finished
    assert done.returncode in {DONE, UNDECIDED}, done.stdout + done.stderr
    assert str(out / "report" / "index.html") in done.stdout
    store, plan = Store(out), plan_of(out)
    trained = [run for run in plan.runs if store.read_train(run.run_id) is not None]
    # Three candidates on the first seed, then one of each arm on the second.
    assert len(trained) == 5
    choices = {choice.arm: choice.learning_rate for choice in store.read_rates().choices}
    assert choices["full"] == 1e-3
    assert choices["lora-r2"] in {1e-3, 3e-3}
    for settings in trained:
        is_chosen = settings.learning_rate == choices[settings.arm.label]
        for task in plan.tasks["smallworld-base"]:
            record = store.read_evaluate(store.task(settings.run_id, task))
            assert (record is not None) == is_chosen
            if record is not None:
                assert record.status == "complete"
                assert len(pl.read_parquet(store.task(settings.run_id, task) / "items.parquet")) == record.num_items
    record = store.read_decide()
    assert record is not None
    assert [verdict.training_set for verdict in record.verdicts] == ["facts"]
    for name in ("study.yaml", "plan.json", "provenance.json", "report/index.html"):
        assert (out / name).is_file()
    assert list((out / "report" / "tables").glob("*.csv"))


def test_no_test_item_was_scored_before_the_choice(finished: tuple) -> None:
    _, out, _ = finished
    store, plan = Store(out), plan_of(out)
    chosen_at = {choice.arm: choice.chosen_at for choice in store.read_rates().choices}
    seen = 0
    for settings in plan.runs:
        for task in plan.tasks["smallworld-base"]:
            record = store.read_evaluate(store.task(settings.run_id, task))
            if record is not None:
                seen += 1
                assert record.started_at > chosen_at[settings.arm.label]
    assert seen == 16


def test_running_again_does_nothing(finished: tuple) -> None:
    study, out, _ = finished
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*") if path.is_file()}
    again = run(study, out)
    assert again.returncode in {DONE, UNDECIDED}
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*") if path.is_file()} == before


def test_a_study_goes_on_to_its_end_where_nobody_reads_on(finished: tuple) -> None:
    study, out, done = finished
    (out / "report" / "index.html").unlink()
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` has, when it has seen enough
    command = [*COMMAND, "run", str(study), "--out", str(out)]
    again = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=300)
    os.close(writer)
    assert (again.returncode, again.stderr) == (done.returncode, "")
    assert (out / "report" / "index.html").is_file()


def test_a_study_that_was_carried_out_on_a_gpu_is_decided_again_without_one(
    finished: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, whole, _ = finished
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    # As it would have been written there: results do not depend on the device.
    text = dump_study(load_study(study, ["report_to=tensorboard", "execute.device=cuda"]))
    (out / "study.yaml").write_text(text, encoding="utf-8")
    plan = plan_of(out)
    elsewhere = plan.model_copy(update={"layout": plan.layout.model_copy(update={"device": "cuda"})})
    (out / "plan.json").write_text(elsewhere.model_dump_json(), encoding="utf-8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cuda = ("--set", "report_to=tensorboard", "--set", "execute.device=cuda")
    assert run(study, out, *cuda).returncode in {DONE, UNDECIDED}
    more = run(study, out, *cuda, "--set", "seeds=[0, 1, 2]")  # there is something to train
    assert more.returncode == USER_ERROR and "hides every GPU" in more.stderr


def test_status_of_a_finished_study(finished: tuple) -> None:
    _, out, _ = finished
    command = [*COMMAND, "status", str(out), "--json"]
    state = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert state["state"] == "done"
    assert state["counts"] == {"done": 5}
    assert {"run", "arm", "base", "training_set", "learning_rate", "seed", "stage", "state", "error"} <= set(
        state["runs"][0]
    )


def test_a_directory_of_another_study_is_refused(finished: tuple, tmp_path: Path) -> None:
    _, out, _ = finished
    done = run(write_study(tmp_path, STUDY.replace("study: tiny", "study: other")), out)
    assert done.returncode == USER_ERROR
    assert "holds the study 'tiny', not 'other'" in done.stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    done = run(write_study(tmp_path), tmp_path / "mine")
    assert done.returncode == USER_ERROR
    assert "no study's" in done.stderr
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["thesis.txt"]


def test_its_tracker_was_told_every_loss_score_and_verdict(finished: tuple) -> None:
    _, out, done = finished
    assert "tracking" not in done.stdout
    losses = {}
    for path in sorted(out.glob("runs/*/train/steps.jsonl")):
        name = path.parent.parent.name
        events = EventAccumulator(str(out / "tensorboard" / name)).Reload()
        told = [(one.step, one.value) for one in events.Scalars("train/loss_nats_per_token")]
        steps = [json.loads(line) for line in path.read_text().splitlines()]
        losses[name] = [(row["step"], pytest.approx(row["loss_nats_per_token"])) for row in steps]
        assert told == losses[name]
        if (path.parent.parent / "evaluate" / "facts" / "record.json").is_file():
            assert "scores/facts/accuracy" in events.Tags()["scalars"]
    assert len(losses) == 5
    verdicts = EventAccumulator(str(out / "tensorboard" / "verdicts")).Reload()
    assert "smallworld-base/facts/lora-r2/gain" in verdicts.Tags()["scalars"]


def test_peft_loads_an_exported_adapter(finished: tuple, tmp_path: Path) -> None:
    _, out, _ = finished
    assert main(["export", str(out), "--out", str(tmp_path), "--what", "models", "--model", "lora-r2"]) == DONE
    (folder,) = (tmp_path / "models").iterdir()
    base = load_model(model_folder("smallworld:base"), torch.float32, "cpu")
    ids = torch.tensor([[5, 6, 7, 8]])
    before = base(ids).logits
    assert not torch.equal(PeftModel.from_pretrained(base, folder)(ids).logits, before)


def test_an_exported_model_is_loaded_with_its_tokenizer(finished: tuple, tmp_path: Path) -> None:
    _, out, _ = finished
    assert main(["export", str(out), "--out", str(tmp_path), "--what", "models", "--model", "full"]) == DONE
    (folder,) = (tmp_path / "models").iterdir()
    ids = AutoTokenizer.from_pretrained(folder)("Question: What", return_tensors="pt").input_ids
    assert AutoModelForCausalLM.from_pretrained(folder)(ids).logits.isfinite().all()


@pytest.mark.slow
def test_deleted_weights_come_back_as_the_export_says(
    finished: tuple, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, whole, _ = finished
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    run(study, out, "--set", "keep=records")
    command = ["export", str(out), "--what", "models", "--model", "lora-r2"]
    assert main(command) == USER_ERROR
    message = capsys.readouterr().err
    (folder,) = [path for path in out.glob("runs/*lora-r2*/train") if str(path) in message]
    assert "keep: chosen" in message
    shutil.rmtree(folder)
    done = run(study, out, "--set", "keep=chosen")
    assert [line for line in done.stdout.splitlines() if line.startswith("trained small")] == [
        f"trained {folder.parent.name}"
    ]
    assert main(command) == DONE
    weights = out / "export" / "models" / folder.parent.name / "adapter_model.safetensors"
    assert weights.read_bytes() == (whole / folder.relative_to(out) / "adapter" / weights.name).read_bytes()


@pytest.mark.slow
def test_a_changed_study_keeps_what_is_still_valid(finished: tuple, tmp_path: Path) -> None:
    study, whole, _ = finished
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    before = {path.relative_to(out): path.stat().st_mtime_ns for path in (out / "runs").glob("*/train/record.json")}
    done = run(study, out, "--set", "arms.1.rank=[2, 4]")
    assert done.returncode in {DONE, UNDECIDED}, done.stdout + done.stderr
    after = {path.relative_to(out): path.stat().st_mtime_ns for path in (out / "runs").glob("*/train/record.json")}
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 3
    assert all("lora-r4" in str(name) for name in set(after) - set(before))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "stage"),
    [
        pytest.param(signal.SIGINT, "in training", id="Ctrl-C in training"),
        pytest.param(signal.SIGTERM, "in training", id="ended by a cluster in training"),
        pytest.param(signal.SIGINT, "in scoring", id="Ctrl-C in scoring"),
        pytest.param(signal.SIGKILL, "in scoring", id="kill -9 in scoring"),
    ],
)
def test_a_stopped_study_ends_as_if_it_had_not_been(
    finished: tuple, tmp_path: Path, kind: signal.Signals, stage: str
) -> None:
    study, whole, _ = finished
    out = tmp_path / "out"

    def is_time() -> bool:
        if stage == "in training":
            return any(len(path.read_text().splitlines()) >= 3 for path in out.glob("runs/*/train/steps.jsonl"))
        return any(out.glob("runs/*/evaluate/facts/record.json"))

    status = stop_when(study, out, is_time, kind)
    assert status == (-signal.SIGKILL if kind is signal.SIGKILL else INTERRUPTED)
    if stage == "in training":
        assert list(out.glob("runs/*/train/checkpoint/*/state.json"))
    done = run(study, out)
    assert done.returncode in {DONE, UNDECIDED}, done.stdout + done.stderr
    assert_same_results(whole, out)


@pytest.mark.slow
def test_damage_is_found_and_mended(finished: tuple, tmp_path: Path) -> None:
    study, _, _ = finished
    out = tmp_path / "out"
    assert run(study, out).returncode in {DONE, UNDECIDED}
    items = next(iter(sorted(out.glob("runs/*/evaluate/recall/items.parquet"))))
    content = bytearray(items.read_bytes())
    content[len(content) // 2] ^= 1
    items.write_bytes(content)
    done = run(study, out)
    assert "checksum" in done.stdout and "done again" in done.stdout
    assert_same_results(finished[1], out)


@pytest.mark.slow
def test_a_second_process_on_one_directory_says_so(finished: tuple, tmp_path: Path) -> None:
    study, _, _ = finished
    out = tmp_path / "out"
    first = subprocess.Popen([*COMMAND, "run", str(study), "--out", str(out)], stdout=subprocess.DEVNULL)
    try:
        while not list(out.glob("runs/*/train/steps.jsonl")):
            assert first.poll() is None
            time.sleep(0.05)
        second = run(study, out)
        assert second.returncode == USER_ERROR
        assert f"process {first.pid}" in second.stderr
    finally:
        os.kill(first.pid, signal.SIGINT)
        first.wait(timeout=60)
