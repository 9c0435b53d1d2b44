"""The page: its policy, its escaping, its size, and what it says when parts of the study are not there."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import polars as pl
import pytest

from rankscope.errors import UserError
from rankscope.records import ArmResult, Interval, MemoryShortage, Verdict
from rankscope.report import stage
from rankscope.report.figures import make_figures
from rankscope.report.losses import flips
from rankscope.report.page import _provenance, render_page, safe_json, verdict_views, with_code
from rankscope.report.reading import read_contents
from rankscope.report.tables import make_tables
from rankscope.report.verdicts import verdict_view
from rankscope.store import Store
from report_study import EVIL, finished_study
from synthetic import write_study


def html_of(store):
    """The page alone, without the SVG files, which take longest."""
    contents = read_contents(store)
    tables = make_tables(contents)
    return render_page(contents, tables, make_figures(tables, contents))


class Page(HTMLParser):
    """Elements, attributes and the text of scripts, styles and everything else."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.scripts, self.styles, self.blocks, self.text, self.inside = [], [], [], {}, [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag in ("script", "style"):
            self.inside.append((tag, attrs, []))

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            kind, attrs, parts = self.inside.pop()
            text = "".join(parts)
            if kind == "style":
                self.styles.append(text)
            elif attrs.get("type") == "application/json":
                self.blocks[attrs["id"]] = json.loads(text)
            else:
                self.scripts.append(text)

    def handle_data(self, data):
        (self.inside[-1][2] if self.inside else self.text).append(data)

    @property
    def words(self):
        return " ".join("".join(self.text).split())


@pytest.fixture(scope="module")
def page(reported):
    return Page(reported.html)


def test_the_policy_names_exactly_the_scripts_and_styles_of_the_page(page):
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    hashes = re.findall(r"'sha256-([^']+)'", policy)
    found = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in page.scripts + page.styles]
    assert hashes == found
    assert len(page.scripts) == 2
    assert len(page.styles) == 1


def test_nothing_on_the_page_is_fetched_or_runs_from_an_attribute(page):
    for tag, attrs in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in attrs), (tag, attrs)
        for name in ("src", "href", "action", "srcset", "data"):
            if name in attrs:
                # A link to a file beside the page is followed by a reader, never by the page.
                beside = ("tables/", "../decide/") if tag == "a" else ()
                assert attrs[name].startswith(("#", "data:", *beside)), (tag, attrs)
    assert "url(" not in page.styles[0]
    assert "@import" not in page.styles[0]


def test_text_from_data_stays_text(page, reported):
    assert any(flip["prompt"] == EVIL for flip in page.blocks["flips-data-1"])
    assert "<script>window.pwned" not in reported.html
    assert len([tag for tag, _ in page.tags if tag == "script"]) == 2 + len(page.blocks)


def test_json_cannot_end_its_script_element():
    text = safe_json({"a": EVIL, "b": "\N{LINE SEPARATOR}"})
    assert not set("<>&\N{LINE SEPARATOR}") & set(text)
    assert json.loads(text)["a"] == EVIL
    assert with_code("<b> `x<y`") == "&lt;b&gt; <code>x&lt;y</code>"


def test_it_is_small_enough_to_be_sent(reported):
    assert reported.page.stat().st_size < 3e6


def test_a_rebuild_changes_nothing(reported, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(reported.study.store.root, copy)
    shutil.rmtree(copy / "report")
    again = stage.run(Store(copy))
    assert again.read_bytes() == reported.page.read_bytes()
    for folder in ("tables", "figures"):
        names = sorted(path.name for path in (copy / "report" / folder).iterdir())
        assert names == sorted(path.name for path in (reported.page.parent / folder).iterdir())
        for name in names:
            old, new = reported.page.parent / folder / name, copy / "report" / folder / name
            assert old.read_bytes() == new.read_bytes(), name
    assert len(list((copy / "report" / "figures").iterdir())) == 2 * 14


def test_every_verdict_and_every_failure_is_said(page, reported):
    for verdict in reported.study.store.read_decide().verdicts:
        assert " ".join(verdict.rule.split()) in page.words
        for warning in verdict.warnings:
            assert warning in page.words
    assert "34 of 38 runs complete, 2 diverged, 2 failed" in page.words
    assert "RuntimeError: out of memory" in page.words
    assert "the loss rose above twice that of guessing every token alike at step 3" in page.words


def test_a_study_that_was_only_planned_has_a_page_that_says_so(tmp_path):
    study = write_study(tmp_path / "study")
    for folder in ("runs", "base"):
        shutil.rmtree(study.store.root / folder)
    page = Page(html_of(study.store))
    assert "There is no verdict yet" in page.words
    assert "0 of 33 runs complete, 33 waiting" in page.words
    assert "no learning rate has been chosen" in page.words
    assert "No work is left that failed, diverged or was interrupted" in page.words
    assert "what was stopped and then went on to its end is not listed" in page.words  # its records do not tell


def test_a_study_under_way_shows_what_it_has(tmp_path):
    study = finished_study(tmp_path / "study", training_sets=("new",))
    (study.store.decide / "record.json").unlink()
    shutil.rmtree(study.store.run(study.runs("full", 0)[0].run_id) / "analyse")
    page = Page(html_of(study.store))
    assert "There is no verdict yet" in page.words
    assert "spec-learning_rates-1" in page.blocks
    assert "spec-losses-1" in page.blocks
    assert "spec-learned_forgotten-1" not in page.blocks
    assert "Items that flipped" in page.words


def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path):
    study = finished_study(tmp_path / "study", training_sets=("new",))
    run = next(run for run in study.runs("full", 0) if run.learning_rate == 1e-5)
    (study.store.train(run.run_id) / "record.json").write_text("{ half a rec")
    (study.store.analysis(run.run_id, "spectra") / "matrices.parquet").write_bytes(b"PAR1 no")
    (study.store.base_task("small", "legal") / "prompts.parquet").unlink()
    study.store.study_file.write_text("study: [")
    page = Page(html_of(study.store))
    for part in (f"runs/{run.run_id}/train/record.json", f"runs/{run.run_id}/analyse/spectra/matrices.parquet",
                 "base/small/evaluate/legal/prompts.parquet", "study.yaml"):  # fmt: skip
        assert part in page.words
    assert str(tmp_path) not in page.words
    assert "spec-learned_forgotten-1" in page.blocks


