"""The analysis stage on tiny models with known updates: what lies on disk, what is redone, identities."""

import shutil

import polars as pl
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from analysed import EVERYTHING, PROBES, OwnModels, Watcher, analyse, analysed
from rankscope.analyse import norms, stage
from rankscope.internals import attention
from rankscope.internals.patterns import batches, show_patterns
from rankscope.plan import Pack
from rankscope.store import check_files, write_parquet

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


class TestSpectra:
    def test_untrained_adapter_has_moved_exactly_nothing(self, study):
        record, folder, _ = analysed(study, "lora-r2", "spectra")
        zeros = {"update_norm": 0.0, "update_norm_relative": 0.0, "update_spectral_relative": 0.0}
        assert record.summary == zeros
        assert "6 of 6 matrices did not move" in record.notes[0]
        frame = pl.read_parquet(folder / "matrices.parquet")
        assert frame["stable_rank"].null_count() == frame.height == 6

    def test_adapter_equals_the_dense_update(self, study):
        record, folder, run = analysed(study, "lora-r3", "spectra")
        frame = pl.read_parquet(folder / "matrices.parquet")
        values = load_file(folder / "singular_values.safetensors")
        adapter = load_file(study[0].store.train(run.run_id) / "adapter" / "adapter_model.safetensors")
        base = AutoModelForCausalLM.from_pretrained(study[1].folder).double()
        assert frame.height == len(values) == 6
        for row in frame.iter_rows(named=True):
            A, B = (adapter[f"base_model.model.{row['name']}.lora_{letter}.weight"].double() for letter in "AB")
            W0 = base.get_submodule(row["name"]).weight.detach()
            delta_W = 4 / 3 * B @ A
            S = torch.linalg.svdvals(delta_W)
            assert (row["d_out"], row["d_in"]) == tuple(W0.shape)
            assert row["name"].endswith(row["module"]) and f".{row['layer']}." in row["name"]
            torch.testing.assert_close(values[row["name"]], S[:3], rtol=1e-6, atol=1e-9)
            assert row["update_norm"] == pytest.approx(float(torch.linalg.norm(delta_W)), rel=1e-6)
            assert row["update_norm_relative"] == pytest.approx(float(delta_W.norm() / W0.norm()), rel=1e-6)
            largest = float(torch.linalg.svdvals(W0)[0])
            assert row["update_spectral_relative"] == pytest.approx(float(S[0]) / largest, rel=1e-6)
            assert row["rank_utilisation"] == pytest.approx(row["stable_rank"] / 3)
        total = frame["update_norm"].pow(2).sum() ** 0.5
        assert record.summary["update_norm"] == pytest.approx(total)
        assert record.summary["stable_rank"] == pytest.approx(frame["stable_rank"].mean())
        assert record.notes == ()

    def test_full_model_with_a_planted_update(self, study):
        record, folder, _ = analysed(study, "full", "spectra")
        frame = pl.read_parquet(folder / "matrices.parquet")
        assert frame.height == 3 * 7
        [row] = frame.filter(pl.col("update_norm") > 0).iter_rows(named=True)
        assert row["name"] == "model.layers.1.self_attn.q_proj"
        assert row["update_norm"] == pytest.approx(5.0, rel=1e-5)
        assert row["stable_rank"] == pytest.approx(25 / 16, rel=1e-5)
        assert (row["energy_rank_90"], row["energy_rank_99"]) == (2, 2)
        assert row["rank_utilisation"] is None
        others = pl.read_parquet(folder / "other_tensors.parquet")
        norms = dict(others.select("name", "update_norm").iter_rows())
        assert set(others["kind"]) == {"table", "vector"}
        assert norms.pop("model.norm") == pytest.approx(0.5 * 4, rel=1e-6)
        assert set(norms.values()) == {0.0} and len(norms) == 1 + 2 * 3
        assert record.summary["update_norm"] == pytest.approx((25 + 4) ** 0.5, rel=1e-5)
        assert record.summary["stable_rank"] == pytest.approx(25 / 16, rel=1e-5)
        assert "rank_utilisation" not in record.summary

    def test_norms_of_the_base_are_measured_once(self, study, monkeypatch):
        analysed(study, "lora-r2", "spectra")
        counted = []
        original = norms.base_norms
        monkeypatch.setattr(norms, "base_norms", lambda update: counted.append(update.name) or original(update))
        analysed(study, "lora-r3", "spectra")
        assert counted == []
        analysed(study, "full", "spectra")
        assert len(counted) == 21 - 6

    def test_a_base_has_none(self, study):
        with pytest.raises(ValueError, match="a base has none"):
            analyse(study, names=["spectra"])


