"""A base, an untrained adapter, a trained one and a fully tuned model on disk, and the stage called on them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import polars as pl
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from rankscope.analyse import stage
from rankscope.models.loading import Models as LoadedModels
from rankscope.plan import Pack
from rankscope.store import check_files, write_parquet
from synthetic import Arm, Synthetic, write_study

CONFIG = LlamaConfig(
    vocab_size=50,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    tie_word_embeddings=True,
)
PROBES = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], list(range(3, 40)), [20, 21, 22, 23, 24]]
EVERYTHING = ("spectra", "attention")


class Models:
    """The process's models, with a count of how often each was asked for; tuned ones change the one base in place."""

    def __init__(self, store, folder):
        self.store = store
        self.folder = folder
        self.asked = []
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.is_changed = False

    def base(self, settings):
        assert not self.is_changed, "the base is asked for while a tuned model is made of it"
        self.asked.append("base")
        return self.model

    def base_folder(self, settings):
        return self.folder

    @contextlib.contextmanager
    def tuned(self, run):
        self.asked.append(run.arm.label)
        folder = self.store.train(run.run_id)
        self.is_changed = True
        try:
            if run.arm.method == "full":
                yield AutoModelForCausalLM.from_pretrained(folder / "model").eval()
            else:
                wrapped = PeftModel.from_pretrained(self.model, folder / "adapter").eval()
                yield wrapped.base_model.model
                self.model = wrapped.unload()
        finally:
            self.is_changed = False


class OwnModels(LoadedModels):
    """The models of a worker, with a base from a folder."""

    def __init__(self, store, folder):
        super().__init__(store, "float32", "cpu")
        self.folder = folder

    def base_folder(self, settings):
        return self.folder


class Watcher:
    def __init__(self, stop_after=None):
        self.left = stop_after

    def wants_stop(self):
        if self.left is None:
            return False
        self.left -= 1
        return self.left < 0


def write_models(tmp_path: Path) -> tuple[Synthetic, Models]:
    """A base, an untrained adapter, a trained one and a fully tuned model with a planted update of rank 2."""
    arms = [Arm(method, rank, (1e-3,), best=0) for method, rank in (("lora", 2), ("lora", 3), ("full", None))]
    synthetic = write_study(tmp_path / "study", arms=arms, seeds=(0,))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIG).save_pretrained(tmp_path / "base")
    untrained, trained, full = [synthetic.runs(arm)[0] for arm in ("lora-r2", "lora-r3", "full")]
    for run, is_trained in ((untrained, False), (trained, True)):
        torch.manual_seed(1)
        targets = ["q_proj", "down_proj"]
        options = LoraConfig(r=run.arm.rank, lora_alpha=4, target_modules=targets, task_type="CAUSAL_LM")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), options)
        if is_trained:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "lora_B" in name:
                        parameter.normal_()
        model.save_pretrained(synthetic.store.train(run.run_id) / "adapter")
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        q = torch.linalg.qr(torch.randn(16, 2)).Q
        # Singular values 3 and 4 on layer 1's queries, nothing elsewhere but a norm.
        tuned.model.layers[1].self_attn.q_proj.weight += q @ torch.diag(torch.tensor([4.0, 3.0])) @ q.T
        tuned.model.norm.weight += 0.5
    tuned.save_pretrained(synthetic.store.train(full.run_id) / "model")
    rows = [(f"task/{index}", "task", ids) for index, ids in enumerate(PROBES)]
    schema = {"probe_id": pl.String, "source": pl.String, "input_ids": pl.List(pl.Int32)}
    write_parquet(synthetic.store.base("small") / "probes.parquet", pl.DataFrame(rows, schema=schema, orient="row"))
    return synthetic, Models(synthetic.store, tmp_path / "base")


def analyse(study, run_ids=(), names=EVERYTHING, watcher=None):
    synthetic, models = study
    pack = Pack("analyse", "small", tuple(run_ids), tuple(names))
    stage.run(pack, synthetic.plan, synthetic.store, models, watcher or Watcher())


def analysed(study, arm, name):
    """The record, the folder, and the run."""
    synthetic, _ = study
    [run] = synthetic.runs(arm)
    analyse(study, [run.run_id], [name])
    folder = synthetic.store.analysis(run.run_id, name)
    record = synthetic.store.read_analyse(folder)
    check_files(folder, record)
    assert record.status == "complete"
    assert record.settings_hash == synthetic.plan.analysis_hash("small", run.run_id, name)
    assert record.subject.run_id == run.run_id
    return record, folder, run