def test_a_folder_without_a_plan_is_no_study(tmp_path):
    with pytest.raises(UserError, match="no study was planned here"):
        stage.run(Store(tmp_path))


def interval(value):
    return Interval(value=value, low=value - 0.01, high=value + 0.01, confidence=0.95, num_items=300, num_seeds=3)


def verdict(**values):
    fields = {"base": "b", "training_set": "t", "decision": "recommended", "arm": "lora-r8", "learning_rate": 3e-4,
              "gain": interval(0.3), "forgetting": interval(0.015), "forgetting_nats": interval(0.02),
              "rule": "The rule.", "runner_up": "full", "needed": None}  # fmt: skip
    return Verdict(**{**fields, **values})


def test_the_commit_of_a_base_from_the_hub_is_shown(reported):
    plan = reported.contents.plan
    base = plan.bases["small"].model_copy(update={"revision": "main", "commit": "c" * 40})
    planned = plan.model_copy(update={"bases": {"small": base}})
    rows = dict(_provenance(replace(reported.contents, plan=planned)))
    assert f"revision main, commit {'c' * 40}, fingerprint" in rows["Base small"]


def test_the_layout_tells_of_the_packs_that_were_made_and_not_of_those_that_were_asked_for(reported):
    contents = reported.contents
    asked = contents.plan.layout.model_copy(update={"pack_size": 4})
    run_ids = [*contents.trains]
    trains = contents.trains | {
        run_id: contents.trains[run_id].model_copy(update={"pack": tuple(run_ids[:3])}) for run_id in run_ids[:3]
    }
    planned = replace(contents, plan=contents.plan.model_copy(update={"layout": asked}))
    alone, without, together = (
        dict(_provenance(one))["Layout"] for one in (contents, planned, replace(contents, trains=trains))
    )
    assert without == alone
    assert together == alone.replace(" each, ", " each, LoRA runs in packs of up to 3, ") != alone


def test_gradient_checkpointing_and_memory_that_ran_out_are_shown(reported):
    contents = reported.contents
    assert "Memory" not in dict(_provenance(contents))
    first, *_ = contents.trains
    shortages = tuple(MemoryShortage(step=step, max_tokens_per_batch=size) for step, size in ((3, 512), (4, 256)))
    short = contents.trains | {first: contents.trains[first].model_copy(update={"memory_shortages": shortages})}
    saving = contents.plan.model_copy(update={"gradient_checkpointing": True})
    rows = dict(_provenance(replace(contents, trains=short, plan=saving)))
    assert rows["Memory"].startswith("ran out in 1 run: ") and rows["Memory"].endswith("256 positions at the least")
    assert rows["Layout"].endswith("activations computed twice (gradient checkpointing)")


def test_a_verdict_is_one_sentence():
    view = verdict_view(verdict(), "t", ("lora-r8", "full"), "decide/record.json")
    assert view.headline == "Use LoRA of rank 8 at learning rate 0.0003."
    assert view.sentence == (
        "Expect to learn 30.0 points (29.0 to 31.0) in the domain it was trained on and to forget 1.5 points "
        "(0.5 to 2.5) and 0.020 nats per token (0.010 to 0.030) of what the base could do before "
        "(95% intervals in brackets)."
    )
    assert view.runner_up == "full fine-tuning"
    rests = [f"{key}: 300 items, 3 seeds" for key in ("gain", "forgetting", "forgetting_nats")]
    assert view.evidence == "; ".join(["95% intervals", *rests, "decide/record.json"])


