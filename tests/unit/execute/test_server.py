"""The process that imports torch once: when there is one, that it has no threads, and that it ends."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import psutil
import pytest

from rankscope.execute import server
from rankscope.execute.local import LocalExecutor
from rankscope.execute.server import SHARED_MODULES, can_share_imports, importing_early, start_server, stop_server
from rankscope.execute.surroundings import errors_to, worker_environment
from rankscope.plan import Layout
from rankscope.planning import make_plan
from rankscope.store import Store
from rankscope.study_file import load_study
from studies import write_study

ONE, TWO = (Layout(device="cpu", num_workers=number, threads_per_worker=1) for number in (1, 2))
TWO_WORKERS = ["execute.num_workers=2", "execute.threads_per_worker=1", "execute.device=cpu"]
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")


@pytest.fixture(autouse=True)
def few_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(server, "SHARED_MODULES", ["json"])
    yield
    stop_server()


@pytest.mark.parametrize(
    ("device", "num_workers", "is_shared"), [("cpu", 2, True), ("cpu", 1, False), ("cuda", 2, False), ("mps", 1, False)]
)
def test_several_workers_on_a_processor_are_forked_from_one(device: str, num_workers: int, is_shared: bool) -> None:
    layout = Layout(device=device, num_workers=num_workers, threads_per_worker=1)
    assert can_share_imports(layout) is (is_shared and sys.platform == "linux")


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
def test_what_workers_are_forked_from_has_no_threads() -> None:
    """A fork of a process with threads can hang in a lock that nobody will release.

    jemalloc's own thread may be there, which pyarrow brings and older transformers import: it holds its locks over a
    fork, and starts that thread again in the child.
    """
    code = f"""
        import importlib, threading
        from pathlib import Path
        for name in {SHARED_MODULES!r}:
            importlib.import_module(name)
        names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
        print(len([name for name in names if name != "jemalloc_bg_thd"]))
    """
    environment = os.environ | worker_environment(Layout(device="cpu", num_workers=2, threads_per_worker=1), 0)
    command = [sys.executable, "-c", textwrap.dedent(code)]
    found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert found.stdout.split()[-1] == "1"


@on_linux
def test_collections_leave_what_is_shared_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would write to every object, and each worker would have a copy."""
    monkeypatch.setattr(server, "SHARED_MODULES", ["json", "rankscope.execute.frozen"])
    assert SHARED_MODULES[-1] == "rankscope.execute.frozen"
    is_frozen = "__import__('sys').exit(__import__('gc').get_freeze_count() > 1_000)"
    worker = start_server(TWO).Process(target=eval, args=(is_frozen,))
    worker.start()
    worker.join()
    assert worker.exitcode == 1


def pid() -> int:
    return forkserver._forkserver._forkserver_pid


@on_linux
def test_what_began_to_import_early_goes_on_and_ends_with_the_study(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path), TWO_WORKERS)
    with importing_early(study):
        early = pid()
        context = start_server(TWO)
        assert pid() == early, "what workers are forked from is what was begun"
        worker = context.Process(target=os.getpid)
        worker.start()
        worker.join()
        assert worker.exitcode == 0
    assert not psutil.pid_exists(early)


@on_linux
def test_workers_never_start_with_the_threads_of_a_layout_that_is_not_theirs(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path), TWO_WORKERS)
    with importing_early(study):
        early = pid()
        context = start_server(TWO.model_copy(update={"threads_per_worker": 2}))
        assert pid() != early and not psutil.pid_exists(early)
        worker = context.Process(target=os.execvp, args=("sh", ["sh", "-c", "exit $OMP_NUM_THREADS"]))
        worker.start()
        worker.join()
        assert worker.exitcode == 2


@pytest.mark.parametrize("override", ["execute.num_workers=1", "execute.backend=ray", "execute.device=cuda"])
def test_nothing_is_imported_early_where_no_worker_would_be_forked(tmp_path: Path, override: str) -> None:
    study = load_study(write_study(tmp_path), [override])
    with importing_early(study):
        assert server._running is None


@on_linux
def test_it_does_not_stay_where_the_plan_turns_out_to_have_one_worker(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path), TWO_WORKERS)
    plan, _ = make_plan(study)
    with importing_early(study):
        early = pid()
        LocalExecutor(Store(tmp_path), plan.model_copy(update={"layout": ONE}))
        assert not psutil.pid_exists(early)


@on_linux
def test_a_server_of_the_caller_is_left_alone(tmp_path: Path) -> None:
    theirs = multiprocessing.get_context("forkserver").Process(target=os.getpid)
    theirs.start()
    try:
        theirs.join()
        running = pid()
        assert not can_share_imports(TWO)
        with importing_early(load_study(write_study(tmp_path), TWO_WORKERS)):
            assert server._running is None
        assert pid() == running and psutil.pid_exists(running)
    finally:
        forkserver._forkserver._stop()


@on_linux
def test_an_error_ends_it_too(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path), TWO_WORKERS)
    with pytest.raises(KeyboardInterrupt), importing_early(study):
        early = pid()
        raise KeyboardInterrupt
    assert not psutil.pid_exists(early)


@on_linux
def test_what_libraries_say_while_they_are_imported_is_in_the_study_s_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "talkative.py").write_text("import sys; print('could be faster', file=sys.stderr)", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(server, "SHARED_MODULES", ["talkative"])
    worker = start_server(TWO).Process(target=os.getpid)
    worker.start()
    worker.join()
    log = tmp_path / "logs" / "imports.log"
    log.parent.mkdir()
    log.write_text("said before\n", encoding="utf-8")
    stop_server(log)
    assert log.read_text(encoding="utf-8").splitlines() == ["said before", "could be faster"]


def test_what_a_process_says_while_it_imports_libraries_goes_to_a_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "imports.log"
    say = [sys.executable, "-c", "import sys; sys.stderr.write(sys.argv[1])"]
    with log.open("wb") as stream, errors_to(stream):
        subprocess.run([*say, "could be faster"], check=True)
    subprocess.run([*say, "shown"], check=True)
    assert log.read_text(encoding="utf-8").strip() == "could be faster"
    assert capfd.readouterr().err == "shown"
