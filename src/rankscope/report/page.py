"""The page: one self-contained HTML file with its plots, tables, words, and a policy that forbids the network."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import polars as pl
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from rankscope.measures import MEASURES
from rankscope.plan import pack_words
from rankscope.records import Verdict
from rankscope.report import wording
from rankscope.report.against_full import AgainstFull, against_full
from rankscope.report.changed_neurons import ChangedNeuron, neuron_rows
from rankscope.report.contents import Contents
from rankscope.report.figure import Figure, Panel
from rankscope.report.figures import group_names, make_glances
from rankscope.report.losses import category_rows, flips, task_rows
from rankscope.report.palette import GAIN_COLOUR, Look, looks
from rankscope.report.static import config, parameters
from rankscope.report.tables import DECIDE_FILE
from rankscope.report.vega import vega_bundle
from rankscope.report.verdicts import VerdictView, verdict_view

_LISTED = ("runs", "troubles", "not_available", "separate_rows", "data", "contamination")


def render_page(contents: Contents, tables: Mapping[str, pl.DataFrame], figures: Mapping[str, Figure]) -> str:
    """The whole page as HTML; everything that came from data is escaped."""
    groups = list(group_names(contents).values())
    arms = looks(contents.plan)
    glances = make_glances(tables, contents)
    values = {
        "plan": contents.plan,
        "groups": groups,
        "state": _state(tables["runs"]),
        "verdicts": verdict_views(contents, tables["runs"]),
        "against": _against(contents),
        "figures": figures,
        "specs": panel_specs(figures, groups),
        "glances": glances,
        "glance_specs": {group: panel_spec(panel.spec, group) for group, panel in glances.items()},
        "lost": _lost(contents, tables),
        "changed_neurons": _changed_neurons(contents, tables["changed_neurons"]),
        "forecasts": tables["forecast"].to_dicts(),
        "settings_table": _settings_table(tables["settings"]),
        "remarks": _remarks(tables["remarks"]),
        "provenance": _provenance(contents),
        "files": sorted(tables),
        **{name: tables[name].to_dicts() for name in _LISTED},
    }
    first_task = next((figure.tasks[0] for figure in figures.values() if figure.tasks), None)
    state = {"group": groups[0], "task": first_task}
    return fill(environment("rankscope.report"), "page.html.j2", arms, state, values)


def fill(
    templates: Environment,
    name: str,
    arms: Mapping[str, Look],
    state: Mapping[str, Any],
    values: Mapping[str, Any],
) -> str:
    """One page of the family: its template with the one style sheet, the plots' scripts and the policy.

    Args:
        templates: Where its template is looked up.
        name: Its template, which extends `shell.html.j2`.
        arms: The looks of the arms on it.
        state: What its script starts from: the group and the task that are shown.
        values: What the template needs besides.
    """
    classes = {arm: f"arm-{index}" for index, arm in enumerate(arms)}
    style = templates.get_template("style.css.j2").render(arms=arms, classes=classes, gain_colour=GAIN_COLOUR)
    scripts = [vega_bundle(), templates.get_template("page.js").render()]
    return templates.get_template(name).render(
        **values,
        arms=arms,
        classes=classes,
        measures=MEASURES,
        policy=content_security_policy(style, scripts),
        style=Markup(style),
        scripts=[Markup(script) for script in scripts],
        page_state={**state, "classes": classes},
        config=config(),
    )


def environment(*packages: str) -> Environment:
    """The templates of packages, the first that has one counts; escaping is on, a name that is not there an error."""
    made = Environment(
        loader=ChoiceLoader([PackageLoader(package, "templates") for package in packages]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "count": wording.count, "counted": wording.counted, "short_count": wording.short_count,
        "duration": wording.duration, "megabytes": wording.megabytes, "rate": wording.rate,
        "json": safe_json, "code": with_code,
    }  # fmt: skip
    return made


def verdict_views(contents: Contents, runs: pl.DataFrame) -> list[VerdictView]:
    """The verdicts in the study's order; empty before there are any."""
    names = group_names(contents)
    if contents.decision is None:
        return []
    return [
        verdict_view(
            verdict,
            names[verdict.base, verdict.training_set],
            contents.plan.arms,
            DECIDE_FILE,
            _cost(verdict, runs),
            _edges(contents, verdict),
        )
        for verdict in contents.decision.verdicts
    ]


