"""`rankscope plan`: a study's plan with its cost here, on other devices, measured, or cut to a budget."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from rankscope.cost.devices import Device, named_device
from rankscope.cost.estimate import Outline, estimate, find_device
from rankscope.cost.fit import Fitted, fit, parse_budget
from rankscope.errors import UserError
from rankscope.layout import with_precision
from rankscope.outline import make_outline, missing_models
from rankscope.plan import Layout, Plan
from rankscope.planning import make_plan
from rankscope.spec import Study


@dataclass(frozen=True)
class Wish:
    """What a person wants to know beside the plan itself.

    Attributes:
        device: A GPU of the table, or several of it: `8xa100-80gb`.
        budget: The longest time that the study may take, as text.
        is_measured: Steps are made here, and the forecast rests on them.
    """

    device: str | None = None
    budget: str | None = None
    is_measured: bool = False


@dataclass(frozen=True)
class Forecast:
    """A plan, and what was left out to fit a budget."""

    plan: Plan
    fitted: Fitted | None = None

    def document(self) -> dict[str, Any]:
        """The plan as JSON, and under `fit` the cuts with the cost that is left."""
        document = self.plan.model_dump(mode="json")
        if self.fitted is not None:
            cuts = [asdict(cut) for cut in self.fitted.cuts]
            document["fit"] = {"cuts": cuts, "estimate": self.fitted.estimate.model_dump(mode="json")}
        return document


def forecast(study: Study, wish: Wish) -> Forecast:
    """Plan a study; nothing is fetched, and no model is loaded unless something is to be measured.

    Raises:
        UserError: The study or its data is wrong, the device is not known, or nothing fits the budget.
    """
    budget = None if wish.budget is None else parse_budget(wish.budget)
    if wish.is_measured and wish.device is not None:
        raise UserError("this machine is measured, not another", where="--measure", mend="leave --device out")
    named = None if wish.device is None else _devices(wish.device, study.optimization.dtype)
    missing = missing_models(study)
    if wish.is_measured and missing:
        what = f"the model {missing[0]} is not on this machine, so no step can be made with it"
        raise UserError(what, where="--measure", mend=f"fetch it: hf download {study.model[missing[0]].source}")
    plan, outline = make_outline(study) if missing else _counted(study)
    device = find_device(outline.layout, study.optimization.dtype)
    if named is not None:
        device, number = named
        outline = _on(outline, study, device, number)
    factors = _measured(plan, outline, device) if wish.is_measured else None
    if named is not None or factors is not None:
        plan = plan.model_copy(update={"estimate": estimate(outline, device, factors), "layout": outline.layout})
    return Forecast(plan, None if budget is None else fit(outline, device, budget, factors))


def _counted(study: Study) -> tuple[Plan, Outline]:
    plan, inputs = make_plan(study)
    return plan, inputs.outline


def _devices(text: str, dtype: str) -> tuple[Device, int]:
    """`8xa100-80gb` as a device and a number of them."""
    found = re.fullmatch(r"(?:(\d+)\s*x\s*)?(.+)", text.strip().lower())
    number = int(found[1] or 1) if found else 1
    if number < 1:
        raise UserError("no device at all is asked for", where="--device", mend="for example 8xa100-80gb")
    return named_device(found[2] if found else text, dtype), number


def _on(outline: Outline, study: Study, device: Device, number: int) -> Outline:
    """The study on other devices, in the precision in which it would be trained there.

    Raises:
        UserError: Fewer devices are named than a model is to be divided among, or they have no bfloat16.
    """
    shard = study.execute.shard
    if number < shard:
        what = f"a model is divided among {shard} devices, and {number} {'are' if number > 1 else 'is'} named"
        raise UserError(what, where="--device", mend=f"name {shard}x{device.name}, or lower execute.shard")
    gpu = Layout(device="cuda", num_workers=1, threads_per_worker=1, gpu=device.name)
    bf16 = {"bf16": with_precision(study, gpu).optimization.bf16}
    optimization = outline.study.optimization.model_copy(update=bf16)
    return replace(
        outline,
        study=outline.study.model_copy(update={"optimization": optimization}),
        runs=[
            run.model_copy(update={"optimization": run.optimization.model_copy(update=bf16)}) for run in outline.runs
        ],
        layout=Layout(
            device=device.name,
            num_workers=number // shard,
            threads_per_worker=1,
            pack_size=outline.layout.pack_size,
            shard=shard,
        ),
    )


def _measured(plan: Plan, outline: Outline, device: Device) -> dict[str, float]:
    # torch and the model, only where a person asks for it.
    from rankscope.execute.measure import measured_factors

    return measured_factors(plan, outline, device)
