"""The tools people use, used well: TRL's SFTTrainer, PEFT, lm-eval's HFLM and torch.linalg.svd, one run after another.

Completion-only loss; batches in the study's own order, so that losses can be compared; adapters merged before they are
scored; lm-eval at the batch size that a calibration found best; the base's decompositions kept for all runs.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import datasets
import lm_eval.models.huggingface as harness
import polars as pl
import psutil
import torch
import transformers
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
from work import Run, Work, read_work

BATCH_SIZES = (4, 16, 64)
_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_CALIBRATED = 24  # items
NUM_TOP = 10  # singular vectors that may be intruders


def train(work: Work, out: Path, options: dict) -> dict:
    """Every run, one after another."""
    rows = [json.loads(line) for line in Path(work.examples).read_text().splitlines()]
    losses = {}
    for run in work.runs:
        trainer = _trainer(work, run, rows, out / run.label, options)
        trainer.train()
        trainer.save_model(str(out / run.label))
        losses[run.label] = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return {"losses": losses}


def _trainer(work: Work, run: Run, rows: list[dict], out: Path, options: dict) -> SFTTrainer:
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    config = SFTConfig(
        output_dir=str(out),
        max_steps=work.num_steps,
        per_device_train_batch_size=work.batch_size,
        learning_rate=run.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(work.num_steps * work.warmup_ratio),
        max_length=work.max_length,
        completion_only_loss=True,
        train_sampling_strategy="sequential",
        gradient_checkpointing=False,
        logging_steps=work.num_steps,
        save_strategy="no",
        report_to="none",
        use_cpu=_DEVICE == "cpu",
        bf16=_DEVICE == "cuda",  # as rankscope does there
        disable_tqdm=True,
        **options,
    )
    adapter = None
    if run.rank is not None:
        adapter = LoraConfig(r=run.rank, lora_alpha=2 * run.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32)
    data = datasets.Dataset.from_list(rows)
    return SFTTrainer(model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=adapter)


def score(work: Work, trained: Path, names: list[str], sizes: dict[str, int]) -> dict:
    """The base and every run on the given tasks."""
    accuracy = {}
    for run in (None, *work.runs):
        model = harness_model(work, tuned_model(work, trained, run), 1)
        label = "base" if run is None else run.label
        accuracy[label] = {name: score_task(model, work, name, sizes.get(name, 16)) for name in names}
    return {"values": accuracy}


def calibrate(work: Work) -> dict[str, int]:
    """The best batch size of each task, on its first items, with the base."""
    model = harness_model(work, tuned_model(work, Path(), None), 1)
    best = {}
    for name in work.tasks:
        seconds: dict[int, float] = {}
        for size in BATCH_SIZES:
            if seconds and not _has_room(work, model, name, size):
                break
            started = time.perf_counter()
            score_task(model, work, name, size, _CALIBRATED)
            seconds[size] = time.perf_counter() - started
        best[name] = min(seconds, key=seconds.__getitem__)
    return best


def _has_room(work: Work, model: harness.HFLM, name: str, size: int) -> bool:
    """Whether logits of a batch, and their logarithms, leave half of the memory free: else the system may kill it."""
    items = pl.read_parquet(work.tasks[name]).head(_CALIBRATED).to_dicts()
    longest = max(len(model.tok_encode(f"{item['prompt']}{item['target']}")) for item in items)
    vocabulary = model.model.get_output_embeddings().weight.shape[0]
    return 2 * 4 * size * longest * vocabulary < psutil.virtual_memory().available / 2


def harness_model(work: Work, model: torch.nn.Module, size: int) -> harness.HFLM:
    """A model as lm-eval scores it, with so many rows in a batch."""
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    return harness.HFLM(pretrained=model.to(_DEVICE), tokenizer=tokenizer, batch_size=size, device=_DEVICE)


def score_task(model: harness.HFLM, work: Work, name: str, size: int, limit: int | None = None) -> float:
    """The model's share of right answers on a task, or of a text the log-likelihood of all items."""
    items = pl.read_parquet(work.tasks[name]).head(limit or 10**9).to_dicts()
    model.batch_size_per_gpu = size
    if name == work.text:
        requests = [SimpleNamespace(args=(item["target"],)) for item in items]
        return sum(model.loglikelihood_rolling(requests, disable_tqdm=True))
    requests = [SimpleNamespace(args=(item["prompt"], option)) for item in items for option in item["options"]]
    values = iter(model.loglikelihood(requests, disable_tqdm=True))
    right = 0
    for item in items:
        sums = [next(values)[0] for _ in item["options"]]
        right += sums.index(max(sums)) == item["target_index"]
    return right / len(items)


