"""A commented study file for a model and a data file, written after a look at both."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from rankscope.data.forms import Columns, Contents, UnnamedColumns, understand
from rankscope.data.hub import model_folder
from rankscope.data.prompts import put
from rankscope.data.shapes import layer_matrices, num_parameters, tensor_shapes
from rankscope.data.sources import Rows, read_rows
from rankscope.data.splits import in_part, normalised, num_duplicates
from rankscope.data.tasks import prompt_style
from rankscope.data.tokens import Tokenizer
from rankscope.errors import UserError, within
from rankscope.spec import Data
from rankscope.statistics import smallest_difference

_SEEDS = (0, 1)
_MOST_COUNTED = 2000  # rows whose tokens are counted to find max_length
_LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class _Scale:
    """What suits models of up to a size.

    Attributes:
        full_rates: Around which the literature's best rates of full fine-tuning lie; LoRA's are about ten times those
            (Biderman et al., 2405.09673; Schulman and Thinking Machines, "LoRA without regret", 2025).
        ranks: From one that may be too small to one that may be more than is needed.
        retention: Lines of tasks on which models of this size are well above chance, so that they have something to
            lose, and why these.
    """

    most_parameters: float
    full_rates: tuple[float, float, float]
    ranks: tuple[int, ...]
    why: str
    retention: tuple[str, ...]


_TEXT = "  wikitext: {source: wikitext2, max_examples: 200, role: retention}"
_SCALES = (
    _Scale(
        5e7,
        (1e-4, 3e-4, 1e-3),
        (1, 4, 16, 64),
        "Models of this size answer questions by chance; text is what they can forget",
        ("  tinystories: {source: tinystories, max_examples: 200, role: retention}", _TEXT),
    ),
    _Scale(
        1e9,
        (1e-5, 3e-5, 1e-4),
        (2, 8, 32, 128),
        "Models of this size are above chance on easy questions; MMLU would show noise",
        (
            "  arc_easy: {source: arc_easy, max_examples: 500, role: retention}",
            "  piqa: {source: piqa, max_examples: 500, role: retention}",
            _TEXT,
        ),
    ),
    _Scale(
        float("inf"),
        (3e-6, 1e-5, 3e-5),
        (8, 32, 128),
        "Models of this size know something in all of these",
        (
            "  mmlu: {source: mmlu, max_examples: 1000, role: retention}",
            "  hellaswag: {source: hellaswag, max_examples: 500, role: retention}",
            "  gsm8k: {source: gsm8k, max_examples: 200, few_shot: 5, role: retention}",
            _TEXT,
        ),
    ),
)
_SMALL_WORLD = (
    "  general_recall: {source: smallworld:general_recall, split: test, role: retention}",
    "  general_text: {source: smallworld:general_text, split: test, role: retention}",
)

_TEMPLATE = """\
# Written by `rankscope init`. Every key, with what it means: python -c "from rankscope.keys import show; show()"
# `rankscope plan {file}` says what this will do and cost; `rankscope run {file}` does it.
study: {study}
model: {model}          # {parameters} parameters, {template}

train:
  {name}:
    source: {source}    # {num_rows} rows, read as {form}
{columns}{train_part}
# Each rate of each arm is a candidate; the best on validation is kept and repeated over the seeds. Rates of LoRA are
# about ten times those of full fine-tuning. Three are the least from which an inner one can win. If the best one lies
# at an edge of its list all the same, the report says so: add one beyond.
arms:
  - {{method: full, learning_rate: [{full_rates}]}}
  - {{method: lora, rank: [{ranks}], lora_alpha: 2r, target_modules: all-linear, learning_rate: [{lora_rates}]}}

optimization:
  num_epochs: 2
  batch_size: {batch_size}
  max_length: {max_length}     # tokens; {length}
  lr_scheduler: cosine
  warmup_ratio: 0.03

seeds: [{seeds}]           # two are the least from which a spread can be seen; three or more narrow the intervals

evaluate:
  {name}_test: {{source: {source}, {test_columns}{test_part}, in_domain_for: [{name}]}}
  # What the model could do before, and may forget.
  # {why}.
  # Add what matters to you: a preset, a task of lm_eval, or a file of your own.
{retention}

