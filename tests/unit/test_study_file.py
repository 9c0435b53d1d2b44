"""Mistakes in a study file are found at once, named with their line, and come with a mend."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rankscope.errors import UserError
from rankscope.expansion import expand_arms, resolve_optimization
from rankscope.keys import ELSEWHERE, all_keys, described, show
from rankscope.spec import Arm, Optimization, OptimizationFields
from rankscope.study_file import changed_settings, dump_study, load_study

GOOD = """\
study: medical-rank
model: org/Small-1B
train:
  ours: {source: data/ours.jsonl}
arms:
  - {method: full, learning_rate: [1.0e-5, 3.0e-5]}
  - method: lora
    rank: [8, 16]
    learning_rate: 1e-4
optimization: {num_epochs: 2, batch_size: 32}
seeds: [0, 1]
evaluate:
  ours: {source: data/test.jsonl, in_domain_for: [ours]}
  mmlu: {source: mmlu, role: retention}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_study(path, overrides)
    return caught.value.message()


def test_all_that_does_not_fit_together_is_said_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("seeds: [0, 1]", "seeds: [0, 0]\nsearch: {seeds: 5}").replace("[ours]}", "[our, mine]}")
    said = refusal(write(tmp_path, text.replace("mmlu: {", "validation: {in_domain_for: [ours], ")))
    lines = [line.partition("study.yaml:")[2] for line in said.split("  mend:")[0].splitlines()]
    assert lines == [
        "11: seeds: 'seeds' names a seed twice",
        "12: search: search.seeds is more than there are seeds",
        "14: evaluate.ours.in_domain_for: no training set is called 'our' or 'mine'; there are ours",
        "15: evaluate.validation.role: a task cannot be in domain and retention at once",
        "15: evaluate.validation: task names that start with 'validation' are taken; give it another",
    ]
    # What is meant by a set's wrong name is not asked for once more; sets without any task are named together.
    train = "train:\n  ours: {source: data/ours.jsonl}\n"
    two = GOOD.replace(train, f"{train}  more: {{source: data/more.jsonl}}\n").replace(", in_domain_for: [ours]", "")
    assert "no task says `in_domain_for: [ours, more]`" in refusal(write(tmp_path, two))


def test_a_good_file(tmp_path: Path) -> None:
    study = load_study(write(tmp_path, GOOD))
    assert list(study.model) == ["Small-1B"]
    assert study.model["Small-1B"].source == "org/Small-1B"
    assert [arm.learning_rate for arm in study.arms] == [(1e-5, 3e-5), (1e-4,)]
    assert [settings.label for settings, _ in expand_arms(study)] == ["full", "lora-r8", "lora-r16"]
    assert study.optimization.batch_size == 32
    assert study.optimization.lr_scheduler == "cosine"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, value) for key in ("adam_beta1", "adam_beta2") for value in ("1.0", "1.5", "-0.1", ".nan", ".inf")),
        *(("num_epochs", value) for value in (".inf", ".nan", "0", "-1")),
    ],
)
def test_optimization_that_torch_would_refuse_after_the_start(tmp_path: Path, key: str, value: str) -> None:
    path = write(tmp_path, GOOD)
    for where in ("optimization", "arms.0"):
        assert key in refusal(path, f"{where}.{key}={value}")


@pytest.mark.parametrize("value", ["-1", "0", "0.0", ".inf", "-.inf", ".nan", "0r", "0.0r", "-2r", "r"])
def test_alpha_is_finite_and_above_zero(tmp_path: Path, value: str) -> None:
    assert "lora_alpha" in refusal(write(tmp_path, GOOD), f"arms.1.lora_alpha={value}")


@pytest.mark.parametrize(("value", "alpha"), [("2", 2.0), ("1.5", 1.5), ("0.5r", 4.0), ("2r", 16.0)])
def test_alpha_is_a_number_or_a_multiple_of_the_rank(tmp_path: Path, value: str, alpha: float) -> None:
    study = load_study(write(tmp_path, GOOD), [f"arms.1.lora_alpha={value}"])
    assert {settings.label: settings.options for settings, _ in expand_arms(study)}["lora-r8"]["lora_alpha"] == alpha


