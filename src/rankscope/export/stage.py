"""The export: reads a study directory, writes what papers, notebooks, leaderboards and model hubs read."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import vl_convert

from rankscope.data.hub import PACKAGED, local_model, model_folder
from rankscope.errors import UserError
from rankscope.export.card import CardFacts, model_card
from rankscope.export.earlier import remove_stale
from rankscope.export.latex import MAIN, main_document, train_test_table, verdict_table
from rankscope.export.model import Chosen, base_id, choice_of, named, recommended, verdict_of
from rankscope.export.parts import PARTS, Part
from rankscope.export.peft_results import RunResult, result_document
from rankscope.export.reading import iter_records, scan, tables_beside, weight_files
from rankscope.export.records import Found, csv_columns, number_table, record_table, with_subject
from rankscope.export.records import verdict_table as verdicts_as_rows
from rankscope.records import EvaluateRecord, Record, Subject, TrainRecord
from rankscope.report.contents import Contents
from rankscope.report.figures import group_names, make_figures
from rankscope.report.reading import read_contents
from rankscope.report.static import render_svgs
from rankscope.report.tables import DECIDE_FILE, make_tables
from rankscope.runs import RunSettings
from rankscope.store import STEPS, Store, replacing, write_text

CARD = "README.md"


@dataclass(frozen=True)
class Request:
    """What is to be exported.

    Attributes:
        out: A folder; made if it does not exist. What is exported again is written over, and what the study's last
            export wrote there and this one does not is removed, but for models.
        parts: Which of `PARTS`; None: all of them, as far as they are there.
        model: An arm, a run or a derived model, instead of what the study recommends.
    """

    out: Path
    parts: tuple[Part, ...] | None = None
    model: str | None = None


def run(store: Store, request: Request) -> list[str]:
    """Export a study, finished or not, and say in a few lines what was written and what could not be.

    Raises:
        UserError: The directory holds no study, or what was asked for by name is not there.
        DamagedFile: A file differs from what its record says.
    """
    contents = read_contents(store)
    parts = request.parts or PARTS
    exporter = _Exporter(store, contents, request)
    # What a person must mend is said before anything is written.
    chosen = exporter.chosen() if "models" in parts else []
    lines = [f"{part}: {exporter.write(part, chosen)}" for part in parts]
    return [*lines, *exporter.notes, f"export: {request.out}"]


@dataclass
class _Exporter:
    store: Store
    contents: Contents
    request: Request

    def __post_init__(self) -> None:
        self.notes: list[str] = []
        self._written: dict[Part, set[str]] = defaultdict(set)
        self._found: list[Found] | None = None
        self._tables: Mapping[str, pl.DataFrame] | None = None

    def write(self, part: Part, chosen: Sequence[Chosen]) -> str:
        """Write one part; returns what it holds, for a person."""
        writers: dict[Part, Callable[[], str]] = {
            "tables": self._write_tables, "records": self._write_records, "latex": self._write_latex,
            "figures": self._write_figures, "results": self._write_results,
            "models": lambda: self._write_models(chosen),
        }  # fmt: skip
        said = writers[part]()
        if part != "models":  # weights of what was exported by name are not thrown away
            remove_stale(self.request.out, self.store.root, part, self._written[part])
        return said

    def _note_file(self, part: Part, name: str) -> Path:
        """Note that a file belongs to this export; returns where it is written."""
        self._written[part].add(name)
        return self.request.out / part / name

    def _write_table(self, part: Part, name: str, frame: pl.LazyFrame) -> None:
        """A table as Parquet and CSV, streamed: the neurons of a large study fit into no memory."""
        parquet = self._note_file(part, f"{name}.parquet")
        with replacing(parquet) as temporary:
            frame.sink_parquet(temporary)
        written = pl.scan_parquet(parquet)
        with replacing(self._note_file(part, f"{name}.csv")) as temporary:
            written.select(csv_columns(written.collect_schema())).sink_csv(temporary)

    @property
    def found(self) -> list[Found]:
        """Every record there is, read once."""
        if self._found is None:
            self._found = list(iter_records(self.store, self.contents))
        return self._found

    @property
    def tables(self) -> Mapping[str, pl.DataFrame]:
        """The report's tables, made once."""
        if self._tables is None:
            self._tables = make_tables(self.contents)
        return self._tables

    def chosen(self) -> list[Chosen]:
        """The models to export.

        Raises:
            UserError: What a person asked for by name cannot be had.
        """
        if self.request.model is not None:
            models = named(self.contents, self.request.model)
        else:
            models, notes = recommended(self.contents)
            self.notes += notes
            if not models and self.request.parts == ("models",):
                raise UserError("; ".join(notes), where="--what models", mend="name one with --model, or run on")
        return [one for one in models if self._has_weights(one)]

    def _has_weights(self, one: Chosen) -> bool:
        try:
            weight_files(self.store, one)
        except UserError as error:
            if self.request.model is not None or self.request.parts is not None:
                raise
            self.notes.append(f"no model: {error.message()}")
            return False
        return True

    def _write_tables(self) -> str:
        for name, table in self.tables.items():
            self._write_table("tables", name, table.lazy())
        return f"the {len(self.tables)} tables of the report, as CSV and Parquet"

    def _write_records(self) -> str:
        decision = self.contents.decision
        small = {
            "records": record_table(self.found),
            "numbers": number_table(self.found),
            "verdicts": verdicts_as_rows(decision, DECIDE_FILE),
        }
        for name, table in small.items():
            self._write_table("records", name, table.lazy())
        beside = defaultdict(list)
        for one in self.found:
            for path in tables_beside(self.store, one):
                source = path.relative_to(self.store.root).as_posix()
                beside[path.stem].append(with_subject(scan(path), one, source))
        for name, frames in beside.items():
            self._write_table("records", name, pl.concat(frames, how="diagonal_relaxed"))
        return f"{len(self.found)} records in {len(small) + len(beside)} tables, as CSV and Parquet"

    def _write_latex(self) -> str:
        decision, plan = self.contents.decision, self.contents.plan
        if decision is None:
            return "nothing, since the study has not been decided yet"
        texts = {}
        for base in plan.bases:
            whole = [one for one in decision.comparisons if one.base == base and one.category is None]
            if whole:
                texts[f"train_test--{base}.tex"] = train_test_table(base, whole, plan.arms)
        for verdict in decision.verdicts:
            texts[f"verdict--{verdict.base}--{verdict.training_set}.tex"] = verdict_table(verdict)
        for name, text in {**texts, MAIN: main_document(texts)}.items():
            write_text(self._note_file("latex", name), text)
        return f"{len(texts)} tables, and {MAIN} with all of them"

    def _write_figures(self) -> str:
        figures = make_figures(self.tables, self.contents)
        number = 0
        for name, svg in render_svgs(figures, list(group_names(self.contents).values())):
            write_text(self._note_file("figures", f"{name}.svg"), svg)
            with replacing(self._note_file("figures", f"{name}.pdf")) as temporary:
                temporary.write_bytes(vl_convert.svg_to_pdf(svg))
            number += 1
        return f"{number}, each as SVG and PDF"

    def _write_results(self) -> str:
        number = 0
        for one in self.found:
            if isinstance(one.record, TrainRecord):
                document = result_document(self.contents.plan, self._result(one.record))
                text = json.dumps(document, indent=2, ensure_ascii=False)
                write_text(self._note_file("results", f"{one.record.run.run_id}.json"), text + "\n")
                number += 1
        return f"{number} runs as PEFT's method comparison writes them"

    def _result(self, train: TrainRecord) -> RunResult:
        run = train.run
        own = [one.record for one in self.found if one.subject.run_id == run.run_id]
        of_base = [one.record for one in self.found if one.subject == Subject(base=run.base.name)]
        return RunResult(
            train=train,
            scores=_scores(own),
            base_scores=_scores(of_base),
            steps=self._steps(run),
            seconds=sum(one.seconds for one in own),
            weights_bytes=self._weights_bytes(train),
            comparisons=self._comparisons(run),
            verdict=verdict_of(self.contents, run),
        )

    def _steps(self, run: RunSettings) -> pl.DataFrame:
        path = self.store.train(run.run_id) / STEPS
        return scan(path).collect() if path.is_file() and path.stat().st_size else pl.DataFrame()

    def _weights_bytes(self, train: TrainRecord) -> int | None:
        folder = self.store.train(train.run.run_id)
        names = [name for name in train.files if name.endswith(".safetensors")]
        return sum((folder / name).stat().st_size for name in names) if names and not train.weights_deleted else None

    def _comparisons(self, run: RunSettings) -> list:
        if choice_of(self.contents, run) is None or self.contents.decision is None:
            return []
        comparisons = self.contents.decision.comparisons
        return [one for one in comparisons if one.arm_key == run.arm_key and one.category is None]

    def _write_models(self, chosen: Sequence[Chosen]) -> str:
        for one in chosen:
            place = self.request.out / "models" / one.folder
            target = place.with_name(f".{place.name}")  # an earlier export stays until this one is whole
            if target.exists():
                shutil.rmtree(target)
            target.mkdir(parents=True)
            for path in weight_files(self.store, one):
                shutil.copyfile(path, target / path.name)
            has_tokenizer = one.run.arm.capabilities.saves == "model" and _copy_tokenizer(one.run, target)
            write_text(target / CARD, model_card(self._facts(one, has_tokenizer)))
            if place.exists():
                shutil.rmtree(place)
            target.rename(place)
        none = "none, since no arm is recommended (--model ARM writes one all the same)"
        return ", ".join(f"models/{one.folder}" for one in chosen) or none

    def _facts(self, one: Chosen, has_tokenizer: bool) -> CardFacts:
        identity, is_hub = base_id(one.run)
        derived: list[dict] = []
        if one.point is not None:
            rows = self.tables["derived"].filter(
                pl.col("base") == one.run.base.name, pl.col("training_set") == one.run.training_set.name,
                pl.col("arm") == one.run.arm.label, pl.col("kind") == one.point.kind,
                pl.col("amount") == one.point.amount,
            )  # fmt: skip
            derived = rows.to_dicts()
        return CardFacts(
            plan=self.contents.plan, train=one.train, point=one.point, choice=choice_of(self.contents, one.run),
            verdict=verdict_of(self.contents, one.run), comparisons=self._comparisons(one.run), base_id=identity,
            is_hub_base=is_hub, has_tokenizer=has_tokenizer, derived=derived,
        )  # fmt: skip


def _scores(records: Iterable[Record]) -> dict[str, EvaluateRecord]:
    return {one.task: one for one in records if isinstance(one, EvaluateRecord) and one.status == "complete"}


def _copy_tokenizer(run: RunSettings, target: Path) -> bool:
    """Put the base's tokenizer beside a whole model; whether it is on this machine."""
    source, revision = run.base.source, run.base.commit or run.base.revision
    folder = model_folder(source) if source in PACKAGED else local_model(source, revision)
    if folder is None or not folder.is_dir():
        return False
    names = ("tokenizer*", "special_tokens_map.json", "chat_template.jinja", "vocab.json", "merges.txt")
    paths = [path for name in names for path in folder.glob(name) if path.is_file()]
    for path in paths:
        shutil.copyfile(path, target / path.name)
    return bool(paths)
