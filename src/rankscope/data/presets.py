"""Well-known data sets by name: where they lie, how their rows are read, how they are scored. Data, not code."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from rankscope.errors import UserError
from rankscope.mistakes import mistakes
from rankscope.spec import Kind, Scoring

Origin = Literal["hub", "files"]
_FOLDER = Path(__file__).parent / "presets"


def _expression(text: str) -> str:
    try:
        re.compile(text, re.DOTALL)
    except re.error as error:
        raise ValueError(f"no regular expression ({error})") from None
    return text


Expression = Annotated[str, AfterValidator(_expression)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Hub(_Frozen):
    """A data set on the hub; `splits` says which of its splits serves for train, validation and test.

    Attributes:
        others: Ids under which the same data set lies there too.
        needs_subset: It has many subsets and none that goes without saying.
    """

    id: str
    others: tuple[str, ...] = ()
    subset: str | None = None
    needs_subset: bool = False
    revision: str | None = None
    splits: dict[str, str] = {}


class Files(_Frozen):
    """How the published files are laid out, where their names and fields do not say it themselves.

    Attributes:
        splits: The file (without ending) that holds a split, where several could.
        columns: Of tables that have no first line of names.
        labels: The file of right answers, one a line, beside each file; `{stem}` is that file's name without ending.
        label: The column that they become.
    """

    splits: dict[str, str] = {}
    columns: tuple[str, ...] = ()
    labels: str | None = None
    label: str = "label"


class Replacement(_Frozen):
    """A part of texts that is written otherwise: a regular expression, and what stands in its place."""

    find: Expression
    by: str = ""


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
    r"""One form in which the data set is published.

    A column may lie inside another: `question.stem`. Where a text is made of several columns, it is a Jinja template
    with them as its variables: `{{contract}}\nQuestion: {{question}}`.

    Attributes:
        has: The columns by which the form is known.
        question: The question's column, or a template; the text's, for plain text; the column may follow a pattern.
        options: The columns of the options, or the one that holds them all.
        option_texts: The options themselves, where they are the same for all rows.
        options_from_answers: The options are the different answers of all rows.
        answer: The column of the right option (index, letter, label or text) or of the answer; none where the options
            are marked with 0 and 1.
        answer_starts_at: Where the options are counted from, if the answer is a number.
        blank: What stands for the option inside the question; the options then are the rest of the sentence.
        skips_blank: Rows whose text is blank part the others and are no rows.
    """

    has: tuple[str, ...]
    question: str | None = None
    options: str | tuple[str, ...] | None = None
    option_texts: tuple[str, ...] = ()
    options_from_answers: bool = False
    answer: str | None = None
    answer_starts_at: dict[Origin, int] = {"hub": 0, "files": 0}
    category: str | None = None
    pattern: Pattern | None = None
    blank: str | None = None
    skips_blank: bool = False

    @property
    def chooses(self) -> bool:
        """Whether the rows are multiple choice."""
        has_options = self.options is not None or self.pattern is not None
        return has_options or bool(self.option_texts) or self.options_from_answers


class Preset(_Frozen):
    """A data set that can be named in a study file.

    Attributes:
        domain: What the data set is about, for the reader of a table.
        few_shot_split: Where worked examples come from if a study asks for some.
        descriptions: What is said once before the first question, by subset; `""` is for the others.
        replace: What is written otherwise in questions and options.
        prompt: The plain prompt, for models without a chat template; `{question}` is filled in, and `{options}` where
            they are listed.
        list_options: Show the options in the prompt, by letter, and compare the letters.
        answer: What a right generated answer is.
        heading: Paragraphs of plain text that match are joined to the next one.
        groups: Categories that belong together, by the name of their group: a task is divided by them where most of its
            categories have too few items to look at.
    """

    name: str
    aliases: tuple[str, ...] = ()
    about: str
    kind: Kind
    domain: str
    scoring: Scoring
    answer: Literal["number", "letter", "text"] = "text"
    hub: Hub
    files: Files = Files()
    few_shot_split: str | None = None
    layouts: tuple[Layout, ...] = Field(min_length=1)
    prompt: str = "Question: {question}\nAnswer:"
    list_options: bool = False
    descriptions: dict[str, str] = {}
    replace: tuple[Replacement, ...] = ()
    heading: Expression | None = None
    groups: dict[str, tuple[str, ...]] = {}

    @property
    def has_categories(self) -> bool:
        """Whether its rows may say what subject they are of."""
        return any(layout.category is not None for layout in self.layouts)

    def description(self, subset: str | None) -> str | None:
        """What is said before the first question of a subset, if anything."""
        return self.descriptions.get(subset or "", self.descriptions.get(""))


def find_preset(name: str) -> Preset | None:
    """The preset of that name or alias, or None."""
    presets = all_presets()
    return presets.get(name) or next((preset for preset in presets.values() if name in preset.aliases), None)


def read_preset(path: Path) -> Preset:
    """A preset of a user's own, from a YAML file with the keys of `Preset`.

    Raises:
        UserError: The file cannot be read or is no preset; with the key that is wrong.
    """
    try:
        document = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        return Preset.model_validate(document)
    except OSError as error:
        mend = "check the path of `preset`"
        raise UserError(f"cannot be read ({error.strerror})", where=path, mend=mend, key=("preset",)) from None
    except (YAMLError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        what, mend = f"not valid YAML ({reason})", "correct the file"
        raise UserError(what, where=path, mend=mend, key=("preset",)) from None
    except ValidationError as error:
        lines = [f"{found.key or 'the preset'} {found.text}" for found in mistakes(error, of_study=False)[:3]]
        mend = f"the files in {_FOLDER} are examples, and `Preset` in rankscope.data.presets describes the keys"
        raise UserError(f"no preset: {'; '.join(lines)}", where=path, mend=mend, key=("preset",)) from None


@functools.cache
def all_presets() -> dict[str, Preset]:
    """Every preset by name, in the order of their files' names."""
    yaml = YAML(typ="safe", pure=True)
    files = sorted(_FOLDER.glob("*.yaml"))
    presets = (Preset.model_validate(yaml.load(path.read_text(encoding="utf-8"))) for path in files)
    return {preset.name: preset for preset in presets}
