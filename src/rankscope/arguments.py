"""What can be typed: the verbs with their arguments and help."""

from __future__ import annotations

import argparse
from pathlib import Path

from rankscope.errors import UserError
from rankscope.export.parts import PARTS

_EPILOG = """exit status: 0 done and decided; 3 done and undecided; 1 some run failed (the rest is done and reported);
2 the study file or data is wrong and nothing was started; 130 interrupted: the same command goes on"""

_AUDIT_EPILOG = """exit status: 0 done; 2 a folder is not what it should be, or the tuned model is not of this base"""

_EXPORT_EPILOG = """tables: the report's, as CSV and Parquet; records: every record and item; latex: the paper's form;
figures: SVG and PDF; results: as PEFT's method comparison has them; models: what is recommended, with a model card

exit status: 0 done; 2 what was asked for is not there; 1 a file is damaged"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line; what it gives has the verb's name in `verb`."""
    description = "Full fine-tuning or LoRA, at which rank, and what will the model forget? An experiment that answers."
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("rankscope", description=description, epilog=_EPILOG, formatter_class=formatter)
    parser.add_argument("--version", action="version", version=_version())
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    def add(name: str, text: str, epilog: str | None = None) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text, epilog=epilog, formatter_class=formatter)
        sub.set_defaults(verb=name)
        return sub

    init = add("init", "write a commented study file for a model and a data file")
    init.add_argument("--model", required=True, help="hub id, folder or .gguf file of the base model")
    init.add_argument("--train", required=True, help="a data file, folder, preset or hub id to train on")
    text = "what a column is, where its name does not say: question=q answer=a choices=right,wrong"
    init.add_argument("--columns", nargs="+", default=[], metavar="ROLE=COLUMN", help=text)
    init.add_argument("--out", default="study.yaml", type=Path, help="the study file to write (default: %(default)s)")

    _add_plan(add("plan", "say what a study will do and cost, without loading a model"))

    run = add("run", "run a study, or finish one that was stopped", _EPILOG)
    _add_study(run)
    _add_out(run)
    run.add_argument("--retry-failed", action="store_true", help="try again what failed before")
    text = "work on the study together with other processes started so on one directory"
    run.add_argument("--share", action="store_true", help=text)

    status = add("status", "say what is done, running, failed and left")
    status.add_argument("directory", type=_folder, metavar="DIR", help="a study directory")
    status.add_argument("--json", action="store_true", help="print the status as JSON")
    status.add_argument("--watch", action="store_true", help="print it again every two seconds")

    report = add("report", "rebuild the report from the records, or compare several studies")
    report.add_argument("directories", type=_folder, metavar="DIR", nargs="+", help="study directories")
    text = "where the page over several studies goes (default: results/across)"
    report.add_argument("--out", type=_folder, help=text)

    text = "write what papers, notebooks, leaderboards and model hubs read"
    _add_export(add("export", text, _EXPORT_EPILOG))

    _add_audit(add("audit", "say what an adapter or a tuned model changed, without training", _AUDIT_EPILOG))

    demo = add("demo", "run the embedded study: a small model, invented facts, a few minutes", _EPILOG)
    _add_out(demo)
    demo.set_defaults(retry_failed=False, share=False)
    return parser


def _add_plan(plan: argparse.ArgumentParser) -> None:
    _add_study(plan)
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")
    text = "forecast for a GPU of the table, for example a100-80gb, or for several: 8xa100-80gb"
    plan.add_argument("--device", metavar="NAME", help=text)
    text = "make twenty training steps of each method here, and forecast from them; loads the model"
    plan.add_argument("--measure", action="store_true", help=text)
    text = "say which ranks are worth trying, from one pass of gradients; loads the model, records it in the directory"
    plan.add_argument("--forecast", action="store_true", help=text)
    text = "say what to leave out so that the study takes no longer, for example 8h, 90min or 2d"
    plan.add_argument("--fit", metavar="TIME", help=text)


def _add_study(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", type=Path, metavar="STUDY", help="the study file")
    text = "override a setting for this call alone, and record it; give it again to go on with it (repeatable)"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=text)


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=_folder, help="the study directory (default: results/<study>)")


def _add_audit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", metavar="BASE", help="the base: a folder or hub id, with @revision where wanted")
    parser.add_argument("tuned", metavar="TUNED", help="the adapter or tuned model: a folder or hub id")
    parser.add_argument("--texts", type=Path, metavar="FILE", help="run both models on these texts: loss, attention")
    text = "set the update against the base's own directions too; decomposes the base, says beforehand how long"
    parser.add_argument("--intruders", action="store_true", help=text)
    parser.add_argument("--layers", type=_layers, metavar="LIST", help="only these layers: 0-3,10")
    parser.add_argument("--against", metavar="OTHER", help="set it against another tuned model of the same base")
    text = "write a copy of the adapter cut to a share of its energy (0.95) or to a rank (16)"
    parser.add_argument("--truncate", type=_cut, metavar="SHARE|RANK", help=text)
    parser.add_argument("--out", type=_folder, help="the folder to write to (default: results/audit-<tuned>)")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=_folder, metavar="DIR", help="a study directory")
    text = f"only these of {', '.join(PARTS)} (default: all)"
    parser.add_argument("--what", nargs="+", choices=PARTS, metavar="PART", help=text)
    text = "export this model: an arm, a run's folder name, or a derived one's: RUN/truncate/16"
    parser.add_argument("--model", metavar="NAME", help=text)
    parser.add_argument("--out", type=_folder, help="the folder to write to (default: DIR/export)")


def _folder(text: str) -> Path:
    """A folder that is there, or can be made."""
    path = Path(text)
    if path.is_file():
        mend = "name a folder: a study's results lie in results/<study>, and --out makes one that is not there yet"
        raise UserError("is a file, not a folder", where=path, mend=mend)
    return path


def _layers(text: str) -> frozenset[int]:
    """`0-3,10` as numbers."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not (last.isdecimal() and int(first) <= int(last))):
            raise argparse.ArgumentTypeError(f"'{text}' is no list of layers; write it like 0-3,10")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def _cut(text: str) -> float | int:
    """A share of the energy between 0 and 1, or a rank."""
    try:
        value = int(text) if text.isdecimal() else float(text)
    except ValueError:
        value = 0
    if value >= 1 if isinstance(value, int) else 0.0 < value < 1.0:
        return value
    raise argparse.ArgumentTypeError(f"'{text}' is neither a share between 0 and 1 nor a rank of 1 or more")


def _version() -> str:
    from importlib.metadata import version

    return f"rankscope {version('rankscope')}"
