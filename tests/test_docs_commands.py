"""Every command in README and pages is run, with stand-ins for what is a reader's own, or is named with its test.

Commands are the lines of code blocks that begin with a program, and what stands in backticks and begins so. Those of
blocks are run in one folder, in the order of the pages: the tutorial comes first, and the others find its study; then
those within the text. A study is cut down by further `--set`, which win. What cannot be run here is in one of two
tables, each of which says what is done instead, and is tried itself.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from rankscope.cli import DONE, UNDECIDED, main
from rankscope.layout import num_cores
from studies import COMMAND, STUDY, write_study

ROOT = Path(__file__).resolve().parent.parent
_FOLDERS = (ROOT, ROOT / "docs", ROOT / "docs" / "decisions", ROOT / "benchmarks")
PAGES = [ROOT / "docs/tutorial.md", *(page for folder in _FOLDERS for page in sorted(folder.glob("*.md")))]
PAGES = [page for page in dict.fromkeys(PAGES) if page.name != "CHANGELOG.md"]  # tells of commands that were
PROGRAMS = (
    "rankscope", "python", "make", "pip", "sbatch", "ray", "kubectl", "tensorboard", "mlflow", "trackio", "mkdir",
)  # fmt: skip
_BEGINS = rf"(?:\.venv/bin/)?(?:{'|'.join(PROGRAMS)})"

# By how a command begins: the test that carries it out, or what it stands for, where this one cannot.
_FILES, _TRACKERS = "tests/test_cluster_files.py", "tests/unit/track/test_trackers.py"
_IN_SMALL = "tests/test_long_commands.py::test_what_make_carries_out_in_small"
_COLLECTED = "tests/test_long_commands.py::test_tests_that_are_not_part_of_the_gate_are_found"
ELSEWHERE = {
    "make demo": "tests/test_demo.py::test_the_demos_study_with_few_examples_and_items",
    "sbatch": f"{_FILES}::test_a_slurm_array_shares_a_study",
    "ray up": f"{_FILES}::test_ray_up_takes_the_cluster_file",
    "ray start": f"{_FILES}::test_a_slurm_allocation_becomes_a_ray_cluster",
    "ray job submit": "tests/test_docs_commands.py::test_the_commands_for_a_ray_cluster",
    "rankscope run study.yaml --set execute.backend=ray":
        "tests/test_docs_commands.py::test_the_commands_for_a_ray_cluster",
    "rankscope export results/ours --what models --model ours-":
        "tests/unit/export/test_stage.py::test_a_derived_model_is_exported",
    "tensorboard --logdir": f"{_TRACKERS}::test_tensorboard",
    "mlflow ui": f"{_TRACKERS}::test_mlflow_in_a_file",
    "trackio show": f"{_TRACKERS}::test_trackio_on_this_machine",
    "make simulate": "tests/unit/decide/test_simulation.py::test_intervals_cover",
    **dict.fromkeys(("make real", "make truth", "make bench", "make smallworld"), _IN_SMALL),
    **dict.fromkeys(("make test-heavy", "make test-oldest", "python -m pytest"), _COLLECTED),
    "python benchmarks/scale_simulation.py": "tests/test_long_commands.py::test_the_simulation_of_a_cluster_in_small",
    "make audit-dependencies":
        "tests/trust/test_audit_dependencies.py::test_it_ends_well_only_where_most_was_looked_up_and_nothing_is_known",
    "python benchmarks/derived.py":
        "tests/unit/derive/test_cost_of_a_curve.py::test_a_curve_is_six_mean_points_beside_one_training",
    "python docs/generate_measures.py": "tests/test_measures_page.py::test_page_is_up_to_date",
    "python docs/generate_methods.py": "tests/test_methods_page.py::test_page_is_up_to_date",
    "python docs/generate_study_file.py": "tests/test_study_file_page.py::test_page_is_up_to_date",
}  # fmt: skip
# What every change goes through: `.ci/run` calls them.
GATE = ("make check", "make docs", "make test", "make test-slow")
SMALLER = (
    "arms.0.learning_rate=1e-3", "arms.1.learning_rate=3e-3", "arms.1.rank=[4]", "optimization.num_epochs=1",
    "optimization.max_steps=2", "seeds=[0]", "train.ours.max_examples=40", "evaluate.ours_test.max_examples=16",
    "evaluate.general_recall.max_examples=8", "evaluate.general_text.max_examples=4", "analyse.spectra=false",
    "analyse.subspaces=false", "analyse.attention=false", "analyse.representations=false", "analyse.neurons=false",
    "execute.num_workers=1",
)  # fmt: skip


def commands(page: Path) -> Iterator[str]:
    """The commands of a page's code blocks, each on one line, comments and prompts taken off."""
    pending = ""
    for line in code_lines(page):
        text = re.sub(r"\s+#\s.*$", "", line.removeprefix("$ "))
        if not pending and not re.match(rf"(\.venv/bin/)?({'|'.join(PROGRAMS)})\s", text):
            continue
        pending += text
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        try:
            shlex.split(pending)
        except ValueError:  # a quotation that goes on in the next line
            pending += "\n"
            continue
        yield pending.strip()
        pending = ""


