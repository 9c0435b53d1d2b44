"""From a study to its plan: the data read and tokenised, the runs resolved, the cost estimated; no model is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path

import polars as pl

from rankscope.cost.counted import counted_task, counted_training, counted_validation
from rankscope.cost.estimate import Outline, estimate, find_device, in_layout
from rankscope.cost.loads import Loads
from rankscope.cost.model_shapes import ModelShape, shape_of_folder
from rankscope.data.architectures import code_warnings, read_json, tree_refusal
from rankscope.data.contamination import Overlap, TrainingWords, overlap_warnings
from rankscope.data.examples import Item, TokenisedExample, examples_frame, items_frame
from rankscope.data.hub import base_folder, fingerprint, hub_commit
from rankscope.data.prepare import (
    PreparedTask,
    PreparedTraining,
    prepare_task,
    prepare_training_set,
)
from rankscope.data.shapes import model_type
from rankscope.data.summaries import DataSummary, num_independent
from rankscope.data.targets import resolve_runs
from rankscope.data.tokens import Tokenizer
from rankscope.design import (
    bottleneck_warnings,
    budget_warnings,
    choice_warnings,
    design_warnings,
    expert_warnings,
    past_warnings,
    plan_fields,
    row_warnings,
    sense_warnings,
    smallest_differences,
)
from rankscope.errors import UserError, within
from rankscope.expansion import derived_points, expand_arms, expand_runs
from rankscope.layout import choose_layout, with_precision
from rankscope.plan import Estimate, Layout, Plan, validation_task
from rankscope.runs import BaseSettings, RunSettings, TrainingData, opening_of, settings_hash
from rankscope.spec import Study
from rankscope.store import EXAMPLES, PROMPTS, Store, write_parquet

_PROBE_TOKENS = 256


@dataclass(frozen=True)
class Inputs:
    """What the stages will read, ready to be written.

    Attributes:
        examples: By base and training set.
        prompts: By base and task, validation items among them.
        probes: By base, the texts on which models are looked into.
        outline: What the cost of the study was computed from.
    """

    examples: dict[tuple[str, str], pl.DataFrame]
    prompts: dict[tuple[str, str], pl.DataFrame]
    probes: dict[str, pl.DataFrame]
    outline: Outline


@dataclass(frozen=True)
class _Prepared:
    """One base with all of the study's data as it sees them."""

    settings: BaseSettings
    folder: Path
    shape: ModelShape
    model_type: str
    training: dict[str, PreparedTraining]
    tasks: dict[str, PreparedTask]
    probes: pl.DataFrame
    context_length: int | None
    turn_end: str | None = None


