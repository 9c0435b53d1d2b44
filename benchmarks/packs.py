"""Eight ranks in one pack against one at a time, on a GPU: a random model of Qwen2.5-0.5B's shape.

    python benchmarks/packs.py                                              on a GPU; elsewhere it says so and ends
    python benchmarks/packs.py --shape tiny --device cpu --length 64        whether it runs at all, anywhere

Steps of all runs a second, over batches and lengths, by the measurement with which a study divides its machine. Alone,
each of the eight ranks is measured in turn, and what counts is the time of one step of each. Every example has the
length in full, a quarter of it learned, so nothing is padded and the two do the same arithmetic.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from work import HERE

from rankscope.data.examples import TokenisedExample
from rankscope.execute.trials import TrialWork, steps_per_second
from rankscope.layout import find_device, num_cores
from rankscope.plan import Plan
from rankscope.planning import make_plan
from rankscope.runs import RunSettings
from rankscope.spec import Study

RANKS = (1, 2, 4, 8, 16, 32, 64, 128)
BATCHES = (1, 4, 16)
LENGTHS = (512, 2048)
SECONDS = 5.0
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": {
        "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "vocab_size": 2048, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    },
}  # fmt: skip


def main() -> None:
    """Measure every batch at every length; each line is printed as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=[*SHAPES], default="qwen2.5-0.5b")
    parser.add_argument("--device", default=find_device())
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--length", type=int, action="append")
    parser.add_argument("--folder", type=Path, default=HERE.parent / "build" / "packs")
    parser.add_argument("--out", type=Path, default=HERE / "packs.json")
    arguments = parser.parse_args()
    if arguments.device == "cpu" and arguments.shape != "tiny":
        print("packs: left out, there is no GPU (`--shape tiny --device cpu` shows whether it runs)")
        return
    model = _random_model(arguments.folder / arguments.shape, SHAPES[arguments.shape])
    plan = _plan(model, arguments.device, arguments.folder / "rows.jsonl")
    rows = []
    for length in arguments.length or LENGTHS:
        for batch in arguments.batch or BATCHES:
            rows.append(_measured(plan, batch, length))
            print(rows[-1], flush=True)
    document = {"gpu": plan.layout.gpu, "products_in_bfloat16": plan.is_mixed, "points": rows}
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")


def _measured(plan: Plan, batch: int, length: int) -> dict[str, float | int | None]:
    """Steps a second packed and one at a time, and how many times faster packs are; None where one does not fit."""
    runs = [_with_batch(run, batch) for run in plan.runs]
    packed = _speed(plan, runs, batch, length)
    each = [_speed(plan, [run], batch, length) for run in runs]
    # Ranks differ in speed, so the seconds of a step are added up, not the steps of a second.
    alone = None if None in each else len(runs) / sum(1.0 / speed for speed in each)
    ratio = None if packed is None or alone is None else packed / alone
    return {"batch": batch, "length": length, "packed": packed, "alone": alone, "ratio": ratio}


def _with_batch(run: RunSettings, batch: int) -> RunSettings:
    return run.model_copy(update={"optimization": run.optimization.model_copy(update={"batch_size": batch})})


def _speed(plan: Plan, runs: list[RunSettings], batch: int, length: int) -> float | None:
    draw = random.Random(0)
    vocabulary = SHAPES["tiny"]["vocab_size"]
    examples = tuple(
        TokenisedExample(str(number), tuple(draw.choices(range(vocabulary), k=length)), length * 3 // 4)
        for number in range(4 * batch)
    )
    division = {"pack_size": len(runs), "num_workers": 1, "threads_per_worker": num_cores()}
    layout = plan.layout.model_copy(update=division)
    budget = len(runs) * batch * length  # all in one forward; where that does not fit, the trial says so
    return steps_per_second(TrialWork(tuple(runs), (examples,) * len(runs), plan.dtype, layout, budget, SECONDS))


def _plan(model: Path, device: str, rows: Path) -> Plan:
    """The plan of a study with a run of each rank."""
    rows.write_text("".join(json.dumps({"question": f"What is {n}?", "answer": str(n)}) + "\n" for n in range(64)))
    study = {
        "study": "packs",
        "model": str(model),
        "train": {"set": {"source": str(rows), "validation": {"max_examples": 8}}},
        "arms": [{"method": "lora", "rank": list(RANKS), "lora_alpha": "2r", "learning_rate": [1e-4]}],
        "optimization": {"max_steps": 1000, "batch_size": 1},
        "seeds": [0],
        "evaluate": {"task": {"source": "smallworld:general_recall", "max_examples": 8, "in_domain_for": ["set"]}},
        "execute": {"device": device},
    }
    return make_plan(Study.model_validate(study))[0]


def _random_model(folder: Path, shape: dict[str, Any]) -> Path:
    """A Qwen2 of that shape with random weights, and the small world's tokenizer, which knows few of its tokens."""
    if (folder / "config.json").exists():
        return folder
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    from rankscope.data.hub import model_folder

    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen2ForCausalLM(Qwen2Config(**shape)).to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_folder("smallworld:base")).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