def code_lines(page: Path) -> Iterator[str]:
    is_fenced = False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            is_fenced = not is_fenced
        elif is_fenced:
            yield line
        elif line.startswith("    "):
            yield line[4:]


def inline_commands(page: Path) -> Iterator[str]:
    """What stands in backticks within a page's text and is a command, not only the name of a verb."""
    is_fenced, text = False, []
    for line in page.read_text(encoding="utf-8").splitlines():
        is_fenced ^= line.startswith("```")
        text += [] if is_fenced or line.startswith("    ") else [line]
    for command in re.findall(rf"`({_BEGINS}\s[^`]+)`", "\n".join(text)):
        words = command.split()
        if len(words) > 2 or words[0] != "rankscope":
            yield " ".join(words)


BLOCKS = [(page.relative_to(ROOT).as_posix(), command) for page in PAGES for command in commands(page)]
_KNOWN = {command.removeprefix(".venv/bin/") for _, command in BLOCKS}
INLINE = [
    (page.relative_to(ROOT).as_posix(), command)
    for page in PAGES
    for command in inline_commands(page)
    if command.removeprefix(".venv/bin/") not in _KNOWN
]


def rows_of(command: str) -> list[str]:
    """The rows of the two tables that a command falls under."""
    rows = (*ELSEWHERE, *GATE)
    return [row for row in rows if f"{command} ".startswith(f"{row} ") or (row[-1] == "-" and command.startswith(row))]


def test_the_commands_are_found() -> None:
    assert len(BLOCKS) >= 25 and len(INLINE) >= 25
    assert BLOCKS[0][0] == "docs/tutorial.md"
    names = {page.relative_to(ROOT).as_posix() for page in PAGES}
    assert {"README.md", "CONTRIBUTING.md", "docs/log.md", "docs/decisions/0011-docs.md"} <= names


def test_the_tables_name_tests_that_are_there_and_commands_of_the_pages() -> None:
    found = [command.removeprefix(".venv/bin/") for _, command in (*BLOCKS, *INLINE)]
    assert {row for command in found for row in rows_of(command)} == {*ELSEWHERE, *GATE}
    for test in ELSEWHERE.values():
        path, name = test.split("::")
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        tests = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in tests, test
        # What only `make test-heavy` runs is in no gate.
        assert "mark.heavy" not in "".join(map(ast.unparse, tests[name].decorator_list)), test
        marks = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Assign)]
        assert not any("pytestmark" in mark and "heavy" in mark for mark in marks), test


def test_the_gate_calls_what_pages_say_is_run() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert set(GATE) <= set(lines)


