"""The study directory when a call starts: whose it is, what an earlier call left, and what the stages will read."""

from __future__ import annotations

import json
from dataclasses import dataclass

from rankscope.errors import DamagedFile, UserError
from rankscope.plan import Plan
from rankscope.planning import Inputs, write_inputs
from rankscope.provenance import provenance
from rankscope.spec import Study
from rankscope.store import Store, read_model, write_text
from rankscope.study_file import changed_settings, dump_study, load_study

_MOST_CHANGES = 8  # more than a person would read


@dataclass(frozen=True)
class Earlier:
    """What an earlier call wrote of the study, as far as it can be read."""

    study: Study | None
    plan: Plan | None


def read_earlier(store: Store) -> tuple[Earlier, list[str]]:
    """The study and plan of an earlier call, and what of them is damaged."""
    damage, study, plan = [], None, None
    try:
        study = load_study(store.study_file) if store.study_file.exists() else None
    except UserError as error:
        damage.append(f"{error.where}: {error.what}; it is written again")
    try:
        plan = read_model(store.plan_file, Plan)
    except DamagedFile as error:
        damage.append(f"{error}; the plan is made anew")
    return Earlier(study, plan), damage


def changed_since(earlier: Study | None, study: Study) -> list[str]:
    """Which settings are not those of the call before: a forgotten `--set` is one, and may cost hours."""
    changes = changed_settings(earlier, study) if earlier is not None else []
    if not changes:
        return []
    more = f"; and {len(changes) - _MOST_CHANGES} more" if len(changes) > _MOST_CHANGES else ""
    return [f"the study has changed since the last call: {'; '.join(changes[:_MOST_CHANGES])}{more}"]


def check_directory(store: Store, study: Study, earlier: Earlier) -> None:
    """A directory belongs to a study by its name.

    Raises:
        UserError: It holds another study, or files that are no study's.
    """
    if not store.root.exists():
        return
    if not store.study_file.exists():
        if any(child.name not in {".lock", ".workers", "leases"} for child in store.root.iterdir()):
            raise UserError("holds files that are no study's", where=store.root, mend="choose another --out")
        return
    known = earlier.study or earlier.plan
    if known is None:
        mend = "if it is this study's, copy the study file there as study.yaml; else choose another --out"
        raise UserError("neither study.yaml nor plan.json can be read", where=store.root, mend=mend)
    if (found := known.study) != study.study:
        mend = "choose another --out, or give the study its old name"
        raise UserError(f"holds the study '{found}', not '{study.study}'", where=store.root, mend=mend)


def write_start(store: Store, study: Study, plan: Plan, inputs: Inputs) -> list[str]:
    """Write what the stages will read; returns what was there and was not the same."""
    write_text(store.study_file, dump_study(study))
    write_text(store.plan_file, plan.model_dump_json(indent=1) + "\n")
    write_text(store.root / "provenance.json", json.dumps(provenance(), indent=1) + "\n")
    return write_inputs(store, inputs)