def make_plan(
    study: Study, earlier: Plan | None = None, *, keep_layout: bool = True, cluster: Layout | None = None
) -> tuple[Plan, Inputs]:
    """Read everything a study names and say what it will do.

    Args:
        study: The study.
        earlier: The study's plan of an earlier call, whose date chat templates go on to write.
        keep_layout: Replay the layout of the earlier plan too.
        cluster: Where work runs, if not on this machine.

    Raises:
        UserError: A model or data set is missing or malformed.
    """
    # A template that writes today's date would otherwise make other runs of the same study after midnight.
    today = (earlier and earlier.today) or datetime.now().date()  # noqa: DTZ005
    prepared = {name: _prepare(study, name, today) for name in study.model}
    bases = {name: base.settings for name, base in prepared.items()}
    tensors = {name: dict(base.shape.tensors) for name, base in prepared.items()}
    types = {name: base.model_type for name, base in prepared.items()}
    first = cluster or choose_layout(study, max(base.shape.num_parameters for base in prepared.values()))
    layout = earlier.layout if earlier is not None and keep_layout else first
    study = with_precision(study, layout)
    runs = resolve_runs(expand_runs(study, bases, _training_data(prepared)), tensors, types)
    all_arms = list({run.arm.label: run.arm for run in runs}.values())
    a_base = next(iter(prepared.values()))
    scored = {n: (task.settings.scoring, len(task.items)) for n, task in a_base.tasks.items()}
    smallest = smallest_differences(study, scored)
    overlaps = tuple(overlap for base in prepared.values() for overlap in _overlaps(base))
    counted = {n: (scored[n][0], num_independent(task.items)) for n, task in a_base.tasks.items()}
    chosen_on = {n: num_independent(data.validation_items) for n, data in a_base.training.items()}
    warnings = design_warnings(study, smallest, counted, chosen_on)
    warnings += budget_warnings(study, _longest(prepared.values()))
    warnings += [text for base in prepared.values() for text in _warnings(study, base)]
    inputs = _inputs(study, prepared, runs, layout)
    plan = Plan(
        **plan_fields(study, layout),
        bases=bases,
        tasks={name: {key: task.settings for key, task in base.tasks.items()} for name, base in prepared.items()},
        validation={n: {k: d.validation_settings for k, d in base.training.items()} for n, base in prepared.items()},
        runs=runs,
        probes_fingerprint={name: settings_hash(frame["input_ids"].to_list()) for name, frame in inputs.probes.items()},
        derived={arm.label: derived_points(study, arm, all_arms) for arm in all_arms},
        estimate=_estimate(inputs.outline, first),
        data=tuple(summary for base in prepared.values() for summary in _summaries(base)),
        overlaps=overlaps,
        warnings=tuple(dict.fromkeys([*warnings, *overlap_warnings(overlaps)])),
        smallest_difference=smallest,
        today=today,
    )
    return plan, inputs


def _estimate(outline: Outline, first: Layout) -> Estimate:
    """A study's cost; where its layout was measured, by how much faster that was than the one chosen first."""
    layout, dtype = outline.layout, outline.study.optimization.dtype
    if None in (each.tried_speed(layout.trials) for each in (first, layout)):
        return estimate(outline, find_device(layout, dtype))
    unmeasured = replace(outline, layout=first)
    return in_layout(estimate(unmeasured, find_device(first, dtype)), unmeasured, layout)


def _loads(name: str, base: _Prepared, examples: dict[tuple[str, str], pl.DataFrame]) -> Loads:
    """How much there is to train on and to score, as this base sees it."""
    return Loads(
        training={key: counted_training(examples[name, key]) for key in base.training},
        validation={
            key: counted_validation(
                examples[name, key], [item.options for item in data.validation_items], data.validation_settings
            )
            for key, data in base.training.items()
        },
        tasks={
            key: counted_task(task.summary, task.settings, task.items, base.context_length)
            for key, task in base.tasks.items()
        },
        probe_lengths=tuple(base.probes["input_ids"].list.len().to_list()),
        in_trees=tree_refusal(read_json(base.folder / "config.json")) is None,
    )


def _training_data(prepared: dict[str, _Prepared]) -> dict[tuple[str, str], TrainingData]:
    """By base and training set, what pins its examples in the settings of runs."""
    return {
        (name, key): TrainingData(
            name=key,
            fingerprint=data.fingerprint,
            validation_fingerprint=data.validation_fingerprint,
            num_examples=len(data.examples),
            data=data.version,
        )
        for name, base in prepared.items()
        for key, data in base.training.items()
    }


def write_inputs(store: Store, inputs: Inputs) -> list[str]:
    """Put what the stages read where they look for it; returns which files were there and were not the same."""
    files = {}
    for (base, training_set), frame in inputs.examples.items():
        files[store.training_data(base, training_set) / EXAMPLES] = frame
    for (base, task), frame in inputs.prompts.items():
        files[store.base_task(base, task) / PROMPTS] = frame
    for base, frame in inputs.probes.items():
        files[store.base(base) / "probes.parquet"] = frame
    return [remark for path, frame in files.items() if (remark := _write_changed(path, frame))]


