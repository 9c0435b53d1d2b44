"""Tasks of lm-evaluation-harness as items, with lm_eval's own prompts; an optional extra, imported when asked for."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from rankscope.data.contamination import Said
from rankscope.data.examples import Item
from rankscope.data.paths import user_path
from rankscope.data.quiet import quiet
from rankscope.data.tasks import distinct, fingerprint
from rankscope.data.tokens import Tokenizer
from rankscope.errors import UserError, first_line
from rankscope.runs import HarnessSettings, TaskSettings
from rankscope.spec import Kind, Scoring, Task

# The seed with which lm_eval draws worked examples unless it is told another.
FEW_SHOT_SEED = 1234
# Measures of lm_eval that say of each item whether it is right; the first that a task has is its accuracy.
RIGHT = ("acc", "exact_match")
_SCORING: dict[str, Scoring] = {
    "multiple_choice": "multiple_choice",
    "loglikelihood": "multiple_choice",
    "generate_until": "generate",
    "loglikelihood_rolling": "loss",
}


def harness_settings(spec: Task) -> HarnessSettings:
    """What a study says of a task of lm_eval, resolved.

    Raises:
        UserError: lm_eval is not installed, or the folder of task files is not there.
    """
    try:
        version = metadata.version("lm_eval")
    except metadata.PackageNotFoundError:
        mend = "pip install 'rankscope[lm-eval]', or name a preset as `source`"
        raise UserError("tasks of lm_eval need the package lm_eval", key=("lm_eval",), mend=mend) from None
    folder = None if spec.include_path is None else user_path(spec.include_path).resolve()
    if folder is not None and not folder.is_dir():
        mend = "name the folder that holds the task's YAML file"
        raise UserError(f"there is no folder '{folder}'", key=("include_path",), mend=mend)
    if spec.few_shot is not None and spec.few_shot.model_dump(exclude={"number"}, exclude_none=True):
        mend = "say how many: `few_shot: 5`"
        raise UserError("the task's own file says where its examples come from", key=("few_shot",), mend=mend)
    return HarnessSettings(
        task=str(spec.lm_eval),
        include_path=None if folder is None else str(folder),
        sha256=None if folder is None else _hash(folder),
        num_fewshot=None if spec.few_shot is None else spec.few_shot.number,
        apply_chat_template=bool(spec.apply_chat_template),
        limit=spec.max_examples,
        version=version,
    )


def harness_task(
    name: str, spec: Task, tokenizer: Tokenizer, *, allow_code: bool
) -> tuple[list[Item], TaskSettings, list[Said]]:
    """The items of a task of lm_eval, how they are scored, and what they ask and answer.

    Args:
        name: The task in the study file.
        spec: What the study file says of it.
        tokenizer: The model's, for its chat template.
        allow_code: Whether tasks that run generated code may be scored.

    Raises:
        UserError: There is no such task, its data cannot be had, or it does not say of each item whether it is right.
    """
    settings = harness_settings(spec)
    tasks = load_tasks(settings)
    kinds = {task.OUTPUT_TYPE for task in tasks.values()}
    for key, task in tasks.items():
        _check(key, task, allow_code)
    if len(kinds) > 1:
        mend = "name its tasks one by one"
        raise UserError(f"the group mixes {', '.join(sorted(kinds))}", key=("lm_eval",), mend=mend)
    (output_type,) = kinds
    build_requests(tasks, settings, tokenizer)
    items = items_of(tasks)
    kind: Kind | None = "text" if output_type == "loglikelihood_rolling" else None
    resolved = TaskSettings(
        name=name,
        scoring=_SCORING[output_type],
        kind=spec.kind or kind,
        answer=_answer(tasks),
        max_new_tokens=spec.max_new_tokens,
        fingerprint=fingerprint(items),
        num_items=len(items),
        harness=settings,
    )
    asked = [Said(_asked(task, doc, item), item.target) for item, (task, doc) in zip(items, _docs(tasks), strict=True)]
    return items, resolved, asked


def load_tasks(settings: HarnessSettings) -> dict[str, Any]:
    """The task objects of lm_eval behind a name: one, or those of a group or tag; with their worked examples set.

    Raises:
        UserError: There is no such task, or its data cannot be had.
    """
    with _quiet():
        from lm_eval.tasks import TaskManager

        manager = _manager(TaskManager, settings)
        if settings.task not in manager.all_tasks:
            mend = "`lm-eval ls tasks` lists what there is; task files of your own need `include_path`"
            raise UserError(f"lm_eval has no task '{settings.task}'", key=("lm_eval",), mend=mend)
        try:
            tasks = manager.load([settings.task])["tasks"]
        # A task's file and its loader may raise anything: it is configuration with functions in it.
        except Exception as error:  # noqa: BLE001
            raise UserError(
                f"lm_eval cannot load the task '{settings.task}' ({first_line(error)})",
                key=("lm_eval",),
                mend="check its file and the network (HF_HUB_OFFLINE), or name a preset as `source`",
            ) from None
    for task in tasks.values():
        stated = task.get_config("num_fewshot")
        # As lm_eval does it: a task whose file says 0 keeps it.
        if settings.num_fewshot is not None and stated != 0:
            task.set_config(key="num_fewshot", value=settings.num_fewshot)
        elif stated is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEW_SHOT_SEED)
    return tasks


def build_requests(tasks: dict[str, Any], settings: HarnessSettings, tokenizer: Tokenizer) -> None:
    """Let lm_eval make the prompts of every item."""
    with _quiet():
        for task in tasks.values():
            task.build_all_requests(
                limit=settings.limit,
                rank=0,
                world_size=1,
                apply_chat_template=settings.apply_chat_template,
                chat_template=tokenizer.render_chat if settings.apply_chat_template else None,
            )


def items_of(tasks: dict[str, Any]) -> list[Item]:
    """One item for each document of the tasks, from the requests that lm_eval made of it."""
    made = [(key, task, group) for key, task in tasks.items() for group in _groups(task)]
    several = len(tasks) > 1
    names = distinct([f"{key}:{group[0].doc_id}" if several else str(group[0].doc_id) for key, _, group in made])
    return [
        _item(name, key if several else None, task, group) for name, (key, task, group) in zip(names, made, strict=True)
    ]


# Parts --------------------------------------------------------------------------------------------------------------


def _manager(manager: Any, settings: HarnessSettings) -> Any:
    """lm_eval's index of tasks; of its own files only those below a folder named like the task, where it is there."""
    import lm_eval.tasks

    if settings.include_path is not None:
        own = manager(include_path=settings.include_path, include_defaults=False)
        if settings.task in own.all_tasks:
            return own
        return manager(include_path=settings.include_path)
    root = Path(lm_eval.tasks.__file__).parent
    parts = settings.task.split("_")
    for number in range(len(parts), 0, -1):
        # Reading all of lm_eval's fifteen thousand files takes some ten seconds.
        folder = root / "_".join(parts[:number])
        if folder.is_dir():
            near = manager(include_path=str(folder), include_defaults=False)
            if settings.task in near.all_tasks:
                return near
    return manager()


