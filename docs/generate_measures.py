"""Write docs/measures.md from `rankscope.measures`, where every reported number is declared.

`python docs/generate_measures.py` writes the page; with `--check` it fails where the page is not what would be written.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from generated import write_or_check

from rankscope.measures import MEASURES, Measure

PAGE = Path(__file__).with_name("measures.md")

# Where each section begins in the order of the declarations, and what is said there.
_SECTIONS = {
    "accuracy": (
        "Learning and forgetting",
        """Of a model on a task, or of a tuned model against its base on the same items. An untrained adapter has a gain
        and a forgetting of exactly 0.""",
    ),
    "update_norm": (
        "The update of a matrix",
        """`dW` is what training added to a matrix: `scaling * B @ A` for LoRA (`scaling` is alpha/r, or alpha/sqrt(r)
        with rank-stabilised LoRA), tuned less base for full fine-tuning. `s_1 >= s_2 >= ...` are its singular values,
        `W0` is the base's matrix. An update of zero has a norm of 0, and no rank of any kind: those are absent. In the
        summary of a run, `update_norm` is the total over everything that was trained, embeddings and norms included;
        the other measures are means over the matrices of linear layers.""",
    ),
    "subspace_overlap_8": (
        "Singular subspaces of a matrix",
        """`W0 = U0 S0 V0'` is the base's matrix and `W = W0 + dW = U S V'` the tuned one, singular values falling. A
        matrix that did not move has overlaps and cosines of exactly 1 and no `rho`; one that has fewer than k singular
        values has no measure of k. Two singular vectors whose values are close turn freely into each other, so a low
        cosine alone is no change: look at the overlap beside it. Matrices that an architecture stores in one tensor
        (queries, keys and values; gates and ups; experts) are taken apart first. In the summary of a run intruders are
        added up over the matrices of linear layers; the other measures are means over them.""",
    ),
    "loss_change_nats": (
        "In an audit",
        """The first on the texts given (`audit --texts`), the others of two models tuned from one base
        (`audit --against`). Two random subspaces of k directions in a space of d
        have an overlap of about k / d.""",
    ),
    "attention_entropy": (
        "Attention of a head",
        """A head's pattern has one row for each position that looks, `q`, over the keys `k` that it may see (causality,
        sliding windows and padding decide which). Base and tuned model see the same probe texts. An untrained adapter
        has a divergence of exactly 0. In the summary of a run each is the mean over layers and heads.""",
    ),
    "cka": (
        "Representations of a layer",
        """The residual stream is what a decoder layer gives to the next one; `X` has the base's, `Y` the tuned model's,
        a row for each position of a task's probe texts. An untrained adapter has a CKA and a cosine of exactly 1. In
        the summary of a run each is the mean over layers and tasks.""",
    ),
    "neuron_mean": (
        "Neurons",
        """A neuron's activation is what a layer's MLP puts into its last matrix. Layers of experts have none here:
        their neurons see some tokens only. In the summary of a run counts are over all layers; the others are means
        over neurons and tasks, `neuron_selectivity` and `neuron_shift` of their size without sign.""",
    ),
}
_INTRODUCTION = """Every number that rankscope reports, under the key that records, tables and the report use. This page
    is written by `docs/generate_measures.py` from `src/rankscope/measures.py`. Where a number does not exist (the rank
    of an update that is zero, the use of a rank where none was granted) it is absent, never a stand-in."""
_HEAD = ("| key | what it tells | formula | unit | better | source |", "|---|---|---|---|---|---|")
_BETTER = {"higher": "higher", "lower": "lower", "neither": ""}


def page() -> str:
    """The whole page as Markdown."""
    lines = ["# Measures", "", _wrapped(_INTRODUCTION)]
    for key, measure in MEASURES.items():
        if key in _SECTIONS:
            title, text = _SECTIONS[key]
            lines += ["", f"## {title}", "", _wrapped(text), "", *_HEAD]
        lines.append(_row(measure))
    return "\n".join(lines) + "\n"


def _wrapped(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), width=120, break_on_hyphens=False)


def _row(measure: Measure) -> str:
    cells = [
        f"`{measure.key}`",
        measure.meaning,
        f"`{measure.formula}`" if any(mark in measure.formula for mark in "=|^*") else measure.formula,
        "" if measure.unit == "none" else measure.unit,
        _BETTER[measure.better],
        measure.source,
    ]
    # A bar ends a cell, also inside code.
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, page(), "docs/generate_measures.py", sys.argv[1:]))