def _against(contents: Contents) -> dict[str, AgainstFull]:
    """By group, every arm against full fine-tuning, where the study has both."""
    found = {
        group: against_full(verdict, contents.settings, contents.plan.arms, DECIDE_FILE)
        for verdict in (contents.decision.verdicts if contents.decision else ())
        for group in [group_names(contents)[verdict.base, verdict.training_set]]
    }
    return {group: one for group, one in found.items() if one is not None}


def _edges(contents: Contents, verdict: Verdict) -> dict[str, str]:
    """By arm, which end of the rates tried its best one is, where it is one."""
    mine = (verdict.base, verdict.training_set)
    choices = (choice for choice in contents.rates.choices if (choice.base, choice.training_set) == mine)
    return {choice.arm: choice.at_edge for choice in choices if choice.at_edge}


def _cost(verdict: Verdict, runs: pl.DataFrame) -> str | None:
    """What one run of the recommended arm cost, mean over its seeds; None where nothing is recommended."""
    mine = runs.filter(
        (pl.col("base") == verdict.base)
        & (pl.col("training_set") == verdict.training_set)
        & (pl.col("arm") == (verdict.arm or ""))
        & pl.col("is_chosen")
        & (pl.col("state") == "complete")
    )
    if mine.is_empty():
        return None
    memory = mine["peak_memory_bytes"].mean()
    tail = "" if memory is None else f"; its process had held {wording.megabytes(memory)} of memory at its peak"
    trained = wording.count(mine["num_trainable"][0])
    return f"One run trained {trained} parameters in {wording.duration(mine['train_seconds'].mean())}{tail}."