def test_what_is_dumped_reads_the_same(tmp_path: Path) -> None:
    study = load_study(write(tmp_path, GOOD))
    assert load_study(write(tmp_path, dump_study(study))) == study


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("seeds: [0, 1]", "seed: [0, 1]", 11, ("seed", "did you mean 'seeds'")),
        ("batch_size: 32", "batchsize: 32", 10, ("optimization.batchsize", "'batch_size'")),
        ("rank: [8, 16]", "rank: [8, -16]", 8, ("arms.1.rank.1", "above 0")),
        ("rank: [8, 16]", "rnak: [8, 16]", 8, ("rnak", "'rank'")),
        ("rank: [8, 16]", "rank: eight", 8, ("arms.1.rank", "whole number")),
        ("    rank: [8, 16]\n", "", 7, ("needs 'rank'",)),
        ("learning_rate: 1e-4", "learning_rate: fast", 9, ("arms.1.learning_rate", "number")),
        ("method: full", "method: fill", 6, ("arms.0.method", "full")),
        ("method: full,", "method: full, rank: 8,", 6, ("arms.0.rank", "option of lora, ", "not of full")),
        ("method: full,", "method: full, name: base,", 6, ("'base' is taken",)),
        ("model: org/Small-1B\n", "", 1, ("model", "missing")),
        ("seeds: [0, 1]", "seeds: many", 11, ("seeds",)),
        ("seeds: [0, 1]", "seeds: [0, 0]", 11, ("twice",)),
        ("in_domain_for: [ours]", "in_domain_for: [theirs]", 13, ("theirs", "no training set", "ours")),
        ("in_domain_for: [ours]", "role: retention", 12, ("in_domain_for: [ours]",)),
        ("role: retention", "role: retain", 14, ("evaluate.mmlu.role", "retention")),
        ("study: medical-rank", "study: ../elsewhere", 1, ("study",)),
        ("  ours: {source: data/ours.jsonl}", "  ours: {source: 7}", 4, ("train.ours.source",)),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, old: str, new: str, line: int, words: tuple[str]) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new))
    message = refusal(path)
    assert f"{path}:{line}:" in message
    for word in words:
        assert word in message
    assert "mend:" in message


@pytest.mark.parametrize(
    ("old", "new", "mend"),
    [
        (
            "batch_size: 32",
            "batch_size: many",
            "`batch_size`: examples in an optimizer step, over all accumulation; 16 ",
        ),
        ("batch_size: 32", "batchsize: 32", "`batch_size`: examples in an optimizer step"),
        ("rank: [8, 16]", "r: [8, -16]", "`r`: the rank; a list makes one arm of each"),
        ("{source: data/ours.jsonl}", "{source: a, validation: {fraction: 2}}", "`fraction`: about so much"),
        ("role: retention", "few_shot: {number: x}", "`number`: how many"),
        ("role: retention", "scorer: judge.py:right", "`scorer`: a function of your own"),
        ("role: retention", "role: retention, in_domain_for: [ours]", "`role`: retention: what the base"),
        ("seeds: [0, 1]", "seeds: [a]", "`seeds`: one run each; [0, 1, 2] where it is not stated"),
        ("model: org/Small-1B\n", "", "`model`: hub id or folder"),
        ("seeds: [0, 1]", "allow_code: perhaps", "may be run; false where it is not stated"),
        ("method: full,", "method: oft, oft_block_size: eight,", "correct it, or leave it out"),
    ],
)
def test_the_mend_says_what_the_key_means(tmp_path: Path, old: str, new: str, mend: str) -> None:
    """The documentation is not there where the package was installed with pip."""
    assert old in GOOD
    said = refusal(write(tmp_path, GOOD.replace(old, new))).split("\n  mend: ")[1]
    assert mend in said and "docs/" not in said


def test_every_key_can_be_listed_and_described(capsys: pytest.CaptureFixture[str]) -> None:
    show()
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["train.NAME.validation.fraction"].endswith("0.1 where it is not stated")
    for key, meaning in lines.items():
        name = key.rpartition(".")[2]
        assert described(key.split(".")) == f"`{name}`: {meaning}"
    # The same keys as the page's, which is written from the schema in another way.
    page = (Path(__file__).parents[2] / "docs" / "study_file.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` ", page, re.MULTILINE)) == {key.rpartition(".")[2] for key in lines}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("empty",)),
        ("- a\n- b\n", ("mapping",)),
        ("study: [1\n", ("not valid YAML",)),
        ("study: a\nstudy: b\n", ("study.yaml:2: 'study' stands there a second time", "another name")),
        ("study: !!python/object/apply:os.system ['true']\n", ("study",)),
    ],
)
def test_what_is_no_study(tmp_path: Path, text: str, words: tuple[str]) -> None:
    message = refusal(write(tmp_path, text))
    for word in words:
        assert word in message