def _write_changed(path: Path, frame: pl.DataFrame) -> str | None:
    """Leave a file alone that says the same already: records vouch for its bytes. Else say what was wrong with it."""
    remark = None
    if path.exists():
        try:
            if pl.read_parquet(path).equals(frame):
                return None
            remark = f"{path}: is not what the data are now; it is written again"
        except pl.exceptions.PolarsError as error:
            remark = f"{path}: cannot be read ({error}); it is written again"
    write_parquet(path, frame)
    return remark


def _prepare(study: Study, name: str, today: date) -> _Prepared:
    source = study.model[name]
    with within("model", name):
        folder = base_folder(name, source)
        tokenizer = Tokenizer.from_folder(folder, today)
        shape = replace(shape_of_folder(folder), quantization=source.quantization_config)
        _check_end(tokenizer, folder)
    optimization = study.optimization
    training = {
        key: prepare_training_set(name, key, spec, tokenizer, optimization.max_length, optimization.batch_size)
        for key, spec in study.train.items()
    }
    tasks = {
        key: prepare_task(name, key, spec, tokenizer, allow_code=study.allow_code)
        for key, spec in study.evaluate.items()
    }
    settings = BaseSettings(
        name=name,
        source=source.source,
        revision=source.revision,
        fingerprint=fingerprint(folder, with_code=source.trust_remote_code),
        commit=hub_commit(folder),
        opening=opening_of(source),
    )
    probes = _probes(tokenizer, tasks, study.analyse.num_probe_texts)
    with within("model", name):
        _check_vocabulary(shape, tokenizer, folder, [data.examples for data in training.values()])
    return _Prepared(
        settings, folder, shape, model_type(folder), training, tasks, probes, tokenizer.context_length,
        _turn_end_warning(name, tokenizer),
    )  # fmt: skip


def _turn_end_warning(name: str, tokenizer: Tokenizer) -> str | None:
    """What is learned in the place of a turn's end that would end nothing."""
    if tokenizer.unheeded_turn_end is None or tokenizer.completion_end_id is None:
        return None
    learned = tokenizer.decode([tokenizer.completion_end_id], skip_special_tokens=False)
    return (
        f"base {name}: its chat template closes a turn with {tokenizer.unheeded_turn_end}, at which generation does "
        f"not stop (eos_token, generation_config.json): {learned} is learned in its place"
    )


def _check_end(tokenizer: Tokenizer, folder: Path) -> None:
    """Refuse a base whose answers cannot end."""
    if tokenizer.completion_end_id is None:
        what = "the tokenizer has no token that ends a text, so no answer can be taught to end"
        mend = "name one of its tokens as eos_token there: it is what ends a turn or a text"
        raise UserError(what, where=folder / "tokenizer_config.json", mend=mend)


def _check_vocabulary(
    shape: ModelShape, tokenizer: Tokenizer, folder: Path, sets: list[list[TokenisedExample]]
) -> None:
    """Refuse a tokenizer that has put tokens into the examples which the model has no embeddings of."""
    largest = max((max(example.input_ids) for examples in sets for example in examples), default=0)
    if largest >= shape.vocab_size:
        what = f"the tokenizer gives token {largest}, and the model has embeddings of {shape.vocab_size} tokens"
        mend = "put the model's own tokenizer beside it, or resize the model's embeddings and save it again"
        raise UserError(what, where=folder / "tokenizer.json", mend=mend)


def _inputs(study: Study, prepared: dict[str, _Prepared], runs: tuple[RunSettings, ...], layout: Layout) -> Inputs:
    examples, prompts = {}, {}
    for name, base in prepared.items():
        for key, data in base.training.items():
            train = examples_frame(data.examples, data.texts, "train")
            validation = examples_frame(data.validation_examples, data.validation_texts, "validation")
            examples[name, key] = pl.concat([train, validation])
            prompts[name, validation_task(key)] = items_frame(data.validation_items)
        for key, task in base.tasks.items():
            prompts[name, key] = items_frame(task.items)
    loads = {name: _loads(name, base, examples) for name, base in prepared.items()}
    outline = Outline(study, runs, loads, {name: base.shape for name, base in prepared.items()}, layout)
    return Inputs(examples, prompts, {name: base.probes for name, base in prepared.items()}, outline)


