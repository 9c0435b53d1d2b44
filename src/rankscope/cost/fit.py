"""What to leave out of a study so that it fits a budget of time, in an order that costs the least knowledge first."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from rankscope.cost.devices import Device
from rankscope.cost.estimate import Outline, estimate
from rankscope.errors import UserError
from rankscope.expansion import arms_of, expand_arms
from rankscope.plan import Estimate
from rankscope.runs import RunSettings
from rankscope.spec import Arm, Derive, Study

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Cut:
    """One thing that is left out.

    Attributes:
        override: In the study file's words, as `--set` takes it.
        why: What is lost by it.
        seconds: How long the study takes with this cut and those before it.
    """

    override: str
    why: str
    seconds: float


@dataclass(frozen=True)
class Fitted:
    """A study cut to a budget."""

    cuts: tuple[Cut, ...]
    study: Study
    estimate: Estimate


def parse_budget(text: str) -> float:
    """Seconds of `8h`, `90min`, `2d` or `1h30min`.

    Raises:
        UserError: It is no such text.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(min|[smhd])", text.lower())
    rest = re.sub(r"(\d+(?:\.\d+)?)\s*(min|[smhd])", "", text.lower()).strip()
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if rest or not seconds:
        raise UserError(f"'{text}' is no time", where="--fit", mend="write for example 8h, 90min or 2d")
    return seconds


def fit(outline: Outline, device: Device, budget: float, factors: dict[str, float] | None = None) -> Fitted:
    """Cut a study until it takes no longer than a budget.

    In this order: items of tasks down to 1,000 each; seeds down to three and rates down to three an arm; items to 500;
    ranks between others; seeds to two, rates to two; items to 200; ranks to lowest and highest; one seed, one rate.
    Training itself is never shortened, since that would be another question.

    Args:
        outline: The study.
        device: What it runs on.
        budget: In seconds.
        factors: See `estimate`.

    Raises:
        UserError: Nothing that is left out makes it fit.
    """
    now = estimate(outline, device, factors)
    cuts: list[Cut] = []
    # Labels of runs stay those of the study as it was written, though an arm's may change with its ranks.
    places = _places(outline.study)
    for step in _STEPS:
        # Only as much of a step as is needed: one override at a time.
        for override, why, changed in step(outline):
            if (now.seconds or 0.0) <= budget:
                return Fitted(tuple(cuts), outline.study, now)
            outline = replace(changed, runs=_kept(changed, places))
            now = estimate(outline, device, factors)
            cuts.append(Cut(override, why, now.seconds or 0.0))
    if (now.seconds or 0.0) <= budget:
        return Fitted(tuple(cuts), outline.study, now)
    raise UserError(
        "nothing that could be left out fits it: one seed, one rate an arm and two ranks, on 200 items a task, still "
        f"take {_rounded(now.seconds or 0.0)}",
        where="--fit",
        mend="give it more time or more devices (--device 8xa100-80gb), a smaller model, or shorter training",
    )


Change = tuple[str, str, Outline]


def _items(most: int) -> Callable[[Outline], Iterator[Change]]:
    def step(outline: Outline) -> Iterator[Change]:
        for name in outline.study.evaluate:
            number = max(loads.tasks[name].num_items for loads in outline.loads.values())
            if number > most:
                outline = _with_items(outline, name, most)
                times = math.sqrt(number / most)
                why = f"{number} items become {most}: a difference has to be {times:.1f} times as large"
                yield f"evaluate.{name}.max_examples={most}", why, outline

    return step


def _seeds(most: int) -> Callable[[Outline], Iterator[Change]]:
    def step(outline: Outline) -> Iterator[Change]:
        seeds = outline.study.seeds
        if len(seeds) > most:
            why = f"{len(seeds)} seeds become {most}" + (": no spread over seeds is seen any more" if most == 1 else "")
            search = outline.study.search.model_copy(update={"seeds": min(outline.study.search.seeds, most)})
            study = outline.study.model_copy(update={"seeds": seeds[:most], "search": search})
            yield f"seeds={list(seeds[:most])}", why, replace(outline, study=study)

    return step


def _rates(most: int) -> Callable[[Outline], Iterator[Change]]:
    def step(outline: Outline) -> Iterator[Change]:
        for index, arm in enumerate(outline.study.arms):
            rates = sorted(arm.learning_rate)
            if len(rates) > most:
                kept = _middle(rates, most)
                warned = ": whether a better one lies beyond is not seen" if most < 3 else ""
                outline = _with_arm(outline, index, learning_rate=tuple(kept))
                text = ", ".join(f"{rate:g}" for rate in kept)
                yield f"arms.{index}.learning_rate=[{text}]", f"{len(rates)} rates become {most}{warned}", outline

    return step


