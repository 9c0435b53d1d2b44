"""Audits of models whose updates are known, against closed forms, PEFT and the study's own analysis."""

import json
import math
import re
import shutil

import numpy as np
import polars as pl
import pytest
import torch
from peft import PeftModel
from peft.tuners.lora.intruders import reduce_intruder_dimension
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from planted import CONFIG, Quiet, plant, values_of
from rankscope.audit.stage import Request, run
from rankscope.errors import UserError
from rankscope.measures import MEASURES

pytestmark = [pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")]


def audit(models, tuned, out, **options):
    return run(Request(str(models / "base"), str(models / tuned), out, **options), Quiet())


@pytest.fixture(scope="module")
def audited(models, tmp_path_factory):
    """The audit of `one`, set against `two` and cut to 95% of the energy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANKSCOPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        out = tmp_path_factory.mktemp("out")
        return audit(models, "one", out, intruders=True, against=str(models / "two"), truncate=0.95)


def expected_measures(S, rank):
    """The spectral measures of singular values, by numpy."""
    S = np.asarray(S)
    energy, p = np.cumsum(S**2) / np.sum(S**2), S / S.sum()
    return {
        "update_norm": math.sqrt(np.sum(S**2)),
        "stable_rank": np.sum(S**2) / S[0] ** 2,
        "rank_utilisation": np.sum(S**2) / S[0] ** 2 / rank,
        "effective_rank": math.exp(-np.sum(p * np.log(p))),
        "energy_rank_90": int(np.argmax(energy >= 0.90) + 1),
        "energy_rank_95": int(np.argmax(energy >= 0.95) + 1),
        "energy_rank_99": int(np.argmax(energy >= 0.99) + 1),
    }


class TestNumbers:
    def test_of_planted_singular_values(self, models, audited):
        base = AutoModelForCausalLM.from_pretrained(models / "base")
        rows = audited.audit.matrices.to_dicts()
        assert len(rows) == 3 * 7
        for row in rows:
            S = values_of(row["name"], 6)
            for key, value in expected_measures(S, 6).items():
                assert row[key] == pytest.approx(value, rel=1e-5), (row["name"], key)
            W0 = base.get_submodule(row["name"]).weight.detach().double()
            assert row["update_norm_relative"] == pytest.approx(row["update_norm"] / float(W0.norm()), rel=1e-6)
            norm = float(torch.linalg.svdvals(W0)[0])
            assert row["update_spectral_relative"] == pytest.approx(S[0] / norm, rel=1e-5)
            assert row["rank"] == 6 and (row["d_out"], row["d_in"]) == tuple(W0.shape)

    @pytest.mark.parametrize(
        "options",
        [{"use_rslora": True, "lora_alpha": 4.898979}, {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"q_proj": 6}}],
        ids=["rslora", "patterns"],
    )
    def test_of_ranks_patterns_and_scalings(self, models, tmp_path, options):
        plant(models / "base", tmp_path / "adapter", **options)
        found = audit(models, tmp_path / "adapter", tmp_path / "out").audit.matrices
        for row in found.iter_rows(named=True):
            rank = 3 if "rank_pattern" in options and row["module"] == "q_proj" else 6
            assert row["rank"] == rank
            for key, value in expected_measures(values_of(row["name"], rank), rank).items():
                assert row[key] == pytest.approx(value, rel=1e-4)

    def test_of_dora_are_those_of_what_peft_merges(self, models, tmp_path):
        model = plant(models / "base", tmp_path / "adapter", use_dora=True, target_modules=["q_proj"])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "magnitude" in name:
                    parameter *= 1.1
        model.save_pretrained(tmp_path / "adapter")
        found = audit(models, tmp_path / "adapter", tmp_path / "out").audit
        assert found.method == "dora" and found.matrices.height == 3
        base = AutoModelForCausalLM.from_pretrained(models / "base").double()
        tuned = PeftModel.from_pretrained(base, tmp_path / "adapter", autocast_adapter_dtype=False).double()
        merged = tuned.merge_and_unload()
        before = AutoModelForCausalLM.from_pretrained(models / "base").double()
        for row in found.matrices.iter_rows(named=True):
            delta = merged.get_submodule(row["name"]).weight - before.get_submodule(row["name"]).weight
            S = torch.linalg.svdvals(delta.detach())
            assert row["update_norm"] == pytest.approx(float(S.norm()), rel=1e-8)
            assert row["stable_rank"] == pytest.approx(float(S.square().sum() / S[0] ** 2), rel=1e-8)
            assert row["rank"] == 6 and row["rank_utilisation"] is None  # its update is not bound to the rank

    @pytest.mark.parametrize("shards", ["1GB", "20KB"])
    def test_of_a_full_model_with_a_planted_update(self, models, tmp_path, shards):
        model = AutoModelForCausalLM.from_pretrained(models / "base")
        weight = model.model.layers[1].mlp.down_proj.weight
        generator = torch.Generator().manual_seed(3)
        delta = torch.randn(24, 2, generator=generator) @ torch.randn(2, 40, generator=generator) * 0.1
        with torch.no_grad():
            weight += delta
            model.model.embed_tokens.weight += 0.5
        model.save_pretrained(tmp_path / "tuned", max_shard_size=shards)
        outcome = audit(models, tmp_path / "tuned", tmp_path / "out")
        moved = outcome.audit.matrices.filter(pl.col("update_norm") > 0).to_dicts()
        assert [row["name"] for row in moved] == ["model.layers.1.mlp.down_proj"]
        S = torch.linalg.svdvals(delta.double())[:2]
        assert moved[0]["stable_rank"] == pytest.approx(float(S.square().sum() / S[0] ** 2), rel=1e-4)
        assert moved[0]["energy_rank_99"] <= 2 and moved[0]["rank"] is None
        assert outcome.audit.method == "full"
        table = outcome.audit.others.filter(pl.col("name") == "model.embed_tokens")
        assert table["update_norm"].item() == pytest.approx(0.5 * math.sqrt(40 * 24), rel=1e-5)
        assert any("model.embed_tokens was trained too" in text for text in outcome.findings)
        assert any("20 of 21 matrices did not move" in text for text in outcome.findings)

    def test_intruders_are_those_of_peft(self, models, audited):
        """PEFT counts, matrix by matrix, by the published algorithm: dense decompositions of W0 and W."""
        lines = []
        base = AutoModelForCausalLM.from_pretrained(models / "base").double()
        tuned = PeftModel.from_pretrained(base, models / "one", autocast_adapter_dtype=False).double()
        reduce_intruder_dimension(tuned, logging_sink=lines.append)
        counts = {}
        for line in lines:
            if match := re.fullmatch(r"base_model\.model\.(.+): (?:No intruders|Intruders: (\d+))", line):
                counts[match[1]] = int(match[2] or 0)
        found = dict(audited.audit.matrices.select("name", "intruder_dimensions").iter_rows())
        assert len(counts) == 21 and sum(counts.values()) > 10
        assert found == counts
        assert audited.audit.summary["intruder_dimensions"] == sum(counts.values())

    def test_intruders_are_those_of_the_published_algorithm_in_float64(self, models, audited):
        base = AutoModelForCausalLM.from_pretrained(models / "base").double()
        tuned = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(models / "base").double(), models / "one", autocast_adapter_dtype=False
        )
        merged = tuned.double().merge_and_unload()
        for row in audited.audit.matrices.iter_rows(named=True):
            W0, W = (model.get_submodule(row["name"]).weight.detach() for model in (base, merged))
            U0, U = torch.linalg.svd(W0).U, torch.linalg.svd(W).U
            count = sum(float((U[:, j] @ U0).abs().max()) < 0.5 for j in range(10))
            assert row["intruder_dimensions"] == count
            rho = float((U0[:, :16].T @ (W - W0)).square().sum() / (W - W0).square().sum())
            if min(W.shape) < 16:
                assert row["rho_16"] is None
            else:
                assert row["rho_16"] == pytest.approx(rho, rel=1e-4)

    def test_layers(self, models, tmp_path):
        found = audit(models, "one", tmp_path / "out", layers=frozenset({0, 2})).audit.matrices
        assert set(found["layer"]) == {0, 2} and found.height == 14
        with pytest.raises(UserError, match="layer 7 was not tuned"):
            audit(models, "one", tmp_path / "out", layers=frozenset({0, 7}))

    def test_norms_of_the_base_are_computed_once(self, models, tmp_path, monkeypatch):
        audit(models, "one", tmp_path / "out")
        calls = []
        monkeypatch.setattr("rankscope.analyse.norms.base_norms", lambda update: calls.append(update.name))
        again = audit(models, "two", tmp_path / "again")
        assert not calls and again.audit.matrices["update_norm_relative"].null_count() == 0


class TestAgainst:
    def test_pairs_equal_those_of_the_written_out_updates(self, models, audited):
        def deltas(folder):
            before = AutoModelForCausalLM.from_pretrained(models / "base").double()
            old = {name: parameter.detach().clone() for name, parameter in before.named_parameters()}
            tuned = PeftModel.from_pretrained(before, folder, autocast_adapter_dtype=False).double()
            new = dict(tuned.merge_and_unload().named_parameters())
            return {name: new[name].detach() - old[name] for name in old}

        one, two = deltas(models / "one"), deltas(models / "two")
        rows = audited.audit.against.matrices.to_dicts()
        assert len(rows) == 21
        for row in rows:
            D1, D2 = one[f"{row['name']}.weight"], two[f"{row['name']}.weight"]
            cosine = float((D1 * D2).sum() / D1.norm() / D2.norm())
            assert row["update_cosine"] == pytest.approx(cosine, abs=1e-6)
            assert row["update_norm_ratio"] == pytest.approx(float(D2.norm() / D1.norm()), rel=1e-6)
            (U1, _, V1), (U2, _, V2) = torch.linalg.svd(D1), torch.linalg.svd(D2)
            overlap = float((U1[:, :4].T @ U2[:, :4]).square().sum()) / 4
            assert row["update_overlap_8"] == pytest.approx(overlap, abs=1e-5)  # two has 4 directions only
            right = float((V1[:4] @ V2[:4].T).square().sum()) / 4
            assert row["update_overlap_8_right"] == pytest.approx(right, abs=1e-5)

    def test_itself(self, models, tmp_path):
        found = audit(models, "one", tmp_path / "out", against=str(models / "one"))
        for key in ("update_cosine", "update_norm_ratio", "update_overlap_8", "update_overlap_8_right"):
            assert found.audit.against.summary[key] == pytest.approx(1.0, abs=1e-9)
        assert any("almost the same way" in text for text in found.findings)

    def test_an_adapter_and_its_merged_model(self, models, tmp_path):
        tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(models / "base"), models / "one")
        tuned.merge_and_unload().save_pretrained(tmp_path / "merged")
        found = audit(models, "one", tmp_path / "out", against=str(tmp_path / "merged")).audit.against
        assert found.summary["update_cosine"] == pytest.approx(1.0, abs=1e-6)
        assert found.summary["update_norm_ratio"] == pytest.approx(1.0, rel=1e-5)

    @pytest.mark.filterwarnings("ignore:.*save_embedding_layers.*:UserWarning")
    def test_what_only_one_of_them_changed(self, models, tmp_path):
        plant(models / "base", tmp_path / "other", target_modules=["q_proj", "lm_head"])
        found = audit(models, "one", tmp_path / "out", against=str(tmp_path / "other")).audit.against
        assert found.matrices.height == 3
        assert any("18 matrices were changed by this one only" in note for note in found.notes)


class TestTruncated:
    def merged(self, models, folder):
        model = AutoModelForCausalLM.from_pretrained(models / "base").double()
        tuned = PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False)
        merged = tuned.double().merge_and_unload()
        return {name: parameter.detach() for name, parameter in merged.named_parameters()}

    @pytest.mark.parametrize(
        ("asked", "options"),
        [
            (0.95, {}),
            (0.99, {}),
            (2, {}),
            (100, {}),
            (0.95, {"use_rslora": True}),
            (3, {"rank_pattern": {"q_proj": 2}}),
        ],
    )
    def test_reloads_in_peft_with_the_stated_error(self, models, tmp_path, asked, options):
        plant(models / "base", tmp_path / "adapter", target_modules=["q_proj", "down_proj"], **options)
        cut = audit(models, tmp_path / "adapter", tmp_path / "out", truncate=asked).audit.truncation
        old = dict(AutoModelForCausalLM.from_pretrained(models / "base").double().named_parameters())
        whole, kept = self.merged(models, tmp_path / "adapter"), self.merged(models, tmp_path / "out" / "truncated")
        missing = sum(float((whole[name] - kept[name]).square().sum()) for name in old)
        total = sum(float((whole[name] - old[name].detach()).square().sum()) for name in old)
        assert cut.error == pytest.approx(math.sqrt(missing / total), abs=1e-6)
        if isinstance(asked, float):
            assert 1e-3 < cut.error <= math.sqrt(1 - asked) + 1e-6
        for name, rank in cut.ranks.items():
            delta = kept[f"{name}.weight"] - old[f"{name}.weight"].detach()
            assert int((torch.linalg.svdvals(delta) > 1e-6).sum()) == rank
        tensors = load_file(tmp_path / "out" / "truncated" / "adapter_model.safetensors")
        assert sum(tensor.numel() for tensor in tensors.values()) == cut.num_parameters

    def test_ranks_follow_the_energy_of_each_matrix(self, audited):
        ranks = dict(audited.audit.matrices.select("name", "energy_rank_95").iter_rows())
        assert audited.audit.truncation.ranks == {name: int(rank) for name, rank in ranks.items()}
        assert len(set(ranks.values())) > 1

    @pytest.mark.filterwarnings("ignore:.*save_embedding_layers.*:UserWarning")
    def test_what_cannot_be_cut_is_copied(self, models, tmp_path):
        plant(models / "base", tmp_path / "adapter", target_modules=["q_proj", "embed_tokens"],
              modules_to_save=["lm_head"])  # fmt: skip
        cut = audit(models, tmp_path / "adapter", tmp_path / "out", truncate=2).audit.truncation
        whole, kept = self.merged(models, tmp_path / "adapter"), self.merged(models, tmp_path / "out" / "truncated")
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            torch.testing.assert_close(kept[name], whole[name], rtol=0, atol=1e-9)
        assert "copied as they are" in cut.notes[0] and set(cut.ranks.values()) == {2}

    def test_refused(self, models, tmp_path):
        plant(models / "base", tmp_path / "dora", use_dora=True, target_modules=["q_proj"])
        with pytest.raises(UserError, match="DoRA"):
            audit(models, tmp_path / "dora", tmp_path / "out", truncate=0.95)
        with pytest.raises(UserError, match="only an adapter"):
            audit(models, "base", tmp_path / "out", truncate=0.95)
        assert not (tmp_path / "out").exists()


class TestWritten:
    def test_the_document_has_the_agreed_form(self, audited):
        document = json.loads(audited.document)
        assert document == json.loads((audited.page.parent / "audit.json").read_text())
        assert {"base", "tuned", "method", "matrices", "summary"} <= document.keys()
        assert document["method"] == "lora" and len(document["matrices"]) == 21
        for row in document["matrices"]:
            assert {"name", "layer", "module", "shape"} <= row.keys() and len(row["shape"]) == 2
            measures = row.keys() - {"name", "layer", "module", "shape", "rank", "num_vectors", "error"}
            assert len(measures) > 10 and measures <= MEASURES.keys()
        assert document["summary"].keys() - {"num_matrices"} <= MEASURES.keys()
        assert document["findings"] == audited.findings

    def test_the_page_is_one_file_that_fetches_nothing(self, audited):
        html = audited.page.read_text()
        assert "default-src &#39;none&#39;" in html
        assert not re.search(r"""(src|href)=["'](https?:)?//""", html)
        for finding in audited.findings:
            assert finding.replace("'", "&#39;") in html
        for title in ("Where the update lies", "How many directions", "own directions", "truncated copy"):
            assert title in html

    def test_names_from_data_are_escaped(self, models, tmp_path):
        folder = tmp_path / "<b>x"
        shutil.copytree(models / "one", folder)
        html = audit(models, folder, tmp_path / "out").page.read_text()
        assert "<b>x" not in html and "&lt;b&gt;x" in html

    def test_an_untrained_adapter_says_so(self, models, tmp_path):
        model = plant(models / "base", tmp_path / "adapter", target_modules=["q_proj"])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.zero_()
        model.save_pretrained(tmp_path / "adapter")
        outcome = audit(models, tmp_path / "adapter", tmp_path / "out", intruders=True)
        assert "Nothing moved" in outcome.findings[0]
        row = json.loads(outcome.document)["matrices"][0]
        assert row["update_norm"] == 0.0 and "stable_rank" not in row

    def test_tables_of_an_earlier_audit_do_not_stay_beside_a_page_without_them(self, models, tmp_path):
        audit(models, "one", tmp_path / "out")
        left = tmp_path / "out" / "tables" / "texts.csv"
        left.write_text("of an earlier call")
        audit(models, "one", tmp_path / "out")
        assert not left.exists() and (tmp_path / "out" / "tables" / "matrices.csv").is_file()

    def test_progress_and_the_estimate_come_before(self, models, tmp_path):
        watcher = Quiet()
        run(Request(str(models / "base"), str(models / "one"), tmp_path / "out", intruders=True), watcher)
        assert "decomposing 21 matrices" in watcher.messages[0] and "GB" in watcher.messages[0]
        assert watcher.counts[-1] == ("decomposed", 21, 21)

    def test_decompositions_are_kept(self, models, tmp_path, monkeypatch, cache):
        audit(models, "one", tmp_path / "out", intruders=True)
        assert len(list(cache.rglob("*.safetensors"))) == 21

        def never(W0):
            raise AssertionError("decomposed again")

        monkeypatch.setattr("rankscope.models.decompositions.decompose", never)
        audit(models, "two", tmp_path / "again", intruders=True)


class TestRefused:
    def test_a_folder_of_something_else(self, models, tmp_path):
        (tmp_path / "study.yaml").write_text("study: x")
        with pytest.raises(UserError, match="holds a study"):
            audit(models, "one", tmp_path)

    def test_a_folder_with_files_of_a_person_s_own(self, models, tmp_path):
        (tmp_path / "index.html").write_text("mine")
        with pytest.raises(UserError, match="holds files that are no audit's"):
            audit(models, "one", tmp_path)
        assert (tmp_path / "index.html").read_text() == "mine"

    def test_an_adapter_as_base(self, models, tmp_path):
        for tuned in (str(models / "one"), "smallworld:base"):  # the second: both are there, in the wrong order
            with pytest.raises(UserError, match="is an adapter, and the base comes first"):
                run(Request(str(models / "one"), tuned, tmp_path / "out"), Quiet())

    def test_a_base_of_another_shape(self, models, tmp_path):
        config = type(CONFIG)(**{**CONFIG.to_dict(), "intermediate_size": 48})
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "wide")
        with pytest.raises(UserError, match="24 x 48 in the base") as caught:
            run(Request(str(tmp_path / "wide"), str(models / "one"), tmp_path / "out"), Quiet())
        assert "down_proj" in caught.value.where and "tuned from" in caught.value.mend

    @pytest.mark.parametrize("change", ["missing", "more"])
    def test_a_full_model_of_another_size(self, models, tmp_path, change):
        config = type(CONFIG)(**{**CONFIG.to_dict(), "num_hidden_layers": 2 if change == "missing" else 4})
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "other")
        with pytest.raises(UserError, match=r"is in the (base|tuned model) only"):
            audit(models, tmp_path / "other", tmp_path / "out")


