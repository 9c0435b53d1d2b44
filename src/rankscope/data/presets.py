"""Well-known data sets by name: where they lie, how their rows are read, how they are scored. Data, not code."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from ruamel.yaml import YAML

from rankscope.spec import Kind, Scoring

Origin = Literal["hub", "files"]
Expression = Annotated[str, AfterValidator(lambda text: re.compile(text, re.DOTALL) and text)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Hub(_Frozen):
    """A data set on the hub; `splits` says which of its splits serves for train, validation and test."""

    id: str
    subset: str | None = None
    revision: str | None = None
    splits: dict[str, str] = {}


class Pattern(_Frozen):
    """How options that are written inside a text are found.

    Attributes:
        field: The column that holds the text.
        text: A regular expression over the whole field with the groups `question` and, unless they lie in another
            column, `options`.
        options_field: The column that holds the options, where it is another one.
        option: A regular expression for one option, with the groups `label` and `text`.
    """

    field: str
    text: Expression = r"(?P<question>.*)"
    options_field: str | None = None
    option: Expression


class Layout(_Frozen):
    """One form in which the data set is published.

    Attributes:
        has: The columns by which the form is known.
        question: The question's column; the text's, for plain text; the column itself may follow a pattern.
        options: The columns of the options, or the one that holds them all.
        answer: The column of the right option (index, letter, label or text) or of the answer.
        answer_starts_at: Where the options are counted from, if the answer is a number.
        blank: What stands for the option inside the question; the options then are the rest of the sentence.
    """

    has: tuple[str, ...]
    question: str | None = None
    options: str | tuple[str, ...] | None = None
    answer: str | None = None
    answer_starts_at: dict[Origin, int] = {"hub": 0, "files": 0}
    category: str | None = None
    pattern: Pattern | None = None
    blank: str | None = None


class Preset(_Frozen):
    """A data set that can be named in a study file.

    Attributes:
        prompt: The plain prompt, for models without a chat template; `{question}` is filled in, and `{options}` where
            they are listed.
        list_options: Show the options in the prompt, by letter, and compare the letters.
        answer: What a right generated answer is.
        heading: Paragraphs of plain text that match are joined to the next one.
    """

    name: str
    aliases: tuple[str, ...] = ()
    about: str
    kind: Kind
    scoring: Scoring
    answer: Literal["number", "letter", "text"] = "text"
    hub: Hub
    layouts: tuple[Layout, ...] = Field(min_length=1)
    prompt: str = "Question: {question}\nAnswer:"
    list_options: bool = False
    heading: Expression | None = None


def find_preset(name: str) -> Preset | None:
    """The preset of that name or alias, or None."""
    presets = all_presets()
    return presets.get(name) or next((preset for preset in presets.values() if name in preset.aliases), None)


@functools.cache
def all_presets() -> dict[str, Preset]:
    """Every preset by name, in the order of their files' names."""
    yaml = YAML(typ="safe")
    files = sorted((Path(__file__).parent / "presets").glob("*.yaml"))
    presets = (Preset.model_validate(yaml.load(path.read_text(encoding="utf-8"))) for path in files)
    return {preset.name: preset for preset in presets}