# A difference below the margin does not matter to you; a mean loss above the budget is too much.
{remark}decide: {{margin: 0.02, margin_nats: 0.01, forgetting_budget: 0.02, forgetting_budget_nats: 0.05}}
"""


@dataclass(frozen=True)
class _Found:
    """What a look at the data found.

    Attributes:
        train: How the rows to train on are named in the study file; `test` the same for the task.
        tokens: The lengths of some rows, shortest first.
    """

    form: str
    num_rows: int
    num_duplicates: int
    num_test: int | None
    train: str
    test: str
    tokens: tuple[int, ...]
    sample: str


def write_study(model: str, train: str, out: Path, columns: Columns | None = None) -> list[str]:
    """Look at a model and its data, write a study file, and say what was found.

    Args:
        model: Hub id, folder or `.gguf` file.
        train: A data file, a folder, a preset or a hub id.
        out: The file to write; one that exists is not overwritten.
        columns: What a column of the data is, where its name does not say.

    Raises:
        UserError: The model or the data cannot be read, or the file exists.
    """
    if out.exists():
        raise UserError("exists already", where=out, mend="choose another --out, or remove it")
    with within("--model"):
        folder = model_folder(model, None)
    tokenizer = Tokenizer.from_folder(folder)
    shapes = tensor_shapes(folder)
    size = num_parameters(shapes)
    scale = _scale(size)
    found = _asked_for_by_options(train, tokenizer, columns)
    ranks = _ranks(scale, shapes)
    name = _name(Path(train).stem if Path(train).exists() else train)
    max_length = _max_length(found.tokens, tokenizer.context_length)
    is_small_world, remark = model.startswith("smallworld:"), _margin(found)
    text = _TEMPLATE.format(
        file=out,
        study=name,
        model=_quoted(model),
        parameters=_rounded(size),
        template="answers through its chat template" if tokenizer.chat_template else "no chat template",
        name=name,
        source=_quoted(train),
        **_column_lines(columns),
        train_part=found.train,
        test_part=found.test,
        num_rows=f"{found.num_rows:,}",
        form=found.form,
        full_rates=_listed(scale.full_rates),
        lora_rates=_listed([10 * rate for rate in scale.full_rates]),
        ranks=", ".join(map(str, ranks)),
        batch_size=max(1, min(16, found.num_rows // 20)),
        max_length=max_length,
        length=_length(found.tokens, max_length),
        seeds=", ".join(map(str, _SEEDS)),
        why="What this model knows is its own small world" if is_small_world else scale.why,
        retention="\n".join(_SMALL_WORLD if is_small_world else scale.retention),
        remark="".join(f"# {line}\n" for line in remark),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    repeated = f", {found.num_duplicates:,} of them repetitions" if found.num_duplicates else ""
    return [
        f"{train}: {found.num_rows:,} rows{repeated}, read as {found.form}",
        f"  tokens a row: {_length(found.tokens, max_length)}",
        f"  one row, what would be learned in >>> <<<: {found.sample}",
        f"{model}: {_rounded(size)} parameters, context of {tokenizer.context_length or 'unknown'} tokens",
        *remark,
        f"wrote {out}; next: rankscope plan {out}",
    ]


def parse_columns(named: Sequence[str]) -> dict[str, str | tuple[str, ...]]:
    """`question=q choices=a,b,c` as the study file's `columns`.

    Raises:
        UserError: One of them is no pair.
    """
    columns: dict[str, str | tuple[str, ...]] = {}
    for pair in named:
        role, equals, column = pair.partition("=")
        if not equals or not role or not column:
            mend = "write what it is, and the column: question=q answer=a choices=right,wrong1,wrong2"
            raise UserError(f"'{pair}' names no column", where="--columns", mend=mend)
        columns[role] = tuple(column.split(",")) if role == "choices" and "," in column else column
    return columns


# The data -----------------------------------------------------------------------------------------------------------


def _asked_for_by_options(train: str, tokenizer: Tokenizer, columns: Columns | None) -> _Found:
    """What a look finds; what is wrong is said of the options, since there is no study file yet."""
    try:
        return _look(train, tokenizer, columns)
    except UnnamedColumns as error:
        raise error.as_option("--columns") from None
    except UserError as error:
        error.key = ("--columns",) if error.key == ("columns",) else ("--train",)
        raise


def _look(train: str, tokenizer: Tokenizer, columns: Columns | None) -> _Found:
    rows = read_rows(Data(source=train), "train")
    understood = understand(rows, columns)
    style = prompt_style(rows)
    texts = [put(content, style, tokenizer) for content in understood.contents[:_MOST_COUNTED]]
    pairs = tokenizer.encode_pairs([(text.prompt, text.answer) for text in texts])
    prompt = texts[0].prompt if len(texts[0].prompt) < 400 else f"[...] {texts[0].prompt[-400:]}"
    train_part, test_part, num_test = _parts(train, understood, columns)
    return _Found(
        form=understood.form,
        num_rows=len(understood.contents),
        num_duplicates=num_duplicates([(content.question, content.answer) for content in understood.contents]),
        num_test=num_test if understood.form in ("multiple_choice", "question_answer") else None,
        train=train_part,
        test=test_part,
        tokens=tuple(sorted(len(one) + len(two) + 1 for one, two in pairs)),
        sample=repr(f"{prompt}>>>{texts[0].answer[:400]}<<<"),
    )


def _parts(train: str, understood: Contents, columns: Columns | None) -> tuple[str, str, int | None]:
    """How training and test rows are told apart: by the splits that there are, else by content."""
    fraction = "    validation: {fraction: 0.1}    # held out by content; learning rates are chosen on it\n"
    if not Path(train).is_file():
        for split in ("test", "validation"):
            number = _num_rows(train, split, columns)
            if number is not None:
                return f"    split: train\n{fraction}", f"split: {split}", number
    questions = [content.question for content in understood.contents]
    different = len({normalised(question) for question in questions})
    number = sum(in_part(question, "test") for question in questions)
    if different <= len(questions) // 2 or not number:
        raise UserError(
            f"{len(questions)} rows ask {different} different things, too few to cut training, validation and test "
            "from them by what is asked",
            where=train,
            mend="add rows, name the column that tells them apart (`--columns`), or write the study file by hand with "
            "a test file of its own",
        )
    part = "    part: train         # cut by content: 80% train, 10% validation (where rates are chosen), 10% test\n"
    return part, "part: test", number


def _num_rows(source: str, split: str, columns: Columns | None) -> int | None:
    """How many rows a split has that are read like those to train on; None where there is none."""
    try:
        rows: Rows = read_rows(Data(source=source, split=split), "test")
        return len(understand(rows, columns).contents)
    except UserError:
        return None


# Words --------------------------------------------------------------------------------------------------------------


def _max_length(tokens: Sequence[int], context: int | None) -> int:
    """The least usual length that leaves 99 of 100 rows whole, as far as the model reaches."""
    wanted = tokens[int(0.99 * (len(tokens) - 1))]
    return min(next((length for length in _LENGTHS if length >= wanted), _LENGTHS[-1]), context or _LENGTHS[-1])


def _length(tokens: Sequence[int], max_length: int) -> str:
    longer = sum(length > max_length for length in tokens)
    cut = f"{longer} of {len(tokens)} are longer and will be cut" if longer else "none is longer"
    return f"half of the rows have up to {tokens[(len(tokens) - 1) // 2]}, the longest {tokens[-1]}; {cut}"


def _margin(found: _Found) -> list[str]:
    """What the test items can tell apart, where that is more than the usual margin."""
    if not found.num_test:
        return []
    smallest = smallest_difference([found.num_test], len(_SEEDS), num_arms=4)
    if smallest <= 0.02:
        return []
    return [
        f"{found.num_test} test items and {len(_SEEDS)} seeds tell differences of about {smallest:.2f} apart: "
        "for finer ones take more items, or a wider margin."
    ]


def _scale(num_parameters: int) -> _Scale:
    return next(scale for scale in _SCALES if num_parameters < scale.most_parameters)


def _ranks(scale: _Scale, shapes: Mapping[str, Sequence[int]]) -> list[int]:
    """The scale's ranks that are low ones of this model's matrices."""
    narrowest = min((min(shape) for shape in layer_matrices(shapes).values()), default=max(scale.ranks))
    return [rank for rank in scale.ranks if rank <= narrowest // 2] or [1]


def _column_lines(columns: Columns | None) -> dict[str, str]:
    mapping = _mapping(columns) if columns else ""
    return {
        "columns": f"    columns: {mapping}\n" if columns else "",
        "test_columns": f"columns: {mapping}, " if columns else "",
    }


def _mapping(columns: Mapping[str, str | tuple[str, ...]]) -> str:
    return "{" + ", ".join(f"{role}: {_column(column)}" for role, column in columns.items()) + "}"


def _column(column: str | tuple[str, ...]) -> str:
    return _quoted(column) if isinstance(column, str) else f"[{', '.join(map(_quoted, column))}]"


def _quoted(text: str) -> str:
    """A text as YAML reads it back, also inside braces: in quotes where it could be read otherwise."""
    is_plain = re.fullmatch(r"[A-Za-z_./~][\w./:+-]*(?<!:)", text) and YAML(typ="safe", pure=True).load(text) == text
    if is_plain:
        return text
    escaped = (c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08X}" for c in text)
    return f'"{"".join(escaped)}"'


def _listed(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:.1e}".replace("e-0", "e-") for rate in rates)


def _name(text: str) -> str:
    """A name that a folder can have, that YAML takes for a text and that no part of a study has already."""
    name = re.sub(r"[^A-Za-z0-9_.+-]", "-", text.rsplit("/", 1)[-1]).strip("-._+")[:60] or "study"
    is_taken = name.startswith("validation") or YAML(typ="safe", pure=True).load(name) != name
    return f"data-{name}" if is_taken else name


def _rounded(number: int) -> str:
    """`1.4 million`, `135 million`, `7.6 billion`."""
    for size, word in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return str(number)
