"""What stands out, in words, from tables made for it."""

import polars as pl
import pytest

from rankscope.audit.findings import findings, percent, place_in_words, share_in_words
from rankscope.audit.result import Audit, OnTexts, Truncation, short_name


def audit(rows, **options):
    defaults = {"layer": 0, "module": "q_proj", "d_out": 64, "d_in": 64, "rank": 64}
    defaults |= {"update_norm": 1.0, "update_norm_relative": 0.01, "stable_rank": 20.0, "rank_utilisation": 1 / 3}
    defaults |= {"energy_rank_95": 21.0}
    schema = {"name": pl.String, "rank": pl.Int32, "rank_utilisation": pl.Float64, "stable_rank": pl.Float64}
    table = pl.DataFrame([{**defaults, **row} for row in rows], schema_overrides=schema)
    nothing = pl.DataFrame(schema={"name": pl.String, "kind": pl.String, "update_norm": pl.Float64})
    return Audit("base", "tuned", "lora", {}, table, options.pop("others", nothing), {}, {}, **options)


def two(**second):
    return audit([{"name": "model.layers.0.self_attn.q_proj"},
                  {"name": "model.layers.23.mlp.down_proj", "layer": 23, "module": "down_proj", **second}])  # fmt: skip


def test_rank_energy_and_what_moved_most():
    found = findings(two(update_norm_relative=0.042, energy_rank_95=23.0))
    assert found[0].startswith("Rank 64 is used to a third") and "(33%)" in found[0]
    assert found[1] == "95% of the update lies in 22 directions in the median matrix (from 21 to 23)."
    assert found[2].startswith("Layer 23's down_proj moved most: by 4.2% of its own size")
    assert found[3].startswith("Of the kinds of matrices down_proj moved most (4.2% on average), q_proj least (1%)")


def test_nothing_is_said_of_what_does_not_stand_out():
    assert len(findings(two())) == 3


def test_ranks_that_differ():
    (first, *_) = findings(two(rank=4, rank_utilisation=1.0))
    assert first.startswith("The ranks granted (4 to 64) are used to two thirds")


def test_a_rank_used_in_full():
    table = [{"name": "a.layers.0.q_proj", "rank": 2, "stable_rank": 1.96, "rank_utilisation": 0.98}]
    assert findings(audit(table))[0].startswith("Rank 2 is used in full")


def test_a_full_model_is_told_what_rank_could_hold_it():
    found = findings(audit([{"name": "a.layers.0.q_proj", "rank": None, "rank_utilisation": None}]))
    assert found[0].endswith("of the 64 that it could have: LoRA of rank 21 could hold that much of it.")


def test_single_directions_and_still_matrices():
    found = findings(two(stable_rank=1.25))
    assert any("In one matrix a single direction holds two thirds" in text and "80%" in text for text in found)
    found = findings(two(update_norm=0.0, stable_rank=None, rank_utilisation=None))
    assert "1 of 2 matrices did not move at all." in found


def test_intruders():
    table = [{"name": f"m.layers.{i}.q_proj", "layer": i, "intruder_dimensions": i} for i in range(3)]
    (text,) = [text for text in findings(audit(table)) if "intruder" in text]
    assert text.startswith("3 intruder dimensions in 2 matrices") and text.endswith("2, in layer 2's q_proj.")
    table = [{"name": "m.layers.0.q_proj", "intruder_dimensions": 0}]
    assert any(text.startswith("No intruder dimensions") for text in findings(audit(table)))


def test_layers_that_moved_farther():
    table = [{"name": f"m.layers.{i}.q_proj", "layer": i, "update_norm_relative": 0.01 * (1 + i)} for i in range(6)]
    assert any("The last third of the layers moved 3.7 times as far as the first" in text
               for text in findings(audit(table)))  # fmt: skip


def test_texts():
    losses = pl.DataFrame({"loss_nats_per_token": [2.0, 1.0, 3.0], "loss_nats_per_token_base": [1.5, 1.2, 2.5]})
    heads = pl.DataFrame({"layer": [0, 1], "head": [3, 2], "attention_divergence": [0.01, 0.2]})
    summary = {"loss_nats_per_token": 2.0, "loss_nats_per_token_base": 1.75, "loss_change_nats": 0.25}
    layers = pl.DataFrame(
        {
            "layer": [0, 1], "cka": [0.99, 0.87], "neuron_shift": [0.4, 0.1], "neurons_newly_dead": [3, 2],
            "neurons_newly_active": [0, 1], "num_neurons": [64, 64],
        }
    )  # fmt: skip
    found = OnTexts(losses, heads, layers, None, {**summary, "attention_divergence": 0.105, "cka": 0.93})
    *_, loss, attention, streams, neurons = findings(audit([{"name": "m.layers.0.q_proj"}], on_texts=found))
    assert "a likeness of 0.930 to the base's on average" in streams and "least after layer 1 (0.870)" in streams
    assert neurons.startswith("Of 128 neurons 5 fell silent on these texts and 1 began to speak; those of layer 0 ")
    assert "the loss rose by 0.250 nats per token, from 1.750 to 2.000: higher in 2 of them, lower in 1." in loss
    assert "head 2 of layer 1 most (0.2)" in attention


def test_tables_and_a_truncated_copy():
    others = pl.DataFrame({"name": ["lm_head", "norm"], "kind": ["table", "vector"], "update_norm": [2.0, 1.0]})
    cut = Truncation("out", "0.95", 0.21, {"a": 3, "b": 9}, 100, 400)
    found = findings(audit([{"name": "m.layers.0.q_proj"}], others=others, truncation=cut))
    assert "lm_head was trained too: the norm of its update is 2." in found
    assert found[-1].startswith("The truncated copy has ranks from 3 to 9, 25% of the parameters")
    assert "21%" in found[-1]


@pytest.mark.parametrize(("share", "words"), [(0.33, "a third"), (0.5, "half"), (0.02, "2.0%"), (0.97, "whole"),
                                              (0.09, "a tenth"), (0.7, "two thirds")])  # fmt: skip
def test_shares(share, words):
    assert share_in_words(share) == words


def test_places():
    assert place_in_words("model.layers.3.mlp.experts.7.up_proj", 3, "up_proj") == "layer 3's up_proj of expert 7"
    assert place_in_words("lm_head", None, "lm_head") == "lm_head"
    assert [percent(value) for value in (0.5, 0.0123, 0.00001)] == ["50%", "1.2%", "0.001%"]


@pytest.mark.parametrize(
    ("tuned", "expected"),
    [
        ("org/an-adapter", "org/an-adapter"),
        ("/home/me/runs/mine/train/adapter", "mine/train/adapter"),
        ("/data/out/mine/checkpoint-40", "mine/checkpoint-40"),
        ("/data/out/mine", "mine"),
        ("adapter", "adapter"),
    ],
)
def test_a_model_is_called_by_its_own_name(tuned, expected):
    assert short_name(tuned) == expected