def test_numbers_of_every_verdict_say_what_they_rest_on():
    """Of a base that stays too, whose sentence speaks of the arms; only where none was measured is nothing said."""
    few = arm("full", 0.5, "no").model_copy(
        update={"gain": interval(0.5).model_copy(update={"num_items": 60, "num_seeds": 2}), "forgetting": None}
    )
    rests = (
        "95% intervals (seeds pooled over arms); gain: 60 to 300 items, 2 to 3 seeds; forgetting: 300 items, 3 seeds; f"
    )
    for values in ({"arm": "base", "learning_rate": None}, {"arm": None, "decision": "undecided"}):
        assert verdict_view(verdict(arms=(arm("lora-r8", 0.3, "yes"), few), **values), "t", (), "f").evidence == rests
        assert verdict_view(verdict(**values), "t", (), "f").evidence is None


def test_the_recommended_arm_says_what_it_cost(reported):
    runs = make_tables(reported.contents)["runs"]
    given = verdict(base="small", training_set="new", arm="lora-r16")
    contents = replace(reported.contents, decision=reported.contents.decision.model_copy(update={"verdicts": (given,)}))
    assert verdict_views(contents, runs)[0].cost == "One run trained 16,000 parameters in 2.0 s."
    given = verdict(base="small", training_set="new", arm=None, decision="undecided", needed="More.")
    contents = replace(contents, decision=reported.contents.decision.model_copy(update={"verdicts": (given,)}))
    assert verdict_views(contents, runs)[0].cost is None


def test_not_to_fine_tune_and_undecided_are_verdicts_too():
    none = verdict_view(verdict(arm="base", learning_rate=None), "t", (), "decide/record.json")
    assert (none.headline, none.decision) == ("Do not fine-tune.", "none")
    open_ = verdict(decision="undecided", arm=None, learning_rate=None, gain=None, forgetting=None, needed="Two seeds.")
    view = verdict_view(open_, "t", (), "decide/record.json")
    assert (view.headline, view.next_step) == ("Undecided.", "Two seeds.")
    assert view.sentence == "No arm could be judged."


def arm(name, gain, eligible):
    return ArmResult(
        arm=name, method="lora", rank=8, learning_rate=3e-4, num_trainable=8, gain=interval(gain), gain_nats=None,
        forgetting=interval(0.01), forgetting_nats=None, eligible=eligible, behind_best=None,
    )  # fmt: skip


def test_what_is_safe_while_undecided_is_said_first():
    arms = (arm("lora-r4", 0.1, "yes"), arm("lora-r8", 0.3, "yes"), arm("mine", 0.4, "unknown"), arm("full", 0.5, "no"))
    given = verdict(decision="undecided", arm=None, arms=arms, safe_arm="lora-r8", because="Because.")
    view = verdict_view(given, "t", (), "decide/record.json")
    assert (view.headline, view.sentence) == ("Undecided. Safe meanwhile: LoRA of rank 8.", "Because.")
    assert view.evidence.endswith("; gain: 300 items, 3 seeds; forgetting: 300 items, 3 seeds; decide/record.json")
    assert view.runner_up is None, "who leads is said already"
    base = verdict_view(given.model_copy(update={"safe_arm": "base"}), "t", (), "decide/record.json")
    assert base.headline == "Undecided."


def test_the_next_step_follows_from_the_verdict():
    view = verdict_view(verdict(), "t", (), "f")
    assert view.next_step.startswith("`rankscope export DIR` writes")
    at_edge = verdict_view(verdict(), "t", (), "f", None, {"lora-r8": "lowest"})
    assert "lowest that was tried; a lower one" in at_edge.next_step
    none = verdict(arm="base", learning_rate=None, arms=(arm("lora-r8", 0.0, "yes"),))
    lost = none.model_copy(update={"arms": (arm("lora-r8", 0.3, "no"),)})
    assert "lower rates" in verdict_view(lost, "t", (), "f", None, {"lora-r8": "highest"}).next_step
    step = verdict_view(none, "t", (), "f", None, {"lora-r8": "lowest", "full": "highest"}).next_step
    assert "lower learning rates for LoRA of rank 8 and higher learning rates for full fine-tuning" in step
    assert verdict_view(none, "t", (), "f").next_step.startswith("Keep the base, or ask again")


def test_the_page_holds_as_many_flips_as_it_can_carry(reported):
    table = make_tables(reported.contents)["flipped_items"].filter(pl.col("training_set") == "new")
    every, some = flips(table), flips(table, 20_000)
    assert len(every) == table.select("task", "item_id").n_unique()
    assert 0 < len(some) < len(every) and some[0] == every[0]
    assert sum(len(str(flip)) for flip in some) <= 20_000
    assert sorted(flip.change for flip in every)[::-1] == [flip.change for flip in every]


def test_the_report_never_imports_torch():
    code = "import sys, rankscope.report.stage; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
