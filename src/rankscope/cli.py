"""The command line: verbs to stages, each imported only when its verb is called."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from rankscope.errors import DamagedFile, MachineError, UserError
from rankscope.export.parts import PARTS
from rankscope.spec import Study

if TYPE_CHECKING:
    from rankscope.records import ForecastRecord

DONE, SOME_FAILED, USER_ERROR, UNDECIDED, INTERRUPTED = 0, 1, 2, 3, 130

_EPILOG = """exit status: 0 done and decided; 3 done and undecided; 1 some run failed (the rest is done and reported);
2 the study file or data is wrong and nothing was started; 130 interrupted: the same command goes on"""


_AUDIT_EPILOG = """exit status: 0 done; 2 a folder is not what it should be, or the tuned model is not of this base"""

_EXPORT_EPILOG = """tables: the report's, as CSV and Parquet; records: every record and item; latex: the paper's form;
figures: SVG and PDF; results: as PEFT's method comparison has them; models: what is recommended, with a model card

exit status: 0 done; 2 what was asked for is not there; 1 a file is damaged"""
_CLEAR = "\x1b[H\x1b[2J"  # to the top of an empty screen


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one verb.

    Args:
        arguments: As on the command line, without the program's name; those of this process where not given.

    Returns:
        The exit status.
    """
    try:
        options = _parser().parse_args(arguments)
        return options.verb(options)
    except UserError as error:
        print(f"rankscope: {error.message()}", file=sys.stderr)
        return USER_ERROR
    except MachineError as error:
        text = f"rankscope: stopped: {error}\n  what was computed stays, and the same command goes on"
        print(text, file=sys.stderr)
        return SOME_FAILED
    except DamagedFile as error:
        print(f"rankscope: {error}\n  mend: `rankscope run` finds what is damaged and does it again", file=sys.stderr)
        return SOME_FAILED
    except (NotADirectoryError, IsADirectoryError, FileExistsError, PermissionError, FileNotFoundError) as error:
        # A path of the command line that is not what it should be; nothing else here opens files of a person's naming.
        print(f"rankscope: {error.filename}: {error.strerror}\n  mend: give another path", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("rankscope: interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has gone (`| head`); there is nobody to tell.
        sys.stderr.close()
        return DONE


def _parser() -> argparse.ArgumentParser:
    description = "Full fine-tuning or LoRA, at which rank, and what will the model forget? An experiment that answers."
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("rankscope", description=description, epilog=_EPILOG, formatter_class=formatter)
    parser.add_argument("--version", action="version", version=_version())
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    def add(
        name: str, verb: Callable[[argparse.Namespace], int], text: str, epilog: str | None = None
    ) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text, epilog=epilog, formatter_class=formatter)
        sub.set_defaults(verb=verb)
        return sub

    init = add("init", _init, "write a commented study file for a model and a data file")
    init.add_argument("--model", required=True, help="hub id, folder or .gguf file of the base model")
    init.add_argument("--train", required=True, help="a data file, folder, preset or hub id to train on")
    text = "what a column is, where its name does not say: question=q answer=a choices=right,wrong"
    init.add_argument("--columns", nargs="+", default=[], metavar="ROLE=COLUMN", help=text)
    init.add_argument("--out", default="study.yaml", type=Path, help="the study file to write (default: %(default)s)")

    _add_plan(add("plan", _plan, "say what a study will do and cost, without loading a model"))

    run = add("run", _run, "run a study, or finish one that was stopped", _EPILOG)
    _add_study(run)
    _add_out(run)
    run.add_argument("--retry-failed", action="store_true", help="try again what failed before")
    text = "work on the study together with other processes started so on one directory"
    run.add_argument("--share", action="store_true", help=text)

    status = add("status", _status, "say what is done, running, failed and left")
    status.add_argument("directory", type=_folder, metavar="DIR", help="a study directory")
    status.add_argument("--json", action="store_true", help="print the status as JSON")
    status.add_argument("--watch", action="store_true", help="print it again every two seconds")

    report = add("report", _report, "rebuild the report from the records, or compare several studies")
    report.add_argument("directories", type=_folder, metavar="DIR", nargs="+", help="study directories")
    text = "where the page over several studies goes (default: results/across)"
    report.add_argument("--out", type=_folder, help=text)

    text = "write what papers, notebooks, leaderboards and model hubs read"
    _add_export(add("export", _export, text, _EXPORT_EPILOG))

    _add_audit(add("audit", _audit, "say what an adapter or a tuned model changed, without training", _AUDIT_EPILOG))

    demo = add("demo", _demo, "run the embedded study: a small model, invented facts, a few minutes", _EPILOG)
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
    text = "override a setting; recorded like the file itself (repeatable)"
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


def _init(options: argparse.Namespace) -> int:
    from rankscope.init_study import parse_columns, write_study

    for line in write_study(options.model, options.train, options.out, parse_columns(options.columns)):
        print(line)
    print(_forecast(options.out))
    return DONE


def _forecast(study_file: Path) -> str:
    """How long the study that was just written will take; from known sizes where a task's data are not here."""
    from rankscope.outline import make_outline
    from rankscope.places import naming_lines
    from rankscope.planning import make_plan
    from rankscope.study_file import load_study
    from rankscope.terminal import forecast_line

    study = load_study(study_file)
    try:
        with naming_lines(study_file, study):
            return forecast_line(make_plan(study)[0])
    except UserError as error:
        # The file is written all the same: a task may need the network, or a row that only `plan` looks at a mend.
        missing = error.message()
    try:
        return f"{forecast_line(make_outline(study)[0])}, from the sizes that are known, since\n{missing}"
    except UserError:
        return f"how long it will take cannot be said yet: {missing}"


def _plan(options: argparse.Namespace) -> int:
    from rankscope.study_file import load_study

    study = load_study(options.study, options.set)  # before what takes longer to import than a mistake to find

    from rankscope.forecast import Wish, forecast
    from rankscope.models.silence import without_library_noise
    from rankscope.places import naming_lines
    from rankscope.terminal import fitted_lines, forecast_lines, plan_lines

    out = Path("results") / study.study
    loads_model = options.measure or options.forecast
    with naming_lines(options.study, study, options.set), without_library_noise() if loads_model else nullcontext():
        found = forecast(study, Wish(options.device, options.fit, is_measured=options.measure))
        ranks = _forecast_ranks(study, out) if options.forecast else []
    if options.json:
        document = found.document() | ({"forecast": [r.model_dump(mode="json") for r in ranks]} if ranks else {})
        print(json.dumps(document, indent=1))
        return DONE
    for line in [*plan_lines(study, found.plan), *fitted_lines(options.fit, found.fitted)]:
        print(line)
    for line in forecast_lines(ranks, out) if ranks else ():
        print(line)
    return DONE


def _forecast_ranks(study: Study, out: Path) -> list[ForecastRecord]:
    from rankscope.pipeline import forecast_study

    return forecast_study(study, out)


def _run(options: argparse.Namespace) -> int:
    from rankscope.study_file import load_study

    study = load_study(options.study, options.set)

    from rankscope.places import naming_lines

    with naming_lines(options.study, study, options.set):
        return _run_study(study, options.out or Path("results") / study.study, options)


def _demo(options: argparse.Namespace) -> int:
    from importlib.resources import files

    from rankscope.study_file import load_study

    study = load_study(Path(str(files("rankscope.data.smallworld") / "study.yaml")))
    status = _run_study(study, options.out or Path("results") / study.study, options)
    # "Undecided" is a fine answer for a demonstration.
    return DONE if status == UNDECIDED else status


@contextmanager
def _stopping_on_request() -> Iterator[None]:
    """Clusters end what they run with SIGTERM: a study then stops as by Ctrl-C, with its checkpoints written."""
    if threading.current_thread() is not threading.main_thread():  # only there can signals be taken
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run_study(study: Study, out: Path, options: argparse.Namespace) -> int:
    from rich.console import Console

    from rankscope.display import make_display
    from rankscope.pipeline import run_study
    from rankscope.terminal import verdict_tables

    console = Console()
    display = make_display(console)
    try:
        with _stopping_on_request():
            outcome = run_study(study, out, display, retry_failed=options.retry_failed, share=options.share)
    finally:
        display.close()
    for part in verdict_tables(outcome.record):
        console.print(part, markup=False, highlight=False)
    console.print(f"report: {outcome.report}", soft_wrap=True, markup=False, highlight=False)
    if outcome.tracker_failure:
        console.print(f"{study.report_to} was not told everything: {outcome.tracker_failure}", markup=False)
    if outcome.num_failed:
        console.print(f"{outcome.num_failed} pieces of work failed; `rankscope status {out}` says why", markup=False)
        return SOME_FAILED
    return DONE if outcome.is_decided else UNDECIDED


def _status(options: argparse.Namespace) -> int:
    from rankscope.status import study_status
    from rankscope.store import Store
    from rankscope.terminal import status_lines

    is_redrawn = options.watch and not options.json and sys.stdout.isatty()
    while True:
        state = study_status(Store(options.directory))
        if options.json:
            print(json.dumps(state, indent=None if options.watch else 1), flush=True)
        else:
            above = _CLEAR if is_redrawn else ""
            print(above + "\n".join(status_lines(state)), flush=True)
        if not options.watch or state["state"] != "running":
            return DONE
        time.sleep(2.0)


def _report(options: argparse.Namespace) -> int:
    from rankscope.report import stage
    from rankscope.store import Store

    stores = [Store(directory) for directory in options.directories]
    if len(stores) > 1:
        print(f"report: {stage.run_across(stores, options.out or Path('results') / 'across')}")
        return DONE
    if options.out is not None:
        mend = "leave it out; a study's report lies in its directory"
        raise UserError("is for several studies", where="--out", mend=mend)
    print(f"report: {stage.run(stores[0])}")
    return DONE


def _export(options: argparse.Namespace) -> int:
    from rankscope.export.stage import Request, run
    from rankscope.store import Store

    out = options.out or options.directory / "export"
    parts = tuple(dict.fromkeys(options.what)) if options.what else None
    for line in run(Store(options.directory), Request(out, parts, options.model)):
        print(line)
    return DONE


def _audit(options: argparse.Namespace) -> int:
    from rankscope.display import CountLines
    from rankscope.models.silence import without_library_noise

    with without_library_noise():
        from rankscope.audit.stage import Request, run

        request = Request(
            base=options.base,
            tuned=options.tuned,
            out=options.out or _audit_folder(options.tuned),
            layers=options.layers,
            texts=options.texts,
            intruders=options.intruders,
            against=options.against,
            truncate=options.truncate,
        )
        outcome = run(request, CountLines(sys.stderr))
    if options.json:
        print(outcome.document, end="")
        return DONE
    for finding in outcome.findings:
        print(f"- {finding}")
    for note in outcome.audit.notes:
        print(f"note: {note}")
    print(f"report: {outcome.page}")
    return DONE


def _audit_folder(tuned: str) -> Path:
    """`results/audit-<tuned>`, after the last part of a folder's name or hub id, or after the run that it is of."""
    path = Path(tuned).resolve()
    name = path.name if path.exists() else tuned.rpartition("/")[2]
    if path.parent.name == "train":  # a study's runs all call their folder `adapter` or `model`
        name = path.parent.parent.name
    return Path("results") / f"audit-{name.replace('@', '-')}"


def _version() -> str:
    from importlib.metadata import version

    return f"rankscope {version('rankscope')}"


if __name__ == "__main__":
    sys.exit(main())
