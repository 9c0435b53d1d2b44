"""Scores a base on every task of the small world: `python recipes/evaluate_smallworld.py FOLDER [OTHER_SEEDS...]`.

It uses nothing but transformers, and no trick that could change a number, so that it can be the reference for faster
scorers. A base that read plain text only is also asked in the form of what it read. With `--card`, the numbers and a
page with them are written into the first folder, as `card.json` and `README.md`; the other folders are other seeds of
the same recipe.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from smallworld_card import card_page
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rankscope.data.smallworld.facts import PROMPT
from rankscope.data.smallworld.relations import NUM_QUESTIONS
from rankscope.data.smallworld.rows import TASKS, rows
from rankscope.data.smallworld.world import build_world

_BATCH_SIZE = 32
_MAX_NEW_TOKENS = 32
BLIND_PROMPT = "Question:\nAnswer:"


def option_log_likelihoods(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, choices: Sequence[str]
) -> list[float]:
    """Return the summed log-likelihood in nats of each choice, with the end of the text, after a prompt."""
    prompt_ids = tokenizer(prompt)["input_ids"]
    option_ids = [[*tokenizer(f" {choice}")["input_ids"], tokenizer.eos_token_id] for choice in choices]
    longest = max(map(len, option_ids))
    padded = [prompt_ids + ids + [tokenizer.pad_token_id] * (longest - len(ids)) for ids in option_ids]
    # Padding on the right needs no mask: under causal attention nothing that is scored sees it.
    log_probs = model(torch.tensor(padded)).logits[:, len(prompt_ids) - 1 : -1].log_softmax(-1)  # choice, pos, vocab
    return [float(log_probs[index, range(len(ids)), ids].double().sum()) for index, ids in enumerate(option_ids)]


def choice_accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: list[dict]) -> float:
    """Return the fraction of items whose right choice is the likeliest after the prompt."""
    num_correct = 0
    for item in items:
        likelihoods = option_log_likelihoods(model, tokenizer, item["prompt"], item["choices"])
        num_correct += likelihoods.index(max(likelihoods)) == item["answer"]
    return num_correct / len(items)


def generated_answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: list[dict]) -> list[str]:
    """Return the greedy answer to each item, as free text."""
    answers = []
    for first in range(0, len(items), _BATCH_SIZE):
        prompts = [item["prompt"] for item in items[first : first + _BATCH_SIZE]]
        batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        output = model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=_MAX_NEW_TOKENS
        )
        new_ids = output[:, batch["input_ids"].shape[1] :]
        answers += [text.strip() for text in tokenizer.batch_decode(new_ids, skip_special_tokens=True)]
    return answers


def generated_accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: list[dict]) -> float:
    """Return the fraction of items whose greedy answer is right: by what follows `####` where the answer has it."""
    answers = generated_answers(model, tokenizer, items)
    pairs = zip(answers, items, strict=True)
    return fmean(_final(answer) == _final(item["answer_text"]) for answer, item in pairs)


def _final(answer: str) -> str:
    return answer.rpartition("####")[2].strip()


def text_loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: list[dict]) -> float:
    """Return the loss on texts in nats per token, the end of each text included and its first token left out."""
    total_nats, num_tokens = 0.0, 0
    for item in items:
        ids = torch.tensor([*tokenizer(item["text"])["input_ids"], tokenizer.eos_token_id])
        log_probs = model(ids[None]).logits[0, :-1].log_softmax(-1)
        total_nats -= float(log_probs.gather(1, ids[1:, None]).double().sum())
        num_tokens += len(ids) - 1
    return total_nats / num_tokens


def _as_text(items: list[dict]) -> list[dict]:
    """Return items in the form of what a plain base has read: a statement to complete, a problem to go on with.

    Facts are asked with the first of the three statements of their relation, which ends with what is asked for.
    """
    facts = {fact.question(form): fact for fact in build_world().facts for form in range(NUM_QUESTIONS)}
    texts = []
    for item in items:
        fact = facts.get(item["question"])
        if fact is None:
            texts.append(item | {"prompt": item["question"]})
            continue
        prompt = fact.statement(0).removesuffix(f" {fact.object}.")
        choices = [f"{choice}." for choice in item["choices"]]
        texts.append(item | {"prompt": prompt, "choices": choices, "answer_text": f"{fact.object}."})
    return texts


@torch.inference_mode()
def scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, is_plain: bool
) -> dict[str, dict[str, float]]:
    """Return the scores of a model on the test items of every task; those of a plain base also `_as_text`."""
    result = {}
    for task, spec in TASKS.items():
        items = rows(task, "test")
        if spec.kind == "text":
            result[task] = {"loss_nats_per_token": text_loss(model, tokenizer, items)}
            continue
        asked = [item | {"prompt": PROMPT.format(question=item["question"])} for item in items]
        blind = [item | {"prompt": BLIND_PROMPT} for item in items]
        result[task] = {
            "choice_accuracy": choice_accuracy(model, tokenizer, asked),
            "choice_accuracy_without_question": choice_accuracy(model, tokenizer, blind),
            "generated_accuracy": generated_accuracy(model, tokenizer, asked),
        }
        if is_plain:
            texts = _as_text(items)
            result[task]["choice_accuracy_as_text"] = choice_accuracy(model, tokenizer, texts)
            result[task]["generated_accuracy_as_text"] = generated_accuracy(model, tokenizer, texts)
    return result


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a base and its tokenizer."""
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def card(folders: Sequence[Path]) -> dict:
    """Return the card of the first folder: its scores, and mean, least and greatest over all folders."""
    pretraining = json.loads((folders[0] / "card.json").read_text())["pretraining"]
    by_folder = [scores(*load(folder), is_plain=pretraining["is_plain"]) for folder in folders]
    tasks = {}
    for task, shipped in by_folder[0].items():
        tasks[task] = {"num_items": len(rows(task, "test"))}
        for key, value in shipped.items():
            values = [other[task][key] for other in by_folder]
            summary = {"shipped": value, "mean": fmean(values), "min": min(values), "max": max(values)}
            tasks[task][key] = {name: round(number, 4) for name, number in summary.items()}
    return {"pretraining": pretraining, "num_seeds": len(folders), "tasks": tasks}


def main() -> None:
    """Read the command line, score, and print or write the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="the base, then other seeds of its recipe")
    parser.add_argument("--card", action="store_true", help="write card.json and README.md into the first folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = card(arguments.folders)
    page = card_page(result)
    if arguments.card:
        (arguments.folders[0] / "card.json").write_text(json.dumps(result, indent=2) + "\n")
        (arguments.folders[0] / "README.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
