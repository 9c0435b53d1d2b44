"""docs/findings.md says what the real study's tables say, and the claims are judged by intervals alone."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import polars as pl
import pytest

ROOT = Path(__file__).resolve().parent.parent
CLAIMS = runpy.run_path(str(ROOT / "docs" / "claims.py"))
RANKS = {"lora-r8": 8, "lora-r16": 16, "lora-r32": 32, "lora-r64": 64, "lora-r128": 128}
DECIDE = {"margin": 0.1, "margin_nats": 0.05, "forgetting_budget": 0.1, "forgetting_budget_nats": 0.1}


def sweep(gains: dict[str, float], lost: dict[str, float], half: float, measure: str = "gain") -> Any:
    """A study whose every interval has the same half-width."""
    arms = [
        {"training_set": "t", "arm": arm, "rank": RANKS.get(arm), "measure": name, "value": value}
        for name, values in ((measure, gains), ("forgetting", lost))
        for arm, value in values.items()
    ]
    pairs = [
        {"training_set": "t", "arm": a, "rival": b, "measure": name, "value": values[a] - values[b]}
        for name, values in ((measure, gains), ("forgetting", lost))
        for a, b in combinations(values, 2)
    ]
    ends = (pl.col("value") - half).alias("low"), (pl.col("value") + half).alias("high")
    tables = {"arms": pl.DataFrame(arms).with_columns(*ends), "pairs": pl.DataFrame(pairs).with_columns(*ends)}
    found = CLAIMS["sweep_of"](tables, "t", DECIDE)
    # Only accuracy is watched in these: a budget without a task is no evidence.
    return CLAIMS["Sweep"](**{**vars(found), "budgets": {"forgetting": DECIDE["forgetting_budget"]}})


SAME = {"full": 0.3, **dict.fromkeys(RANKS, 0.3)}
NONE_LOST = dict.fromkeys(SAME, 0.0)


@pytest.mark.parametrize(
    ("claim", "gains", "lost", "half", "expected"),
    [
        ("competitive", SAME, NONE_LOST, 0.05, "supported"),
        ("competitive", SAME, NONE_LOST, 0.2, "undecided"),
        ("competitive", {**SAME, "full": 0.5}, NONE_LOST, 0.05, "contradicted"),
        ("competitive", {**SAME, "full": 0.5, "lora-r64": 0.5}, NONE_LOST, 0.05, "supported"),
        ("flat", SAME, NONE_LOST, 0.05, "supported"),
        ("flat", SAME, NONE_LOST, 0.11, "undecided"),
        ("flat", {**SAME, "lora-r8": 0.1}, NONE_LOST, 0.05, "contradicted"),
        ("peaked", {**SAME, "lora-r64": 0.5}, NONE_LOST, 0.05, "supported"),
        ("peaked", {**SAME, "lora-r128": 0.5}, NONE_LOST, 0.05, "contradicted"),
        ("peaked", SAME, NONE_LOST, 0.05, "undecided"),
        ("balanced", {**SAME, "lora-r32": 0.4}, NONE_LOST, 0.05, "supported"),
        ("balanced", SAME, {**NONE_LOST, "lora-r32": -0.2}, 0.05, "supported"),
        ("balanced", SAME, NONE_LOST, 0.05, "contradicted"),
        ("balanced", SAME, NONE_LOST, 0.2, "undecided"),
        *[
            (claim, dict.fromkeys(SAME, 0.0), NONE_LOST, 0.05, "undecided")
            for claim in ("competitive", "flat", "balanced")
        ],
        ("keeps_knowledge", SAME, NONE_LOST, 0.05, "supported"),
        ("keeps_knowledge", SAME, {**NONE_LOST, "full": 0.9}, 0.05, "supported"),
        ("keeps_knowledge", SAME, {**NONE_LOST, "lora-r8": 0.2}, 0.05, "contradicted"),
        ("keeps_knowledge", SAME, {**NONE_LOST, "lora-r8": 0.1}, 0.05, "undecided"),
    ],
)
def test_a_claim_is_judged_by_its_intervals(
    claim: str, gains: dict[str, float], lost: dict[str, float], half: float, expected: str
) -> None:
    assert CLAIMS[claim](sweep(gains, lost, half)) == expected


def test_a_difference_is_the_same_whichever_way_the_table_has_it() -> None:
    one = sweep({**SAME, "full": 0.5}, NONE_LOST, 0.05)
    there, back = one.difference("full", "lora-r8", "gain"), one.difference("lora-r8", "full", "gain")
    assert (there.value, there.low, there.high) == pytest.approx((0.2, 0.15, 0.25))
    assert (back.value, back.low, back.high) == pytest.approx((-0.2, -0.25, -0.15))
    assert one.difference("full", "lora-r3", "gain") is None


def test_a_peak_needs_ranks_on_both_sides() -> None:
    """Rank 64 ahead of rank 8 alone is no peak at 64, and no balance."""
    two = {"full": 0.3, "lora-r8": 0.1, "lora-r64": 0.5}
    found = sweep(two, dict.fromkeys(two, 0.0), 0.05)
    assert (CLAIMS["peaked"](found), CLAIMS["balanced"](found)) == ("undecided", "undecided")
    worse = {**two, "lora-r8": 0.7}
    assert CLAIMS["peaked"](sweep(worse, dict.fromkeys(two, 0.0), 0.05)) == "contradicted"


def test_losses_have_the_margin_in_nats() -> None:
    apart = {**SAME, "full": 0.36}
    assert CLAIMS["competitive"](sweep(apart, NONE_LOST, 0.005, "gain_nats")) == "contradicted"
    assert CLAIMS["competitive"](sweep(apart, NONE_LOST, 0.005)) == "supported"


def norms(values: list[float], rates: list[float] | None = None) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "rank": list(RANKS.values()),
            "learning_rate": rates or [3e-4] * 5,
            "value": values,
            "lowest": [value - 0.01 for value in values],
            "highest": [value + 0.01 for value in values],
        }
    )


def test_growth_with_the_logarithm_of_the_rank() -> None:
    grows = CLAIMS["grows_with_rank"]
    assert grows(norms([1.0, 2.0, 3.0, 4.0, 5.0])) == "supported"
    assert grows(norms([8.0, 16.0, 32.0, 64.0, 128.0])) == "undecided", "in proportion to the rank itself"
    assert grows(norms([5.0, 4.0, 3.0, 2.0, 1.0])) == "contradicted"
    assert grows(norms([1.0, 2.0, 3.0, 4.0, 5.0], [3e-4, 3e-4, 3e-4, 1e-3, 1e-3])) == "undecided", "rates differ"


def test_thirds_of_the_layers() -> None:
    rows = [
        {"arm": arm, "layer": layer, "module": "q_proj", "measure": "update_norm_relative", "value": value}
        for arm, values in {"full": [1, 1, 2, 2, 4, 4], "lora-r8": [2, 2, 1, 1, 4, 4]}.items()
        for layer, value in enumerate(values)
    ]
    other = {"arm": "full", "layer": 0, "module": "q_proj", "measure": "stable_rank", "value": 99}
    parts = CLAIMS["thirds"](pl.DataFrame([*rows, other]))
    assert parts.rows() == [("full", 1.0, 2.0, 4.0), ("lora-r8", 2.0, 1.0, 4.0)]
    most = CLAIMS["upper_layers_change_most"]
    assert most(parts) == "undecided"
    assert most(parts.filter(pl.col("arm") == "full")) == "supported"
    assert most(parts.filter(pl.col("arm") == "lora-r8")) == "contradicted"


def test_out_of_domain_every_arm_counts() -> None:
    rows = pl.DataFrame(
        {
            "arm": ["lora-r8", "lora-r8", "full"],
            "relation": ["out_of_domain"] * 3,
            "category": [None, "contracts", None],
            "unit": ["accuracy"] * 3,
            "low": [-0.05, -0.9, -0.9],
            "high": [0.05, -0.5, -0.5],
        }
    )
    keeps = CLAIMS["keeps_elsewhere"]
    assert keeps(rows, ["lora-r8"], 0.1) == "supported", "categories and other arms do not count"
    assert keeps(rows, ["lora-r8", "full"], 0.1) == "contradicted"
    assert keeps(rows, ["lora-r8"], 0.01) == "undecided"


def test_the_page_is_made_of_the_tables_beside_it() -> None:
    page = ROOT / "docs" / "findings.md"
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate_findings.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # A number of the page, from the table by hand: what each arm gained where it was trained.
    arms = pl.read_csv(ROOT / "docs" / "smollm2" / "tables" / "arms.csv", infer_schema_length=None)
    gains = arms.filter((pl.col("measure") == "gain") & (pl.col("arm") != "base"))
    assert gains.height > 0
    for row in gains.iter_rows(named=True):
        assert f"| {row['arm']} |" in page.read_text(encoding="utf-8")
        assert f"{abs(100 * row['value']):.1f} points ({100 * row['low']:.1f}".replace(
            "-", "\N{MINUS SIGN}"
        ) in page.read_text(encoding="utf-8")


def test_what_is_shipped_is_small_and_names_no_folder_of_the_machine_that_made_it() -> None:
    files = [path for path in (ROOT / "docs" / "smollm2").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5_000_000
    for path in files:
        assert not re.search(r"/(root|home|tmp|work)/", path.read_text(encoding="utf-8")), path
