"""What stands out in an audit, in plain words: it describes, and gives no reasons that a single model cannot show."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import polars as pl

from rankscope.audit.result import Audit, Comparison, OnTexts, Truncation, short_name

_SHARES = (
    (1.0, "whole"), (0.9, "nine tenths"), (0.75, "three quarters"), (2 / 3, "two thirds"), (0.5, "half"),
    (1 / 3, "a third"), (0.25, "a quarter"), (0.2, "a fifth"), (0.1, "a tenth"), (0.05, "a twentieth"),
)  # fmt: skip
# A matrix whose first direction holds this much of its update is named.
_ALONE = 2 / 3
# Parts of the network are set against each other where one moved this many times as far as the other.
_MUCH = 1.5


def findings(audit: Audit) -> list[str]:
    """A sentence or two for each thing that stands out, the most useful first."""
    found = [*_of_matrices(audit), *_of_others(audit)]
    if audit.on_texts is not None:
        found += _on_texts(audit.on_texts)
    if audit.against is not None:
        found += _of_comparison(audit.against)
    if audit.truncation is not None:
        found.append(_of_truncation(audit.truncation))
    return found


def place_in_words(name: str, layer: int | None, module: str) -> str:
    """A matrix as a person says it: `layer 23's down_proj`, `layer 3's gate_up_proj of expert 7`."""
    if layer is None:
        return name
    parts = name.split(".")
    expert = next((part for before, part in itertools.pairwise(parts) if before == "experts"), "")
    tail = f" of expert {expert}" if expert.isdigit() else ""
    return f"layer {layer}'s {module}{tail}"


def share_in_words(share: float) -> str:
    """A share of one as the nearest simple fraction: `a third`."""
    if share < 0.035:
        return f"{100 * share:.1f}%"
    return min(_SHARES, key=lambda item: abs(item[0] - share) / (item[0] + share))[1]


def _of_matrices(audit: Audit) -> Iterator[str]:
    table = audit.matrices
    moved = table.filter(pl.col("update_norm") > 0.0)
    if table.is_empty():
        yield "No matrix of a linear layer was trained."
        return
    if moved.is_empty():
        yield f"Nothing moved: the updates of all {table.height} matrices are zero. Was the adapter trained?"
        return
    if moved["rank_utilisation"].drop_nulls().len():
        yield _rank_used(moved.filter(pl.col("rank_utilisation").is_not_null()))
    yield _energy(moved)
    yield from _most_moved(moved)
    yield from _alone(moved)
    if table.height > moved.height:
        yield f"{table.height - moved.height} of {table.height} matrices did not move at all."
    yield from _intruders(table)


def _rank_used(moved: pl.DataFrame) -> str:
    ranks = moved["rank"].unique().sort().to_list()
    granted = f"Rank {ranks[0]} is" if len(ranks) == 1 else f"The ranks granted ({ranks[0]} to {ranks[-1]}) are"
    share = float(moved["rank_utilisation"].mean())
    of = f" of {ranks[0]}" if len(ranks) == 1 else ""
    used = "used in full" if share > 0.95 else f"used to {share_in_words(share)}"
    return (
        f"{granted} {used}: the update of a matrix has a stable rank of {float(moved['stable_rank'].mean()):.3g}{of} "
        f"on average ({100 * share:.0f}%)."
    )


def _energy(moved: pl.DataFrame) -> str:
    directions = moved["energy_rank_95"]
    middle, low, high = int(directions.median()), int(directions.min()), int(directions.max())
    spread = f" (from {low} to {high})" if low < high else ""
    text = f"95% of the update lies in {_directions(middle)} in the median matrix{spread}"
    if moved["rank"].null_count() < moved.height:
        return f"{text}."
    full = int(moved.select(pl.min_horizontal("d_out", "d_in").median()).item())
    return f"{text}, of the {full} that it could have: LoRA of rank {middle} could hold that much of it."


def _directions(number: int) -> str:
    return "one direction" if number == 1 else f"{number} directions"


def _most_moved(moved: pl.DataFrame) -> Iterator[str]:
    table = moved.filter(pl.col("update_norm_relative").is_not_null())
    if table.is_empty():
        return
    first = table.sort("update_norm_relative", descending=True).row(0, named=True)
    middle = float(table["update_norm_relative"].median())
    place = place_in_words(first["name"], first["layer"], first["module"])
    yield (
        f"{place[0].upper()}{place[1:]} moved most: by {percent(first['update_norm_relative'])} of its own size; "
        f"the median matrix moved by {percent(middle)}."
    )
    by_module = table.group_by("module").agg(pl.col("update_norm_relative").mean()).sort("update_norm_relative")
    if by_module.height > 1:
        least, most = by_module.row(0), by_module.row(-1)
        if most[1] > _MUCH * least[1]:
            ends = f"{most[0]} moved most ({percent(most[1])} on average), {least[0]} least ({percent(least[1])})"
            yield f"Of the kinds of matrices {ends}."
    yield from _depth(table)


def _depth(table: pl.DataFrame) -> Iterator[str]:
    """Whether the early or the late layers moved farther."""
    layers = table["layer"].drop_nulls().unique().sort().to_list()
    third = len(layers) // 3
    if third < 2:
        return
    early = float(table.filter(pl.col("layer").is_in(layers[:third]))["update_norm_relative"].mean())
    late = float(table.filter(pl.col("layer").is_in(layers[-third:]))["update_norm_relative"].mean())
    low, high = sorted((early, late))
    if low > 0.0 and high > _MUCH * low:
        one, other = ("last", "first") if late > early else ("first", "last")
        yield f"The {one} third of the layers moved {high / low:.1f} times as far as the {other}, for its size."


def _alone(moved: pl.DataFrame) -> Iterator[str]:
    """Matrices whose first direction holds most of the update: its share is one over the stable rank."""
    table = moved.filter((pl.col("stable_rank") < 1.0 / _ALONE) & (pl.col("rank").is_null() | (pl.col("rank") > 3)))
    if table.is_empty():
        return
    first = table.sort("stable_rank").row(0, named=True)
    place = place_in_words(first["name"], first["layer"], first["module"])
    share = 1.0 / first["stable_rank"]
    matrices = "one matrix" if table.height == 1 else f"{table.height} of {moved.height} matrices"
    yield f"In {matrices} a single direction holds two thirds of the update or more; in {place} {percent(share)}."


def _intruders(table: pl.DataFrame) -> Iterator[str]:
    if "intruder_dimensions" not in table.columns or table["intruder_dimensions"].null_count() == table.height:
        return
    known = table.filter(pl.col("intruder_dimensions").is_not_null())
    total = int(known["intruder_dimensions"].sum())
    among = f"among the first 10 singular vectors of {known.height} matrices"
    if total == 0:
        yield f"No intruder dimensions: {among} every one is like one of the base's."
        return
    touched = known.filter(pl.col("intruder_dimensions") > 0)
    most = touched.sort("intruder_dimensions", descending=True).row(0, named=True)
    place = place_in_words(most["name"], most["layer"], most["module"])
    yield (
        f"{total} intruder dimension{'s' if total > 1 else ''} in {touched.height} matrices: {among}, so many are "
        f"like none of the base's. The most in one matrix: {int(most['intruder_dimensions'])}, in {place}."
    )


def _of_others(audit: Audit) -> Iterator[str]:
    tables = audit.others.filter((pl.col("kind") == "table") & (pl.col("update_norm") > 0.0))
    for row in tables.iter_rows(named=True):
        yield f"{row['name']} was trained too: the norm of its update is {row['update_norm']:.3g}."


def _on_texts(found: OnTexts) -> Iterator[str]:
    summary, losses = found.summary, found.losses
    change = summary["loss_change_nats"]
    moved = "stayed the same" if abs(change) < 5e-4 else f"{'rose' if change > 0 else 'fell'} by {abs(change):.3f}"
    higher = int((losses["loss_nats_per_token"] > losses["loss_nats_per_token_base"]).sum())
    lower = int((losses["loss_nats_per_token"] < losses["loss_nats_per_token_base"]).sum())
    which = "text" if losses.height == 1 else f"{losses.height} texts"
    split = "" if losses.height == 1 else f": higher in {higher} of them, lower in {lower}"
    yield (
        f"On the {which} given the loss {moved} nats per token, from "
        f"{summary['loss_nats_per_token_base']:.3f} to {summary['loss_nats_per_token']:.3f}{split}."
    )
    if not found.heads.is_empty():
        first = found.heads.sort("attention_divergence", descending=True).row(0, named=True)
        yield (
            f"Attention moved by {summary['attention_divergence']:.2g} nats on average (0.693: to other tokens "
            f"altogether); head {first['head']} of layer {first['layer']} most ({first['attention_divergence']:.2g})."
        )
    yield from _inside(found)


def _inside(found: OnTexts) -> Iterator[str]:
    """The residual streams and the neurons, each in a sentence."""
    layers = found.layers.filter(pl.col("cka").is_not_null())
    if not layers.is_empty():
        lowest = layers.sort("cka").row(0, named=True)
        yield (
            f"The representations kept a likeness of {found.summary['cka']:.3f} to the base's on average (CKA; 1 is "
            f"the same geometry), least after layer {lowest['layer']} ({lowest['cka']:.3f})."
        )
    if "neuron_shift" in found.layers.columns and found.layers["neuron_shift"].max():
        most = found.layers.sort("neuron_shift", descending=True, nulls_last=True).row(0, named=True)
        counts = ("num_neurons", "neurons_newly_dead", "neurons_newly_active")
        number, dead, active = (found.layers[key].sum() for key in counts)
        yield (
            f"Of {number:,} neurons {dead:,} fell silent on these texts and {active:,} began to speak; those of layer "
            f"{most['layer']} moved farthest ({most['neuron_shift']:.2g} standard deviations of the base on average)."
        )


def _of_comparison(against: Comparison) -> Iterator[str]:
    cosine, name = against.summary.get("update_cosine"), short_name(against.tuned)
    if cosine is None:
        yield f"{name} changed no matrix that this one changed."
        return
    if cosine > 0.9:
        text = "moved almost the same way"
    elif cosine > 0.3:
        text = "moved partly the same way"
    elif cosine > -0.1:
        text = "moved in mostly different directions"
    else:
        text = "moved against each other"
    ratio = against.summary["update_norm_ratio"]
    yield (
        f"Against {name}: the two {text} (cosine of their updates {cosine:.2f} on average); "
        f"the other moved {ratio:.3g} times as far."
    )


def _of_truncation(cut: Truncation) -> str:
    low, high = min(cut.ranks.values()), max(cut.ranks.values())
    ranks = f"rank {low}" if low == high else f"ranks from {low} to {high}"
    share = cut.num_parameters / cut.num_before
    return (
        f"The truncated copy has {ranks}, {100 * share:.0f}% of the parameters, and its update differs from the "
        f"adapter's by {percent(cut.error)} (Frobenius norm)."
    )


def percent(share: float) -> str:
    """A share in percent to two figures."""
    value = 100 * share
    return f"{value:.0f}%" if value >= 10 else f"{value:.2g}%"
