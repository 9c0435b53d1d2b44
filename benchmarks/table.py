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
            ours, peer = result["rankscope"], result["peer"]
            shares = [stack.get("share_of_matrix_product_rate") for stack in (ours, peer)]
            share = "" if shares[0] is None else f"{shares[0]:.0%} (peer {shares[1]:.0%})"
            memory = [f"{stack['peak_memory_bytes'] / 2**20:.0f} MiB" for stack in (ours, peer)]
            lines.append(
                f"| {base} | {part} | {ours['seconds']:.1f} s | {peer['seconds']:.1f} s | {result['ratio']:.2f} "
                f"| {result['processor_ratio']:.2f} | {memory[0]} | {memory[1]} | {share} |"
            )
    table.write_text("\n".join(lines) + "\n")
