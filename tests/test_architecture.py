"""The shape of the code: small modules, small functions, a frozen command line, and no torch where none is needed."""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rankscope.arguments import make_parser

SOURCE = Path(__file__).resolve().parent.parent / "src" / "rankscope"
MODULES = sorted(path for path in SOURCE.rglob("*.py"))
MAX_MODULE, MAX_FUNCTION, MAX_LOOP = 500, 60, 100

OPTIONS = {
    "init": {"--model", "--train", "--columns", "--out"},
    "plan": {"STUDY", "--set", "--json", "--device", "--measure", "--fit", "--forecast"},
    "run": {"STUDY", "--set", "--out", "--retry-failed", "--share"},
    "status": {"DIR", "--json", "--watch"},
    "report": {"DIR", "--out"},
    "export": {"DIR", "--what", "--model", "--out"},
    "audit": {"BASE", "TUNED", "--texts", "--intruders", "--layers", "--against", "--truncate", "--out", "--json"},
    "demo": {"--out"},
}


def test_the_modules_are_there() -> None:
    assert len(MODULES) > 50


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_module_can_be_read_in_one_sitting(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_MODULE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            limit = MAX_LOOP if (path.name, node.name) == ("loop.py", "train") else MAX_FUNCTION
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= limit, f"{path.name}:{node.lineno} {node.name} has {length} lines"


def test_sub_packages_hold_a_docstring_and_nothing_else() -> None:
    packages = [path for path in SOURCE.glob("*/**/__init__.py")]
    assert len(packages) >= 10
    for path in packages:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert len(tree.body) == 1 and ast.get_docstring(tree), path


def test_the_options_of_every_verb_are_frozen() -> None:
    (verbs,) = [a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    found = {
        name: {a.option_strings[-1] if a.option_strings else a.metavar for a in sub._actions} - {"--help"}
        for name, sub in verbs.choices.items()
    }
    assert found == OPTIONS


@pytest.mark.parametrize(
    "module",
    [
        "rankscope", "rankscope.cli", "rankscope.planning", "rankscope.status", "rankscope.report.stage",
        "rankscope.export.stage", "rankscope.pipeline",
    ],
)  # fmt: skip
def test_it_imports_without_what_is_heavy(module: str) -> None:
    heavy = ("torch", "transformers", "peft", "scipy.stats")
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_loop_knows_no_method() -> None:
    text = (SOURCE / "train" / "loop.py").read_text(encoding="utf-8").lower()
    assert "lora" not in text and "peft" not in text


def test_the_stages_know_no_report() -> None:
    stages = [path for name in ("train", "evaluate", "analyse") for path in (SOURCE / name).glob("*.py")]
    assert len(stages) > 6
    for path in stages:
        assert "rankscope.report" not in path.read_text(encoding="utf-8")


def test_the_oldest_versions_that_are_tried_are_the_lowest_that_the_metadata_allows() -> None:
    root = SOURCE.parent.parent
    allowed = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    tried = dict(re.findall(r"(transformers|peft)==(\S+)", (root / "Makefile").read_text(encoding="utf-8")))
    assert {name: f"{name}>={version.removesuffix('.0')}" for name, version in tried.items()} == {
        line.partition(">")[0]: line for line in allowed if line.startswith(("transformers", "peft"))
    }


def test_every_error_that_a_person_can_mend_says_how() -> None:
    without = [
        f"{path.name}:{node.lineno}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "UserError"
        if not any(keyword.arg == "mend" for keyword in node.keywords)
    ]
    assert not without
