"""The work that both stacks do, written down once so that both read the same strings in the same order."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl

from rankscope.cost.estimate import in_layout
from rankscope.data.hub import model_folder
from rankscope.data.order import batches
from rankscope.data.prepare import prepare_task
from rankscope.data.tokens import Tokenizer
from rankscope.execute.trials import measured_layout
from rankscope.layout import layouts_to_try
from rankscope.planning import make_plan, write_inputs
from rankscope.spec import Study, Task
from rankscope.store import EXAMPLES, PROMPTS, Store, write_text
from rankscope.study_file import dump_study

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SHARED = Path(os.environ.get("RANKSCOPE_SHARED", ROOT.parent / "shared")) / "data"
LONG_CHARACTERS = 900  # of a legal excerpt, so that it fits the 512 positions of stories3M
SHOTS = 8
LOWER_RANKS = (1, 2, 3, 4, 6, 8)

# SmolLM2-135M's shape; its weights are replaced by random ones, which cost the same.
SMOLLM_SHAPE = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One training run as the peer needs it: `rank` is None for full fine-tuning; alpha is twice the rank."""

    label: str
    rank: int | None
    learning_rate: float


@dataclass(frozen=True)
class Work:
    """What work.json holds.

    Attributes:
        model: The base's folder.
        examples: A JSONL file with `prompt` and `completion`, in the order of the steps.
        tasks: By name, a Parquet file with prompts, options and targets as scored.
        text: The task whose loss is taken.
    """

    base: str
    model: str
    examples: str
    runs: list[Run]
    tasks: dict[str, str]
    text: str
    num_steps: int
    batch_size: int
    max_length: int
    warmup_ratio: float


def read_work(folder: Path) -> Work:
    """The work in a folder that `prepare` wrote."""
    document = json.loads((folder / "work.json").read_text())
    return Work(**{**document, "runs": [Run(**run) for run in document["runs"]]})


def prepare(base: str, folder: Path) -> Work:
    """Write the base's work into a folder: the study with its plan and inputs for one stack, plain files for the other.

    The layout of this plan is measured by training, however short the study is; `rankscope run` measures it for studies
    of more than half an hour only. All parts but `study` and `derive` take this plan. Those two are whole studies that
    plan for themselves, and measure no layout where they are short. Of the other stack the batch sizes for scoring are
    calibrated. It trains with the study's batch size of 8, so there no batch size is left to choose.

    Args:
        base: A key of `BASES`.
        folder: Made if it is not there. Work that is there stays, unless its plan's layout was not measured.
    """
    if (folder / "work.json").exists() and _is_measured(Store(folder / "study")):
        return read_work(folder)
    for name in ("trained", "peer"):  # what was trained by a plan that is replaced, which `trained` has a copy of
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "peer.json").unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    study = Study.model_validate(BASES[base](folder))
    store = Store(folder / "study")
    plan, inputs = make_plan(study)
    layout = measured_layout(plan, inputs.examples, layouts_to_try(study, plan.layout))
    plan = plan.model_copy(update={"layout": layout, "estimate": in_layout(plan.estimate, inputs.outline, layout)})
    write_text(store.study_file, dump_study(study))
    write_text(store.plan_file, plan.model_dump_json(indent=1) + "\n")
    write_inputs(store, inputs)
    (name,) = study.train
    examples = pl.read_parquet(store.training_data(base, name) / EXAMPLES).filter(pl.col("split") == "train")
    size, steps = study.optimization.batch_size, plan.runs[0].num_steps
    order = [index for batch in batches(len(examples), size, steps, study.seeds[0]) for index in batch]
    examples[order].select("prompt", "completion").write_ndjson(folder / "examples.jsonl")
    scorings = {key: task.scoring for key, task in plan.tasks[base].items()}
    work = Work(
        base=base,
        model=str(Path(model_folder(study.model[base].source, None)).resolve()),
        examples=str(folder / "examples.jsonl"),
        runs=[Run(run.arm.label, run.arm.rank, run.learning_rate) for run in plan.runs],
        tasks={key: str(store.base_task(base, key) / PROMPTS) for key in scorings},
        text=next(key for key, scoring in scorings.items() if scoring == "loss"),
        num_steps=steps,
        batch_size=size,
        max_length=study.optimization.max_length,
        warmup_ratio=study.optimization.warmup_ratio,
    )
    (folder / "work.json").write_text(json.dumps(asdict(work), indent=1))
    return work


def _is_measured(store: Store) -> bool:
    """Whether the plan's layout was measured; asked of the bare file, which may be of an older format."""
    return store.plan_file.exists() and bool(json.loads(store.plan_file.read_text())["layout"].get("trials"))


def derived_study(base: str, folder: Path) -> dict:
    """The base's work with its largest rank alone, cut to six lower ones; nothing is looked into."""
    study = BASES[base](folder)
    lora = study["arms"][-1]
    named = {"study": f"derive-{base}", "arms": [{**lora, "rank": [max(lora["rank"])]}]}
    analyses = dict.fromkeys(study["analyse"], False)
    return {**study, **named, "analyse": analyses, "derive": {"truncate": list(LOWER_RANKS)}}