def _check(key: str, task: Any, allow_code: bool) -> None:
    """Refuse what cannot be scored here."""
    if task.OUTPUT_TYPE not in _SCORING:
        what = f"'{key}' asks for {task.OUTPUT_TYPE}, which is neither a likelihood nor a generation"
        raise UserError(what, key=("lm_eval",), mend="choose another task")
    # Only some kinds of task say it.
    if getattr(task, "MULTIMODAL", False):
        raise UserError(f"'{key}' has images or sounds", key=("lm_eval",), mend="choose a task of text")
    if getattr(task, "UNSAFE_CODE", False) and not allow_code:
        mend = "set `allow_code: true`, on a machine where that may happen"
        raise UserError(f"'{key}' runs the code that a model writes", key=("lm_eval",), mend=mend)
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return
    measures = list(task.aggregation())
    if not set(RIGHT) & set(measures):
        what = f"'{key}' has the measures {', '.join(measures)}, none of which says of an item whether it is right"
        raise UserError(what, key=("lm_eval",), mend=f"choose a task with {' or '.join(RIGHT)}")
    options = task.get_config("generation_kwargs") or {}
    if task.OUTPUT_TYPE == "generate_until" and options.get("do_sample"):
        raise UserError(
            f"'{key}' draws its answers at random", key=("lm_eval",), mend="choose a task with do_sample: false"
        )


def _groups(task: Any) -> Iterator[list[Any]]:
    """The requests of each document, in the order of documents."""
    by_doc: dict[int, list[Any]] = {}
    for instance in task.instances:
        by_doc.setdefault(instance.doc_id, []).append(instance)
    for group in by_doc.values():
        yield sorted(group, key=lambda instance: instance.idx)


def _docs(tasks: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    return ((task, group[0].doc) for task in tasks.values() for group in _groups(task))


def _item(name: str, category: str | None, task: Any, group: list[Any]) -> Item:
    arguments = [instance.args for instance in group]
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return Item(name, "", (), arguments[0][0], category=category)
    target = task.doc_to_target(group[0].doc)
    if task.OUTPUT_TYPE == "generate_until":
        first = target[0] if isinstance(target, list) and target else target
        choices = task.doc_to_choice(group[0].doc) if task.get_config("doc_to_choice") is not None else None
        text = choices[first] if choices is not None and isinstance(first, int) else str(first)
        return Item(name, arguments[0][0], (), text, category=category)
    if task.OUTPUT_TYPE == "loglikelihood":
        prompt, option = arguments[0]
        return Item(name, prompt, (option,), option, 0, category)
    number = len(task.doc_to_choice(group[0].doc))
    prompts = {prompt for prompt, _ in arguments[:number]}
    # A blank may be filled before what is scored: then the prompts differ and the whole texts are the options.
    prompt = prompts.pop() if len(prompts) == 1 else ""
    options = tuple(rest if prompt else before + rest for before, rest in arguments[:number])
    right = right_option(task, group[0].doc)
    return Item(name, prompt, options, options[right] if right is not None else "", right, category)


def right_option(task: Any, doc: Any) -> int | None:
    """The index of the right option of a multiple-choice document, the first of several; None where there is none."""
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    first = gold[0] if isinstance(gold, list) and gold else gold
    choices = task.doc_to_choice(doc)
    if isinstance(first, str):
        return choices.index(first) if first in choices else None
    return first if isinstance(first, int) and 0 <= first < len(choices) else None


def _asked(task: Any, doc: Any, item: Item) -> str:
    """What an item asks without worked examples: the task's own words for it, else its prompt."""
    asked = task.doc_to_text(doc) if item.prompt else item.target or item.options[0]
    return asked if isinstance(asked, str) else item.prompt


def _answer(tasks: dict[str, Any]) -> Literal["number", "letter", "text"]:
    """A task's own code reads its answers; a number may be read strictly and flexibly."""
    names = {item["name"] for task in tasks.values() for item in task.get_config("filter_list") or ()}
    return "number" if {"strict-match", "flexible-extract"} <= names else "text"


def _hash(folder: Path) -> str:
    """A hash of the task files and of the code beside them."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress bars and warnings of lm_eval and datasets off the screen."""
    with quiet("lm_eval", "huggingface_hub"), contextlib.redirect_stderr(io.StringIO()):
        yield