class TestRevision:
    """A base in the hub's cache has its commit in its folder's name."""

    ONE, TWO = "1" * 40, "2" * 40

    @pytest.fixture
    def hub(self, models, tmp_path, monkeypatch):
        """A cache with `org/base` at two commits; `v1` is the first."""
        root = tmp_path / "hub" / "models--org--base"
        for commit in (self.ONE, self.TWO):
            shutil.copytree(models / "base", root / "snapshots" / commit)
        (root / "refs").mkdir()
        (root / "refs" / "v1").write_text(self.ONE)
        (root / "refs" / "main").write_text(self.TWO)
        asked = []

        def fetch(source, revision=None, **_):
            asked.append((source, revision))
            commit = {"v1": self.ONE, "main": self.TWO, None: self.TWO}.get(revision, revision)
            return str(root / "snapshots" / commit)

        monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
        return asked

    def adapter(self, models, folder, **settings):
        shutil.copytree(models / "two", folder)
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
        return folder

    @pytest.mark.parametrize("named", ["v1", ONE])
    def test_the_one_that_the_adapter_names_is_fetched(self, models, tmp_path, hub, named):
        adapter = self.adapter(models, tmp_path / "a", base_model_name_or_path="org/base", revision=named)
        outcome = run(Request("org/base", str(adapter), tmp_path / "out"), Quiet())
        assert hub == [("org/base", named)] and not outcome.audit.notes

    @pytest.mark.parametrize("named", ["v1", ONE])
    @pytest.mark.parametrize("given", ["main", TWO])
    def test_another_one_is_refused(self, models, tmp_path, hub, named, given):
        adapter = self.adapter(models, tmp_path / "a", base_model_name_or_path="org/base", revision=named)
        with pytest.raises(UserError, match="tuned from revision") as caught:
            run(Request(f"org/base@{given}", str(adapter), tmp_path / "out"), Quiet())
        assert f"org/base@{named}" in caught.value.mend

    def test_another_name_for_the_same_commit_is_fine(self, models, tmp_path, hub):
        adapter = self.adapter(models, tmp_path / "a", base_model_name_or_path="org/base", revision="v1")
        run(Request(f"org/base@{self.ONE}", str(adapter), tmp_path / "out"), Quiet())

    def test_a_base_of_another_name_is_noted(self, models, tmp_path, hub):
        adapter = self.adapter(models, tmp_path / "a", base_model_name_or_path="unsloth/base-bnb-4bit")
        outcome = run(Request("org/base", str(adapter), tmp_path / "out"), Quiet())
        assert any("names unsloth/base-bnb-4bit" in note for note in outcome.audit.notes)

    def test_a_folder_has_no_revision(self, models, tmp_path):
        adapter = self.adapter(models, tmp_path / "a", base_model_name_or_path="org/base", revision="v1")
        outcome = audit(models, adapter, tmp_path / "out")
        assert any("cannot be checked" in note for note in outcome.audit.notes)