@pytest.mark.slow  # one test, for each command finds what those before it have left
def test_every_command_does_what_its_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for page, command in (*BLOCKS, *INLINE):
        command = command.removeprefix(".venv/bin/")
        if rows_of(command):
            continue
        failure = carry_out(command)
        said = capsys.readouterr()
        assert failure is None, f"{page}: {command}\n{failure}\n{said.out}\n{said.err}"


def carry_out(command: str) -> str | None:
    """Carry out a command in the current folder; what went wrong, if anything did."""
    if command.startswith("pip install"):
        (extra,) = re.findall(r"rankscope\[([\w-]+)\]", command) or ["dev"]
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return None if extra in project["optional-dependencies"] else f"there is no extra {extra}"
    if command.startswith("rankscope"):
        status = main(stand_ins(shlex.split(command)[1:]))
        return None if status in {DONE, UNDECIDED} else f"exit status {status}"
    if not command.startswith(("python", "mkdir")):
        return "neither run nor named in a table of this test"
    text = re.sub(r"^python ", f"{shlex.quote(sys.executable)} ", command).replace(" examples/", f" {ROOT}/examples/")
    if "<run>" in text:
        text = text.replace("<run>", adapters()[0].parent.parent.name)
    done = subprocess.run(text, shell=True, capture_output=True, text=True, timeout=120)
    return done.stderr if done.returncode else None


def adapters() -> list[Path]:
    """The adapters of the tutorial's study."""
    return sorted(Path("results/ours").glob("runs/*lora-r4*/train/adapter"))


def stand_ins(arguments: list[str]) -> list[str]:
    """A command as it is carried out here: with a small model, a small study, and names that are there."""
    results = "results/ours"
    replaced = {
        "Qwen/Qwen2.5-0.5B-Instruct": "smallworld:base", "BASE": "smallworld:base", "MODEL": "smallworld:base",
        "FILE": "data/ours.jsonl", "STUDY": "study.yaml", "DIR1": results, "DIR2": "results/more",
        "/shared/study": "shared-study", "execute.shard=4": f"execute.shard={min(2, num_cores())}",
    }  # fmt: skip
    arguments = [replaced.get(one, one) for one in arguments if one != "..."]
    if adapters():
        arguments = [str(adapters()[0]) if one == "TUNED" or "..." in one else one for one in arguments]
        arguments = ["lora-r4" if one == "lora-r16" else one for one in arguments]
    for copy in ("results/more", "shared-study"):
        if copy in arguments and not Path(copy).exists():
            shutil.copytree(results, copy)
    if arguments[0] == "init":
        Path("study.yaml").unlink(missing_ok=True)  # another page's; `init` writes over nothing
    if arguments[0] == "run":
        arguments += [part for setting in SMALLER for part in ("--set", setting)]
    return arguments


@pytest.mark.slow
def test_the_commands_for_a_ray_cluster(tmp_path: Path) -> None:
    """Those that start a study on a cluster, from its head and as a job of it, on one that is made here."""
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="needs Ray: pip install 'rankscope[ray]'")
    found = [one.partition(" -- ")[2] or one for _, one in (*BLOCKS, *INLINE) if "execute.backend=ray" in one]
    assert len(found) == 2
    write_study(tmp_path, STUDY.replace("num_workers: 2", "num_workers: auto"))
    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 10**8}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    try:
        for index, command in enumerate(found):
            text = command.replace("head:6379", cluster.address).replace("/shared/study", "shared")
            words = [*COMMAND, *shlex.split(text)[1:], "--set", "seeds=[0]", "--set", "optimization.max_steps=2"]
            words += [] if "--out" in words else ["--out", f"out-{index}"]
            # A job finds its cluster by this.
            surroundings = {**os.environ, "RAY_ADDRESS": cluster.address}
            done = subprocess.run(words, cwd=tmp_path, env=surroundings, capture_output=True, text=True, timeout=300)
            assert done.returncode in {DONE, UNDECIDED}, f"{command}\n{done.stdout}\n{done.stderr}"
            assert "report: " in done.stdout
    finally:
        cluster.shutdown()
