"""Tasks of lm_eval scored by us give the numbers that lm_eval's own model for Hugging Face gives."""

import math

import pytest
import torch
from transformers import AutoTokenizer

from lm_eval_tasks import NAMES, write_tasks
from rankscope.data.prepare import prepare_task
from rankscope.errors import UserError
from rankscope.scoring.tasks import ITEM_SCHEMA, score_task
from rankscope.spec import Task

evaluator = pytest.importorskip("lm_eval.evaluator", reason="lm_eval is not installed (extra: dev)")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("lm_eval"))


@pytest.fixture(scope="module")
def prepared(tasks, tokenizer):
    def prepare(name, **options):
        spec = Task(lm_eval=name, include_path=str(tasks), **options)
        return prepare_task("base", "t", spec, tokenizer, allow_code=True)

    return prepare


def reference(model, tokenizer_folder, tasks, name, **options):
    """What lm_eval reports with its own model, and what it says of every item."""
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, device="cpu")
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = evaluator.simple_evaluate(wrapped, tasks=[name], task_manager=manager, bootstrap_iters=0, **options)
    return found["results"][name], found["samples"][name]


def scored(model, tokenizer, prepared):
    return score_task(model, tokenizer, prepared.items, prepared.settings, 512)


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in NAMES), ("ours_choice", {"few_shot": 2}), ("ours_text", {"max_examples": 4})],
)
@pytest.mark.filterwarnings("ignore")  # of lm_eval and datasets, which are not ours to mend
def test_numbers_are_lm_evals_own(make_llama, tokenizer, tokenizer_folder, tasks, prepared, name, options):
    model = make_llama(torch.float64)
    told = {"num_fewshot": options.get("few_shot"), "limit": options.get("max_examples")}
    results, samples = reference(model, tokenizer_folder, tasks, name, **told)
    task = prepared(name, **options)
    ours = scored(model, tokenizer, task)
    expected = {key: value for key, value in results.items() if "," in key and "_stderr" not in key}
    assert set(ours.lm_eval) == set(expected)
    for key, value in expected.items():
        assert ours.lm_eval[key] == pytest.approx(value, rel=1e-9), key
    # Item by item, in lm_eval's order.
    flexible = [sample for sample in samples if sample["filter"] in ("none", "flexible-extract")]
    assert len(ours.items) == len(flexible) == len(task.items)
    for row, sample in zip(ours.items.iter_rows(named=True), sorted(flexible, key=lambda s: s["doc_id"]), strict=True):
        assert row["item_id"] == str(sample["doc_id"])
        for measure in ("acc", "exact_match"):
            if measure in sample:
                assert row["is_correct"] == bool(sample[measure])
                break
        answers = [response[0] for response in sample["resps"]]
        if row["option_log_likelihoods"] is not None:
            assert row["option_log_likelihoods"] == pytest.approx([value for value, _ in answers], abs=1e-8)
        elif row["generated"] is not None:
            assert row["generated"] == answers[0]
        else:
            assert row["nll_nats"] == pytest.approx(-answers[0], abs=1e-8)


@pytest.mark.filterwarnings("ignore")
def test_measures_of_ours_follow_from_the_items(make_llama, tokenizer, prepared):
    model = make_llama(torch.float64)
    choice = scored(model, tokenizer, prepared("ours_choice"))
    assert choice.values["accuracy"] == choice.lm_eval["acc,none"] == choice.items["is_correct"].mean()
    assert choice.scored_by == "option_tree" and choice.items.schema == ITEM_SCHEMA
    text = scored(model, tokenizer, prepared("ours_text"))
    assert text.values["bits_per_byte"] == pytest.approx(text.lm_eval["bits_per_byte,none"], rel=1e-12)
    nats = text.items["nll_nats"].sum() / text.items["num_scored_tokens"].sum()
    assert text.values["loss_nats_per_token"] == pytest.approx(nats, rel=1e-12)
    word = scored(model, tokenizer, prepared("ours_last_word"))
    assert word.lm_eval["perplexity,none"] == pytest.approx(math.exp(word.items["nll_nats"].mean()), rel=1e-9)
    assert (choice.num_unfinished, text.num_unfinished) == (None, None)
    total = scored(model, tokenizer, prepared("ours_sum"))
    assert 0 < total.num_unfinished <= total.items.height
    assert total.values["accuracy"] == total.lm_eval["exact_match,flexible-extract"]
    assert total.values["accuracy_strict"] == total.lm_eval["exact_match,strict-match"]


@pytest.mark.filterwarnings("ignore")
def test_a_group_is_all_its_tasks_with_their_names_as_categories(make_llama, tokenizer, prepared):
    task = prepared("ours_both", max_examples=3)
    assert [item.category for item in task.items] == ["ours_choice"] * 3 + ["ours_exact_choice"] * 3
    assert len({item.item_id for item in task.items}) == 6
    ours = scored(make_llama(torch.float64), tokenizer, task)
    assert {"ours_choice/acc,none", "ours_exact_choice/exact_match,none"} <= set(ours.lm_eval)
    assert ours.items["category"].to_list() == [item.category for item in task.items]


@pytest.mark.filterwarnings("ignore")
def test_items_that_changed_since_the_plan_are_not_scored(make_llama, tokenizer, prepared):
    task = prepared("ours_choice")
    settings = task.settings.model_copy(update={"fingerprint": "another"})
    with pytest.raises(UserError, match="not those that the study was planned with"):
        score_task(make_llama(), tokenizer, task.items, settings, 512)
