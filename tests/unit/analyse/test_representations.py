"""Representations and neurons through the stage, against both models run text by text."""

import polars as pl
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from analysed import PROBES, Watcher, analyse, analysed
from rankscope.analyse import neurons, stage
from rankscope.errors import NotAvailable
from rankscope.internals import patterns
from rankscope.internals.neurons import neuron_sums
from rankscope.internals.patterns import batches
from rankscope.internals.representations import stream_measures, stream_sums
from rankscope.internals.streams import show_neurons, show_streams
from rankscope.plan import Pack
from rankscope.store import write_parquet


@pytest.fixture
def tasks(study):
    """The probe texts as those of two tasks; the base looked into."""
    store = study[0].store
    rows = [(f"{task}/{index}", task, PROBES[index]) for index, task in enumerate(("a", "b", "a", "b"))]
    schema = {"probe_id": pl.String, "source": pl.String, "input_ids": pl.List(pl.Int32)}
    write_parquet(store.base("small") / "probes.parquet", pl.DataFrame(rows, schema=schema, orient="row"))
    analyse(study, names=["representations", "neurons"])
    return study


def both_models(study, run):
    base = AutoModelForCausalLM.from_pretrained(study[1].folder).eval()
    other = AutoModelForCausalLM.from_pretrained(study[1].folder).eval()
    folder = study[0].store.train(run.run_id) / "adapter"
    return base, PeftModel.from_pretrained(other, folder).merge_and_unload().eval()


def shown(show, model, ids):
    [batch] = batches([ids], 1)
    seen = {}
    show(model, batch, lambda layer, tensor: seen.update({layer: tensor[0].clone()}))
    return seen


def test_untrained_adapter_has_moved_exactly_nothing(tasks):
    record, folder, _ = analysed(tasks, "lora-r2", "representations")
    frame = pl.read_parquet(folder / "representations.parquet")
    assert (frame.height, set(frame["task"])) == (3 * 2, {"a", "b"})
    assert frame["cka"].to_list() == frame["residual_cosine"].to_list() == [1.0] * 6
    assert record.summary["cka"] == 1.0
    record, folder, _ = analysed(tasks, "lora-r2", "neurons")
    assert record.summary["neuron_shift"] == record.summary["neurons_newly_dead"] == 0.0
    frame = pl.read_parquet(folder / "neurons.parquet")
    assert frame.height == 3 * 24 * 2
    for key in ("neuron_mean", "neuron_active_fraction", "neuron_selectivity"):
        assert frame[key].to_list() == frame[f"{key}_base"].to_list()
    assert pl.read_parquet(folder / "most_changed.parquet").height == 0


def test_streams_equal_both_models_text_by_text(tasks):
    record, folder, run = analysed(tasks, "lora-r3", "representations")
    assert not (folder / "streams").exists()
    base, tuned = both_models(tasks, run)
    frame = pl.read_parquet(folder / "representations.parquet")
    for task, indices in (("a", (0, 2)), ("b", (1, 3))):
        before = [shown(show_streams, base, PROBES[index]) for index in indices]
        after = [shown(show_streams, tuned, PROBES[index]) for index in indices]
        for layer in range(3):
            X, Y = (torch.cat([one[layer] for one in side]) for side in (before, after))
            [row] = frame.filter((pl.col("task") == task) & (pl.col("layer") == layer)).iter_rows(named=True)
            assert row["num_positions"] == len(X)
            for key, value in stream_measures(stream_sums(X, Y)).items():
                assert row[key] == pytest.approx(value, rel=1e-4, abs=1e-6)
    assert record.summary["cka"] == pytest.approx(frame["cka"].mean())
    assert 0.0 < record.summary["cka"] < 0.999


def test_neurons_equal_both_models_text_by_text(tasks):
    record, folder, run = analysed(tasks, "lora-r3", "neurons")
    base, tuned = both_models(tasks, run)
    frame = pl.read_parquet(folder / "neurons.parquet")
    before = [shown(show_neurons, base, ids) for ids in PROBES]
    after = [shown(show_neurons, tuned, ids) for ids in PROBES]
    for layer in range(3):
        scale = 0.1 * float(torch.cat([one[layer] for one in before]).double().square().mean().sqrt())
        for task, indices in (("a", (0, 2)), ("b", (1, 3))):
            rows = frame.filter((pl.col("task") == task) & (pl.col("layer") == layer)).sort("neuron")
            for side, suffix in ((after, ""), (before, "_base")):
                sums = neuron_sums(torch.cat([side[index][layer] for index in indices]), scale)
                expected = (sums.total / sums.num_positions).tolist()
                assert rows[f"neuron_mean{suffix}"].to_list() == pytest.approx(expected, rel=1e-3, abs=1e-6)
                active = (sums.num_active / sums.num_positions).tolist()
                assert rows[f"neuron_active_fraction{suffix}"].to_list() == pytest.approx(active, abs=1e-6)
    changes = pl.read_parquet(folder / "changes.parquet")
    assert changes.height == 3 * 24
    assert record.summary["neuron_shift"] == pytest.approx(changes["neuron_shift"].abs().mean())