class TestAttention:
    def test_untrained_adapter_diverges_exactly_nothing(self, study):
        analyse(study, names=["attention"])
        record, folder, _ = analysed(study, "lora-r2", "attention")
        patterns = study[0].store.base_analysis("small", "attention") / "patterns"
        assert len(list(patterns.glob("batch*-layer*.safetensors"))) == 3 * 3
        frame = pl.read_parquet(folder / "heads.parquet")
        assert frame["attention_divergence"].to_list() == [0.0] * 12
        assert record.summary["attention_divergence"] == 0.0
        for key in ("attention_entropy", "attention_first_token", "attention_distance", "head_similarity"):
            assert frame[key].to_list() == frame[f"{key}_base"].to_list()

    def test_only_the_layer_after_the_planted_update_differs(self, study):
        analyse(study, names=["attention"])
        record, folder, _ = analysed(study, "full", "attention")
        moved = pl.read_parquet(folder / "heads.parquet").group_by("layer", maintain_order=True)
        means = dict(moved.agg(pl.col("attention_divergence").mean()).iter_rows())
        assert means[0] == 0.0
        assert means[1] > 1e-4 and means[2] > 0.0
        assert record.summary["attention_divergence"] == pytest.approx(sum(means.values()) / 3)

    def test_equals_both_models_text_by_text(self, study):
        """In one go, without disk, padding or batches."""
        analyse(study, names=["attention"])
        _, folder, run = analysed(study, "lora-r3", "attention")
        synthetic, models = study
        base = AutoModelForCausalLM.from_pretrained(models.folder).eval()
        tuned = AutoModelForCausalLM.from_pretrained(models.folder).eval()
        tuned = PeftModel.from_pretrained(tuned, synthetic.store.train(run.run_id) / "adapter").merge_and_unload()
        sums = {}
        for text in PROBES:
            [batch] = batches([text], 1)
            before, after = [], []
            show_patterns(base, batch, before.append)
            show_patterns(tuned, batch, after.append)
            for one, other in zip(before, after, strict=True):
                found = attention.pattern_measures(other.pattern, other.visible)
                divergence = attention.attention_divergence(one.pattern, other.pattern, one.visible)
                for key, value in {**found, "attention_divergence": divergence}.items():
                    place = one.layer, key
                    sums[place] = sums[place] + value if place in sums else value
        frame = pl.read_parquet(folder / "heads.parquet")
        assert len(sums) == 3 * 5
        for (layer, key), total in sums.items():
            column = frame.filter(pl.col("layer") == layer).sort("head")[key].to_list()
            assert column == pytest.approx(total.mean().tolist(), rel=1e-4, abs=1e-7)
            assert len(column) == 4
        base_frame = pl.read_parquet(synthetic.store.base_analysis("small", "attention") / "heads.parquet")
        assert frame["attention_entropy_base"].to_list() == base_frame["attention_entropy"].to_list()
        assert frame["attention_entropy"].to_list() != base_frame["attention_entropy"].to_list()

    def test_with_the_models_of_a_worker(self, study):
        """Packed layers in the base itself, instead of PEFT's: the same numbers, and the same exact zero."""
        synthetic, models = study
        run_ids = [run.run_id for run in synthetic.plan.runs]
        expected = []
        for kind in (models, OwnModels(synthetic.store, models.folder)):
            for folder in synthetic.store.root.rglob("analyse"):
                shutil.rmtree(folder)
            analyse((synthetic, kind), names=["attention"])
            analyse((synthetic, kind), run_ids, ["attention"])
            records = [synthetic.store.read_analyse(synthetic.store.analysis(name, "attention")) for name in run_ids]
            expected.append([record.summary for record in records])
        assert [summary["attention_divergence"] > 0 for summary in expected[1]] == [False, True, True]
        for one, other in zip(*expected, strict=True):
            assert one == pytest.approx(other, rel=1e-5)

    def test_deleted_patterns_are_made_again_before_the_tuned_model(self, study):
        synthetic, models = study
        analyse(study, names=["attention"])
        folder = synthetic.store.base_analysis("small", "attention")
        record = synthetic.store.read_analyse(folder)
        shutil.rmtree(folder / "patterns")
        check_files(folder, record)  # they are no result
        found, _, _ = analysed(study, "lora-r2", "attention")
        assert found.summary["attention_divergence"] == 0.0
        assert models.asked == ["base", "base", "lora-r2"]
        check_files(folder, record)

    @pytest.mark.parametrize("name", ["attention/patterns/batch0001-layer002.safetensors", "attention/patterns/done"])
    def test_damaged_patterns_are_made_again_and_never_read(self, study, name):
        synthetic, _ = study
        analyse(study, names=["attention"])
        path = synthetic.store.base("small") / "analyse" / name
        flip(path)
        found, _, _ = analysed(study, "lora-r2", "attention")
        assert found.summary["attention_divergence"] == 0.0

    def test_damaged_norms_are_made_again_and_never_read(self, study):
        synthetic, _ = study
        first, _, _ = analysed(study, "lora-r3", "spectra")
        (path,) = (synthetic.store.base("small") / "analyse" / "spectra").glob("norms-*.json")
        flip(path)
        shutil.rmtree(synthetic.store.analysis(synthetic.runs("lora-r3")[0].run_id, "spectra"))
        again, _, _ = analysed(study, "lora-r3", "spectra")
        assert again.summary == first.summary


