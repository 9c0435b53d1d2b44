"""The derive stage on tiny models: PEFT reads what it writes, and what is scored is what it says."""

import polars as pl
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from analysed import write_models
from rankscope.data.examples import Item, items_frame
from rankscope.derive import stage
from rankscope.models.loading import Models
from rankscope.plan import Pack
from rankscope.runs import DerivedPoint
from rankscope.store import check_files, write_parquet

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

POINTS = [DerivedPoint(kind=kind, amount=amount) for kind, amount in
          (("rewind", 0.5), ("rewind", 1.0), ("truncate", 1), ("intruders", 0.0), ("intruders", 1.0))]  # fmt: skip


class Scored:
    """Stands in for scoring: keeps the model's weights and logits as they were when it was asked."""

    def __init__(self, monkeypatch):
        self.logits, self.weights = [], []
        monkeypatch.setattr(stage, "score_task", self)

    def __call__(self, model, tokenizer, items, settings, max_tokens, trees):
        with torch.no_grad():
            self.logits.append(model(torch.arange(5, 15).unsqueeze(0)).logits)
        weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        self.weights.append(weights)
        frame = pl.DataFrame({"item_id": [item.item_id for item in items]})
        return type("Task", (), {"items": frame, "values": {"accuracy": 0.5}, "trees": None})()


class Watcher:
    def __init__(self):
        self.told = []

    def progress(self, run_id, done, total, loss):
        self.told.append((run_id, done, total))

    def wants_stop(self):
        return False


class OwnModels(Models):
    def __init__(self, store, folder):
        super().__init__(store, "float32", "cpu")
        self.folder = folder

    def base_folder(self, settings):
        return self.folder

    def tokenizer(self, settings):
        return None


@pytest.fixture
def derive(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKSCOPE_CACHE", str(tmp_path / "cache"))
    synthetic, _ = write_models(tmp_path)
    plan = synthetic.plan.model_copy(update={"derived": dict.fromkeys(synthetic.plan.arms, tuple(POINTS))})
    for task in plan.tasks["small"]:
        items = [Item(item_id=f"{task}-0", category=None, prompt="a", options=("b", "c"), target="b", target_index=0)]
        write_parquet(synthetic.store.base_task("small", task) / "prompts.parquet", items_frame(items))
    scored = Scored(monkeypatch)
    models = OwnModels(synthetic.store, tmp_path / "base")

    def call(arm, point):
        [run] = synthetic.runs(arm)
        pack = Pack("derive", "small", (run.run_id,), (point.name,))
        stage.run(pack, plan, synthetic.store, models, call.watcher)
        folder = synthetic.store.derived(run.run_id, point.name)
        record = synthetic.store.read_derive(folder)
        check_files(folder, record)
        assert (record.status, record.point) == ("complete", point)
        assert record.settings_hash == plan.derive_hash(run.run_id, point.name)
        return record, folder

    call.scored, call.synthetic, call.plan, call.base = scored, synthetic, plan, tmp_path / "base"
    call.watcher, call.models = Watcher(), models
    return call


def peft_logits(base, folder):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base).eval(), folder / "adapter").eval()
    with torch.no_grad():
        return model(torch.arange(5, 15).unsqueeze(0)).logits


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.name)
def test_a_derived_adapter_is_one_of_pefts(derive, point):
    """What was scored is what PEFT loads from the folder."""
    record, folder = derive("lora-r3", point)
    torch.testing.assert_close(derive.scored.logits[0], peft_logits(derive.base, folder), rtol=1e-4, atol=1e-5)
    [run] = derive.synthetic.runs("lora-r3")
    tasks = derive.plan.derive_tasks(run.run_id)
    assert list(record.scores) == tasks == ["taught", "general", "text"]  # not `legal`, out of domain
    assert record.scores[tasks[0]] == {"accuracy": 0.5}
    assert all(f"{task}/items.parquet" in record.files for task in tasks)


