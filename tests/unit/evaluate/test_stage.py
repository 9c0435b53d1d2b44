"""The evaluation stage on a tiny base with a tokenizer: what lies on disk, what is redone, and the identity."""

import polars as pl
import pytest
import torch
from peft import LoraConfig, get_peft_model
from polars.testing import assert_frame_equal
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rankscope.data.examples import Item, items_frame
from rankscope.evaluate import stage
from rankscope.models.loading import Models as LoadedModels
from rankscope.plan import VALIDATION, Estimate, Layout, Pack, Plan, validation_task
from rankscope.runs import TaskSettings
from rankscope.scoring.tasks import ITEM_SCHEMA
from rankscope.store import Store, check_files, write_parquet
from small_tokenizer import BOS, EOS, save_tokenizer
from tiny import full_run, lora_run

CHOICES = [
    Item("a", "Question: Which drug lowers the fever?\nAnswer:", (" aspirin", " ibuprofen", " water"), " aspirin", 0),
    Item("b", "The court held that", (" the claim was brought", " the statute"), " the statute", 1),
]
SUMS = [Item("s", "Anna buys 6 boxes. 6 * 4 =", (), "#### 24")]
TEXTS = [Item("t", "", (), "Once upon a time there was a little girl.")]
TAUGHT = [Item("v", "Where did the girl live?", (" Berlin", " in a boat"), " Berlin", 0)]
PROMPTS = {"choices": CHOICES, "sums": SUMS, "texts": TEXTS, validation_task("set"): TAUGHT}
UNTRAINED, FULL = lora_run(2, 1e-3, 0, 1), full_run(1e-3, 0, 1)


class Models(LoadedModels):
    """The models of a worker, with a base from a folder and a count of what was asked for."""

    def __init__(self, store, folder):
        super().__init__(store, "float32", "cpu")
        self.folder = folder
        self.asked = []

    def base_folder(self, settings):
        return self.folder

    def base(self, settings):
        self.asked.append("base")
        return super().base(settings)

    def tuned(self, run):
        self.asked.append(run.arm.label)
        return super().tuned(run)

    def tuned_together(self, runs):
        self.asked.append("+".join(run.arm.label for run in runs))
        return super().tuned_together(runs)


class Watcher:
    def __init__(self, stop_after=10**6):
        self.left = stop_after

    def wants_stop(self):
        self.left -= 1
        return self.left < 0


def task(name, scoring, answer="text"):
    return TaskSettings(
        name=name, scoring=scoring, kind=None, answer=answer, max_new_tokens=5, fingerprint=name, num_items=1
    )


@pytest.fixture
def study(tmp_path):
    """A base, an adapter that was never trained and a full model, with the prompts that planning writes."""
    base = tmp_path / "base"
    base.mkdir()
    save_tokenizer(base)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=BOS, eos_token_id=EOS, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(base)
    store = Store(tmp_path / "study")
    adapter = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), adapter)
    model.save_pretrained(store.train(UNTRAINED.run_id) / "adapter")
    tuned = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        tuned.model.norm.weight += 0.5
    tuned.save_pretrained(store.train(FULL.run_id) / "model")
    for name, items in PROMPTS.items():
        write_parquet(store.base_task("tiny", name) / "prompts.parquet", items_frame(items))
    tasks = [task("choices", "multiple_choice"), task("sums", "generate", "number"), task("texts", "loss")]
    plan = Plan(
        study="s",
        bases={"tiny": UNTRAINED.base},
        arms=("lora-r2", "full"),
        tasks={"tiny": {each.name: each for each in tasks}},
        validation={"tiny": {"set": task("set", "multiple_choice")}},
        relations={"set": {each.name: "retention" for each in tasks}},
        runs=(UNTRAINED, FULL),
        search_seeds=(0,),
        layout=Layout(device="cpu", num_workers=1, threads_per_worker=1),
        dtype="float32",
        max_tokens_per_batch=512,
        checkpoint_seconds=60.0,
        probes_fingerprint={"tiny": "p"},
        analyses=(),
        estimate=Estimate(
            trained_tokens=0, scored_tokens=0, arithmetic=0.0, seconds=None, memory_bytes=None, disk_bytes=0
        ),
    )
    return plan, store, Models(store, base)


