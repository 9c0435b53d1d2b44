"""From a study to its runs: every arm at every rate and seed on every base and training set, and what comes of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rankscope.errors import UserError
from rankscope.methods.resolve import arm_label, resolved_options
from rankscope.runs import ArmSettings, BaseSettings, DerivedPoint, RunSettings, TrainingData
from rankscope.spec import Arm, Optimization, OptimizationFields, Study

# Shares of the update, or of its intruders, at which derived models are scored; 0 and 1 of the update are the base and
# the run themselves.
REWIND_SHARES, INTRUDER_SHARES = (0.25, 0.5, 0.75, 1.25), (0.0, 0.25, 0.5, 0.75)
MAX_BEYOND = 3  # rates on either side of a grid that may be added to it


def expand_runs(
    study: Study, bases: Mapping[str, BaseSettings], training: Mapping[tuple[str, str], TrainingData]
) -> list[RunSettings]:
    """Every run that the study may need: all candidates with all seeds, those that may be added to a grid among them.

    Args:
        study: The study.
        bases: By name, in the study's order.
        training: By base and training set.

    Raises:
        UserError: The study names an arm that it does not have.
    """
    _check_arm_names(study)
    runs = []
    for base in bases.values():
        for name in study.train:
            data = training[base.name, name]
            for settings, arm in arms_of(study, name):
                optimization = resolve_optimization(study.optimization, arm)
                below, above = rates_beyond(arm.learning_rate) if study.search.extend else ((), ())
                for rate in (*arm.learning_rate, *below, *above):
                    for seed in study.seeds:
                        runs.append(
                            RunSettings(
                                base=base,
                                training_set=data,
                                arm=settings,
                                learning_rate=rate,
                                seed=seed,
                                num_steps=num_steps(optimization, data.num_examples),
                                optimization=optimization,
                            )
                        )
    return runs


def arms_of(study: Study, training_set: str) -> list[tuple[ArmSettings, Arm]]:
    """The arms that are trained on a set, in the study's order, each with its entry of the study file."""
    wanted = study.train[training_set].arms
    return [(settings, arm) for settings, arm in expand_arms(study) if wanted is None or settings.label in wanted]


def expand_arms(study: Study) -> list[tuple[ArmSettings, Arm]]:
    """The study's arms in its order, one for each rank, each with the entry of the study file it came from.

    Raises:
        UserError: Two arms have the same label.
    """
    arms = []
    for arm in study.arms:
        for rank in arm.rank or (None,):
            options = resolved_options(arm.method, rank, arm.options)
            arms.append((ArmSettings(label=_label(arm, rank), method=arm.method, options=options), arm))
    labels = [settings.label for settings, _ in arms]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"two arms are called '{label}'", where="arms", mend="give one of them a `name`")
    return arms


def _label(arm: Arm, rank: int | None) -> str:
    if arm.name is not None:
        return f"{arm.name}-r{rank}" if rank is not None and len(arm.rank or ()) > 1 else arm.name
    return arm_label(arm.method, rank, arm.options)


def _check_arm_names(study: Study) -> None:
    labels = [settings.label for settings, _ in expand_arms(study)]
    named = {"derive.arms": study.derive.arms or ()}
    named |= {f"train.{name}.arms": training_set.arms or () for name, training_set in study.train.items()}
    for key, names in named.items():
        for name in names:
            if name not in labels:
                raise UserError(f"no arm is called '{name}'", where=key, mend=f"take some of {', '.join(labels)}")


def resolve_optimization(shared: Optimization, arm: OptimizationFields) -> Optimization:
    """The shared settings with the arm's single fields laid over them; their neighbours stay."""
    fields = OptimizationFields.model_fields
    overrides = {name: value for name in fields if (value := getattr(arm, name)) is not None}
    # An arm that states epochs means them, though the shared settings may count steps.
    if "num_epochs" in overrides and "max_steps" not in overrides:
        overrides["max_steps"] = None
    return shared.model_copy(update=overrides)


def num_steps(optimization: Optimization, num_examples: int) -> int:
    """Optimizer steps of a run: max_steps, or epochs of ceil(examples / batch) steps, as the Trainer counts them."""
    if optimization.max_steps is not None:
        return optimization.max_steps
    return max(1, math.ceil(optimization.num_epochs * math.ceil(num_examples / optimization.batch_size)))


def rates_beyond(rates: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The rates below and above a grid that may be added to it, nearest first, each side in its own last ratio.

    A grid of one rate has no ratio, and nothing says on which side of it a better one might lie.

    Examples:
        >>> rates_beyond([1e-4, 1e-3])
        ((1e-05, 1e-06, 1e-07), (0.01, 0.1, 1.0))
    """
    grid = sorted(rates)
    if len(grid) < 2:
        return (), ()
    below = [grid[0] * (grid[0] / grid[1]) ** count for count in range(1, MAX_BEYOND + 1)]
    above = [grid[-1] * (grid[-1] / grid[-2]) ** count for count in range(1, MAX_BEYOND + 1)]
    return tuple(float(f"{rate:.3g}") for rate in below), tuple(float(f"{rate:.3g}") for rate in above)


def derived_points(study: Study, arm: ArmSettings, arms: list[ArmSettings]) -> tuple[DerivedPoint, ...]:
    """The derived models of each of an arm's runs: none of a method whose updates cannot be taken apart."""
    is_full = arm.capabilities.saves == "model"
    is_wanted = study.derive.arms is None or arm.label in study.derive.arms
    if not is_wanted or not (is_full or arm.capabilities.has_factors):
        return ()
    ranks = sorted({other.rank for other in arms if other.rank is not None})
    amounts = {
        "rewind": _amounts(study.derive.rewind, REWIND_SHARES),
        "truncate": [rank for rank in _amounts(study.derive.truncate, ranks) if is_full or rank < arm.rank],
        "intruders": _amounts(study.derive.intruders, INTRUDER_SHARES),
    }
    return tuple(DerivedPoint(kind=kind, amount=amount) for kind, shares in amounts.items() for amount in shares)


def _amounts(wanted: bool | Sequence[float], usual: Sequence[float]) -> Sequence[float]:
    """The numbers of a list, in order and once each; for `true` the usual ones."""
    if isinstance(wanted, bool):
        return usual if wanted else ()
    return sorted(set(wanted))
