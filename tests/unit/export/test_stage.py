"""What `export` writes, read back by those it is written for."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from huggingface_hub import ModelCard

from rankscope.cli import DONE, SOME_FAILED, USER_ERROR, main
from rankscope.errors import UserError
from rankscope.export.earlier import LISTED
from rankscope.export.model import recommended
from rankscope.export.stage import PARTS, Request, run
from rankscope.report.reading import read_contents
from rankscope.report.tables import make_tables
from rankscope.store import RECORD, Store, write_record
from synthetic import ARMS, Synthetic, write_study

# The fields of a result of PEFT's method comparison (huggingface/peft, method_comparison/MetaMathQA), as of 2026.
PEFT_FIELDS = {
    "run_info": {
        "created_at", "total_time", "experiment_name", "peft_branch", "peft_worktree_is_dirty", "train_config",
        "peft_config", "error_msg",
    },
    "train_info": {
        "accelerator_memory_reserved_avg", "accelerator_memory_max", "accelerator_memory_reserved_99th", "train_time",
        "file_size", "num_trainable_params", "num_total_params", "status", "metrics",
    },
    "meta_info": {"model_info", "dataset_info", "package_info", "system_info", "pytorch_info"},
}  # fmt: skip
PEFT_TRAIN_CONFIG = {
    "model_id", "dtype", "max_seq_length", "batch_size", "batch_size_eval", "max_steps", "eval_steps", "compile",
    "use_gc", "query_template", "seed", "grad_norm_clip", "optimizer_type", "optimizer_kwargs", "lr_scheduler",
    "use_amp", "autocast_adapter_dtype", "generation_kwargs", "attn_implementation", "init_kv_cache_prefix",
}  # fmt: skip
PEFT_METRICS = {
    "step", "valid accuracy", "train loss", "train samples", "train time", "eval time", "tokens / sec",
    "mem allocated avg", "mem reserved avg", "elapsed time",
}  # fmt: skip
PEFT_LAST_METRICS = {"step", "test accuracy", "train loss", "train samples", "train total tokens", "forgetting"}


@pytest.fixture(scope="module")
def out(exported_study: Synthetic, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything, exported once."""
    folder = tmp_path_factory.mktemp("out")
    lines = run(exported_study.store, Request(folder))
    assert [line.split(":")[0] for line in lines[: len(PARTS)]] == list(PARTS)
    return folder


@pytest.fixture
def copy(exported_study: Synthetic, tmp_path: Path) -> Store:
    """A study directory that a test may damage."""
    shutil.copytree(exported_study.store.root, tmp_path / "study")
    return Store(tmp_path / "study")


def test_the_tables_are_those_of_the_report(exported_study: Synthetic, out: Path) -> None:
    tables = make_tables(read_contents(exported_study.store))
    assert len(tables) > 15
    for name, table in tables.items():
        assert pl.read_parquet(out / "tables" / f"{name}.parquet").equals(table, null_equal=True), name
        if table.height:
            assert pl.read_csv(out / "tables" / f"{name}.csv", infer_schema_length=None).height == table.height, name


def test_every_record_is_a_row(exported_study: Synthetic, out: Path) -> None:
    frame = pl.read_parquet(out / "records" / "records.parquet")
    root = exported_study.store.root
    on_disk = {path.relative_to(root).as_posix() for path in root.rglob(RECORD)} - {"decide/record.json"}
    assert set(frame["source"]) == on_disk
    failed = frame.filter(pl.col("status") == "failed")
    assert set(failed["error_message"]) == {"out of memory"}
    assert set(frame["kind"]) == {"train", "evaluate", "analyse", "derive"}


def test_every_number_is_a_row(exported_study: Synthetic, out: Path) -> None:
    frame = pl.read_parquet(out / "records" / "numbers.parquet")
    rows = frame.filter(pl.col("measure") == "accuracy", pl.col("kind") == "evaluate").to_dicts()
    assert len(rows) > 20
    for row in rows:
        record = json.loads((exported_study.store.root / row["source"]).read_text())
        assert row["value"] == record["values"]["accuracy"]
    assert frame.filter(pl.col("measure") == "num_trainable")["value"].max() == 900_000


def test_items_of_all_models_are_one_table(exported_study: Synthetic, out: Path) -> None:
    frame = pl.read_parquet(out / "records" / "items.parquet")
    files = [path for path in exported_study.store.root.rglob("items.parquet")]
    assert frame.height == sum(pl.read_parquet(path).height for path in files)
    assert set(frame["source"]) == {path.relative_to(exported_study.store.root).as_posix() for path in files}
    cut = frame.filter(pl.col("name") == "truncate/4")
    assert set(cut["task"]) == {"taught", "general", "text"}
    csv = pl.read_csv(out / "records" / "items.csv", infer_schema_length=None)
    lists = [json.loads(text) for text in csv["option_log_likelihoods"].drop_nulls()[:50]]
    assert lists == frame["option_log_likelihoods"].drop_nulls()[:50].to_list()