def test_neurons_that_fell_silent_woke_or_moved_stand_in_their_own_columns():
    """Four neurons at ten positions of two tasks: one falls silent, one wakes, one moves, one stays as it is."""
    alternating = torch.tensor([1.0, 3.0] * 5)
    silent, ones = torch.zeros(10), torch.ones(10)
    before = torch.stack([alternating, silent, alternating, ones], 1)
    after = torch.stack([silent, alternating, alternating + 2.0, ones], 1)
    base, tuned = (
        neurons.Activity(sums={4: {"a": neuron_sums(one[:6], 0.0), "b": neuron_sums(one[6:], 0.0)}})
        for one in (before, after)
    )
    found = neurons.change_frame(base, tuned)
    assert found["layer"].to_list() == [4] * 4 and found["neuron"].to_list() == [0, 1, 2, 3]
    spread = (10 / 8) ** 0.5  # squares of 1 at ten positions, less a mean for each of two tasks
    assert found["neuron_shift"].to_list() == pytest.approx([-2.0 / spread, float("inf"), 2.0 / spread, 0.0])
    assert found["is_newly_dead"].to_list() == [True, False, False, False]
    assert found["is_newly_active"].to_list() == [False, True, False, False]
    assert found["neuron_active_fraction_base"].to_list() == [1.0, 0.0, 1.0, 1.0]
    assert found["neuron_active_fraction"].to_list() == [0.0, 1.0, 1.0, 1.0]
    # The third neuron says 2 more on one task than on the other, in its deviations within tasks.
    apart = torch.cat([alternating[:6], alternating[6:] + 2.0])[:, None]
    sums = {"a": neuron_sums(apart[:6], 0.0), "b": neuron_sums(apart[6:], 0.0)}
    frame = neurons.neuron_frame(neurons.Activity(sums={4: sums}))
    assert dict(frame.select("task", "neuron_selectivity").iter_rows()) == {
        "a": pytest.approx(-2.0 / spread), "b": pytest.approx(2.0 / spread),
    }  # fmt: skip


def test_the_most_changed_neurons_come_with_the_texts_that_excite_them(tasks, monkeypatch):
    monkeypatch.setattr(neurons, "MOST_CHANGED", 5)
    _, folder, run = analysed(tasks, "lora-r3", "neurons")
    frame = pl.read_parquet(folder / "most_changed.parquet")
    assert frame.height == 5 * 2 * 3
    changes = pl.read_parquet(folder / "changes.parquet")
    largest = changes.with_columns(pl.col("neuron_shift").abs()).sort("neuron_shift", descending=True).head(5)
    assert set(frame.select("layer", "neuron").iter_rows()) == set(largest.select("layer", "neuron").iter_rows())
    _, tuned = both_models(tasks, run)
    texts = {f"{task}/{index}": PROBES[index] for index, task in enumerate(("a", "b", "a", "b"))}
    after = {name: shown(show_neurons, tuned, ids) for name, ids in texts.items()}
    for (layer, neuron), rows in frame.filter(pl.col("model") == "tuned").group_by("layer", "neuron"):
        strongest = {name: float(seen[layer][:, neuron].abs().max()) for name, seen in after.items()}
        expected = sorted(strongest, key=strongest.get, reverse=True)[:3]
        assert rows["probe_id"].to_list() == expected
        for row in rows.iter_rows(named=True):
            value = float(after[row["probe_id"]][layer][row["position"], neuron])
            assert row["activation"] == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("name", ["attention", "representations", "neurons"])
def test_what_cannot_be_said_is_said_to_be_not_available(study, monkeypatch, name):
    def none(model):
        raise NotAvailable("no attention modules are known in Odd")

    monkeypatch.setattr(patterns, "attention_modules", none)
    monkeypatch.setattr("rankscope.internals.streams.attention_modules", none)
    analyse(study, names=[name])
    record, _, _ = analysed(study, "lora-r3", name)
    assert (record.summary, record.files) == ({}, {})
    assert record.notes == ("not available: no attention modules are known in Odd",)
    assert study[0].store.read_analyse(study[0].store.base_analysis("small", name)).status == "complete"


@pytest.mark.parametrize("name", ["spectra", "subspaces", "attention", "representations", "neurons"])
def test_a_method_of_which_nothing_can_be_said_fails_nothing(study, name):
    synthetic, models = study
    [run] = synthetic.runs("lora-r3")
    options = {"num_virtual_tokens": 4}
    arm = run.arm.model_copy(update={"method": "prompt_tuning", "options": options, "label": "prompt_tuning"})
    changed = run.model_copy(update={"arm": arm})
    plan = synthetic.plan.model_copy(update={"runs": (changed,)})
    pack = Pack("analyse", "small", (changed.run_id,), (name,))
    stage.run(pack, plan, synthetic.store, models, Watcher())
    record = synthetic.store.read_analyse(synthetic.store.analysis(changed.run_id, name))
    assert (record.status, record.summary) == ("complete", {})
    assert record.notes == (f"not available: {arm.capabilities.not_available[name]}",)
