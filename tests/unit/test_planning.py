"""A plan says the same of the same study, whenever it is made, and something else of another one."""

from __future__ import annotations

import json
import struct
from datetime import date
from pathlib import Path

import huggingface_hub
import pytest

from model_folders import CHATML, write_tokenizer
from rankscope import pipeline
from rankscope.cli import DONE, main
from rankscope.design import sense_warnings
from rankscope.errors import UserError
from rankscope.plan import Plan
from rankscope.planning import make_plan
from rankscope.spec import Study
from rankscope.statistics import smallest_difference
from rankscope.store import Store, write_text
from rankscope.study_file import dump_study

DATED = "{{ strftime_now('%d %b %Y') }}\n" + CHATML
SHAPES = {
    "model.embed_tokens.weight": [400, 8],
    "model.layers.0.self_attn.q_proj.weight": [8, 8],
    "model.layers.0.self_attn.v_proj.weight": [8, 8],
    "model.layers.0.mlp.up_proj.weight": [16, 8],
    "model.norm.weight": [8],
    "lm_head.weight": [400, 8],
}


def write_base(folder: Path) -> None:
    write_tokenizer(folder, chat=DATED)
    header = {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in SHAPES.items()}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)


def write_rows(path: Path, first: int, number: int) -> str:
    rows = [{"question": f"What is {i} plus 1?", "answer": f"{i + 1}"} for i in range(first, first + number)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def entries(tmp_path: Path) -> dict:
    write_base(tmp_path / "base")
    train = write_rows(tmp_path / "train.jsonl", 0, 20)
    checked = write_rows(tmp_path / "checked.jsonl", 100, 5)
    return {
        "study": "dated",
        "model": {"base": str(tmp_path / "base")},
        "train": {"sums": {"source": train, "validation": {"source": checked}}},
        "arms": [{"method": "lora", "rank": 2, "learning_rate": 1e-3}],
        "optimization": {"batch_size": 4},
        "evaluate": {
            "sums": {
                "source": write_rows(tmp_path / "test.jsonl", 200, 5), "in_domain_for": ["sums"], "scoring": "generate"
            }
        },
    }  # fmt: skip


def planned(entries: dict, earlier: Plan | None = None, *, keep_layout: bool = True) -> Plan:
    return make_plan(Study.model_validate(entries), earlier, keep_layout=keep_layout)[0]


@pytest.mark.parametrize(("number", "is_warned"), [(99, True), (100, False)])
def test_arms_that_are_compared_on_few_texts_are_warned_of(
    entries: dict, tmp_path: Path, number: int, is_warned: bool
) -> None:
    entries["evaluate"]["sums"] |= {"source": write_rows(tmp_path / "texts.jsonl", 200, number), "scoring": "loss"}
    warnings = planned(entries).warnings
    assert (
        any(f"their loss on {number} independent texts" in text and "margin_nats (0.01)" in text for text in warnings)
        == is_warned
    )
    entries["evaluate"]["sums"]["scoring"] = "generate"
    assert not any("their loss" in text for text in planned(entries).warnings)


def test_texts_of_one_cluster_are_one_of_those_few(entries: dict, tmp_path: Path) -> None:
    source = Path(write_rows(tmp_path / "texts.jsonl", 200, 120))
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    rows = [row | {"cluster": f"patient {number % 60}"} for number, row in enumerate(rows)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    entries["evaluate"]["sums"] |= {"source": str(source), "scoring": "loss"}
    assert any("their loss on 60 independent texts" in text for text in planned(entries).warnings)


@pytest.mark.parametrize(("number", "is_warned"), [(19, True), (20, False)])
def test_rates_that_are_chosen_on_few_rows_are_warned_of(
    entries: dict, tmp_path: Path, number: int, is_warned: bool
) -> None:
    source = write_rows(tmp_path / "more.jsonl", 100, number)
    # Rows that count as one are one of those few, and one rate is no choice.
    rows = Path(source).read_text(encoding="utf-8").splitlines(keepends=True)
    Path(source).write_text("".join([*rows, *rows[:5]]), encoding="utf-8")
    entries["train"]["sums"]["validation"] = {"source": source}
    said = f"train.sums: rates are chosen on {number} independent validation rows, few"
    assert not any(said in text for text in planned(entries).warnings)
    entries["arms"][0]["learning_rate"] = [1e-3, 3e-3]
    assert any(said in text for text in planned(entries).warnings) == is_warned


def test_rows_that_are_longer_than_the_budget_of_tokens_are_said_once(entries: dict) -> None:
    longest = {f"{summary.role} {summary.name}": summary.longest_tokens for summary in planned(entries).data}
    assert len(set(longest.values())) > 1
    for limit in (min(longest.values()) - 1, max(longest.values()) - 1, max(longest.values())):
        warnings = planned(entries | {"execute": {"max_tokens_per_batch": limit}}).warnings
        said = [text for text in warnings if f"max_tokens_per_batch is {limit}, and rows are longer" in text]
        above = {name: number for name, number in longest.items() if number > limit}
        assert len(said) == (1 if above else 0)
        assert all(
            (f"{name} has up to {number}" in "".join(said)) == (name in above) for name, number in longest.items()
        )


def test_the_plan_says_of_parts_cut_by_what_is_asked_about_how_large_they_are(
    entries: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_rows(tmp_path / "all.jsonl", 0, 60)
    entries["train"]["sums"] = {"source": source, "part": "train"}
    entries["evaluate"]["sums"] |= {"source": source, "part": "test"}
    path = tmp_path / "study.yaml"
    write_text(path, dump_study(Study.model_validate(entries)))
    assert main(["plan", str(path)]) == DONE
    lines = capsys.readouterr().out.splitlines()
    for role, words, number in (("train", "part train, about 80%", 47), ("validation", "part validation, about 10%", 5),
                                ("task", "part test, about 10%", 8)):  # fmt: skip
        assert sum(
            line.startswith(f"  {role} sums ({source}; {words}, cut by what is asked): {number} rows") for line in lines
        ) == 1  # fmt: skip


def test_matrices_for_pictures_are_said_and_no_others() -> None:
    names = ("model.vision_tower.encoder.layers.0.fc1.weight", "model.layers.0.mlp.up_proj.weight", "revision.weight")
    shapes = {name: (4, 4) for name in names} | {"model.vision_tower.norm.weight": (4,)}
    (warning,) = sense_warnings("many", shapes)
    assert f"base many: 1 of its 3 matrices are for pictures or sounds ({names[0]}, ...)" in warning
    assert sense_warnings("text", {names[1]: (4, 4), names[2]: (4, 4)}) == []


def test_a_turn_that_would_not_end_is_said(entries: dict) -> None:
    (warning,) = [text for text in planned(entries).warnings if "closes a turn" in text]
    assert "<|im_end|>, at which generation does not stop" in warning and "</s> is learned in its place" in warning


def test_a_template_that_writes_the_date_makes_the_same_runs_after_midnight(entries: dict) -> None:
    first = planned(entries)
    of_yesterday = planned(entries, first.model_copy(update={"today": date(2024, 2, 29)}))
    assert "29 Feb 2024" in of_yesterday.data[0].sample_prompt
    assert of_yesterday.runs != first.runs
    read_back = Plan.model_validate_json(of_yesterday.model_dump_json())
    for keep_layout in (True, False):
        again = planned(entries, read_back, keep_layout=keep_layout)
        assert (again.today, again.runs) == (date(2024, 2, 29), of_yesterday.runs)
        assert (again.tasks, again.probes_fingerprint) == (of_yesterday.tasks, of_yesterday.probes_fingerprint)


def test_a_training_set_may_have_fewer_arms(entries: dict) -> None:
    entries["arms"] = [{"method": "lora", "rank": [2, 4], "learning_rate": 1e-3}]
    entries["train"]["few"] = {**entries["train"]["sums"], "arms": "lora-r4"}
    entries["evaluate"]["sums"]["in_domain_for"] = ["sums", "few"]
    plan = planned(entries)
    trained = {(run.training_set.name, run.arm.label) for run in plan.runs}
    assert trained == {("sums", "lora-r2"), ("sums", "lora-r4"), ("few", "lora-r4")}
    del entries["train"]["few"]["arms"]
    whole = planned(entries)
    assert {run.run_id for run in plan.runs} < {run.run_id for run in whole.runs}, "those that stay are the same runs"


@pytest.mark.parametrize("key", ["derive.arms", "train.sums.arms"])
def test_an_arm_that_the_study_does_not_have_is_refused(entries: dict, key: str) -> None:
    section, *names = key.split(".")
    node = entries.setdefault(section, {})
    for name in names[:-1]:
        node = node[name]
    node["arms"] = ["lora-r3"]
    with pytest.raises(UserError, match="no arm is called 'lora-r3'") as caught:
        planned(entries)
    assert caught.value.where == key and "lora-r2" in caught.value.mend


def test_a_misspelt_module_is_refused_before_anything_starts(entries: dict) -> None:
    entries["arms"].append({"method": "full", "learning_rate": 1e-3})
    entries["arms"][0]["target_modules"] = ["q_proj", "v_prj"]
    with pytest.raises(UserError, match="v_prj") as caught:
        planned(entries)
    assert "'v_proj'" in caught.value.mend


def test_the_commit_of_a_base_from_the_hub_is_recorded_and_makes_no_other_run(
    entries: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = []
    for digit in "ab":
        snapshot = tmp_path / "models--org--name" / "snapshots" / (digit * 40)
        write_base(snapshot)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda _id, found=snapshot, **_options: str(found))
        plans.append(planned(entries | {"model": {"base": "org/name"}}))
    assert [plan.bases["base"].commit for plan in plans] == ["a" * 40, "b" * 40]
    assert plans[0].runs[0].settings_hash == plans[1].runs[0].settings_hash
    assert planned(entries).bases["base"].commit is None


def test_other_validation_rows_are_another_run(entries: dict, tmp_path: Path) -> None:
    first = planned(entries)
    write_rows(tmp_path / "checked.jsonl", 101, 5)
    second = planned(entries)
    assert second.runs[0].training_set.fingerprint == first.runs[0].training_set.fingerprint
    assert second.runs[0].settings_hash != first.runs[0].settings_hash


def test_a_study_that_goes_on_elsewhere_keeps_its_date(entries: dict, tmp_path: Path, monkeypatch) -> None:
    store = Store(tmp_path / "out")
    study = Study.model_validate(entries)
    write_text(store.study_file, dump_study(study))
    plan = planned(entries).model_copy(update={"today": date(2024, 2, 29)})
    write_text(store.plan_file, plan.model_dump_json())

    class Planned(Exception):
        """Stops the run where its plan is made."""

    def note(_study: Study, earlier: Plan | None, *, keep_layout: bool, cluster: None) -> None:
        assert earlier is not None
        raise Planned(earlier.today, keep_layout)

    monkeypatch.setattr(pipeline, "make_plan", note)
    with pytest.raises(Planned) as caught:
        pipeline.run_study(Study.model_validate(entries | {"execute": {"num_workers": 1}}), store.root, display=None)
    assert caught.value.args == (date(2024, 2, 29), False)


def test_the_smallest_difference_is_of_the_decision_the_study_asks_for(entries: dict, tmp_path: Path) -> None:
    more = dict(entries["evaluate"]["sums"], source=write_rows(tmp_path / "more.jsonl", 300, 40))
    asked = entries | {"evaluate": entries["evaluate"] | {"more": more}, "decide": {"confidence": 0.9}, "seeds": [0, 1]}
    expected = smallest_difference([5, 40], 2, confidence=0.9)
    assert planned(asked).smallest_difference == {"sums": pytest.approx(expected)}


@pytest.mark.parametrize(
    ("chat", "shown"),
    [
        (CHATML, "<|im_start|>user\\nWhat is 0 plus 1?<|im_end|>\\n<|im_start|>assistant\\n>>>1<|im_end|><<<"),
        (None, "Question: What is 0 plus 1?\\nAnswer:>>> 1</s><<<"),
    ],
    ids=["chat template", "no template"],
)
def test_the_plan_shows_one_example_with_what_is_trained_marked(
    entries: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str], chat: str | None, shown: str
) -> None:
    write_tokenizer(tmp_path / "base", chat=chat)
    ends = {"eos_token_id": [1, 4] if chat else 1}  # a chat model ends its turn with a token of its own
    write_text(tmp_path / "base" / "generation_config.json", json.dumps(ends))
    path = tmp_path / "study.yaml"
    write_text(path, dump_study(Study.model_validate(entries)))
    assert main(["plan", str(path)]) == DONE
    lines = capsys.readouterr().out.splitlines()
    said = next(line.strip() for line in lines if ">>> <<<" in line)
    assert said == f"one example, what is trained on in >>> <<<: '{shown}'"
