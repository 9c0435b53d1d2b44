"""Every command in README and pages is run, with stand-ins for what is a reader's own, or is named with its test.

Commands are the lines of code blocks that begin with a program. They are run in one folder, in the order of the pages:
the tutorial comes first, and the others find its study. A study is cut down by further `--set`, which win.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from rankscope.arguments import make_parser
from rankscope.cli import DONE, UNDECIDED, main
from rankscope.layout import num_cores

ROOT = Path(__file__).resolve().parent.parent
PAGES = list(dict.fromkeys([ROOT / "docs/tutorial.md", ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]))
PROGRAMS = ("rankscope", "python", "make", "pip", "sbatch", "ray", "kubectl", "tensorboard", "mlflow", "mkdir")

# By how a command begins: the test that carries it out, where this one cannot.
ELSEWHERE = {
    "make demo": "tests/test_demo.py",
    "make test": "tests/conftest.py",
    "sbatch": "tests/test_cluster_files.py",
    "rankscope run study.yaml --set execute.backend=ray": "tests/test_cluster.py",
    "rankscope export results/ours --what models --model ours-": "tests/unit/export/test_stage.py",
    "tensorboard --logdir": "tests/unit/track/test_trackers.py",
}
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


ALL = [(page.relative_to(ROOT).as_posix(), command) for page in PAGES for command in commands(page)]


def test_the_commands_are_found() -> None:
    assert len(ALL) >= 25
    assert ALL[0][0] == "docs/tutorial.md"


@pytest.mark.slow  # one test, for each command finds what those before it have left
def test_every_command_does_what_its_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for page, command in ALL:
        failure = carry_out(command.removeprefix(".venv/bin/"))
        said = capsys.readouterr()
        assert failure is None, f"{page}: {command}\n{failure}\n{said.out}\n{said.err}"


def carry_out(command: str) -> str | None:
    """Carry out a command in the current folder; what went wrong, if anything did."""
    if elsewhere := [test for start, test in ELSEWHERE.items() if command.startswith(start)]:
        return None if (ROOT / elsewhere[0]).is_file() else f"there is no {elsewhere[0]}"
    if command.startswith("pip install"):
        (extra,) = re.findall(r"rankscope\[(\w+)\]", command) or ["dev"]
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return None if extra in project["optional-dependencies"] else f"there is no extra {extra}"
    if not command.startswith("rankscope"):
        text = re.sub(r"^python ", f"{shlex.quote(sys.executable)} ", command)
        done = subprocess.run(text, shell=True, capture_output=True, text=True, timeout=120)
        return done.stderr if done.returncode else None
    status = main(stand_ins(shlex.split(command)[1:]))
    return None if status in {DONE, UNDECIDED} else f"exit status {status}"


def stand_ins(arguments: list[str]) -> list[str]:
    """A command as it is carried out here: with a small model, a small study, and names that are there."""
    results = Path("results/ours")
    replaced = {
        "Qwen/Qwen2.5-0.5B-Instruct": "smallworld:base", "BASE": "smallworld:base", "/shared/study": "shared-study",
        "execute.shard=4": f"execute.shard={min(2, num_cores())}",
    }  # fmt: skip
    arguments = [replaced.get(one, one) for one in arguments]
    adapters = sorted(results.glob("runs/*lora-r4*/train/adapter"))
    if adapters:
        arguments = [str(adapters[0]) if one == "TUNED" or "..." in one else one for one in arguments]
        arguments = ["lora-r4" if one == "lora-r16" else one for one in arguments]
    for copy in ("results/more", "shared-study"):
        if copy in arguments and not Path(copy).exists():
            shutil.copytree(results, copy)
    if arguments[0] == "init":
        Path("study.yaml").unlink(missing_ok=True)  # another page's; `init` writes over nothing
    if arguments[0] == "run":
        arguments += [part for setting in SMALLER for part in ("--set", setting)]
    return arguments


def test_every_option_that_a_page_names_is_there() -> None:
    verbs = next(action for action in make_parser()._actions if hasattr(action, "choices") and action.choices)
    seen = 0
    for page in PAGES:
        for inline in re.findall(r"`(rankscope [^`]+)`", page.read_text(encoding="utf-8")):
            verb, *rest = inline.split()[1:]
            if verb not in verbs.choices:
                continue
            known = {option for action in verbs.choices[verb]._actions for option in action.option_strings}
            assert {part for part in rest if part.startswith("--")} <= known, f"{page.name}: {inline}"
            seen += 1
    assert seen > 5
