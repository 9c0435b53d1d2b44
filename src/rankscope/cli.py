"""The command line: verbs to stages, each imported only when its verb is called."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rankscope.arguments import make_parser
from rankscope.errors import DamagedFile, MachineError, UserError
from rankscope.spec import Study

if TYPE_CHECKING:
    from rankscope.records import ForecastRecord

DONE, SOME_FAILED, USER_ERROR, UNDECIDED, INTERRUPTED = 0, 1, 2, 3, 130
_CLEAR = "\x1b[H\x1b[2J"  # to the top of an empty screen


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one verb.

    Args:
        arguments: As on the command line, without the program's name; those of this process where not given.

    Returns:
        The exit status.
    """
    try:
        return _carried_out(arguments)
    except BrokenPipeError:
        return DONE  # whoever read the output has gone (`| head`), and all that was left to do was to print
    finally:
        _flush_or_discard()


def _carried_out(arguments: Sequence[str] | None) -> int:
    try:
        options = make_parser().parse_args(arguments)
        return _VERBS[options.verb](options)
    except UserError as error:
        _tell(error.message())
        return USER_ERROR
    except MachineError as error:
        _tell(f"stopped: {error}\n  what was computed stays; when that is mended the same command goes on")
        return SOME_FAILED
    except DamagedFile as error:
        _tell(f"{error}\n  mend: `rankscope run` finds what is damaged and does it again")
        return SOME_FAILED
    except (NotADirectoryError, IsADirectoryError, FileExistsError, PermissionError, FileNotFoundError) as error:
        # A path of the command line that is not what it should be; nothing else here opens files of a person's naming.
        _tell(f"{error.filename}: {error.strerror}\n  mend: give another path")
        return USER_ERROR
    except KeyboardInterrupt:
        _tell("interrupted; the same command goes on from here")
        return INTERRUPTED


def _tell(text: str) -> None:
    """Say why a verb ends as it does; where nobody reads it (`2>&1 | head`), the exit status does."""
    if sys.stderr is not None:  # as it is where the shell closed it; print would take the other stream
        with suppress(BrokenPipeError):
            print(f"rankscope: {text}", file=sys.stderr)


def _flush_or_discard() -> None:
    """Flush both streams; of one whose reader has gone discard the rest, which Python would report at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


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
    from rankscope.execute.server import importing_early

    with importing_early(study):  # what this process imports meanwhile is a part of what it does not wait for
        from rankscope.display import make_display
        from rankscope.pipeline import run_study
        from rankscope.terminal import PatientConsole, print_verdicts

        console = PatientConsole()
        display = make_display(console)
        try:
            with _stopping_on_request():
                outcome = run_study(study, out, display, retry_failed=options.retry_failed, share=options.share)
        finally:
            display.close()
    print_verdicts(console, outcome.record)
    console.print(f"report: {outcome.report}", soft_wrap=True, markup=False, highlight=False)
    if outcome.tracker_failure:
        console.print(f"{study.report_to} was not told everything: {outcome.tracker_failure}", markup=False)
    if outcome.num_failed:
        pieces = f"{outcome.num_failed} {'piece' if outcome.num_failed == 1 else 'pieces'} of work"
        console.print(f"{pieces} failed; `rankscope status {out}` says why", markup=False)
        return SOME_FAILED
    return DONE if outcome.is_decided else UNDECIDED


def _status(options: argparse.Namespace) -> int:
    from rankscope.status import study_status
    from rankscope.store import Store
    from rankscope.terminal import status_lines

    is_redrawn = options.watch and not options.json and sys.stdout is not None and sys.stdout.isatty()
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
    for note in outcome.audit.all_notes:
        print(f"note: {note}")
    print(f"report: {outcome.page}")
    return DONE


def _audit_folder(tuned: str) -> Path:
    """Where an audit is written: `results/audit-NAME`.

    NAME is the last part of a hub id, the name of a study's run, or a folder's name; where that is one of many, such as
    `final` or `checkpoint-5`, the name of the folder above stands before it.
    """
    from rankscope.audit.result import short_name

    path = Path(tuned).resolve()
    name = short_name(str(path)).strip("/").replace("/", "-") if path.exists() else tuned.rpartition("/")[2]
    if path.parent.name == "train":  # a study's runs all call their folder `adapter` or `model`
        name = path.parent.parent.name
    return Path("results") / f"audit-{name.replace('@', '-')}"


_VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "init": _init, "plan": _plan, "run": _run, "status": _status, "report": _report, "export": _export, "audit": _audit,
    "demo": _demo,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
