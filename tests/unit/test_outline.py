"""A study of models and data that are elsewhere: what its plan says without a hub."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from paper import PAPER, paper
from rankscope.cost.assumed import known_sizes
from rankscope.cost.estimate import all_pieces, find_device
from rankscope.cost.model_shapes import known_models
from rankscope.data.presets import all_presets
from rankscope.errors import UserError
from rankscope.forecast import Wish, forecast
from rankscope.outline import make_outline, missing_models
from rankscope.plan import Plan, piece_key
from rankscope.spec import Study
from rankscope.study_file import load_study


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HF_HOME", str(tmp_path))


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_outline(paper())[0]


def test_tokens_are_counted_from_sizes_and_marked(plan: Plan) -> None:
    assert missing_models(paper()) == ["llama", "qwen"]
    assert plan.estimate.is_estimate and all(summary.is_estimate for summary in plan.data)
    by_name = {(summary.base, summary.role, summary.name): summary for summary in plan.data}
    assert by_name["llama", "train", "medmcqa"].num_used == 9000  # a tenth is held out
    assert by_name["llama", "task", "mmlu"].num_used == 14042
    # A question of 86 characters, an answer of 22, a chat template, an end.
    per_row = by_name["llama", "train", "medmcqa"].num_tokens / 9000
    assert per_row == pytest.approx(86 / 4.2 + 22 / 4.2 + 31, rel=0.05)


def test_runs_and_work_add_up(plan: Plan) -> None:
    estimate = plan.estimate
    per_step = 32 * plan.data[0].num_tokens / 9000
    llama = [run for run in plan.runs if run.base.name == "llama" and run.training_set.name == "medmcqa"]
    assert len(plan.runs) == 2 * 2 * 6 * 3 * 3 and llama[0].num_steps == 564
    trained = {base: 0.0 for base in ("llama", "qwen")}
    for summary in plan.data:
        if summary.role == "train":
            steps = 564 if summary.name == "medmcqa" else 422
            trained[summary.base] += 30 * steps * 32 * summary.num_tokens / summary.num_used  # 18 candidates, 12 later
    assert estimate.trained_tokens == pytest.approx(sum(trained.values()), rel=1e-3)
    assert per_step > 0
    full = estimate.seconds_by_piece[piece_key("train", "llama", llama[0], "")]
    # Six operations a parameter and token, on one of the machines that tests run on.
    assert full > 6 * 6.9e9 * 564 * per_step / 1e13


def test_full_fine_tuning_needs_sixteen_bytes_a_parameter_and_no_gpu_holds_that() -> None:
    found = forecast(paper(), Wish(device="8xA100-80GB")).plan
    assert found.estimate.device == "a100-80gb" and found.layout.num_workers == 8
    full = found.estimate.memory_bytes_by_arm["full"]
    smallest = 16 * known_models()["meta-llama/llama-3.1-8b-instruct"].parameters
    assert smallest < full < 1.8 * smallest
    assert found.estimate.device_memory_bytes == 80 * 2**30 < full
    one = forecast(paper(), Wish(device="a100-80gb")).plan
    assert one.estimate.seconds == pytest.approx(8 * found.estimate.seconds, rel=0.15)


def test_a_local_file_is_counted_without_a_tokenizer(tmp_path: Path) -> None:
    rows = [{"question": "q" * 40, "answer": "a" * 20} for _ in range(50)]
    path = tmp_path / "ours.jsonl"
    path.write_text("".join(json.dumps(row | {"id": index}) + "\n" for index, row in enumerate(rows)))
    study = Study.model_validate(
        PAPER | {
            "train": {"ours": {"source": str(path)}},
            "evaluate": {"ours": {"source": str(path), "in_domain_for": ["ours"], "scoring": "generate"}},
        }
    )  # fmt: skip
    plan = make_outline(study)[0]
    assert (plan.data[0].num_rows, plan.data[0].num_used, plan.data[1].num_used) == (50, 45, 50)
    assert plan.tasks["llama"]["ours"].scoring == "generate"


def test_an_unknown_data_set_is_assumed_and_said_so() -> None:
    tasks = {"other": {"source": "org/other", "in_domain_for": ["other"]}}
    plan = make_outline(paper(train={"other": {"source": "org/other"}}, evaluate=tasks))[0]
    said = "the size of 'org/other' is not known here: 1,000 rows of 800 characters are assumed"
    assert said in plan.warnings


def test_an_unknown_model_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match="neither on this machine nor among the models") as caught:
        make_outline(paper(model="Qwen/Qwen2.5-7B-Instrct"))
    assert "did you mean Qwen/Qwen2.5-7B" in caught.value.mend


def test_a_name_that_is_no_hub_id_is_not_to_be_fetched() -> None:
    with pytest.raises(UserError, match="neither on this machine") as caught:
        make_outline(paper(model="stories3M"))
    assert "hf download" not in caught.value.mend and "name its folder" in caught.value.mend


def test_every_preset_has_a_size() -> None:
    assert set(all_presets()) <= set(known_sizes())


def test_the_paper_s_study_of_the_repository_is_planned_without_its_models_and_data() -> None:
    study = load_study(Path(__file__).resolve().parents[2] / "studies" / "paper.yaml")
    plan = make_outline(study)[0]
    assert plan.estimate.is_estimate and plan.estimate.seconds > 0
    assert set(plan.smallest_difference) == set(study.train)


def test_options_that_are_scored_in_separate_rows_are_said_beforehand() -> None:
    plan, _ = make_outline(paper(model={"gemma": "google/gemma-2-2b-it", "qwen": "Qwen/Qwen2.5-7B-Instruct"}))
    (said,) = [text for text in plan.warnings if "separate rows" in text]
    assert said.startswith("base gemma: ") and said.endswith("option trees were not tried with gemma2")


def test_options_that_are_scored_in_separate_rows_are_counted_so() -> None:
    methods = ({"method": "lora", "rank": 8}, {"method": "prompt_tuning", "num_virtual_tokens": 8})
    arms = [{**method, "learning_rate": 1e-3} for method in methods]
    bases = {"gemma": "google/gemma-2-2b-it", "qwen": "Qwen/Qwen2.5-1.5B-Instruct"}
    _, outline = make_outline(paper(model=bases, arms=arms))
    pieces = all_pieces(outline, find_device(outline.layout, "float32"))
    name = next(name for name, task in outline.loads["qwen"].tasks.items() if task.scoring == "multiple_choice")
    seconds = {
        (run.base.name, run.arm.method): pieces[piece_key("evaluate", run.base.name, run, name)].seconds
        for run in outline.runs
    }
    assert seconds["qwen", "prompt_tuning"] > 1.5 * seconds["qwen", "lora"]
    assert seconds["gemma", "prompt_tuning"] == pytest.approx(seconds["gemma", "lora"], rel=0.2)