def _ranks(most: int) -> Callable[[Outline], Iterator[Change]]:
    def step(outline: Outline) -> Iterator[Change]:
        for index, arm in enumerate(outline.study.arms):
            ranks = sorted(arm.rank or ())
            if len(ranks) > most:
                kept = [ranks[round(position * (len(ranks) - 1) / (most - 1))] for position in range(most)]
                fewer = _with_arm(outline, index, rank=tuple(kept))
                if _has_set_without_arms(fewer.study):
                    continue  # which arm should stand in for its own is not for a budget to say
                for override, changed in _without_lost_arms(outline, fewer.study):
                    outline = changed
                    yield override, "it names arms that go with the next line", outline
                outline = replace(outline, study=outline.study.model_copy(update={"arms": fewer.study.arms}))
                yield f"arms.{index}.rank={kept}", f"{len(ranks)} ranks become {most}, lowest and highest kept", outline

    return step


def _without_lost_arms(outline: Outline, fewer: Study) -> Iterator[tuple[str, Outline]]:
    """Lists of arms without those that a study with fewer ranks does not have; without any, nothing is derived."""
    labels = {settings.label for settings, _ in expand_arms(fewer)}
    study = outline.study
    for name, training_set in study.train.items():
        if lost := set(training_set.arms or ()) - labels:
            kept = tuple(arm for arm in training_set.arms or () if arm not in lost)
            train = {**study.train, name: training_set.model_copy(update={"arms": kept})}
            study = study.model_copy(update={"train": train})
            yield f"train.{name}.arms={_listed(kept)}", replace(outline, study=study)
    if lost := set(study.derive.arms or ()) - labels:
        kept = tuple(arm for arm in study.derive.arms or () if arm not in lost)
        derive = study.derive.model_copy(update={"arms": kept}) if kept else Derive()  # not: of all arms
        override = f"derive.arms={_listed(kept)}" if kept else "derive={}"
        yield override, replace(outline, study=study.model_copy(update={"derive": derive}))


def _has_set_without_arms(study: Study) -> bool:
    return any(not arms_of(study, name) for name in study.train)


def _listed(names: tuple[str, ...]) -> str:
    return f"[{', '.join(names)}]"


_STEPS = (
    _items(1000), _seeds(3), _rates(3), _items(500), _ranks(3), _seeds(2), _rates(2), _items(200), _ranks(2), _seeds(1),
    _rates(1),
)  # fmt: skip


def _middle(values: list[float], number: int) -> list[float]:
    """The middle ones of sorted values: a sweep is wide because its ends are unlikely."""
    first = (len(values) - number) // 2
    return values[first : first + number]


def _with_arm(outline: Outline, index: int, **fields: object) -> Outline:
    arms: list[Arm] = list(outline.study.arms)
    arms[index] = arms[index].model_copy(update=fields)
    return replace(outline, study=outline.study.model_copy(update={"arms": tuple(arms)}))


def _places(study: Study) -> dict[str, tuple[int, int | None]]:
    """By label, the entry of `arms` that an arm comes from, and its rank."""
    entries = [(index, rank) for index, arm in enumerate(study.arms) for rank in arm.rank or (None,)]
    return {settings.label: entry for (settings, _), entry in zip(expand_arms(study), entries, strict=True)}


def _kept(outline: Outline, places: Mapping[str, tuple[int, int | None]]) -> tuple[RunSettings, ...]:
    """The runs of an outline that its study still has."""
    kept = []
    for run in outline.runs:
        index, rank = places[run.arm.label]
        arm = outline.study.arms[index]
        has_rank = rank is None or rank in (arm.rank or ())
        if has_rank and run.learning_rate in arm.learning_rate and run.seed in outline.study.seeds:
            kept.append(run)
    return tuple(kept)


def _with_items(outline: Outline, name: str, most: int) -> Outline:
    task = outline.study.evaluate[name].model_copy(update={"max_examples": most})
    study = outline.study.model_copy(update={"evaluate": {**outline.study.evaluate, name: task}})
    loads = {}
    for base, of_base in outline.loads.items():
        fewer = replace(of_base.tasks[name], num_items=min(most, of_base.tasks[name].num_items))
        tasks = {**of_base.tasks, name: fewer}
        loads[base] = replace(of_base, tasks=tasks)
    return replace(outline, study=study, loads=loads)


def _rounded(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"
