"""Malformed input is refused at once with what, where and the mend; unusual input is counted, shown and run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rankscope.cli import DONE, USER_ERROR, main

STUDY = """\
study: small
model: smallworld:base
train:
  ours: {source: TRAIN, validation: {fraction: 0.2}}
arms:
  - {method: lora, rank: 2, learning_rate: 1e-3}
optimization: {max_steps: 2, batch_size: 4}
seeds: [0]
evaluate:
  test: {source: TEST, in_domain_for: [ours]}
  recall: {source: smallworld:general_recall, max_examples: 8, role: retention}
"""


def rows(number: int, first: int = 0) -> list[dict]:
    return [{"question": f"What is number {i}?", "answer": f"It is {i}."} for i in range(first, first + number)]


def write_rows(path: Path, values: list[dict]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


@pytest.fixture
def study(tmp_path: Path) -> Path:
    train = write_rows(tmp_path / "train.jsonl", rows(30))
    test = write_rows(tmp_path / "test.jsonl", rows(8, first=100))
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.replace("TRAIN", str(train)).replace("TEST", str(test)), encoding="utf-8")
    return path


def change(study: Path, old: str, new: str) -> None:
    text = study.read_text(encoding="utf-8")
    assert old in text
    study.write_text(text.replace(old, new), encoding="utf-8")


def refused(study: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `run` says when it refuses; nothing may have been started."""
    out = study.parent / "out"
    assert main(["run", str(study), "--out", str(out), *arguments]) == USER_ERROR
    assert not out.exists()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("rankscope: ")
    assert "mend:" in captured.err
    return captured.err


def test_the_study_is_good_as_it_stands(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(study), "--set", "seeds=[0, 1]", "--set", "decide.margin=0.9"]) == DONE
    assert "warning" not in capsys.readouterr().out


def test_what_a_study_cannot_tell_is_said_before_it_runs(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(study), "--set", "evaluate.recall.role=null"]) == DONE
    text = capsys.readouterr().out
    assert "decide.margin is 0.02, and on ours differences below" in text
    assert "one seed shows no spread" in text
    assert "no task has role retention" in text