def tuned_model(work: Work, trained: Path, run: Run | None) -> torch.nn.Module:
    """What the run has trained, an adapter merged; without a run the base."""
    if run is not None and run.rank is None:
        return AutoModelForCausalLM.from_pretrained(trained / run.label, dtype=torch.float32).eval()
    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32).eval()
    if run is None:
        return model
    return PeftModel.from_pretrained(model, trained / run.label).merge_and_unload()


def spectra(work: Work, trained: Path) -> dict:
    """Singular values of every update, and intruders among the ten largest directions of every tuned matrix."""
    base = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32)
    matrices = {
        n: m.weight.detach() for n, m in base.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"
    }
    left = {name: torch.linalg.svd(W0, full_matrices=False).U for name, W0 in matrices.items()}
    intruders = {}
    for run in work.runs:
        count = 0
        for name, delta_W in _updates(work, trained, run, matrices):
            torch.linalg.svdvals(delta_W)
            U = torch.linalg.svd(matrices[name] + delta_W, full_matrices=False).U[:, :NUM_TOP]
            count += int(((left[name].T @ U).abs().amax(dim=0) < 0.5).sum())
        intruders[run.label] = count
    return {"intruders": intruders}


def _updates(work: Work, trained: Path, run: Run, matrices: dict):  # noqa: ANN202
    if run.rank is None:
        tuned = AutoModelForCausalLM.from_pretrained(trained / run.label, dtype=torch.float32)
        for name, W0 in matrices.items():
            yield name, tuned.get_submodule(name).weight.detach() - W0
        return
    tensors = load_file(trained / run.label / "adapter_model.safetensors")
    for name in matrices:
        stem = f"base_model.model.{name}"
        yield name, 2.0 * tensors[f"{stem}.lora_B.weight"] @ tensors[f"{stem}.lora_A.weight"]


def main() -> None:
    """Do one part of the work, or all, and write how long it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["training", "scoring", "text", "spectra", "study", "calibrate"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    work = read_work(arguments.folder)
    settings_file = arguments.folder / "peer.json"
    settings = json.loads(settings_file.read_text()) if settings_file.exists() else {}
    trained = arguments.folder / "peer"
    tasks = [name for name in work.tasks if name != work.text]
    started, processor_started = time.perf_counter(), time.process_time()
    if arguments.part == "calibrate":
        result = {"sizes": calibrate(work)}
        settings_file.write_text(json.dumps(result))
    elif arguments.part == "training":
        result = train(work, trained, {})
    elif arguments.part == "scoring":
        result = score(work, trained, tasks, settings["sizes"])
    elif arguments.part == "text":
        result = score(work, trained, [work.text], settings["sizes"])
    elif arguments.part == "spectra":
        result = spectra(work, trained)
    else:
        result = train(work, trained, {})
        result |= score(work, trained, [*tasks, work.text], settings["sizes"])
        result |= spectra(work, trained)
    taken = {"seconds": time.perf_counter() - started, "processor_seconds": time.process_time() - processor_started}
    arguments.out.write_text(json.dumps(taken | result))


if __name__ == "__main__":
    main()
