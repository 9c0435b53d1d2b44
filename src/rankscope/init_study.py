"""A commented study file for a model and a data file, written after a look at both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rankscope.data.architectures import check_architecture
from rankscope.data.forms import Columns, Contents, understand
from rankscope.data.hub import model_folder
from rankscope.data.prompts import put
from rankscope.data.shapes import layer_matrices, num_parameters, tensor_shapes
from rankscope.data.sources import Rows, read_rows
from rankscope.data.splits import in_part, normalised, num_duplicates
from rankscope.data.tasks import default_scoring, prompt_style
from rankscope.data.tokens import Tokenizer
from rankscope.design import FEW_TEXTS
from rankscope.errors import UserError, within
from rankscope.spec import Data
from rankscope.statistics import smallest_difference
from rankscope.study_template import SCALES, SMALL_WORLD, TEMPLATE, listed, mapping, name_of, quoted, rounded

_SEEDS = (0, 1)
_BY_LOSS = (
    "judged by loss; to judge by right answers, add a task of questions and a `validation: {source: ...}` like it"
)
_MOST_COUNTED = 2000  # rows whose tokens are counted to find max_length
_LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class _Base:
    """What a look at the model found.

    Attributes:
        size: Its parameters.
        narrowest: The smaller side of its smallest matrix, above which no rank makes sense.
    """

    source: str
    tokenizer: Tokenizer
    size: int
    narrowest: int


@dataclass(frozen=True)
class _Found:
    """What a look at the data found.

    Attributes:
        train: How the rows to train on are named in the study file; `test` the same for the task.
        tokens: The lengths of some rows, shortest first.
        by_loss: Rates are chosen, and arms judged, by loss.
    """

    form: str
    unread: tuple[str, ...]
    num_rows: int
    num_duplicates: int
    num_test: int
    train: str
    test: str
    tokens: tuple[int, ...]
    sample: str
    by_loss: bool


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
    base = _look_at_model(model)
    found = _asked_for_by_options(train, base.tokenizer, columns)
    text = TEMPLATE.format(file=out, **_model_words(base), **_data_words(train, found, base, columns))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    repeated = f", {found.num_duplicates:,} of them repetitions" if found.num_duplicates else ""
    return [
        f"{train}: {found.num_rows:,} rows{repeated}, read as {found.form}",
        *([f"  not read of its rows: {', '.join(found.unread)}"] if found.unread else []),
        f"  tokens a row: {_length(found, base)}",
        f"  one row, what would be learned in >>> <<<: {found.sample}",
        f"{model}: {rounded(base.size)} parameters, context of {base.tokenizer.context_length or 'unknown'} tokens",
        *([f"rows read as {found.form} are {_BY_LOSS}"] if found.by_loss else []),
        *_margin(found),
        f"wrote {out}; next: rankscope plan {out}",
    ]


def _look_at_model(model: str) -> _Base:
    with within("--model"):
        folder = model_folder(model, None)
        check_architecture(folder, model, trust_remote_code=None)
        tokenizer = Tokenizer.from_folder(folder)
    shapes = tensor_shapes(folder)
    narrowest = min((min(shape) for shape in layer_matrices(shapes).values()), default=max(SCALES[0].ranks))
    return _Base(model, tokenizer, num_parameters(shapes), narrowest)


def _model_words(base: _Base) -> dict[str, object]:
    """What stands in the study file because of the model."""
    scale = next(scale for scale in SCALES if base.size < scale.most_parameters)
    is_small_world = base.source.startswith("smallworld:")
    return {
        "model": quoted(base.source),
        "parameters": rounded(base.size),
        "template": "answers through its chat template" if base.tokenizer.chat_template else "no chat template",
        "full_rates": listed(scale.full_rates),
        "lora_rates": listed([10 * rate for rate in scale.full_rates]),
        "ranks": ", ".join(map(str, [rank for rank in scale.ranks if rank <= base.narrowest // 2] or [1])),
        "why": "What this model knows is its own small world" if is_small_world else scale.why,
        "retention": "\n".join(SMALL_WORLD if is_small_world else scale.retention),
    }


def _data_words(train: str, found: _Found, base: _Base, columns: Columns | None) -> dict[str, object]:
    """What stands in the study file because of the data."""
    name = name_of(Path(train).stem if Path(train).exists() else train)
    return {
        "study": name,
        "name": name,
        "source": quoted(train),
        "columns": f"    columns: {mapping(columns)}\n" if columns else "",
        "test_columns": f"columns: {mapping(columns)}, " if columns else "",
        "train_part": found.train,
        "test_part": found.test,
        "num_rows": f"{found.num_rows:,}",
        "form": found.form,
        "batch_size": max(1, min(16, found.num_rows // 20)),
        "max_length": _max_length(found, base),
        "length": _length(found, base),
        "seeds": ", ".join(map(str, _SEEDS)),
        "judged": f"  # {_BY_LOSS.capitalize()}.\n" if found.by_loss else "",
        "remark": "".join(f"# {line}\n" for line in _margin(found)),
    }


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
    except UserError as error:
        error.key = ("--columns",) if error.key == ("columns",) else ("--train",)
        raise


def _look(train: str, tokenizer: Tokenizer, columns: Columns | None) -> _Found:
    rows = read_rows(Data(source=train), "train")
    understood = understand(rows, columns)
    style = prompt_style(rows)
    texts = [put(content, style, tokenizer) for content in understood.contents[:_MOST_COUNTED]]
    pairs = tokenizer.encode_pairs([(text.prompt, text.answer) for text in texts])
    ends = [] if (end := tokenizer.completion_end_id) is None else [end]
    learned = texts[0].answer[:400] + tokenizer.decode(ends, skip_special_tokens=False)
    prompt = texts[0].prompt if len(texts[0].prompt) < 400 else f"[...] {texts[0].prompt[-400:]}"
    train_part, test_part, num_test = _parts(train, understood, columns)
    return _Found(
        form=understood.form,
        unread=understood.unread,
        num_rows=len(understood.contents),
        num_duplicates=num_duplicates([(content.question, content.answer) for content in understood.contents]),
        num_test=num_test,
        train=train_part,
        test=test_part,
        tokens=tuple(sorted(len(one) + len(two) + 1 for one, two in pairs)),
        by_loss=default_scoring(rows, understood) == "loss",
        sample=repr(f"{prompt}>>>{learned}<<<"),
    )


def _parts(train: str, understood: Contents, columns: Columns | None) -> tuple[str, str, int]:
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
    part = (
        "    part: train         # cut by content: about 80% train, 10% validation (where rates are chosen), 10% test\n"
    )
    return part, "part: test", number


def _num_rows(source: str, split: str, columns: Columns | None) -> int | None:
    """How many rows a split has that are read like those to train on; None where there is none."""
    try:
        rows: Rows = read_rows(Data(source=source, split=split), "test")
        return len(understand(rows, columns).contents)
    except UserError:
        return None


# Words --------------------------------------------------------------------------------------------------------------


def _max_length(found: _Found, base: _Base) -> int:
    """The least usual length that leaves 99 of 100 rows whole, as far as the model reaches."""
    wanted, context = found.tokens[int(0.99 * (len(found.tokens) - 1))], base.tokenizer.context_length
    return min(next((length for length in _LENGTHS if length >= wanted), _LENGTHS[-1]), context or _LENGTHS[-1])


def _length(found: _Found, base: _Base) -> str:
    tokens = found.tokens
    longer = sum(length > _max_length(found, base) for length in tokens)
    cut = f"{longer} of {len(tokens)} are longer and will be cut" if longer else "none is longer"
    return f"half of the rows have up to {tokens[(len(tokens) - 1) // 2]}, the longest {tokens[-1]}; {cut}"


def _margin(found: _Found) -> list[str]:
    """What the test items can tell apart, where that is more than the usual margin."""
    if found.by_loss:
        few = f"{found.num_test} test rows are few to compare losses on: to tell arms apart take more."
        return [few] if found.num_test < FEW_TEXTS else []
    smallest = smallest_difference([found.num_test], len(_SEEDS), num_arms=4)
    if smallest <= 0.02:
        return []
    return [
        f"{found.num_test} test items and {len(_SEEDS)} seeds tell differences of about {smallest:.2f} apart: "
        "for finer ones take more items, or a wider margin."
    ]
