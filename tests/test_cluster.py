"""A study on a real Ray cluster of several nodes, of which one is lost in the middle: the results are those of one."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rankscope.cli import DONE, UNDECIDED
from studies import COMMAND, assert_same_results, run, write_study

cluster_utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed (pip install 'rankscope[ray]')")

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    assert run(write_study(folder), folder / "out", "--set", "execute.num_workers=1").returncode in {DONE, UNDECIDED}
    return folder / "out"


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head that works on nothing, and two nodes of one core each."""
    made = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 10**8}
    )
    made.nodes = [made.add_node(num_cpus=1, object_store_memory=10**8) for _ in range(2)]
    yield made
    made.shutdown()


def start(folder: Path, cluster: Any, *arguments: str) -> subprocess.Popen[str]:
    settings = {"backend": "ray", "address": cluster.address, "num_workers": "auto", "checkpoint_seconds": "0"}
    overrides = [text for key, value in settings.items() for text in ("--set", f"execute.{key}={value}")]
    command = [*COMMAND, "run", str(folder / "study.yaml"), "--out", str(folder / "out"), *overrides, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)


def until_trained_for(folder: Path, process: subprocess.Popen[str], num_steps: int) -> None:
    while not any(len(f.read_text().splitlines()) >= num_steps for f in folder.glob("out/runs/*/train/steps.jsonl")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def test_a_lost_node_and_a_driver_that_comes_back_change_nothing(tmp_path: Path, cluster: Any, alone: Path) -> None:
    write_study(tmp_path)
    first = start(tmp_path, cluster)
    until_trained_for(tmp_path, first, 2)
    cluster.remove_node(cluster.nodes.pop(), allow_graceful=False)
    until_trained_for(tmp_path, first, 8)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    cluster.nodes.append(cluster.add_node(num_cpus=1, object_store_memory=10**8))
    second = start(tmp_path, cluster)
    said = second.communicate(timeout=900)[0]
    assert second.returncode in {DONE, UNDECIDED}, said
    assert_same_results(alone, tmp_path / "out")


def test_results_are_fetched_from_nodes_that_do_not_see_the_directory(
    tmp_path: Path, cluster: Any, alone: Path
) -> None:
    write_study(tmp_path)
    process = start(tmp_path, cluster, "--set", "execute.results=fetched")
    said = process.communicate(timeout=900)[0]
    assert process.returncode in {DONE, UNDECIDED}, said
    assert_same_results(alone, tmp_path / "out")