def test_an_amount_of_one_is_the_run_itself(derive):
    [run] = derive.synthetic.runs("lora-r3")
    expected = peft_logits(derive.base, derive.synthetic.store.train(run.run_id))
    for point in (POINTS[1], POINTS[4]):
        derive("lora-r3", point)
        torch.testing.assert_close(derive.scored.logits[-1], expected, rtol=1e-3, atol=1e-4)


def test_ranks_are_recorded(derive):
    record, _ = derive("lora-r3", POINTS[2])
    assert (record.rank, record.added_rank, record.num_intruders) == (1, 0, None)
    record, _ = derive("lora-r3", POINTS[3])
    assert record.num_intruders > 0
    assert record.rank == 3 + record.added_rank > 3
    half, _ = derive("lora-r3", POINTS[0])
    whole, _ = derive("lora-r3", POINTS[1])
    assert half.summary["update_norm"] == pytest.approx(0.5 * whole.summary["update_norm"], rel=1e-6)


def test_a_full_model_is_changed_in_memory_and_not_kept(derive):
    base = dict(AutoModelForCausalLM.from_pretrained(derive.base).named_parameters())
    [run] = derive.synthetic.runs("full")
    tuned = AutoModelForCausalLM.from_pretrained(derive.synthetic.store.train(run.run_id) / "model")
    tuned = dict(tuned.named_parameters())
    record, folder = derive("full", POINTS[0])
    assert not (folder / "adapter").exists() and record.rank is None
    for name, parameter in derive.scored.weights[0].items():
        torch.testing.assert_close(parameter, (base[name] + tuned[name]) / 2)
    derive("full", POINTS[2])
    cut = derive.scored.weights[-1]
    name = "model.layers.1.self_attn.q_proj.weight"
    U, S, Vh = torch.linalg.svd((tuned[name] - base[name]).detach())
    torch.testing.assert_close(cut[name], base[name] + S[0] * torch.outer(U[:, 0], Vh[0]), rtol=1e-4, atol=1e-5)
    # What is no matrix of a linear layer stays as it was trained.
    torch.testing.assert_close(cut["model.norm.weight"], tuned["model.norm.weight"])
    record, _ = derive("full", POINTS[3])
    assert record.num_intruders is not None


def test_the_base_is_whole_again_afterwards(derive):
    for arm in ("full", "lora-r3"):
        derive(arm, POINTS[0])
        derive("lora-r2", POINTS[1])  # untrained: the base
        model = AutoModelForCausalLM.from_pretrained(derive.base).eval()
        with torch.no_grad():
            expected = model(torch.arange(5, 15).unsqueeze(0)).logits
        torch.testing.assert_close(derive.scored.logits[-1], expected, rtol=1e-5, atol=1e-6)
        [run] = derive.synthetic.runs("lora-r2")
        (derive.synthetic.store.derived(run.run_id, POINTS[1].name) / "record.json").unlink()


def test_progress_counts_the_tasks_of_all_points_of_a_pack(derive):
    [run] = derive.synthetic.runs("lora-r3")
    names = tuple(point.name for point in POINTS[:2])
    stage.run(Pack("derive", "small", (run.run_id,), names), derive.plan, derive.synthetic.store, derive.models,
              derive.watcher)  # fmt: skip
    assert derive.watcher.told == [(run.run_id, done, 6) for done in range(1, 7)], "two points on three tasks each"


def test_finished_points_are_not_made_again(derive):
    derive("lora-r3", POINTS[0])
    derive("lora-r3", POINTS[0])
    assert len(derive.scored.logits) == 3  # one for each task, once


def test_an_update_that_is_no_product_is_not_available(derive, monkeypatch):
    def dense(*args):
        for update in updates(*args):
            yield type(update)(**{**vars(update), "read_factors": None})

    updates = stage.iter_updates
    monkeypatch.setattr(stage, "iter_updates", dense)
    record, _ = derive("lora-r3", POINTS[0])
    assert record.scores == {} and record.files == {}
    assert record.notes[0].startswith("not available: the update of")
