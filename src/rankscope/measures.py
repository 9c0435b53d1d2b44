"""The declaration of every reported number: key, unit, direction, meaning, formula and source, each said once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Direction = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Measure:
    """One reported number.

    Attributes:
        key: The spelling in records, JSON, tables and the report; a valid identifier.
        unit: `fraction`, `nats`, `bits`, `count`, `none`, ...
        better: Which end is better, where that can be said.
        meaning: One line for a reader of the report.
        formula: How it is computed.
        source: Where the definition comes from.
    """

    key: str
    unit: str
    better: Direction
    meaning: str
    formula: str
    source: str = ""


_HARNESS = "conventions of lm-evaluation-harness"


def _both(
    key: str, sizes: tuple[int, ...], unit: str, meaning: str, formulas: tuple[str, str], source: str = ""
) -> tuple[Measure, ...]:
    """A measure of singular vectors for each size of the subspace, on the left and on the right."""
    found = []
    for k in sizes or (0,):
        name, (left, right) = f"{key}_{k}" if k else key, (formula.format(k=k) for formula in formulas)
        words = meaning.format(k=k)
        found.append(Measure(name, unit, "neither", words, left, source))
        found.append(Measure(f"{name}_right", unit, "neither", f"{words}, right vectors", right, source))
    return tuple(found)


_ALL = (
    # Learning and forgetting
    Measure("accuracy", "fraction", "higher", "share of items answered right", "mean of is_correct", _HARNESS),
    Measure(
        "accuracy_per_byte",
        "fraction",
        "higher",
        "share of items right when options are compared per byte",
        "argmax over options of log-likelihood / bytes of the option",
        _HARNESS,
    ),
    Measure(
        "accuracy_strict",
        "fraction",
        "higher",
        "share of generations whose number stands behind ####",
        "mean of is_correct_strict",
        _HARNESS,
    ),
    Measure(
        "option_mass",
        "fraction",
        "neither",
        "how much of its probability the model gives to the options together",
        "mean over items of the sum over distinct options of exp(log-likelihood)",
    ),
    Measure(
        "loss_nats_per_token",
        "nats",
        "lower",
        "how surprised the model is by each token of the text",
        "sum of -ln p(token | before) over scored tokens / their number",
    ),
    Measure(
        "bits_per_byte",
        "bits",
        "lower",
        "the same, comparable between tokenizers",
        "sum of -log2 p / number of UTF-8 bytes",
        _HARNESS,
    ),
    Measure(
        "gain",
        "fraction",
        "higher",
        "how much better the tuned model is in the domain it was trained on",
        "accuracy tuned - accuracy base on in-domain items, paired by item",
    ),
    Measure(
        "gain_nats",
        "nats",
        "higher",
        "how much less surprised the tuned model is by in-domain text",
        "loss base - loss tuned, nats per token, same tokens",
    ),
    Measure(
        "forgetting",
        "fraction",
        "lower",
        "how much accuracy was lost on what the model was not trained on",
        "accuracy base - accuracy tuned, paired by item",
        "Biderman et al., arXiv 2405.09673",
    ),
    Measure(
        "forgetting_nats",
        "nats",
        "lower",
        "how much more surprised the tuned model is by retention text",
        "loss tuned - loss base, nats per token, same tokens",
        "Shuttleworth et al., arXiv 2410.21228",
    ),
    Measure("num_lost", "count", "lower", "items right before and wrong after", "count"),
    Measure("num_gained", "count", "higher", "items wrong before and right after", "count"),
    Measure(
        "invalid_fraction",
        "fraction",
        "lower",
        "share of generations from which no answer can be read",
        "mean of is_invalid",
    ),
    # Spectra of the update, per adapted matrix
    Measure("update_norm", "none", "neither", "how far the matrix moved", "||dW||_F"),
    Measure(
        "update_norm_relative", "fraction", "neither", "how far it moved, relative to the base", "||dW||_F / ||W0||_F"
    ),
    Measure(
        "update_spectral_relative",
        "fraction",
        "neither",
        "the largest stretch of the update, relative to the base",
        "||dW||_2 / ||W0||_2",
    ),
    Measure("stable_rank", "none", "neither", "how many directions carry the update", "sum s_i^2 / s_1^2"),
    Measure("rank_utilisation", "fraction", "neither", "how much of the granted rank is used", "stable_rank / rank"),
    Measure(
        "effective_rank",
        "none",
        "neither",
        "how evenly the update spreads over directions",
        "exp(-sum p_i ln p_i), p_i = s_i / sum s_j",
        "Roy and Vetterli, EUSIPCO 2007",
    ),
    Measure(
        "energy_rank_90",
        "count",
        "neither",
        "directions that hold 90% of the update's energy",
        "least k with sum_{i<=k} s_i^2 >= 0.90 sum s_i^2",
        "Biderman et al., arXiv 2405.09673",
    ),
    Measure(
        "energy_rank_95",
        "count",
        "neither",
        "directions that hold 95% of the update's energy",
        "least k with sum_{i<=k} s_i^2 >= 0.95 sum s_i^2",
    ),
    Measure(
        "energy_rank_99",
        "count",
        "neither",
        "directions that hold 99% of the update's energy",
        "least k with sum_{i<=k} s_i^2 >= 0.99 sum s_i^2",
    ),
    # The base's singular subspaces in the tuned matrices, per adapted matrix; left vectors, and `_right` for right ones
    *_both(
        "subspace_overlap",
        (8, 32, 128),
        "fraction",
        "how much of the base's top-{k} subspace is left in the tuned matrix's",
        ("||U_k' U0_k||_F^2 / k, k = {k}", "||V_k' V0_k||_F^2 / k, k = {k}"),
    ),
    *_both(
        "singular_vector_cosine",
        (),
        "fraction",
        "how like the base's j-th singular vector the tuned matrix's j-th is",
        (
            "mean over j <= k of |<u_j, u0_j>|; k: an eighth of the smaller side, at most 500",
            "mean over j <= k of |<v_j, v0_j>|; k: an eighth of the smaller side, at most 500",
        ),
        "Rathore et al., arXiv 2512.15634",
    ),
    *_both(
        "singular_vector_best_cosine",
        (),
        "fraction",
        "how like the tuned matrix's singular vectors the most alike of the base's are",
        ("mean over j <= k of max_i |<u_j, u0_i>|, i <= k", "mean over j <= k of max_i |<v_j, v0_i>|, i <= k"),
        "Rathore et al., arXiv 2512.15634",
    ),
    *_both(
        "intruder_dimensions",
        (),
        "count",
        "large singular vectors that are like none of the base's",
        (
            "number of j <= 10 with max_i |<u_j, u0_i>| < 0.5 over all i; summed over matrices",
            "number of j <= 10 with max_i |<v_j, v0_i>| < 0.5 over all i; summed over matrices",
        ),
        "Shuttleworth et al., arXiv 2410.21228, Algorithm 1",
    ),
    *_both(
        "rho",
        (16, 128),
        "fraction",
        "how much of the update lies in the base's top-{k} subspace",
        ("||U0_k U0_k' dW||_F^2 / ||dW||_F^2, k = {k}", "||dW V0_k V0_k'||_F^2 / ||dW||_F^2, k = {k}"),
        "OPLoRA, arXiv 2510.13003",
    ),
    Measure(
        "loss_change_nats",
        "nats",
        "lower",
        "how much more surprised the tuned model is by the texts given",
        "loss tuned - loss base, nats per token, same tokens",
    ),
    # Two updates of one matrix
    Measure(
        "update_cosine",
        "none",
        "neither",
        "how much alike two updates of a matrix are",
        "<dW_1, dW_2>_F / (||dW_1||_F ||dW_2||_F)",
    ),
    Measure(
        "update_norm_ratio", "none", "neither", "how many times as far the other model moved", "||dW_2||_F / ||dW_1||_F"
    ),
    Measure(
        "update_overlap_8",
        "fraction",
        "neither",
        "how far two updates write into the same directions",
        "||U_1' U_2||_F^2 / k, U the first k = 8 left singular vectors of each update",
    ),
    Measure(
        "update_overlap_8_right",
        "fraction",
        "neither",
        "how far two updates read the same directions",
        "||V_1' V_2||_F^2 / k, V the first k = 8 right singular vectors of each update",
    ),
    # Attention, per layer and head
    Measure(
        "attention_entropy",
        "fraction",
        "neither",
        "how widely a head looks: 0 one token, 1 all alike",
        "mean over rows with two keys or more of H(row) / ln(keys it may see)",
    ),
    Measure(
        "attention_divergence",
        "nats",
        "neither",
        "how far a head's pattern moved from the base's",
        "mean over rows of the Jensen-Shannon divergence between base and tuned",
    ),
    Measure(
        "attention_first_token",
        "fraction",
        "neither",
        "share of attention on the first position",
        "mean over rows of the pattern's first column",
    ),
    Measure(
        "attention_distance",
        "positions",
        "neither",
        "how far back a head looks",
        "mean over rows of sum_k pattern_k (q - k)",
    ),
    Measure(
        "head_similarity",
        "none",
        "neither",
        "how alike the heads of a layer are",
        "mean over pairs of heads and rows of the cosine of their patterns",
    ),
    # Representations, per layer and task, base against tuned on the same positions
    Measure(
        "cka",
        "fraction",
        "neither",
        "how alike the geometry of a layer's residual stream is before and after",
        "||X'Y||_F^2 / (||X'X||_F ||Y'Y||_F), columns centred",
        "Kornblith et al., arXiv 1905.00414",
    ),
    Measure(
        "residual_cosine",
        "none",
        "neither",
        "how like the base's direction a layer's residual stream is",
        "mean over positions of the cosine between base and tuned",
    ),
    Measure(
        "procrustes_residual",
        "fraction",
        "neither",
        "what no rotation, scale and shift of the base's stream explains",
        "1 - (||X'Y||_* / (||X||_F ||Y||_F))^2, columns centred",
    ),
    # Neurons, per MLP neuron and task
    Measure("neuron_mean", "none", "neither", "how strongly a neuron speaks", "mean activation over positions"),
    Measure(
        "neuron_active_fraction",
        "fraction",
        "neither",
        "how often a neuron speaks",
        "share of positions with |a| above 0 (ReLU) or 0.1 of the root mean square of the base's layer",
    ),
    Measure(
        "neuron_selectivity",
        "none",
        "neither",
        "how much more a neuron says on one task than on the others",
        "(mean on the task - mean over the other tasks) / standard deviation within tasks",
    ),
    Measure(
        "neuron_shift",
        "none",
        "neither",
        "how far a neuron's mean moved, in the base's standard deviations",
        "(mean tuned - mean base) / standard deviation within tasks; in summaries the mean of its size",
    ),
    Measure(
        "neurons_newly_dead",
        "count",
        "neither",
        "neurons that fell silent",
        "active at 1% of positions or more before, at none after",
    ),
    Measure(
        "neurons_newly_active",
        "count",
        "neither",
        "neurons that began to speak",
        "active at no position before, at 1% or more after",
    ),
)

SUBSPACES = tuple(
    measure.key
    for measure in _ALL
    if measure.key.startswith(("subspace_overlap", "singular_vector", "intruder", "rho"))
)
MEASURES: dict[str, Measure] = {measure.key: measure for measure in _ALL}


def declared(key: str) -> Measure:
    """The measure of a key.

    Raises:
        KeyError: Nothing of that name is declared here, so it may not be reported.
    """
    return MEASURES[key]