def dump_study_file(path: Path, study: dict) -> Path:
    """Write a study file, checked."""
    write_text(path, dump_study(Study.model_validate(study)))
    return path


def few_shot_items(path: Path, num_items: int, num_shots: int) -> Path:
    """Write items of the small world behind worked examples, which all of them share."""
    items = _items("smallworld:base", "smallworld:general_recall", num_items + SHOTS)
    shots = _shots(items[:num_shots])
    _write_choices(path, [(shots + _question(i), i.options, i.target) for i in items[SHOTS:]])
    return path


def _smallworld(folder: Path) -> dict:
    model = "smallworld:base"
    few_shot_items(folder / "long.jsonl", 150, SHOTS)
    tasks = {
        "medical_recall": _source("smallworld:medical_recall", 150),
        "legal_recall": _source("smallworld:legal_recall", 150),
        "general_recall_8_shots": _source(folder / "long.jsonl", 150),
        "text": {**_source("smallworld:general_text", 100), "role": "retention"},
    }
    return _study("smallworld", model, _source("smallworld:medical_new", 320, "train"), tasks, [2, 4, 8, 16, 32], 40)


def _stories3m(folder: Path) -> dict:
    paper = SHARED / "paper"
    model = str(SHARED / "models/stories3M")
    items = _items(model, str(paper / "casehold/case_hold.jsonl"), 150)
    _write_choices(folder / "long.jsonl", [(_question(i)[-LONG_CHARACTERS:], i.options, i.target) for i in items])
    tasks = {
        "medmcqa": {**_source(paper / "medmcqa/dev.jsonl", 150), "part": "test"},
        "mmlu": _source(paper / "mmlu/test", 150),
        "casehold": _source(folder / "long.jsonl", 150),
        "text": {**_source(SHARED / "retention/tinystories/stories.jsonl", 100), "role": "retention"},
    }
    train = {**_source(paper / "medmcqa/dev.jsonl", 320), "part": "train"}
    return _study("stories3M", model, train, tasks, [2, 4, 8, 16, 32], 40)


def _smollm135m(folder: Path) -> dict:
    paper = SHARED / "paper"
    model = str(_random_llama(folder / "model", SMOLLM_SHAPE, SHARED / "models/stories3M"))
    tasks = {
        "medmcqa": {**_source(paper / "medmcqa/dev.jsonl", 20), "part": "test"},
        "casehold": _source(paper / "casehold/case_hold.jsonl", 20),
        "text": {**_source(SHARED / "retention/tinystories/stories.jsonl", 10), "role": "retention"},
    }
    train = {**_source(paper / "medmcqa/dev.jsonl", 80), "part": "train"}
    return _study("smollm135m", model, train, tasks, [16], 10)


BASES: dict[str, Callable[[Path], dict]] = {
    "smallworld": _smallworld,
    "stories3M": _stories3m,
    "smollm135m": _smollm135m,
}
NEEDS_SHARED = ("stories3M", "smollm135m")


def _study(base: str, model: str, train: dict, tasks: dict, ranks: list[int], num_steps: int) -> dict:
    return {
        "study": f"bench-{base}",
        "model": {base: model},
        "train": {"set": {**train, "validation": {"max_examples": 8}}},
        "arms": [
            {"method": "full", "learning_rate": [1e-4]},
            {
                "method": "lora",
                "rank": ranks,
                "lora_alpha": "2r",
                "target_modules": "all-linear",
                "learning_rate": [1e-3],
            },
        ],
        "optimization": {
            "max_steps": num_steps,
            "batch_size": 8,
            "max_length": 256,
            "lr_scheduler": "cosine",
            "warmup_ratio": 0.1,
            "num_validations": 1,
        },
        "seeds": [0],
        "evaluate": {
            name: {"in_domain_for": ["set"], **task} if "role" not in task else task for name, task in tasks.items()
        },
        # What the other stack does too.
        "analyse": {"spectra": True, "subspaces": True, "attention": False, "representations": False, "neurons": False},
        "keep": "all",
    }


def _source(source: str | Path, number: int, split: str | None = None) -> dict:
    return {"source": str(source), "max_examples": number, **({"split": split} if split else {})}


def _items(model: str, source: str, number: int) -> list:
    tokenizer = Tokenizer.from_folder(model_folder(model, None))
    return prepare_task("bench", "items", Task(source=source, max_examples=number), tokenizer).items


def _question(item) -> str:  # noqa: ANN001
    return item.prompt.removeprefix("Question: ").removesuffix("\nAnswer:")


def _shots(items: list) -> str:
    return "".join(f"{_question(item)}\nAnswer:{item.target}\n\nQuestion: " for item in items)


def _write_choices(path: Path, rows: list) -> None:
    lines = [
        json.dumps({"question": q, "choices": [o.strip() for o in options], "answer": options.index(target)})
        for q, options, target in rows
    ]
    path.write_text("\n".join(lines) + "\n")


def _random_llama(folder: Path, shape: dict, tokenizer: Path) -> Path:
    """A Llama of that shape with random weights, and a small tokenizer, whose ids are some of the vocabulary."""
    if (folder / "config.json").exists():
        return folder
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(folder)
    for path in tokenizer.glob("*token*"):
        shutil.copy(path, folder / path.name)
    return folder
