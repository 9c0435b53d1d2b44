"""What takes hours by `make` is carried out in small: its own command lines, with further options behind them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("real", "truth", "bench", "smallworld")
# By script what makes it small and where its results go instead; OUT is the test's folder.
SMALL = {
    "recipes/real_study.py": (
        "--model smallworld:base --data OUT/data --out OUT/real --docs OUT/docs --set arms.0.learning_rate=1e-4 "
        "--set arms.1.rank=[8,64,128] --set arms.1.learning_rate=1e-3 --set optimization.max_steps=1 "
        "--set search.halving=false --set optimization.max_length=128 --set train.medmcqa.max_examples=16 "
        "--set train.medmcqa.validation.max_examples=8 --set train.gsm8k.max_examples=16 --set seeds=[0] "
        "--set analyse.num_probe_texts=2"
    ),
    "benchmarks/truth.py": (
        "--out OUT/truth --records OUT/records --page OUT/truth.md --studies 20 --set seeds=[0,1,2] "
        "--set optimization.max_steps=1 --set arms.1.rank=[4] --set evaluate.medical_facts.max_examples=30 "
        "--set evaluate.legal_recall.max_examples=30 --set evaluate.general_recall.max_examples=30 "
        "--set evaluate.general_text.max_examples=30 --set train.facts.max_examples=60"
    ),
    "benchmarks/bench.py": "--base smallworld --part text --repeats 1 --folder OUT/bench --results OUT/results.json",
    "benchmarks/spectra.py": "--width 64 --repeats 1 --out OUT/spectra.json",
    "benchmarks/packs.py": "--shape tiny --device cpu --batch 1 --length 32 --folder OUT/packs --out OUT/packs.json",
    "benchmarks/growth.py": (
        "--arms 1 2 --items --shots --folder OUT/growth --out OUT/growth.json --plot OUT/growth.svg"
    ),
    "benchmarks/forecast.py": (
        "studies/truth.yaml --set seeds=[0] --set optimization.max_steps=1 --set arms.1.rank=[4] "
        "--folder OUT/forecast --results OUT/forecast.json"
    ),
    "recipes/pretrain_smallworld.py": "--max-steps 1 --out OUT/smallworld",
}
# By script a file that it leaves, and something that stands in it.
LEFT = {
    "recipes/real_study.py": ("docs/smollm2/report.html", "lora-r128"),
    "benchmarks/truth.py": ("truth.md", "| lora-r4 |"),
    "benchmarks/bench.py": ("results.md", "| smallworld | text |"),
    "benchmarks/spectra.py": ("spectra.json", "intruders_ratio"),
    "benchmarks/packs.py": ("packs.json", "packed"),
    "benchmarks/growth.py": ("growth.svg", "<svg"),
    "benchmarks/forecast.py": ("forecast.md", "**truth**"),
    "recipes/pretrain_smallworld.py": ("smallworld/card.json", '"num_steps": 1'),
}


def lines_of(target: str) -> list[list[str]]:
    """The Python command lines of a target, as words, as `make` would carry them out from nothing."""
    own = ("MAKE", "MFLAGS", "BENCH", "DATA", "PYTHON")  # the second run of make is not told what the first was
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    command = ["make", "--always-make", "-n", target]
    done = subprocess.run(command, cwd=ROOT, env=surroundings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in done.stdout.replace("\\\n", " ").splitlines()]
    return [line for line in lines if len(line) > 1 and (line[1].endswith(".py") or line[1:3] == ["-m", "pytest"])]


def carry_out(line: list[str], out: Path) -> str:
    """Carry out a line of Python with what makes it small."""
    words = [sys.executable, *line[1:], *SMALL[line[1]].replace("OUT", str(out)).split()]
    environment = os.environ | {"RANKSCOPE_CACHE": str(out / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode in (0, 3), f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def write_data(folder: Path) -> None:
    """Made-up rows of every set of the real study, in its authors' layouts."""
    bones = [
        {"question": f"Which bone has the number {n}?", "opa": f"bone {n}", "opb": "skull", "opc": "rib", "opd": "hip"}
        | {"cop": 1, "subject_name": "Anatomy", "id": str(n), "choice_type": "single"}
        for n in range(60)
    ]
    sums = {
        split: [
            {"question": f"Ann has {n} {split} apples and buys 2. How many?", "answer": f"{n}+2={n + 2}\n#### {n + 2}"}
            for n in range(30)
        ]
        for split in ("train", "test")
    }
    cases = [
        {"context": f"In case {n} the court said (<HOLDING>).", "endings": [f"holding that {n}", "denying"], "label": 0}
        for n in range(12)
    ]
    problems = [asked(f"what is {n} + 1 ? The options: A ) {n + 1} , B ) 0 , C ) 100", "A") for n in range(12)]
    facts = [chosen("answer to the question: Which", "Answer", n) for n in range(12)]
    goals = [chosen("solution to the question: How", "Solution", n) for n in range(12)]
    header = "question,choice0,choice1,choice2,choice3,answer\n"
    subjects = {
        subject: header + "".join(f"What is {n} of {subject}?,{n},a,b,c,0\n" for n in range(6))
        for subject in ("anatomy", "astronomy")
    }
    files = {
        "paper/medmcqa/dev.jsonl": in_lines(bones),
        "paper/gsm8k/train.jsonl": in_lines(sums["train"]),
        "paper/gsm8k/test.jsonl": in_lines(sums["test"]),
        "paper/mathqa/test.json": json.dumps(problems),
        "paper/casehold/case_hold.jsonl": in_lines(cases),
        "retention/arc_easy/test.json": json.dumps(facts),
        "retention/piqa/test.json": json.dumps(goals),
        **{f"paper/mmlu/test/{subject}_test.csv": text for subject, text in subjects.items()},
        "retention/wikitext2/test.txt": "\n".join(f" = Place {n} = \n \n By river {n} . \n" for n in range(12)),
        "retention/tinystories/stories.jsonl": in_lines([{"text": f"Once a cat had {n} mice."} for n in range(12)]),
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def in_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def asked(instruction: str, answer: str) -> dict[str, str]:
    return {"instruction": instruction, "input": "", "output": "", "answer": answer}


def chosen(question: str, word: str, number: int) -> dict[str, str]:
    """A question with two numbered options, the first of which is right."""
    options = " ".join(f"{word}{index}: the {index + number} of them." for index in (1, 2))
    answers = "/".join(f"{word.lower()}{index}" for index in (1, 2))
    text = f"Please choose the correct {question} {number}?\n\n{options}\n\nAnswer format: {answers}"
    return asked(text, f"{word.lower()}1")


def test_nothing_that_the_targets_carry_out_is_left_out() -> None:
    assert {line[1] for target in TARGETS for line in lines_of(target)} == set(SMALL) == set(LEFT)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_what_make_carries_out_in_small(target: str, tmp_path: Path) -> None:
    if target == "bench":
        for name in ("trl", "lm_eval", "psutil"):
            pytest.importorskip(name, reason="needs what it is measured against: pip install 'rankscope[bench]'")
    for number, line in enumerate(lines_of(target)):
        out = tmp_path / str(number)
        out.mkdir()
        if target == "real":
            write_data(out / "data")
        carry_out(line, out)
        name, words = LEFT[line[1]]
        assert words in (out / name).read_text(encoding="utf-8"), line


@pytest.mark.slow
@pytest.mark.parametrize("target", ["test-heavy", "test-oldest"])
def test_tests_that_are_not_part_of_the_gate_are_found(target: str) -> None:
    (line,) = (line for line in lines_of(target) if line[1:3] == ["-m", "pytest"])
    options = ["--collect-only", "-q", "-p", "no:cacheprovider"]
    words = [sys.executable, *(word for word in line[1:] if word not in ("-n", "2")), *options]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:]
    assert done.stdout.count("::") > (1000 if target == "test-oldest" else 5)


@pytest.mark.slow
def test_the_simulation_of_a_cluster_in_small(tmp_path: Path) -> None:
    script, page = ROOT / "benchmarks" / "scale_simulation.py", tmp_path / "scale.md"
    subprocess.run([sys.executable, script, "--out", page, "--large", "256"], cwd=ROOT, check=True, timeout=600)
    assert page.read_text(encoding="utf-8").startswith("# How far more devices help")