def test_settings_of_a_cluster_that_is_not_asked_for_are_named(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--set", "execute.address=head:6379", "--set", "execute.results=fetched"]
    assert main(["plan", str(study), *settings]) == DONE
    text = capsys.readouterr().out
    for key in ("address", "results"):
        assert f"execute.{key} does nothing without `backend: ray`: the work stays on this machine" in text


def test_ranks_to_which_nothing_is_cut_are_named(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for truncate, words in (
        (
            "[1, 2, 64]",
            "derive.truncate: nothing is cut to rank 2 and 64, as no arm that is derived from has a higher one",
        ),
        ("true", "derive.truncate: no arm has a rank above another's, so nothing is cut; name lower ranks"),
        ("[1]", None),
    ):
        assert main(["plan", str(study), "--set", f"derive.truncate={truncate}"]) == DONE
        said = capsys.readouterr().out
        assert words in said if words else "derive.truncate" not in said


def test_rates_chosen_by_loss_for_a_task_of_right_answers(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [[{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
             for row in rows(30)]  # fmt: skip
    write_rows(study.parent / "train.jsonl", [{"messages": each} for each in turns])
    questions = [{"question": row["question"], "choices": ["yes", "no"], "answer": 0} for row in rows(8, first=100)]
    write_rows(study.parent / "test.jsonl", questions)
    assert main(["plan", str(study)]) == DONE
    said = next(line for line in capsys.readouterr().out.splitlines() if "train.ours: rates are chosen" in line)
    assert (
        "by the loss on 7 validation rows, while test is judged by multiple choice; `validation: {source: FILE}`"
        in said
    )
    assert (
        main(["plan", str(study), "--set", f"train.ours.validation={{source: {study.parent / 'test.jsonl'}}}"]) == DONE
    )
    assert "rates are chosen by the loss" not in capsys.readouterr().out
    assert main(["plan", str(study), "--set", "train.ours.validation.scoring=loss"]) == DONE  # as the study wants it
    assert "rates are chosen by the loss" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("model: smallworld:base\n", "", ["model: is missing"]),
        ("seeds:", "seedz:", [":8:", "unknown key 'seedz'", "did you mean 'seeds'"]),
        ("batch_size: 4", "batch_size: four", [":7:", "optimization.batch_size"]),
        ("rank: 2", "rank: -2", [":6:", "arms.0.rank", "above 0"]),
        ("batch_size: 4", "batch_size: 400", ["train.ours", "23 examples", "batch of 400"]),
    ],
    ids=["missing key", "misspelt key", "wrong type", "negative rank", "less data than a batch"],
)
def test_a_wrong_study_file(
    study: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, words: list[str]
) -> None:
    change(study, old, new)
    message = refused(study, capsys)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ("{method: lorra, rank: 2", [":6:", "no method is called 'lorra'", "did you mean 'lora'"]),
        ("{method: LoRA, rank: 2", ["methods are written small: 'lora'"]),
        ("{method: xlora", ["PEFT's xlora is not supported", "trained before"]),
        ("{method: lily, rank: 2", ["PEFT's lily is not supported", "no score is a text's own"]),
        ("{method: lora, rank: 2, use_dorra: true", [":6:", "unknown key 'use_dorra'", "did you mean 'use_dora'"]),
        ("{method: oft, oft_blok_size: 8", ["did you mean 'oft_block_size'"]),
        ("{method: oft, oft_block_size: eight", ["arms.0.oft_block_size", "is a whole number, not 'eight'"]),
        ("{method: lora, rank: 2, num_virtual_tokens: 4", ["option of prompt_tuning, p_tuning", "not of lora"]),
        ("{method: ia3, rank: 4", ["arms.0.rank", "option of lora", "not of ia3"]),
        ("{method: full, lora_alpha: 4", ["arms.0.lora_alpha", "not of full"]),
        ("{method: lora, rank: 2, layers: [0]", ["arms.0.layers", "option of full", "not of lora"]),
        ("{method: full, freeze_embedings: true", ["did you mean 'freeze_embeddings'"]),
        ("{method: prompt_tuning", ["needs 'num_virtual_tokens'"]),
        (
            "{method: lora, rank: 2, target_modules: [q_prj]",
            [":6: arm lora-r2, target_modules", "'q_proj'"],
        ),
        (
            "{method: lora, rank: 2, target_modules: 'q_(proj'",
            [":6: arm lora-r2", "no regular expression"],
        ),
        ("{method: lora, rank: 2, modules_to_save: [lm_haed]", [":6: arm lora-r2, modules_to_save", "'lm_head'"]),
        ("{method: lora, rank: 2, rank_pattern: {q_prj: 4}", [":6: arm lora-r2, rank_pattern", "'q_proj'"]),
        ("{method: lora, rank: 2, alpha_pattern: {'layers.9.*': 4}", ["no module is called 'layers.9.*'"]),
        (
            "{method: lora, rank: 2, layers_to_transform: [7]",
            [":6: arm lora-r2", "has no layer 7", "0 to 2"],
        ),
        ("{method: full, layers: [3]", ["arm full, layers", "has no layer 3"]),
        ("{method: full, layers: []", ["arms.0.layers", "list of layers"]),
        ("{method: lora, rank: 0", ["arms.0.rank", "above 0"]),
        ("{method: lora, rank: 2, lora_alpha: 2x", ["arms.0.lora_alpha", "'2r'"]),
        ("{method: lora, rank: 2, lora_alpha: 0", ["arms.0.lora_alpha"]),
        ("{method: lora, rank: 2, rank_pattern: {q_proj: 0}", ["rank_pattern", "a rank of 0"]),
        ("{method: lora, rank: 2, rank_pattern: {'q_(proj': 2}", ["rank_pattern", "no regular expression"]),
        ("{method: lora, rank: 2, alpha_pattern: {q_proj: -1}", ["alpha_pattern", "number above 0"]),
        ("{method: lora, rank: 2, loraplus_lr_ratio: 0.5", ["loraplus_lr_ratio", "at least 1"]),
        ("{method: lora, rank: 2, init_lora_weights: pisa", ["init_lora_weights", "did you mean 'pissa'"]),
        ("{method: lora, rank: 3, init_lora_weights: orthogonal", ["even ranks, not 3"]),
        ("{method: lora, rank: 2, init_lora_weights: pissa, use_dora: true", ["use_dora and pissa"]),
        ("{method: lora, rank: 2, eva_config: {rho: 2.0}", ["of no use without init_lora_weights: eva"]),
        ("{method: lora, rank: 2, init_lora_weights: eva, eva_config: {roh: 2.0}", ["has no key 'roh'", "'rho'"]),
        ("{method: lora, rank: 500, init_lora_weights: pissa", ["takes 500 directions", "lower rank"]),
        ("{method: lora, rank: 2, target_modules: q_proj, layers_to_transform: [0]", ["needs target_modules as names"]),
        ("{method: adalora, rank: 8, init_r: 8", ["init_r 8 is to be above", "only prunes"]),
        ("{method: adalora, rank: 2, tinit: 2", [":6: arm adalora-r2, tinit", "2 steps"]),
        ("{method: bottleneck, placement: hulsby", ["did you mean 'houlsby'"]),
        ("{method: vera, target_modules: [wq]", ["arm vera, target_modules", "no module is called 'wq'"]),
    ],
)
def test_a_wrong_method_or_option(study: Path, capsys: pytest.CaptureFixture[str], arm: str, words: list[str]) -> None:
    change(study, "{method: lora, rank: 2", arm)
    message = refused(study, capsys)
    for word in words:
        assert word in message


def test_an_initialisation_that_needs_float32(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(study, "rank: 2", "rank: 2, init_lora_weights: pissa")
    message = refused(study, capsys, "--set", "optimization.dtype=float64")
    assert "PEFT's pissa initialisation needs optimization.dtype float32" in message


@pytest.mark.parametrize(
    "arguments",
    ["run STUDY --out FILE", "demo --out FILE", "status FILE", "report FILE", "report . . --out FILE", "export FILE",
     "export . --out FILE", "audit smallworld:base . --out FILE"],
)  # fmt: skip
def test_a_file_in_the_place_of_a_folder(study: Path, capsys: pytest.CaptureFixture[str], arguments: str) -> None:
    file = study.parent / "notes.txt"
    file.write_text("notes")
    assert main(arguments.replace("STUDY", str(study)).replace("FILE", str(file)).split()) == USER_ERROR
    said = capsys.readouterr().err
    assert said.startswith(f"rankscope: {file}: is a file, not a folder\n  mend: name a folder")


def test_a_folder_in_the_place_of_a_study_file(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("run", "plan"):
        assert main([verb, str(study.parent)]) == USER_ERROR
        assert f"is a folder, not a study file\n  mend: name the file: {study}" in capsys.readouterr().err


def test_an_empty_file(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (study.parent / "train.jsonl").write_text("")
    assert "train.jsonl" in refused(study, capsys)
    study.write_text("")
    assert "study.yaml" in refused(study, capsys)


def test_a_line_that_is_no_json(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (study.parent / "train.jsonl").open("a") as stream:
        stream.write('{"question": "half a line\n')
    assert "train.jsonl:31" in refused(study, capsys)


def test_a_row_without_its_field(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(study.parent / "train.jsonl", [*rows(30), {"question": "Who?"}])
    message = refused(study, capsys)
    assert "train.jsonl:31" in message
    assert "answer" in message


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("source: FOLDER/train.jsonl", "source: FOLDER/trian.jsonl", 4, ["train.ours.source", "there is no file"]),
        ("source: FOLDER/train.jsonl", "source: gsm9k", 4, ["did you mean the preset 'gsm8k'"]),
        ("fraction: 0.2", "source: none.jsonl", 4, ["train.ours.validation.source"]),
        ("source: FOLDER/test.jsonl", "source: FOLDER/test.jsonl, columns: {question: q}", 10, ["no field 'q'"]),
        ("source: FOLDER/test.jsonl", "source: FOLDER/test.jsonl, columns: {quest: q}", 10, ["evaluate.test.columns"]),
        ("source: FOLDER/test.jsonl", "source: FOLDER/test.jsonl, preset: mmmlu", 10, ["preset", "did you mean"]),
        ("source: FOLDER/test.jsonl", "source: FOLDER/test.jsonl, few_shot: 2", 10, ["evaluate.test.few_shot"]),
        ("source: FOLDER/test.jsonl", "source: FOLDER/test.jsonl, scoring: multiple_choice", 10, ["test.scoring"]),
        ("smallworld:general_recall", "smallworld:general_recal", 11, ["evaluate.recall.source"]),
        ("smallworld:general_recall", "smallworld:general_recall, split: extra", 11, ["evaluate.recall.split"]),
        ("model: smallworld:base", "model: ./nothing", 2, ["model.nothing", "no model folder"]),
    ],
)
def test_what_is_wrong_with_a_source_names_the_line_of_the_study_file(
    study: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, line: int, words: list[str]
) -> None:
    change(study, old.replace("FOLDER", str(study.parent)), new.replace("FOLDER", str(study.parent)))
    message = refused(study, capsys)
    for word in (f"{study}:{line}: ", *words):
        assert word in message


def test_a_source_that_cannot_be_is_found_without_the_model(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the base is still to be fetched, a plan is made from sizes; what is wrong is said all the same."""
    change(study, "model: smallworld:base", "model: Qwen/Qwen2.5-0.5B")
    assert main(["plan", str(study)]) == DONE
    for old, new in (("test.jsonl", "tset.jsonl"), ("smallworld:general_recall", "mmlu, preset: mmmlu")):
        change(study, old, new)
        capsys.readouterr()
        assert main(["plan", str(study)]) == USER_ERROR
        assert f"{study}:1" in capsys.readouterr().err
        change(study, new, old)


def test_an_unknown_model_folder(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no/such/folder" in refused(study, capsys, "--set", "model=./no/such/folder")
    assert "--set model=./no/such/folder: model.folder: " in refused(study, capsys, "--set", "model=./no/such/folder")
    change(study, "model: smallworld:base", "model:\n  small: smallworld:base\n  large: ./no/such/folder")
    assert "study.yaml:4: model.large: there is no model folder" in refused(study, capsys)


def test_a_model_folder_without_weights(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = study.parent / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert str(folder) in refused(study, capsys, "--set", f"model={folder}")


def test_an_override_that_is_wrong(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean" in refused(study, capsys, "--set", "optimization.batchsize=8")


def test_unusual_is_counted_and_shown(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = {"question": "Why " + "very " * 60 + "long?", "answer": "So " + "very " * 60 + "long."}
    write_rows(study.parent / "train.jsonl", [*rows(30), rows(1)[0], long])
    write_rows(study.parent / "test.jsonl", [*rows(8, first=100), rows(3)[2]])
    change(study, "rank: 2", "rank: 500")
    change(study, "batch_size: 4", "batch_size: 4, max_length: 64")
    assert main(["plan", str(study)]) == DONE
    text = capsys.readouterr().out
    assert "rank 500 is above the size" in text
    assert "repetition" in text or "duplicate" in text
    assert "longer than" in text
    assert "test: 1 of 9 items are in train.ours too" in text


def test_init_writes_a_study_that_plans(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = study.parent / "train.jsonl", study.parent / "new.yaml"
    write_rows(data, rows(120))
    assert main(["init", "--model", "smallworld:base", "--train", str(data), "--out", str(out)]) == DONE
    assert "120 rows, read as question_answer" in capsys.readouterr().out
    assert main(["plan", str(out)]) == DONE
    assert main(["init", "--model", "smallworld:base", "--train", str(data), "--out", str(out)]) == USER_ERROR
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["status", "report"])
def test_a_path_of_the_wrong_kind(study: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    for path in (study, study.parent / "nowhere"):
        assert main([verb, str(path)]) == USER_ERROR
        assert str(path) in capsys.readouterr().err


def test_an_output_folder_that_is_a_file_or_cannot_be_made(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for out in (study, study / "below", Path("/proc/none")):
        assert main(["run", str(study), "--out", str(out)]) == USER_ERROR
        assert str(out) in capsys.readouterr().err
