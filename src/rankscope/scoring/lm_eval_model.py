"""Tasks of lm-evaluation-harness scored by our scorer: lm_eval asks and judges, we answer its requests."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate
from transformers import PreTrainedModel

from rankscope.data.examples import Item
from rankscope.data.lm_eval_tasks import RIGHT, items_of, load_tasks
from rankscope.data.quiet import quiet
from rankscope.data.tasks import fingerprint
from rankscope.data.tokens import Tokenizer
from rankscope.errors import UserError, within
from rankscope.models.heads import scored_logits
from rankscope.runs import HarnessSettings, TaskSettings
from rankscope.scoring.generation import generate
from rankscope.scoring.likelihoods import Choice, OptionTrees, checked_option_trees, option_log_likelihoods
from rankscope.scoring.losses import completion_losses
from rankscope.scoring.rows import completion_rows, context_length
from rankscope.spec import Scoring

_STRICT, _FLEXIBLE = "strict-match", "flexible-extract"


class HarnessModel(LM):
    """A model as lm_eval sees it, which answers requests with this package's scorer."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: Tokenizer, max_tokens: int, trees: OptionTrees | None
    ) -> None:
        """Wrap a model.

        Args:
            model: A causal model in evaluation mode.
            tokenizer: Its tokenizer.
            max_tokens: Token positions in one forward pass.
            trees: Whether options may be scored in trees, where it is known.
        """
        super().__init__()
        self.model, self.tokenizer, self.max_tokens, self.trees = model, tokenizer, max_tokens, trees
        self.context = context_length(model, tokenizer.context_length or max_tokens)
        self.scored_by: str | None = None
        self.note: str | None = None
        self.num_truncated = 0
        self.num_unfinished: int | None = None
        self.needs_greedy = False

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation, and whether the model would have written it itself."""
        pairs = self.tokenizer.encode_pairs([request.args for request in requests])
        if self.needs_greedy:
            return self._separately(pairs)
        choices, owners = _grouped(pairs)
        trees = checked_option_trees(self.model, choices, self.context, self.max_tokens, self.trees)
        scores = option_log_likelihoods(self.model, choices, trees, self.context, self.max_tokens)
        self.trees, self.scored_by, self.note = trees, scores.scored_by, scores.note
        self.num_truncated += scores.num_truncated
        return [(scores.log_likelihoods[choice][option], False) for choice, option in owners]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """The log-likelihood of each text, all of it, in windows of the model's context."""
        pairs = [self.rolling_pair(request.args[0]) for request in requests]
        return [-loss.nll_nats for loss in completion_losses(self.model, pairs, self.context, self.max_tokens)]

    def rolling_pair(self, text: str) -> tuple[list[int], list[int]]:
        """A text behind the opening token, as lm_eval's model for Hugging Face has it.

        A tokenizer that opens texts itself opens it twice, and its own opening is scored too.
        """
        prefix = self.tokenizer.prefix_token_id
        if prefix is None:
            mend = "name a bos_token or eos_token in its tokenizer_config.json"
            raise UserError("the tokenizer has no token that opens or ends a text", where="model", mend=mend)
        return [prefix], self.tokenizer.encode(text)

    def generate_until(self, requests: list[Any]) -> list[str]:
        """The likeliest continuation of each prompt up to the texts that end it."""
        answers: dict[int, str] = {}
        by_options: dict[tuple[tuple[str, ...], int], list[int]] = {}
        for number, request in enumerate(requests):
            options = request.args[1]
            until = options.get("until") or ()
            stop = (until,) if isinstance(until, str) else tuple(until)
            limit = options.get("max_gen_toks", options.get("max_tokens", 256))
            by_options.setdefault((stop, int(limit)), []).append(number)
        for (stop, limit), numbers in by_options.items():
            prompts = [requests[number].args[0] for number in numbers]
            made = generate(self.model, self.tokenizer, prompts, limit, stop, self.max_tokens)
            self.num_truncated += sum(generation.is_truncated for generation in made)
            self.num_unfinished = (self.num_unfinished or 0) + sum(generation.is_unfinished for generation in made)
            answers |= {number: generation.text for number, generation in zip(numbers, made, strict=True)}
        return [answers[number] for number in range(len(requests))]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the model's chat template writes it."""
        return self.tokenizer.render_chat(chat_history, add_generation_prompt)

    @property
    def tokenizer_name(self) -> str:
        """What lm_eval names its cache by; none is used."""
        return "rankscope"

    def _separately(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """One row a continuation, with the likeliest token at every place beside its log-likelihood."""
        self.scored_by = "separate_rows"
        self.num_truncated += sum(len(one) + len(two) > self.context + 1 for one, two in pairs)
        rows = []
        for slot, (prompt, completion) in enumerate(pairs):
            rows += completion_rows(prompt, completion, slot, self.context)
        sums = torch.zeros(len(pairs), dtype=torch.float64)
        is_greedy = torch.ones(len(pairs), dtype=torch.bool)
        with torch.no_grad():
            for row in rows:  # one at a time: all logits of a continuation are there at once
                ids = torch.tensor([row.input_ids], device=self.model.device)
                logits = scored_logits(self.model, torch.tensor(list(row.predict_at)).to(ids.device), input_ids=ids)
                wide = logits if logits.dtype == torch.float64 else logits.float()
                targets = torch.tensor(row.targets, device=wide.device)
                slot = row.slots[0]
                sums[slot] += torch.log_softmax(wide, dim=-1).gather(1, targets[:, None]).double().sum().cpu()
                is_greedy[slot] &= bool((wide.argmax(dim=-1) == targets).all())
        return list(zip(sums.tolist(), is_greedy.tolist(), strict=True))


def score_harness(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    settings: TaskSettings,
    max_tokens: int,
    trees: OptionTrees | None,
) -> tuple[list[dict[str, Any]], dict[str, float], HarnessModel]:
    """Score a model on a task of lm_eval.

    Returns:
        One mapping an item, with the columns of items.parquet that apply; lm_eval's own results by its names
        (`acc,none`); and the model, which knows how options were scored.

    Raises:
        UserError: The task's items are not those that the study was planned with.
    """
    harness = settings.harness
    assert harness is not None, "only tasks of lm_eval are scored here"
    with within("evaluate", settings.name):
        tasks = load_tasks(harness)
    wrapped = HarnessModel(model, tokenizer, max_tokens, trees)
    wrapped.needs_greedy = any(_needs_greedy(task) for task in tasks.values())
    found = _evaluated(wrapped, tasks, harness)
    items = items_of(tasks)
    if fingerprint(items) != settings.fingerprint:
        what = "the task's items are not those that the study was planned with"
        raise UserError(what, key=("evaluate", settings.name, "lm_eval"), mend="run the same command again")
    several = len(tasks) > 1
    values = {
        f"{key}/{name}" if several else name: float(value)
        for key in tasks
        for name, value in found["results"][key].items()
        if "," in name and "_stderr" not in name and isinstance(value, (int, float))
    }
    samples = [sample for key in tasks for sample in _by_doc(found["samples"][key])]
    rows = [_row(wrapped, item, each, settings.scoring) for item, each in zip(items, samples, strict=True)]
    return rows, values, wrapped


def _evaluated(wrapped: HarnessModel, tasks: dict[str, Any], harness: HarnessSettings) -> dict[str, Any]:
    with quiet("lm_eval"), contextlib.redirect_stderr(io.StringIO()):  # progress bars; what fails is raised
        return evaluate(
            lm=wrapped,
            task_dict={"tasks": tasks, "groups": {}, "group_map": {}},
            limit=harness.limit,
            bootstrap_iters=0,
            apply_chat_template=harness.apply_chat_template,
            # A task that runs generated code was refused before, unless the study allows it.
            confirm_run_unsafe_code=True,
        )


def _needs_greedy(task: Any) -> bool:
    if task.OUTPUT_TYPE == "loglikelihood":
        return True
    return task.OUTPUT_TYPE == "multiple_choice" and (
        "exact_match" in task.aggregation() or callable(task.get_config("process_results"))
    )


def _by_doc(samples: Sequence[dict[str, Any]]) -> Iterator[dict[str, dict[str, Any]]]:
    """Of every document in its order, what lm_eval says of it by filter."""
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for sample in samples:
        found.setdefault(sample["doc_id"], {})[sample["filter"]] = sample
    return iter(found.values())


def _grouped(pairs: Sequence[tuple[list[int], list[int]]]) -> tuple[list[Choice], list[tuple[int, int]]]:
    """Continuations of one prompt that follow each other as the options of one item, and where each request went."""
    prompts: list[tuple[int, ...]] = []
    options: list[list[tuple[int, ...]]] = []
    owners = []
    for prompt, completion in pairs:
        if not prompts or prompts[-1] != tuple(prompt):
            prompts.append(tuple(prompt))
            options.append([])
        options[-1].append(tuple(completion))
        owners.append((len(prompts) - 1, len(options[-1]) - 1))
    return [Choice(prompt, tuple(each)) for prompt, each in zip(prompts, options, strict=True)], owners


def _row(wrapped: HarnessModel, item: Item, samples: dict[str, dict[str, Any]], scoring: Scoring) -> dict[str, Any]:
    """The columns of items.parquet for one item, from what lm_eval says of it."""
    sample = samples.get(_FLEXIBLE) or next(iter(samples.values()))
    cells: dict[str, Any] = {"item_id": item.item_id, "category": item.category, "target": item.target}
    right = next((name for name in RIGHT if name in sample), None)
    if right is not None:
        cells["is_correct"] = bool(sample[right])
        if _STRICT in samples:
            cells["is_correct_strict"] = bool(samples[_STRICT][right])
    answers = [response[0] for response in sample["resps"]]
    if scoring == "generate":
        read = sample["filtered_resps"][0]
        is_read = isinstance(read, str) and read != "[invalid]"
        return cells | {"generated": answers[0], "prediction": read if is_read else None, "is_invalid": not is_read}
    if scoring == "loss":
        _, scored = wrapped.rolling_pair(item.target)
        num_bytes = len(item.target.encode())
        return cells | {"nll_nats": -answers[0], "num_scored_tokens": len(scored), "num_bytes": num_bytes}
    return cells | _chosen(wrapped, item, [value for value, _ in answers[: len(item.options)]], cells.get("is_correct"))


def _chosen(wrapped: HarnessModel, item: Item, likelihoods: list[float], is_correct: bool | None) -> dict[str, Any]:
    """What an item's likelihoods say: the option that is chosen, and the loss of the right one."""
    best = max(range(len(likelihoods)), key=lambda index: (likelihoods[index], -index))
    is_chosen = len(likelihoods) > 1 or bool(is_correct)  # a single continuation is the model's own or is not
    cells = {"option_log_likelihoods": likelihoods, "prediction": item.options[best] if is_chosen else None}
    if item.target_index is None:
        return cells
    tokens = wrapped.tokenizer.encode_pair(item.prompt, item.options[item.target_index])[1]
    num_bytes = len(item.target.encode())
    return cells | {
        "nll_nats": -likelihoods[item.target_index], "num_scored_tokens": len(tokens), "num_bytes": num_bytes
    }  # fmt: skip
