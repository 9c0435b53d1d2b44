"""Asking for a cluster that cannot be had: one message before anything starts."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from rankscope.cli import USER_ERROR, main
from rankscope.errors import UserError
from rankscope.execute.parcels import changed_files, marks, needed_files, read_parcel, write_parcel
from rankscope.execute.ray import cluster_layout
from rankscope.plan import Pack
from rankscope.spec import Execute
from rankscope.store import Store
from studies import write_study


def cluster(monkeypatch: pytest.MonkeyPatch, **resources: float) -> None:
    made = SimpleNamespace(is_initialized=lambda: True, cluster_resources=lambda: resources)
    monkeypatch.setitem(sys.modules, "ray", made)


def test_ray_that_is_not_installed_is_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    out = tmp_path / "out"
    arguments = ["run", str(write_study(tmp_path)), "--out", str(out), "--set", "execute.backend=ray"]
    assert main(arguments) == USER_ERROR
    said = capsys.readouterr().err
    assert "execute.backend: Ray is not installed" in said and "pip install 'rankscope[ray]'" in said
    assert not (out / "plan.json").exists()


def test_an_address_at_which_nobody_listens_is_found_out_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def init(**_: object) -> None:
        raise AssertionError("Ray would try for minutes")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False, init=init))
    arguments = ["run", str(write_study(tmp_path)), "--out", str(tmp_path / "out"), "--set", "execute.backend=ray"]
    assert main([*arguments, "--set", "execute.address=127.0.0.1:1"]) == USER_ERROR
    said = capsys.readouterr().err
    assert "execute.address: there is no Ray cluster at '127.0.0.1:1'" in said and "ray start --head" in said


def test_a_cluster_that_is_not_there_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False, init=init))
    with pytest.raises(UserError, match="there is no Ray cluster at 'nowhere:6379'") as caught:
        cluster_layout(Execute(backend="ray", address="nowhere:6379"))
    assert "ray start --head" in caught.value.mend


def test_work_is_laid_out_by_what_the_cluster_has(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, CPU=16.0, GPU=4.0)
    found = cluster_layout(Execute(backend="ray"))
    assert (found.device, found.num_workers, found.threads_per_worker) == ("cuda", 4, 1)
    on_cores = cluster_layout(Execute(backend="ray", device="cpu", threads_per_worker=4))
    assert (on_cores.device, on_cores.num_workers) == ("cpu", 4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_workers": 5}, "5 workers on cuda are asked for, and the cluster has 4 GPUs"),
        ({"device": "cpu", "num_workers": 17}, "17 workers on cpu are asked for, and the cluster has 16 processor"),
        ({"device": "mps"}, "a Ray cluster has no mps devices"),
    ],
)
def test_more_devices_than_there_are_are_refused(monkeypatch: pytest.MonkeyPatch, settings: dict, said: str) -> None:
    cluster(monkeypatch, CPU=16.0, GPU=4.0)
    with pytest.raises(UserError, match=said):
        cluster_layout(Execute(backend="ray", **settings))


def test_a_cluster_without_gpus_cannot_give_one(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, CPU=16.0)
    with pytest.raises(UserError, match="cuda is asked for, and the cluster has 0 GPUs") as refused:
        cluster_layout(Execute(backend="ray", device="cuda"))
    assert refused.value.where == "execute.device"
    with pytest.raises(
        UserError, match="1 worker on cpu is asked for, and the cluster has 16 processor cores"
    ) as refused:
        cluster_layout(Execute(backend="ray", threads_per_worker=17))
    assert "lower execute.threads_per_worker" in refused.value.mend


def test_what_a_pack_reads_is_sent_and_what_it_wrote_comes_back(tmp_path: Path) -> None:
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    written = {
        "plan.json": b"p", "base/b/probes.parquet": b"x", "base/other/probes.parquet": b"y",
        "runs/r/train/adapter/a": b"a", "runs/r/train/checkpoint/1/c": b"c", "runs/s/train/adapter/a": b"s",
    }  # fmt: skip
    write_parcel(here.root, written)
    scored = needed_files(here, Pack("evaluate", "b", ("r",), ("task",)))
    assert sorted(scored) == ["base/b/probes.parquet", "plan.json", "runs/r/train/adapter/a"]
    assert "runs/r/train/checkpoint/1/c" in needed_files(here, Pack("train", "b", ("r",)))
    write_parcel(there.root, read_parcel(here.root, scored))
    before = marks(there.root)
    write_parcel(there.root, {"runs/r/evaluate/task/record.json": b"{}", "base/b/probes.parquet": b"xx"})
    changed = changed_files(there.root, before)
    assert sorted(changed) == ["base/b/probes.parquet", "runs/r/evaluate/task/record.json"]
    write_parcel(here.root, read_parcel(there.root, changed))
    assert (here.root / "runs/r/evaluate/task/record.json").read_bytes() == b"{}"


def test_a_parcel_cannot_write_outside_the_study(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leads out of"):
        write_parcel(tmp_path / "study", {"../elsewhere": b""})
    assert not (tmp_path / "elsewhere").exists()