def safe_json(value: Any) -> Markup:
    """JSON that may stand inside a script element: no character of it can end the element or open a comment."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def with_code(text: str) -> Markup:
    """A sentence, escaped, with what stands in backticks set as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def content_security_policy(style: str, scripts: Sequence[str]) -> str:
    """A policy under which only these very scripts run and nothing can be fetched."""
    script_hashes = " ".join(_hash(script) for script in scripts)
    return (
        f"default-src 'none'; script-src {script_hashes}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def panel_specs(figures: Mapping[str, Figure], groups: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """By figure, the specifications of its panels as the page's script takes them."""
    firsts = {key: next(iter(figure.tasks), None) for key, figure in figures.items()}
    return {
        key: [panel_spec(panel.spec, _first_group(panel, groups), firsts[key]) for panel in figure.panels]
        for key, figure in figures.items()
    }


def _first_group(panel: Panel, groups: Sequence[str]) -> str:
    """The first group of which a panel has rows."""
    return next((group for group in groups if panel.is_of(group)), groups[0])


def panel_spec(spec: Mapping[str, Any], group: str, task: str | None = None) -> dict[str, Any]:
    """A panel's specification with the values that the page's script sets; the configuration is the page's."""
    kept = {key: value for key, value in spec.items() if key not in ("config", "$schema")}
    return {
        **kept,
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "params": parameters(group, task),
    }


def _state(runs: pl.DataFrame) -> dict[str, int]:
    """How many runs are in which state."""
    counted = runs.group_by("state", maintain_order=True).len()
    return dict(counted.iter_rows())


def _lost(contents: Contents, tables: Mapping[str, pl.DataFrame]) -> list[dict[str, Any]]:
    """Per group: the table of tasks, the categories of the arm that matters most, and the flipped items."""
    verdicts = {}
    for verdict in contents.decision.verdicts if contents.decision else ():
        verdicts[verdict.base, verdict.training_set] = verdict
    lost = []
    for (base, training_set), group in group_names(contents).items():
        mine = (pl.col("base") == base) & (pl.col("training_set") == training_set)
        comparisons, flipped = tables["comparisons"].filter(mine), tables["flipped_items"].filter(mine)
        verdict = verdicts.get((base, training_set))
        arm = (verdict.arm or verdict.runner_up) if verdict else None
        if arm in (None, "base") and not comparisons.is_empty():
            arm = comparisons["arm"][0]
        lost.append(
            {
                "group": group,
                "tasks": (tasks := task_rows(comparisons)),
                "num_rows": sum(map(len, tasks.values())),
                "arm": arm,
                "categories": category_rows(comparisons, arm),
                "flips": [asdict(flip) for flip in flips(flipped)],
                "num_flips": flipped.select("task", "item_id").n_unique() if flipped.height else 0,
            }
        )
    return lost


def _changed_neurons(contents: Contents, table: pl.DataFrame) -> dict[str, Sequence[ChangedNeuron]]:
    """By group, the neurons that changed most."""
    found = {}
    for (base, training_set), group in group_names(contents).items():
        mine = table.filter((pl.col("base") == base) & (pl.col("training_set") == training_set))
        if mine.height:
            found[group] = neuron_rows(mine)
    return found


def _remarks(remarks: pl.DataFrame) -> list[dict[str, Any]]:
    """What to know of spectra, each remark once with its arms; subspaces repeat it, or say how exact they are."""
    spectra = remarks.filter(pl.col("analysis") == "spectra")
    return spectra.group_by("remark", maintain_order=True).agg(pl.col("arm").unique(maintain_order=True)).to_dicts()


def _settings_table(settings: pl.DataFrame) -> dict[str, Any]:
    """The settings on which arms differ, as columns of one row an arm."""
    keys = list(dict.fromkeys(settings["setting"]))
    rows: dict[str, dict[str, str]] = {}
    for row in settings.iter_rows(named=True):
        rows.setdefault(row["arm"], {})[row["setting"]] = row["value"] or wording.EMPTY
    return {"keys": keys, "rows": rows}


def _packs(contents: Contents) -> str:
    """How many runs shared their forward passes at the most, as their records say; empty where each went alone."""
    return pack_words(max((len(record.pack) for record in contents.trains.values()), default=1))


def _provenance(contents: Contents) -> list[tuple[str, str]]:
    """Versions, revisions, seeds and layout, as name and value."""
    found = dict(contents.provenance) or next((dict(record.provenance) for record in contents.trains.values()), {})
    code = found.get("code") or {}
    packages = {name: version for name, version in (found.get("packages") or {}).items() if version}
    plan = contents.plan
    mixed = ", products of training in bfloat16" if plan.is_mixed else ""
    twice = ", activations computed twice (gradient checkpointing)" if plan.gradient_checkpointing else ""
    dirty = " (with local changes)" if code.get("dirty") else ""
    rows = [
        ("Code revision", f"{code['commit']}{dirty}" if code.get("commit") else "an installed package"),
        ("Packages", ", ".join(f"{name} {version}" for name, version in packages.items())),
        ("Python", str(found.get("python", wording.EMPTY))),
        ("Platform", str(found.get("platform", wording.EMPTY))),
        ("Layout", f"{plan.layout.device}, {wording.counted(plan.layout.num_workers, 'worker')} with "
         f"{wording.counted(plan.layout.threads_per_worker, 'thread')} each{_packs(contents)}, "
         f"{plan.dtype}{mixed}{twice}"),
        ("Seeds", ", ".join(str(seed) for seed in sorted({run.seed for run in plan.runs}))
         + f"; rates chosen on {', '.join(map(str, plan.search_seeds))}"),
    ]  # fmt: skip
    if short := [record for record in contents.trains.values() if record.memory_shortages]:
        least = min(shortage.max_tokens_per_batch for record in short for shortage in record.memory_shortages)
        rows.append(("Memory", f"ran out in {wording.counted(len(short), 'run')}: from there on the same batches went "
                     f"through the model in more forward passes, of {least} positions at the least"))  # fmt: skip
    for base in plan.bases.values():
        revision = f", revision {base.revision}" if base.revision else ""
        commit = f", commit {base.commit}" if base.commit else ""
        code = ", Python code of its folder was run (trust_remote_code)" if base.opening.trust_remote_code else ""
        bits = base.opening.quantization_config
        held = f", held in {bits.label} by bitsandbytes" if bits else ""
        known = f"fingerprint {base.fingerprint[:16]}{held}{code}"
        rows.append((f"Base {base.name}", f"{base.source}{revision}{commit}, {known}"))
    return rows