def flip(path):
    """Turn one digit or bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


class TestAgain:
    def test_finished_work_is_not_redone(self, study):
        synthetic, models = study
        analyse(study, names=["attention"])
        run_ids = [run.run_id for run in synthetic.plan.runs]
        analyse(study, run_ids)
        before = {path: path.stat().st_mtime_ns for path in synthetic.store.root.rglob("*") if path.is_file()}
        asked = list(models.asked)
        assert asked == ["base", "lora-r2", "lora-r3", "full"]
        analyse(study, run_ids)
        analyse(study, names=["attention"])
        assert models.asked == asked
        assert {path: path.stat().st_mtime_ns for path in synthetic.store.root.rglob("*") if path.is_file()} == before

    def test_other_probes_count_for_attention_only(self, study):
        synthetic, models = study
        analyse(study, names=["attention"])
        run_ids = [synthetic.runs("lora-r3")[0].run_id]
        analyse(study, run_ids)
        spectra = synthetic.store.read_analyse(synthetic.store.analysis(run_ids[0], "spectra"))
        before = synthetic.store.read_analyse(synthetic.store.analysis(run_ids[0], "attention"))
        frame = pl.read_parquet(synthetic.store.base("small") / "probes.parquet").head(2)
        write_parquet(synthetic.store.base("small") / "probes.parquet", frame)
        changed = synthetic.plan.model_copy(update={"probes_fingerprint": {"small": "d" * 64}})
        pack = Pack("analyse", "small", tuple(run_ids), EVERYTHING)
        stage.run(pack, changed, synthetic.store, models, Watcher())
        assert synthetic.store.read_analyse(synthetic.store.analysis(run_ids[0], "spectra")) == spectra
        after = synthetic.store.read_analyse(synthetic.store.analysis(run_ids[0], "attention"))
        assert after.summary != before.summary
        # The base's patterns were of the old texts.
        assert models.asked == ["base", "lora-r3", "base", "lora-r3"]

    def test_a_stop_leaves_no_half_record(self, study):
        synthetic, _ = study
        [run] = synthetic.runs("lora-r3")
        analyse(study, [run.run_id], watcher=Watcher(stop_after=1))
        assert synthetic.store.read_analyse(synthetic.store.analysis(run.run_id, "spectra")).status == "complete"
        assert synthetic.store.read_analyse(synthetic.store.analysis(run.run_id, "attention")) is None
