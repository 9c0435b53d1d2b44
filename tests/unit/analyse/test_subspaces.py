"""Subspaces through the stage: adapters and full models on disk against dense float64, and what is redone."""

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config

from analysed import analysed
from rankscope.analyse.subspaces import subspaces
from rankscope.models import decompositions
from rankscope.models.decompositions import decompose
from rankscope.models.fused import iter_parts
from rankscope.models.weights import iter_updates


def dense(W0, delta_W, k=8):
    """Overlap, rho and intruders of the left side, in float64 by full decompositions."""
    U0, U = (torch.linalg.svd(W.double(), full_matrices=False).U for W in (W0, W0.double() + delta_W))
    overlap = float((U[:, :k].T @ U0[:, :k]).square().sum() / k)
    intruders = int(((U.T @ U0).abs().amax(1)[:10] < 0.5).sum())
    rho = float((U0[:, :16].T @ delta_W).square().sum() / delta_W.square().sum())
    return overlap, intruders, rho


def test_an_untrained_adapter_moved_exactly_nothing(study):
    record, folder, _ = analysed(study, "lora-r2", "subspaces")
    frame = pl.read_parquet(folder / "subspaces.parquet")
    assert frame.height == 6
    for key in ("subspace_overlap_8", "singular_vector_cosine", "singular_vector_best_cosine_right"):
        assert frame[key].to_list() == [1.0] * 6
        assert record.summary[key] == 1.0
    assert record.summary["intruder_dimensions"] == 0.0
    assert frame["rho_16"].null_count() == 6 and "rho_16" not in record.summary


def test_an_adapter_equals_dense_algebra(study):
    record, folder, run = analysed(study, "lora-r3", "subspaces")
    frame = pl.read_parquet(folder / "subspaces.parquet")
    adapter = load_file(study[0].store.train(run.run_id) / "adapter" / "adapter_model.safetensors")
    base = AutoModelForCausalLM.from_pretrained(study[1].folder)
    counted = 0
    for row in frame.iter_rows(named=True):
        A, B = (adapter[f"base_model.model.{row['name']}.lora_{letter}.weight"].double() for letter in "AB")
        W0 = base.get_submodule(row["name"]).weight.detach()
        overlap, intruders, rho = dense(W0, 4 / 3 * B @ A)
        assert row["subspace_overlap_8"] == pytest.approx(overlap, rel=1e-4)
        assert row["rho_16"] == pytest.approx(rho, rel=1e-4)
        assert row["intruder_dimensions"] == intruders
        assert (row["num_vectors"], row["subspace_overlap_32"]) == (2, None)
        assert row["error"] < 1e-6
        counted += intruders
    assert record.summary["intruder_dimensions"] == counted > 0
    assert record.summary["subspace_overlap_8"] == pytest.approx(frame["subspace_overlap_8"].mean())
    assert "relative residuals of at most" in record.notes[0]


def test_a_full_model_equals_dense_algebra(study):
    _, folder, run = analysed(study, "full", "subspaces")
    frame = pl.read_parquet(folder / "subspaces.parquet")
    assert frame.height == 21
    [row] = frame.filter(pl.col("rho_16").is_not_null()).iter_rows(named=True)
    assert row["name"] == "model.layers.1.self_attn.q_proj"
    before = AutoModelForCausalLM.from_pretrained(study[1].folder).get_submodule(row["name"]).weight.detach()
    tuned = AutoModelForCausalLM.from_pretrained(study[0].store.train(run.run_id) / "model")
    overlap, intruders, rho = dense(before, tuned.get_submodule(row["name"]).weight.detach().double() - before.double())
    assert row["subspace_overlap_8"] == pytest.approx(overlap, rel=1e-4)
    assert (row["intruder_dimensions"], row["rho_16"]) == (intruders, pytest.approx(rho, rel=1e-4))
    still = frame.filter(pl.col("rho_16").is_null())
    assert still["subspace_overlap_8"].to_list() == [1.0] * 20


def test_a_matrix_of_the_base_is_decomposed_once_for_all_runs(study, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(decompositions, "decompose", lambda W0: calls.append(1) or decompose(W0))
    analysed(study, "lora-r2", "subspaces")
    assert len(calls) == 6
    analysed(study, "lora-r3", "subspaces")
    assert len(calls) == 6
    analysed(study, "full", "subspaces")
    assert len(calls) == 21
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 21


def test_fused_and_transposed_matrices(tmp_path):
    """GPT-2 stores queries, keys and values in one matrix, transposed; each is compared with its own."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "base")
    weight = model.transformer.h[0].attn.c_attn.weight  # d_in, 3 * d_out
    before = weight.detach().clone()
    with torch.no_grad():
        weight[:, 16:32] += torch.randn(16, 1) @ torch.randn(1, 16)
    model.save_pretrained(tmp_path / "tuned")
    parts = iter_parts(
        iter_updates(tmp_path / "base", tmp_path / "tuned"), AutoConfig.from_pretrained(tmp_path / "base")
    )
    frame = subspaces(parts, decompose).matrices
    assert frame["module"].to_list() == ["c_attn.q", "c_attn.k", "c_attn.v", "c_proj", "c_fc", "c_proj"]
    moved = frame.filter(pl.col("rho_16").is_not_null())
    assert moved["module"].to_list() == ["c_attn.k"]
    W0, W = (matrix[:, 16:32].T.double() for matrix in (before, weight.detach()))
    overlap, intruders, _ = dense(W0, W - W0)
    assert moved["subspace_overlap_8"][0] == pytest.approx(overlap, rel=1e-4)
    assert moved["intruder_dimensions"][0] == intruders