def score(study, run_ids, names, watcher=None):
    plan, store, models = study
    stage.run(Pack("evaluate", "tiny", run_ids, names), plan, store, models, watcher or Watcher())


def test_what_lies_on_disk(study):
    plan, store, _ = study
    names = ("choices", "sums", "texts")
    score(study, (), (*names, validation_task("set")))
    score(study, (FULL.run_id,), (*names, VALIDATION))
    folders = {
        None: [store.base_task("tiny", name) for name in (*names, validation_task("set"))],
        FULL.run_id: [store.task(FULL.run_id, name) for name in (*names, VALIDATION)],
    }
    for run_id, places in folders.items():
        for folder, items in zip(places, PROMPTS.values(), strict=True):
            record = store.read_evaluate(folder)
            assert record.status == "complete"
            assert record.settings_hash == plan.evaluation_hash("tiny", run_id, folder.name)
            assert record.subject.run_id == run_id
            assert (record.task, record.num_items, record.num_truncated) == (folder.name, len(items), 0)
            assert record.num_unfinished == (len(items) if folder.name == "sums" else None)
            frame = pl.read_parquet(folder / "items.parquet")
            assert frame.schema == pl.Schema(ITEM_SCHEMA)
            assert frame["item_id"].to_list() == [item.item_id for item in items]
            check_files(folder, record)
            expected = {"items.parquet"} if run_id else {"items.parquet", "prompts.parquet"}
            assert set(record.files) == expected
    record = store.read_evaluate(store.task(FULL.run_id, "choices"))
    assert (record.scored_by, record.note) == ("option_tree", None)
    assert (
        record.values["accuracy"]
        == pl.read_parquet(store.task(FULL.run_id, "choices") / "items.parquet")["is_correct"].mean()
    )


def test_an_untrained_adapter_has_the_bases_scores_exactly(study):
    _, store, _ = study
    names = ("choices", "sums", "texts")
    score(study, (), names)
    score(study, (UNTRAINED.run_id, FULL.run_id), names)
    for name in names:
        before = pl.read_parquet(store.base_task("tiny", name) / "items.parquet")
        assert pl.read_parquet(store.task(UNTRAINED.run_id, name) / "items.parquet").equals(before)
    changed = pl.read_parquet(store.task(FULL.run_id, "texts") / "items.parquet")
    assert changed["nll_nats"][0] != pl.read_parquet(store.base_task("tiny", "texts") / "items.parquet")["nll_nats"][0]


def test_finished_work_is_not_done_again_and_other_settings_are(study):
    plan, store, models = study
    score(study, (UNTRAINED.run_id,), ("choices",))
    assert models.asked == ["lora-r2", "base"]
    models.asked.clear()
    score(study, (UNTRAINED.run_id,), ("choices",))
    assert models.asked == []
    other = plan.tasks["tiny"]["choices"].model_copy(update={"fingerprint": "changed"})
    changed = plan.model_copy(update={"tasks": {"tiny": {**plan.tasks["tiny"], "choices": other}}})
    score((changed, store, models), (UNTRAINED.run_id,), ("choices",))
    assert models.asked == ["lora-r2", "base"]
    record = store.read_evaluate(store.task(UNTRAINED.run_id, "choices"))
    assert record.settings_hash == changed.evaluation_hash("tiny", UNTRAINED.run_id, "choices")


def test_a_wish_to_stop_leaves_whole_tasks(study):
    _, store, _ = study
    score(study, (), ("choices", "texts"), Watcher(stop_after=1))
    assert store.read_evaluate(store.base_task("tiny", "choices")).status == "complete"
    assert store.read_evaluate(store.base_task("tiny", "texts")) is None
    score(study, (), ("choices", "texts"))
    assert store.read_evaluate(store.base_task("tiny", "texts")).status == "complete"