def _probes(tokenizer: Tokenizer, tasks: dict[str, PreparedTask], number: int) -> pl.DataFrame:
    """Texts drawn from each task in turn: the question with its right answer, or the start of a text."""
    rows: list[tuple[str, str, list[int]]] = []
    queues = {name: iter(task.items) for name, task in tasks.items()}
    while queues and len(rows) < number:
        for name in list(queues):
            item: Item | None = next(queues[name], None)
            if item is None:
                del queues[name]
                continue
            ids = tokenizer.encode(item.prompt + item.target)[:_PROBE_TOKENS]
            # A single token attends to nothing but itself.
            if len(ids) > 1 and len(rows) < number:
                rows.append((f"{name}/{item.item_id}", name, ids))
    schema = {"probe_id": pl.String, "source": pl.String, "input_ids": pl.List(pl.Int32)}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _summaries(base: _Prepared) -> list[DataSummary]:
    parts = [summary for data in base.training.values() for summary in data.summaries]
    return parts + [task.summary for task in base.tasks.values()]


def _longest(bases: Iterable[_Prepared]) -> dict[str, int]:
    """By what rows are for, the tokens of the longest to any base, as far as it reaches: of items with one option."""
    longest: dict[str, int] = {}
    for base in bases:
        for summary in _summaries(base):
            name, reach = f"{summary.role} {summary.name}", base.context_length or summary.longest_tokens
            longest[name] = max(longest.get(name, 0), min(summary.longest_tokens, reach))
    return longest


def _overlaps(base: _Prepared) -> list[Overlap]:
    """How much of every task is in every training set, and in the rows on which its rates are chosen."""
    tasks = {name: task.said for name, task in base.tasks.items()}
    return [
        Overlap(
            base=base.settings.name,
            training_set=key,
            part=part,
            task=name,
            num_items=len(tasks[name]),
            num_exact=exact,
            num_ngram=ngram,
        )
        for key, data in base.training.items()
        for part, said in (("train", data.said), ("validation", data.validation_said))
        for name, (exact, ngram) in TrainingWords(said).overlaps(tasks).items()
    ]


def _warnings(study: Study, base: _Prepared) -> list[str]:
    warnings = code_warnings(base.settings.name, base.folder, trust=base.settings.opening.trust_remote_code)
    warnings += [] if base.turn_end is None else [base.turn_end]
    warnings += sense_warnings(base.settings.name, base.shape.tensors)
    warnings += [text for data in base.training.values() for text in data.warnings]
    warnings += [text for task in base.tasks.values() for text in task.warnings]
    scored = {name: (task.settings.scoring, task.settings.num_items) for name, task in base.tasks.items()}
    validation = {name: data.validation_settings for name, data in base.training.items()}
    warnings += choice_warnings(study, scored, {name: (v.scoring, v.num_items) for name, v in validation.items()})
    scorings = [scoring for scoring, _ in scored.values()] + [settings.scoring for settings in validation.values()]
    warnings += row_warnings(base.settings.name, read_json(base.folder / "config.json"), scorings)
    warnings += expert_warnings(study, base.settings, base.shape.tensors, base.model_type)
    warnings += past_warnings(study, base.settings, base.shape.tensors, base.model_type)
    warnings += bottleneck_warnings(study, base.settings.name, base.shape.tensors)
    sizes = [min(size) for size in base.shape.matrices]
    for arm, _ in expand_arms(study):
        if arm.rank is not None and sizes and arm.rank > min(sizes):
            number = sum(arm.rank > size for size in sizes)
            warnings.append(
                f"arm {arm.label}: rank {arm.rank} is above the size of {number} of the {len(sizes)} matrices "
                f"(smallest {min(sizes)}); an update there cannot have it"
            )
    return warnings