def test_steps_that_are_not_finite_stay_so(copy: Store, tmp_path: Path) -> None:
    folder = next(iter(sorted((copy.root / "runs").iterdir()))) / "train"
    record = copy.read_train(folder.parent.name)
    lines = (folder / "steps.jsonl").read_text().splitlines()
    last = json.loads(lines[-1]) | {"loss_nats_per_token": "NaN", "grad_norm": "Infinity"}
    (folder / "steps.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
    write_record(folder, record, list(record.files))
    run(copy, Request(tmp_path / "out", ("records",)))
    frame = pl.read_parquet(tmp_path / "out" / "records" / "steps.parquet")
    row = frame.filter(pl.col("run_id") == folder.parent.name)[-1].to_dicts()[0]
    assert row["loss_nats_per_token"] != row["loss_nats_per_token"] and row["grad_norm"] == float("inf")


def test_a_damaged_file_is_not_exported(copy: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = next(copy.root.rglob("items.parquet"))
    items.write_bytes(items.read_bytes()[:-1] + b"x")
    assert main(["export", str(copy.root), "--out", str(tmp_path / "out"), "--what", "records"]) == SOME_FAILED
    assert "checksum" in capsys.readouterr().err


def test_figures_are_svg_and_pdf(out: Path) -> None:
    vectors = sorted((out / "figures").glob("*.svg"))
    assert len(vectors) > 10
    for path in vectors:
        assert "<svg" in path.read_text()[:200]
        assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF-")


def test_results_have_the_fields_of_pefts_comparison(exported_study: Synthetic, out: Path) -> None:
    documents = [json.loads(path.read_text()) for path in sorted((out / "results").glob("*.json"))]
    trained = [one for one in exported_study.plan.runs if exported_study.store.read_train(one.run_id)]
    assert len(documents) == len(trained)
    for document in documents:
        for part, fields in PEFT_FIELDS.items():
            assert fields <= set(document[part])
        assert set(document["run_info"]["train_config"]) == PEFT_TRAIN_CONFIG
        assert set(document["train_info"]["metrics"][-1]) == PEFT_LAST_METRICS
        assert all(PEFT_METRICS <= set(row) for row in document["train_info"]["metrics"][:-1])
        assert document["train_info"]["status"] in {"success", "failed", "canceled"}
        # Their table takes the method from here, and a run without it for full fine-tuning.
        config = document["run_info"]["peft_config"]
        assert (config or {}).get("peft_type") == (
            None if "/full-" in document["run_info"]["experiment_name"] else "LORA"
        ) or (document["run_info"]["experiment_name"].startswith("full/") and config is None)
    assert any(len(document["train_info"]["metrics"]) > 1 for document in documents)


def test_a_result_has_the_numbers_of_its_run(exported_study: Synthetic, out: Path) -> None:
    store, plan = exported_study.store, exported_study.plan
    (run_id,) = {
        one.run_id for one in plan.runs
        if one.arm.label == "lora-r16" and one.seed == 1 and one.training_set.name == "new"
        and store.read_evaluate(store.task(one.run_id, "taught"))
    }  # fmt: skip
    document = json.loads((out / "results" / f"{run_id}.json").read_text())
    items = pl.read_parquet(store.task(run_id, "taught") / "items.parquet")
    last = document["train_info"]["metrics"][-1]
    assert last["test accuracy"] == pytest.approx(items["is_correct"].mean())
    tuned = pl.read_parquet(store.task(run_id, "text") / "items.parquet")
    base = pl.read_parquet(store.base_task("small", "text") / "items.parquet")
    nats = [frame["nll_nats"].sum() / frame["num_scored_tokens"].sum() for frame in (tuned, base)]
    assert last["forgetting"] == pytest.approx(nats[0] - nats[1])
    weights = store.train(run_id) / "adapter" / "adapter_model.safetensors"
    assert document["train_info"]["file_size"] == weights.stat().st_size
    # What nobody measured is null.
    assert document["train_info"]["accelerator_memory_reserved_avg"] is None
    assert document["rankscope"]["decision"] == "recommended" and document["rankscope"]["recommended"] == "lora-r16"
    assert {one["task"] for one in document["rankscope"]["comparisons"]} == {"taught", "legal", "general", "text"}


def test_the_winner_comes_with_its_card(exported_study: Synthetic, out: Path) -> None:
    (folder,) = (out / "models").iterdir()
    assert folder.name.startswith("small-new-lora-r16-")
    assert "seed0" in folder.name  # the first seed, not the best
    own = exported_study.store.train(folder.name) / "adapter"
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (folder / name).read_bytes() == (own / name).read_bytes()
    card = ModelCard.load(folder / "README.md").data.to_dict()
    assert card["library_name"] == "peft" and card["base_model"] == "small"
    assert set(card["tags"]) == {"lora", "rankscope"}  # a folder is no hub id, whatever it is called
    decision = exported_study.store.read_decide()
    text = (folder / "README.md").read_text()
    assert "of the arm that the study recommends" in text
    for one in decision.comparisons:
        if (one.training_set, one.arm, one.category, one.unit) == ("new", "lora-r16", None, "accuracy"):
            low, high = (f"{100 * end:.1f}" for end in (one.difference.low, one.difference.high))
            assert f"| {100 * one.base_value:.1f} | {100 * one.tuned_value:.1f} |" in text
            assert f"{low} to {high}" in text


def test_a_derived_model_is_exported(exported_study: Synthetic, tmp_path: Path) -> None:
    (run_id,) = [
        one.run_id for one in exported_study.runs("lora-r16", 0)
        if exported_study.store.derived(one.run_id, "truncate/4").is_dir() and one.training_set.name == "new"
    ]  # fmt: skip
    run(exported_study.store, Request(tmp_path, ("models",), f"{run_id}/truncate/4"))
    (folder,) = (tmp_path / "models").iterdir()
    assert folder.name == f"{run_id}--truncate-4"
    assert (folder / "adapter_model.safetensors").read_text() == "cut adapter_model.safetensors"
    text = (folder / "README.md").read_text()
    assert "cut to rank 4" in text and "| `gain`, points |" in text and "| `forgetting_nats`, nats per token |" in text


def test_an_arm_or_a_run_can_be_named(exported_study: Synthetic, tmp_path: Path) -> None:
    run(exported_study.store, Request(tmp_path / "arm", ("models",), "full"))
    (folder,) = (tmp_path / "arm" / "models").iterdir()
    text = (folder / "README.md").read_text()
    assert ModelCard.load(folder / "README.md").data.to_dict()["library_name"] == "transformers"
    assert "recommends `lora-r16`; a person chose" in text
    run(exported_study.store, Request(tmp_path / "run", ("models",), f"runs/{folder.name}/"))
    assert [one.name for one in (tmp_path / "run" / "models").iterdir()] == [folder.name]


def test_weights_that_were_deleted_are_said_with_their_mend(
    copy: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in sorted((copy.root / "runs").glob("*lora-r16*/train")):
        record = copy.read_train(folder.parent.name)
        shutil.rmtree(folder / "adapter", ignore_errors=True)
        write_record(folder, record.model_copy(update={"weights_deleted": True}), ["steps.jsonl"])
    with pytest.raises(UserError, match=r"deleted(.|\n)*keep: chosen(.|\n)*trains this run alone"):
        run(copy, Request(tmp_path / "out", ("models",)))
    # Where they are only one part of all, the rest is exported and the note stands at the end.
    monkeypatch.setattr("rankscope.export.stage.make_figures", lambda *_: {})  # they take seconds
    lines = run(copy, Request(tmp_path / "out", None))
    assert any("deleted" in line for line in lines)
    assert (tmp_path / "out" / "results").is_dir() and not list((tmp_path / "out").glob("models/*"))


def test_results_that_the_study_has_no_more_go_and_nothing_else_does(copy: Store, tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    (results / "mine.json").write_text("{}")
    run(copy, Request(tmp_path, ("results",)))
    before = {path.stem for path in results.iterdir()}
    gone, *left = sorted(before - {"mine"})
    (copy.train(gone) / RECORD).unlink()
    other = copy.root.parent / "elsewhere" / "study"
    shutil.copytree(copy.root, other)  # of the same name, and without that run, too
    run(Store(other), Request(tmp_path, ("results",)))
    assert {path.stem for path in results.iterdir()} == before, "of another study directory"
    run(copy, Request(tmp_path, ("results",)))
    assert {path.stem for path in results.iterdir()} == {"mine", *left}
    listed = json.loads((tmp_path / LISTED).read_text())
    assert [set(parts["results"]) for parts in listed.values()] == [{f"{name}.json" for name in left}] * 2
    assert all(name.startswith("study-") for name in listed)
    next(iter(listed.values()))["results"].append("../mine.txt")  # a list that somebody else wrote leads nowhere else
    (tmp_path / LISTED).write_text(json.dumps(listed))
    (tmp_path / "mine.txt").write_text("")
    run(copy, Request(tmp_path, ("results",)))
    assert (tmp_path / "mine.txt").is_file()


def test_names_that_are_not_there(
    exported_study: Synthetic, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(exported_study.store.root), "--out", str(tmp_path / "out"), "--model"]
    assert main([*command, "lora-r17"]) == USER_ERROR
    assert "the arms are lora-r4, lora-r16" in capsys.readouterr().err
    (run_id,) = {one.run_id for one in exported_study.runs("full", 0) if one.training_set.name == "new"
                 and one.learning_rate == 1e-5}  # fmt: skip
    assert main([*command, f"{run_id}/rewind/0.5"]) == USER_ERROR
    assert "no derived model 'rewind/0.5'" in capsys.readouterr().err
    diverged = next(one for one in exported_study.plan.runs if one.arm.label == "lora-r4" and one.learning_rate == 1e-3)
    assert main([*command, diverged.run_id]) == USER_ERROR
    assert "ended as diverged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_study_that_is_not_decided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write_study(tmp_path / "study", arms=ARMS[:2])
    assert main(["export", str(study.store.root)]) == DONE
    printed = capsys.readouterr().out
    assert "has not been decided yet" in printed
    assert (study.store.root / "export" / "records" / "records.parquet").is_file()
    assert main(["export", str(study.store.root), "--what", "models"]) == USER_ERROR


def test_a_folder_that_is_no_study(tmp_path: Path) -> None:
    assert main(["export", str(tmp_path)]) == USER_ERROR


# Every command that the tables may hold: those of LaTeX itself, of booktabs, and letters that are written as commands.
LATEX = {
    "documentclass", "usepackage", "begin", "end", "input", "clearpage", "centering", "footnotesize", "setlength",
    "tabcolsep", "toprule", "midrule", "bottomrule", "caption", "label", "textbf", "pm", "phantom", "textminus",
    "textgreater", "textless", "textquotesingle", *",%&_#\\",
}  # fmt: skip


def test_the_tables_are_what_latex_reads(out: Path) -> None:
    """What a compiler would stop at, where none is installed: `test_the_tables_compile` has one."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in (out / "latex").glob("*.tex")}
    assert set(re.findall(r"\\input\{(.+?)\}", texts["main.tex"])) == set(texts) - {"main.tex"} and len(texts) >= 3
    for name, text in texts.items():
        lines = [line for line in text.splitlines() if not line.startswith("%")]
        code = re.sub(r"\\([a-zA-Z]+|.)", lambda found: f" {found[1]} " if found[1].isalpha() else "", "\n".join(lines))
        assert set(re.findall(r"\\([a-zA-Z]+|.)", text)) <= LATEX, name
        depths = list(itertools.accumulate({"{": 1, "}": -1}.get(letter, 0) for letter in code))
        assert min(depths) == 0 == depths[-1] and code.count("$") % 2 == 0, name
        assert all(letter.isascii() or "\u00c0" <= letter <= "\u00ff" for letter in code), name
        opened = []
        for kind, environment in re.findall(r"\\(begin|end)\{(\w+)\}", text):
            opened.append(environment) if kind == "begin" else opened.remove(environment)
        assert not opened, name
        for columns, body in re.findall(r"\\begin\{tabular\}\{([lrc]+)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
            rows = [line for line in body.splitlines() if line.endswith(r"\\")]
            assert len(rows) > 1
            assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(columns) - 1}, name


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_the_tables_compile(out: Path) -> None:
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    done = subprocess.run(command, cwd=out / "latex", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


def test_of_an_undecided_verdict_an_arm_is_named_that_may_keep_within_the_budget(exported_study: Synthetic) -> None:
    contents = read_contents(exported_study.store)
    verdict = contents.decision.verdicts[0]
    first, *others = (arm for arm in verdict.arms if arm.arm != "base")
    arms = (first.model_copy(update={"eligible": "no"}), others[0].model_copy(update={"eligible": "unknown"}))
    undecided = verdict.model_copy(
        update={"decision": "undecided", "arm": None, "safe_arm": None, "runner_up": first.arm, "arms": arms}
    )
    decision = contents.decision.model_copy(update={"verdicts": (undecided,)})
    chosen, (note,) = recommended(replace(contents, decision=decision))
    assert not chosen and f"--model {others[0].arm} exports one of an arm all the same" in note