def test_no_such_file_and_not_utf8(tmp_path: Path) -> None:
    assert "no such study file" in refusal(tmp_path / "none.yaml")
    path = tmp_path / "latin.yaml"
    path.write_bytes("study: caf\xe9".encode("latin-1"))
    assert "UTF-8" in refusal(path)


def test_overrides_go_through_the_schema(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    study = load_study(path, ["seeds=[4]", "optimization.max_steps=7", "arms.0.learning_rate=[2e-5]"])
    assert study.seeds == (4,)
    assert study.optimization.max_steps == 7
    assert study.arms[0].learning_rate == (2e-5,)
    assert "did you mean" in refusal(path, "optimization.max_step=7")
    assert "key=value" in refusal(path, "seeds")
    assert "'study' is the plain value 'medical-rank'" in refusal(path, "study.name=1")
    assert refusal(path, "seeds=0,1").startswith("--set seeds=0,1: seeds:")
    assert refusal(path, "arms.1.rank=[8, -1]").startswith("--set arms.1.rank=[8, -1]: arms.1.rank.1:")


@pytest.mark.parametrize("override", ["arms.2.rank=4", "arms.-1.rank=4", "arms.lora.rank=4", "arms.rank=4", "arms.2=4"])
def test_an_override_that_leads_into_a_list_needs_the_number_of_an_entry(tmp_path: Path, override: str) -> None:
    what, mend = refusal(write(tmp_path, GOOD), override).split("\n  mend: ")
    entry = override.removesuffix("=4").split(".")[1]
    assert what == f"--set: 'arms' is a list of 2 entries, counted from 0, and has no entry '{entry}'"
    assert "name an entry by its number" in mend
    assert 'arms.1 is {"method": "lora", "rank": [8, 16]' in mend


def test_what_an_override_begins_and_leaves_incomplete_is_its_own_mistake(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    assert refusal(path, "train.our.max_examples=5").startswith(
        "--set train.our.max_examples=5: train.our.source: is miss"
    )
    broken = write(tmp_path, GOOD.replace("source: data/ours.jsonl", "split: train"))
    assert refusal(broken, "train.ours.max_examples=5").startswith(f"{path}:4: train.ours.source: is missing")


def test_all_unknown_keys_are_named_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("seeds:", "seedz:").replace("    rank:", "    lora_r:").replace("batch_size:", "batchsize:")
    path = write(tmp_path, text.replace("method: full", "method: full, layrs: [0], use_dorra: true"))
    message, mend = refusal(path).split("\n  mend: ")
    assert message.splitlines() == [
        f"{path}:6: arms.0.layrs: unknown key 'layrs'; did you mean 'layers'?",
        f"{path}:6: arms.0.use_dorra: unknown key 'use_dorra'; did you mean 'use_dora'?",
        f"{path}:8: arms.1.lora_r: unknown key 'lora_r'; did you mean 'rank'?",
        f"{path}:10: optimization.batchsize: unknown key 'batchsize'; did you mean 'batch_size'?",
        f"{path}:11: seedz: unknown key 'seedz'; did you mean 'seeds'?",
    ]
    assert "`rank`: the rank; a list makes one arm of each" in mend and "`seeds`: one run each" in mend


def test_many_mistakes_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "".join(f"key_{number}: 1\n" for number in range(25)))
    message = refusal(path)
    assert message.count("unknown key") == 20 and "\nand 5 more\n" in message


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("seeds:", "per_device_train_batch_size: 4\nseeds:", "write `batch_size` under `optimization`"),
        ("batch_size: 32", "gradient_accumulation_steps: 4", "did you mean 'batch_size'?"),
        ("batch_size: 32", "max_seq_length: 512", "did you mean 'max_length'?"),
        ("batch_size: 32", "learning_rate: 1e-4", "write `learning_rate` in an entry of `arms`"),
        ("seeds:", "num_train_epochs: 3\nseeds:", "write `num_epochs` under `optimization` or"),
        ("seeds:", "r: 8\nseeds:", "write `rank` in an entry of `arms`"),
        ("seeds:", "lora_r: 8\nseeds:", "write `rank` in an entry of `arms`"),
        ("role: retention", "fraction: 0.2", "write `fraction` under `train.NAME.validation`"),
        ("batch_size: 32", "seed: 3", "write `seeds` at the top"),
    ],
)
def test_keys_of_other_tools_and_other_sections_are_led_home(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in GOOD
    assert words in refusal(write(tmp_path, GOOD.replace(old, new)))


def test_what_keys_of_other_tools_mean_is_in_the_schema() -> None:
    known = {line.split(": ")[0] for line in all_keys()}
    assert set(ELSEWHERE.values()) <= known
    # A key of our own would be led away from where it may stand.
    assert not set(ELSEWHERE) & {key.rpartition(".")[2] for key in known}


def test_a_folder_is_no_study_file(tmp_path: Path) -> None:
    assert "is a folder, not a study file\n  mend: name a study file" in refusal(tmp_path)
    path = write(tmp_path, GOOD)
    assert f"mend: name the file: {path}" in refusal(tmp_path)


def test_both_spellings_of_a_key_mean_the_same_and_exclude_each_other(tmp_path: Path) -> None:
    canonical = GOOD.replace("num_epochs", "num_train_epochs").replace("rank: [8", "r: [8")
    assert load_study(write(tmp_path, canonical)) == load_study(write(tmp_path, GOOD))
    both = GOOD.replace("num_epochs: 2", "num_epochs: 2, num_train_epochs: 3")
    assert "two spellings" in refusal(write(tmp_path, both))


OVERRIDES = {
    "num_epochs": 5.0,
    "batch_size": 4,
    "lr_scheduler": "linear",
    "warmup_ratio": 0.5,
    "weight_decay": 0.3,
    "max_grad_norm": 0.2,
    "adam_beta1": 0.1,
    "adam_beta2": 0.2,
    "adam_epsilon": 1e-3,
    "optim": "adamw_8bit",
    "max_steps": 9,
}


@pytest.mark.parametrize("field", sorted(OptimizationFields.model_fields))
def test_an_arm_overrides_one_field_and_leaves_its_neighbours(field: str) -> None:
    shared = Optimization(num_epochs=3, batch_size=8, weight_decay=0.1, lr_scheduler="constant", max_grad_norm=2.0)
    arm = Arm(method="full", learning_rate=(1e-4,), **{field: OVERRIDES[field]})
    resolved = resolve_optimization(shared, arm)
    changed = {name for name in Optimization.model_fields if getattr(resolved, name) != getattr(shared, name)}
    assert changed == {field}
    assert getattr(resolved, field) == OVERRIDES[field]


def test_two_arms_of_one_name_are_refused(tmp_path: Path) -> None:
    twin = "  - {method: full, learning_rate: 1e-6, weight_decay: 0.1}\n  - method: lora"
    text = GOOD.replace("  - method: lora", twin)
    study = load_study(write(tmp_path, text))
    with pytest.raises(UserError, match="two arms are called 'full'"):
        expand_arms(study)


def test_a_broken_file_fails_at_once_and_without_torch(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("seeds", "seedz"))
    code = "import sys; from rankscope.cli import main; s = main(sys.argv[1:]); print(s, 'torch' in sys.modules)"
    started = time.perf_counter()
    command = [sys.executable, "-c", code, "plan", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"], done.stderr
    assert "did you mean 'seeds'" in done.stderr
    print(f"{time.perf_counter() - started:.2f} s")


def test_what_changed_between_two_studies_is_named_in_the_files_words(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    before = load_study(path)
    assert changed_settings(before, load_study(path)) == []
    after = load_study(path, ["optimization.max_steps=7", "decide.margin=0.25", "seeds=[0]"])
    said = changed_settings(before, after)
    assert f"decide.margin: {before.decide.margin} -> 0.25" in said
    assert any(text.startswith("optimization.max_steps: ") and text.endswith(" -> 7") for text in said)
    assert all(text.split(":")[0].split(".")[0] in {"optimization", "decide", "seeds"} for text in said)


@pytest.mark.parametrize(("written", "said"), [("rank", "r"), ("r", "rank")])
def test_an_override_may_spell_a_key_in_the_other_way(tmp_path: Path, written: str, said: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(
        "study: s\nmodel: m\ntrain: {t: {source: t}}\nevaluate: {e: {source: e, in_domain_for: [t]}}\n"
        f"arms: [{{method: lora, {written}: [4, 8], learning_rate: 1e-3}}]\n"
    )
    assert load_study(path, [f"arms.0.{said}=[2]"]).arms[0].rank == (2,)
