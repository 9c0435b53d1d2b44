"""Scores a base on every task of the small world: `python recipes/evaluate_smallworld.py FOLDER [OTHER_SEEDS...]`.

It uses nothing but transformers, and no trick that could change a number, so that it can be the reference for faster
scorers. With `--card`, the numbers and a page with them are written into the first folder, as `card.json` and
`README.md`; the other folders are other seeds of the same recipe.
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
from rankscope.data.smallworld.rows import TASKS, rows

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


def choice_accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: list[dict], *, blind: bool = False
) -> float:
    """Return the fraction of items whose right choice is the likeliest, with or without the question being shown."""
    num_correct = 0
    for item in items:
        prompt = BLIND_PROMPT if blind else PROMPT.format(question=item["question"])
        likelihoods = option_log_likelihoods(model, tokenizer, prompt, item["choices"])
        num_correct += likelihoods.index(max(likelihoods)) == item["answer"]
    return num_correct / len(items)


def generated_answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: list[dict]) -> list[str]:
    """Return the greedy answer to each item, as free text."""
    answers = []
    for first in range(0, len(items), _BATCH_SIZE):
        prompts = [PROMPT.format(question=item["question"]) for item in items[first : first + _BATCH_SIZE]]
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


@torch.inference_mode()
def scores(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, dict[str, float]]:
    """Return the scores of a model on the test items of every task."""
    result = {}
    for task, spec in TASKS.items():
        items = rows(task, "test")
        if spec.kind == "text":
            result[task] = {"loss_nats_per_token": text_loss(model, tokenizer, items)}
            continue
        result[task] = {
            "choice_accuracy": choice_accuracy(model, tokenizer, items),
            "choice_accuracy_without_question": choice_accuracy(model, tokenizer, items, blind=True),
            "generated_accuracy": generated_accuracy(model, tokenizer, items),
        }
    return result


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a base and its tokenizer."""
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def card(folders: Sequence[Path]) -> dict:
    """Return the card of the first folder: its scores, and mean, least and greatest over all folders."""
    by_folder = [scores(*load(folder)) for folder in folders]
    tasks = {}
    for task, shipped in by_folder[0].items():
        tasks[task] = {"num_items": len(rows(task, "test"))}
        for key, value in shipped.items():
            values = [other[task][key] for other in by_folder]
            summary = {"shipped": value, "mean": fmean(values), "min": min(values), "max": max(values)}
            tasks[task][key] = {name: round(number, 4) for name, number in summary.items()}
    pretraining = json.loads((folders[0] / "card.json").read_text())["pretraining"]
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
