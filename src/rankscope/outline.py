"""From a study to an outline of its plan, where a model or data are not on this machine: sizes instead of tokens."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from rankscope.cost.assumed import Rows, assumed_task, assumed_training, tokens_of
from rankscope.cost.estimate import Outline, estimate, find_device
from rankscope.cost.loads import Loads, TaskLoad, TrainingLoad, typical_lengths
from rankscope.cost.model_shapes import ModelShape, known_model, known_models, shape_of_entry, shape_of_folder
from rankscope.data.architectures import tree_refusal
from rankscope.data.hub import base_folder, local_model
from rankscope.data.shapes import model_type
from rankscope.data.summaries import DataSummary
from rankscope.data.targets import resolve_runs
from rankscope.design import design_warnings, plan_fields, row_warnings, smallest_differences
from rankscope.errors import UserError, within
from rankscope.expansion import expand_runs
from rankscope.layout import choose_layout, with_precision
from rankscope.plan import UNREAD, Layout, Plan
from rankscope.runs import BaseSettings, TaskSettings, TrainingData, opening_of
from rankscope.spec import ModelSource, Study

_PROBE_TOKENS = 256


@dataclass(frozen=True)
class _Assumed:
    """One base with what is assumed of the data as it sees them."""

    shape: ModelShape
    model_type: str
    training: dict[str, tuple[TrainingLoad, TaskLoad, Rows]]
    tasks: dict[str, tuple[TaskLoad, Rows]]

    def loads(self, num_probe_texts: int) -> Loads:
        means = [load.num_prompt_tokens + load.num_answer_tokens for load, _ in self.tasks.values()]
        typical = typical_lengths(sum(means) / len(means), _PROBE_TOKENS)
        return Loads(
            training={name: load for name, (load, _, _) in self.training.items()},
            validation={name: load for name, (_, load, _) in self.training.items()},
            tasks={name: load for name, (load, _) in self.tasks.items()},
            probe_lengths=tuple(typical[index % len(typical)] for index in range(num_probe_texts)),
            in_trees=tree_refusal({"model_type": self.model_type}) is None,
        )


def missing_models(study: Study) -> list[str]:
    """The bases that are not on this machine, so that their tokenizers cannot be asked."""
    return [name for name, source in study.model.items() if local_model(source.source, source.revision) is None]


def make_outline(study: Study) -> tuple[Plan, Outline]:
    """Say what a study will do and cost from the shapes of common models and the sizes of well-known data sets.

    Args:
        study: The study.

    Returns:
        The plan, and what its cost was computed from.

    Raises:
        UserError: A model is neither here nor in the table, or a data file is malformed.
    """
    bases = {name: _assumed(study, name) for name in study.model}
    study, layout, shapes = _laid_out(study, bases)
    settings = _base_settings(study)
    tensors = {name: dict(shape.tensors) for name, shape in shapes.items()}
    types = {name: base.model_type for name, base in bases.items()}
    runs = resolve_runs(expand_runs(study, settings, _training(bases)), tensors, types)
    loads = {name: base.loads(study.analyse.num_probe_texts) for name, base in bases.items()}
    outline = Outline(study, runs, loads, shapes, layout, is_estimate=True)
    scored = {name: (load.scoring, load.num_items) for name, load in next(iter(loads.values())).tasks.items()}
    chosen_on = {name: load.num_items for name, load in next(iter(loads.values())).validation.items()}
    smallest = smallest_differences(study, scored)
    plan = Plan(
        **plan_fields(study, layout),
        bases=settings,
        tasks={
            name: {key: _settings(key, load, rows) for key, (load, rows) in base.tasks.items()}
            for name, base in bases.items()
        },
        validation={
            name: {key: _settings("validation", load, rows) for key, (_, load, rows) in base.training.items()}
            for name, base in bases.items()
        },
        runs=runs,
        probes_fingerprint=dict.fromkeys(bases, UNREAD),
        estimate=estimate(outline, find_device(layout, study.optimization.dtype)),
        data=tuple(summary for name, base in bases.items() for summary in _summaries(study, name, base)),
        warnings=tuple(dict.fromkeys([*design_warnings(study, smallest, scored, chosen_on), *_notes(bases)])),
        smallest_difference=smallest,
    )
    return plan, outline


def _base_settings(study: Study) -> dict[str, BaseSettings]:
    return {
        name: BaseSettings(
            name=name, source=source.source, revision=source.revision, fingerprint=UNREAD, opening=opening_of(source)
        )
        for name, source in study.model.items()
    }


def _training(bases: Mapping[str, _Assumed]) -> dict[tuple[str, str], TrainingData]:
    return {
        (name, key): TrainingData(
            name=key, fingerprint=UNREAD, validation_fingerprint=UNREAD, num_examples=load.num_examples
        )
        for name, base in bases.items()
        for key, (load, _, _) in base.training.items()
    }


def _laid_out(study: Study, bases: Mapping[str, _Assumed]) -> tuple[Study, Layout, dict[str, ModelShape]]:
    shapes = {name: base.shape for name, base in bases.items()}
    layout = choose_layout(study, max(shape.num_parameters for shape in shapes.values()))
    return with_precision(study, layout), layout, shapes


def _assumed(study: Study, name: str) -> _Assumed:
    source, max_length = study.model[name], study.optimization.max_length
    tokens = tokens_of(source.source)
    training, tasks = {}, {}
    for key, spec in study.train.items():
        with within("train", key, default="source"):
            training[key] = assumed_training(spec, tokens, max_length)
    for key, task in study.evaluate.items():
        with within("evaluate", key, default="source"):
            tasks[key] = assumed_task(task, tokens)
    return _Assumed(*_shape(name, source), training, tasks)


def _shape(name: str, source: ModelSource) -> tuple[ModelShape, str]:
    """A model's shape, and the name of its architecture."""
    bits = source.quantization_config
    if local_model(source.source, source.revision) is not None:
        with within("model", name):
            folder = base_folder(name, source)
        return replace(shape_of_folder(folder), quantization=bits), model_type(folder)
    entry = known_model(source.source)
    if entry is None:
        close = difflib.get_close_matches(source.source.lower(), known_models(), n=1, cutoff=0.6)
        what = f"'{source.source}' is neither on this machine nor among the models whose shapes are known"
        mend = f"did you mean {known_models()[close[0]].ids[0]}? " if close else ""
        has_owner = "/" in source.source  # hub ids do
        mend += f"`hf download {source.source}` fetches it, then plan can count" if has_owner else "name its folder"
        raise UserError(what, key=("model", name), mend=mend)
    return replace(shape_of_entry(entry), quantization=bits), entry.type


