"""docs/study_file.md says what the schema says."""

from __future__ import annotations

import dataclasses
import re
import runpy
import typing
from pathlib import Path

import pytest
from pydantic import BaseModel
from transformers import TrainingArguments

from rankscope.expansion import expand_arms
from rankscope.spec import Arm, Optimization, OptimizationFields, Section, Study
from rankscope.study_file import load_study

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.fixture(scope="module")
def generator() -> dict:
    return runpy.run_path(str(DOCS / "generate_study_file.py"))


def sections(model: type[BaseModel]) -> set[type[BaseModel]]:
    """A section and all sections below it."""
    found = {model}
    stack = [field.annotation for field in model.model_fields.values()]
    while stack:
        kind = stack.pop()
        stack += typing.get_args(kind)
        if isinstance(kind, type) and issubclass(kind, Section) and kind not in found:
            found.add(kind)
            stack += [field.annotation for field in kind.model_fields.values()]
    return found


def test_page_is_up_to_date(generator: dict) -> None:
    assert (DOCS / "study_file.md").read_text(encoding="utf-8") == generator["page"]()


def test_page_has_every_key_of_every_section_once(generator: dict) -> None:
    documented = [part for _, part, _ in generator["_SECTIONS"]]
    assert set(documented) == sections(Study) and len(documented) == 14
    for part in documented:
        own = [name for name in part.model_fields if part is not Arm or name not in OptimizationFields.model_fields]
        rows = generator["rows"](part)
        assert [row.split("`")[1] for row in rows] == own
        assert all(row.replace("\\|", "").count("|") == 7 for row in rows)
        assert all(row.rsplit("|", 2)[1].strip() for row in rows), "every key has a meaning"


def test_the_names_that_are_said_to_be_of_training_arguments_are(generator: dict) -> None:
    text = next(text for _, part, text in generator["_SECTIONS"] if part is Optimization)
    _, said = text.split("TrainingArguments' names are")
    named = set(re.findall(r"`(\w+)`", said.partition("`batch_size`")[0]))
    theirs = {field.name for field in dataclasses.fields(TrainingArguments)}
    ours = {field.alias or name for name, field in Optimization.model_fields.items()} | {"learning_rate"}
    assert named - {"warmup_ratio"} == ours & theirs - {"warmup_ratio"}
    assert "batch_size" not in theirs and {"per_device_train_batch_size", "gradient_accumulation_steps"} <= theirs


def test_the_example_is_a_study(generator: dict, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(generator["EXAMPLE"])
    labels = [settings.label for settings, _ in expand_arms(load_study(path))]
    assert labels == ["full", "lora-r8", "lora-r32", "lora-r128"]


def test_defaults_that_are_filled_in_later_are_named_rightly(generator: dict, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(generator["EXAMPLE"].replace(", lora_alpha: 2r, target_modules: all-linear", ""))
    options = expand_arms(load_study(path))[1][0].options
    stated = {key: value for (_, key), value in generator["RESOLVED"].items()}
    assert stated.pop("lora_alpha") == "2r" and options.pop("lora_alpha") == 2 * options.pop("r")
    assert options == stated


def test_limits_and_aliases_are_those_of_the_schema(generator: dict) -> None:
    text = generator["page"]()
    assert "| `num_epochs` | `num_train_epochs` | number | `1.0` | above 0 |" in text
    assert "| `confidence` |  | number | `0.95` | above 0.5; below 1 |" in text
    assert "| `rank` | `r` | whole number or list of them |  | above 0 |" in text
