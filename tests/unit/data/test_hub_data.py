"""Data sets of the hub through its real clients, which take its address from the environment when they are imported."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stand_in_hub import Repository, stand_in

OLD, NEW = "a" * 40, "b" * 40
READ = """
import json, sys
from rankscope.data.sources import read_rows, unknown_revision
from rankscope.errors import UserError
from rankscope.spec import Data

for source, revision in json.loads(sys.argv[1]):
    try:
        rows = read_rows(Data(source=source, revision=revision), "train")
        said = [rows.rows[0].values["question"], rows.version.commit, unknown_revision(rows.version)]
    except UserError as error:
        said = [error.what, error.mend, list(error.key or ())]
    print(json.dumps(said))
"""


def commit(text: str) -> dict[str, bytes]:
    row = json.dumps({"question": text, "answer": "a"}).encode() + b"\n"
    return {"README.md": f"# {text}\n".encode(), "train.jsonl": row, "test.jsonl": row}


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    balls = Repository({OLD: commit("old"), NEW: commit("new")}, {"main": NEW, "v1": OLD})
    with stand_in({"org/balls": balls}) as endpoint:
        yield endpoint


def read(home: Path, endpoint: str, *wanted: str | None, source: str = "org/balls", offline: bool = False) -> list:
    environment = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": str(int(offline))}
    arguments = [sys.executable, "-c", READ, json.dumps([[source, revision] for revision in wanted])]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_revision_is_read_and_recorded_and_what_the_cache_holds_is_enough_offline(tmp_path: Path, hub: str) -> None:
    assert read(tmp_path, hub, "v1", OLD) == [["old", OLD, None]] * 2
    assert read(tmp_path, hub, "v1", OLD, offline=True) == [["old", OLD, None]] * 2
    # The library serves its newest, whatever is asked for: of v2 nothing here says that it is another commit.
    ((question, served, said), main, other) = read(tmp_path, hub, "v2", None, NEW, offline=True)
    assert (question, served) == ("old", OLD) and "`revision: v2`" in said and f"commit {OLD} was read" in said
    assert main == ["old", OLD, None]  # what `main` is was never fetched either, and nobody asked for it by name
    assert other[0] == f"of what the cache holds the newest is commit {OLD}, and not {NEW}"


def test_another_commit_than_the_one_that_is_asked_for_is_refused(tmp_path: Path, hub: str) -> None:
    assert read(tmp_path, hub, "v1", None, "main") == [["old", OLD, None], *[["new", NEW, None]] * 2]
    tag, whole, main = read(tmp_path, hub, "v1", OLD, None, offline=True)
    assert tag[0] == f"of what the cache holds the newest is commit {NEW}, and not v1 ({OLD})"
    assert 'load_dataset("org/balls", revision="v1").save_to_disk(FOLDER)' in tag[1] and tag[2] == ["revision"]
    assert whole[0] == f"of what the cache holds the newest is commit {NEW}, and not {OLD}"
    assert main == ["new", NEW, None]


def test_what_the_hub_does_not_have_is_said(tmp_path: Path, hub: str) -> None:
    ((problem, mend, _),) = read(tmp_path, hub, "v9")
    assert "Revision 'v9' doesn't exist" in problem and "check id, subset and split" in mend
    ((problem, _, _),) = read(tmp_path, hub, None, source="org/bats")
    assert "org/bats" in problem and "doesn't exist" in problem
