"""One uninterrupted tiny study, watched while it runs, that the tests of this folder compare with."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from studies import COMMAND, write_study

TOKENS = {"HF_TOKEN": "hf_MARKERxMARKERxMARKERxMARKER", "WANDB_API_KEY": "wandbMARKERxMARKERxMARKER"}


@dataclass(frozen=True)
class Watched:
    """A finished study and what was seen of it.

    Attributes:
        listening: Open ports of the driver or a worker, over all looks.
        num_processes: The most processes seen at once.
    """

    study: Path
    out: Path
    returncode: int
    stdout: str
    stderr: str
    listening: list[str]
    num_processes: int


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    folder = tmp_path_factory.mktemp("whole")
    study, out = write_study(folder), folder / "out"
    command = [*COMMAND, "run", str(study), "--out", str(out)]
    with (folder / "stdout").open("w") as stdout, (folder / "stderr").open("w") as stderr:
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env={**os.environ, **TOKENS})
    listening, num_processes = [], 0
    while process.poll() is None:
        try:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            num_processes = max(num_processes, len(family))
            for member in family:
                listening += [str(c) for c in member.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        except psutil.Error:
            pass  # one of them has just ended
        time.sleep(0.1)
    texts = ((folder / name).read_text() for name in ("stdout", "stderr"))
    return Watched(study, out, process.returncode, *texts, listening, num_processes)


@pytest.fixture(scope="session")
def whole(watched: Watched) -> Path:
    """The directory of the finished study; not to be changed."""
    assert watched.returncode in {0, 3}, watched.stdout + watched.stderr
    return watched.out
