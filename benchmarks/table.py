"""The results as a table for people."""

from __future__ import annotations

import json
from pathlib import Path

_HEAD = (
    "| base | part | rankscope | peer | times faster | in processor time | memory, rankscope | peer "
    "| share of matrix-product rate |"
)


def write_table(results: Path, table: Path) -> None:
    """Write the Markdown table of results.json."""
    document = json.loads(results.read_text())
    lines = [_HEAD, "|---|---|---|---|---|---|---|---|---|"]
    for base, parts in document.items():
        for part, result in parts.items():
            if "curve" in result:
                continue
            ours, peer = result["rankscope"], result["peer"]
            shares = [stack.get("share_of_matrix_product_rate") for stack in (ours, peer)]
            share = "" if shares[0] is None else f"{shares[0]:.0%} (peer {shares[1]:.0%})"
            memory = [f"{stack['peak_memory_bytes'] / 2**20:.0f} MiB" for stack in (ours, peer)]
            lines.append(
                f"| {base} | {part} | {ours['seconds']:.1f} s | {peer['seconds']:.1f} s | {result['ratio']:.2f} "
                f"| {result['processor_ratio']:.2f} | {memory[0]} | {memory[1]} | {share} |"
            )
    table.write_text("\n".join([*lines, *_derived_lines(document)]) + "\n")


def _derived_lines(document: dict) -> list[str]:
    """A curve of six derived models beside the training it came from, where it was measured."""
    rows = []
    for base, parts in document.items():
        if "derive" in parts:
            curve, share = parts["derive"]["curve"], parts["derive"]["share"]
            seconds = (curve["train_seconds"], curve["point_seconds"], curve["scoring_seconds"])
            told = " | ".join("" if value is None else f"{value:.1f} s" for value in seconds)
            rows.append(f"| {base} | {curve['arm']} | {told} | {share:.2f} |")
    head = "| base | arm | training | a derived model | scoring the run | six of them, in trainings |"
    return ["", head, "|---|---|---|---|---|---|", *rows] if rows else []
