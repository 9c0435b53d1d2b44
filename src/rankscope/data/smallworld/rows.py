"""The rows of every task of the small world: the face that the rest of the package sees."""

from __future__ import annotations

from dataclasses import dataclass

from .facts import known_rows, new_rows
from .problems import reasoning_rows
from .texts import text_rows
from .world import SHIPPED_SEED, build_world

DOMAINS = ("general", "medical", "legal")
TRAINED_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class TaskSpec:
    """One task of the small world.

    Attributes:
        name: Its name, as given to `rows`.
        domain: `general`, `medical` or `legal`.
        kind: `recall`, `reasoning` or `text`.
        splits: The splits that it has.
    """

    name: str
    domain: str
    kind: str
    splits: tuple[str, ...]


_SPECS = (
    *(TaskSpec(f"{domain}_recall", domain, "recall", ("test",)) for domain in DOMAINS),
    *(TaskSpec(f"{domain}_new", domain, "recall", TRAINED_SPLITS) for domain in ("medical", "legal")),
    *(TaskSpec(f"{domain}_reasoning", domain, "reasoning", TRAINED_SPLITS) for domain in DOMAINS),
    TaskSpec("general_text", "general", "text", ("test",)),
)
TASKS: dict[str, TaskSpec] = {spec.name: spec for spec in _SPECS}


def rows(task: str, split: str) -> list[dict]:
    """Return the rows of one split of a task, in a fixed order whose beginning is as mixed as the whole.

    Args:
        task: One of `TASKS`.
        split: One of the task's splits.

    Returns:
        For recall and reasoning `id`, `question`, `choices` (four strings), `answer` (index of the right one),
        `answer_text` (the right one) and `category`; for text `id`, `text` and `category`.

    Raises:
        ValueError: If there is no such task or split; the message names those there are.
    """
    if task not in TASKS:
        raise ValueError(f"the small world has no task {task!r}; it has {', '.join(TASKS)}")
    spec = TASKS[task]
    if split not in spec.splits:
        raise ValueError(f"the small world's task {task} has no split {split!r}; it has {', '.join(spec.splits)}")
    match spec.kind:
        case "text":
            return text_rows(SHIPPED_SEED)
        case "reasoning":
            return reasoning_rows(spec.domain, split, SHIPPED_SEED)
    world = build_world(SHIPPED_SEED)
    if task.endswith("_new"):
        return new_rows(world, spec.domain, split)
    return known_rows(world, spec.domain)