def _settings(name: str, load: TaskLoad, rows: Rows) -> TaskSettings:
    return TaskSettings(
        name=name,
        scoring=load.scoring,
        kind=rows.preset.kind if rows.preset else None,
        answer="text",
        max_new_tokens=load.max_new_tokens,
        fingerprint=UNREAD,
        num_items=load.num_items,
    )


def _summaries(study: Study, name: str, base: _Assumed) -> list[DataSummary]:
    summaries = []
    for key, (load, _, rows) in base.training.items():
        tokens = int(load.num_examples * load.mean_tokens)
        counts = (load.num_examples, tokens, int(tokens * load.scored_fraction), load.lengths[-1])
        summaries.append(_summary((name, key, "train", study.train[key].source), rows, counts))
    for key, (task, rows) in base.tasks.items():
        counts = (task.num_items, int(task.num_tokens), int(task.num_items * task.num_answer_tokens), task.longest)
        summaries.append(_summary((name, key, "task", study.evaluate[key].source), rows, counts))
    return summaries


def _summary(label: tuple[str, str, str, str], rows: Rows, counts: tuple[int, int, int, int]) -> DataSummary:
    return DataSummary(
        **dict(zip(("base", "name", "role", "source"), label, strict=True)),
        form="multiple_choice" if rows.options else "question_answer" if rows.question else "text",
        num_rows=rows.number,
        num_truncated=0,
        num_duplicates=0,
        **dict(zip(("num_used", "num_tokens", "num_scored_tokens", "longest_tokens"), counts, strict=True)),
        sample_prompt="",
        sample_trained="",
        is_estimate=True,
    )


def _notes(bases: dict[str, _Assumed]) -> list[str]:
    notes = []
    for name, base in bases.items():
        scorings = [load.scoring for _, load, _ in base.training.values()]
        scorings += [load.scoring for load, _ in base.tasks.values()]
        notes += row_warnings(name, {"model_type": base.model_type}, scorings)
        notes += [rows.note for _, _, rows in base.training.values() if rows.note]
        notes += [rows.note for _, rows in base.tasks.values() if rows.note]
    return notes