def test_a_refusal_of_trees_is_found_once_and_recorded_with_every_task(study, monkeypatch):
    _, store, _ = study
    checks = []
    monkeypatch.setattr("rankscope.scoring.likelihoods._largest_difference", lambda *_: checks.append(1) or 0.5)
    score(study, (UNTRAINED.run_id, FULL.run_id), ("choices", VALIDATION))
    assert len(checks) == 1
    for run in (UNTRAINED, FULL):
        record = store.read_evaluate(store.task(run.run_id, "choices"))
        note = "option trees differed from separate rows by 0.5 nats on a few items"
        assert (record.scored_by, record.note) == ("separate_rows", note)


def test_failures_are_not_swallowed(study):
    _, store, _ = study
    (store.base_task("tiny", "texts") / "prompts.parquet").unlink()
    with pytest.raises(FileNotFoundError):
        score(study, (), ("texts",))
    assert store.read_evaluate(store.base_task("tiny", "texts")) is None


def with_adapters(study):
    """The study with two adapters that say something of their own."""
    plan, store, models = study
    runs = tuple(lora_run(rank, 1e-3, rank, 1) for rank in (4, 8))
    for run in runs:
        adapter = LoraConfig(r=run.arm.rank, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(models.folder), adapter)
        generator = torch.Generator().manual_seed(run.arm.rank)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(store.train(run.run_id) / "adapter")
    return plan.model_copy(update={"runs": (*plan.runs, *runs)}), runs


def test_runs_of_a_pack_generate_side_by_side_and_are_scored_as_alone(study, tmp_path):
    plan, runs = with_adapters(study)
    _, store, models = study
    names = ("choices", "sums", "texts")
    ids = tuple(run.run_id for run in runs)
    stage.run(Pack("evaluate", "tiny", ids, names), plan, store, models, Watcher())
    assert models.asked.count("lora-r4+lora-r8") == 1
    together = {(run_id, name): pl.read_parquet(store.task(run_id, name) / "items.parquet") for run_id in ids
                for name in names}  # fmt: skip
    for run_id in ids:
        for name in names:
            record = store.read_evaluate(store.task(run_id, name))
            assert record.status == "complete" and record.subject.run_id == run_id
            check_files(store.task(run_id, name), record)
            (store.task(run_id, name) / "record.json").unlink()
        stage.run(Pack("evaluate", "tiny", (run_id,), names), plan, store, models, Watcher())
        for name in names:
            alone = pl.read_parquet(store.task(run_id, name) / "items.parquet")
            assert_frame_equal(together[run_id, name], alone, check_exact=False, abs_tol=1e-4, rel_tol=0)
    assert together[ids[0], "sums"]["generated"].item() != together[ids[1], "sums"]["generated"].item()
    models.asked.clear()
    stage.run(Pack("evaluate", "tiny", ids, names), plan, store, models, Watcher())
    assert models.asked == []


def test_a_run_of_a_pack_that_is_scored_already_stays_as_it_is(study):
    plan, runs = with_adapters(study)
    _, store, models = study
    stage.run(Pack("evaluate", "tiny", (runs[0].run_id,), ("sums",)), plan, store, models, Watcher())
    before = (store.task(runs[0].run_id, "sums") / "record.json").read_bytes()
    stage.run(Pack("evaluate", "tiny", tuple(run.run_id for run in runs), ("sums",)), plan, store, models, Watcher())
    assert (store.task(runs[0].run_id, "sums") / "record.json").read_bytes() == before
    assert store.read_evaluate(store.task(runs[1].run_id, "sums")).status == "complete"


def test_a_pack_that_is_stopped_leaves_the_rest_for_the_next_time(study):
    plan, runs = with_adapters(study)
    _, store, models = study
    ids = tuple(run.run_id for run in runs)
    stage.run(Pack("evaluate", "tiny", ids, ("sums",)), plan, store, models, Watcher(stop_after=0))
    assert all(store.read_evaluate(store.task(run_id, "sums")) is None for run_id in ids)
