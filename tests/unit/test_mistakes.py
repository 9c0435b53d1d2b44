import copy

import pytest
from pydantic import ValidationError

from rankscope.mistakes import mistakes
from rankscope.section import Section
from rankscope.spec import Study

STUDY = {
    "study": "s",
    "model": "m",
    "train": {"t": {"source": "x"}},
    "arms": [{"method": "lora", "rank": 2, "learning_rate": 1e-3}],
    "evaluate": {"e": {"source": "x", "in_domain_for": ["t"]}},
}


def found(key, value):
    """The mistakes of the study with one value changed; the key in the form of `--set`."""
    study = copy.deepcopy(STUDY)
    *parents, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    node = study
    for part in parents:
        node = node[part] if isinstance(part, int) or part in node else node.setdefault(part, {})
    node[last] = value
    with pytest.raises(ValidationError) as caught:
        Study.model_validate(study)
    return mistakes(caught.value)


CASES = [
    ("optimization.batch_size", "four", "is 'four', not a whole number"),
    ("optimization.batch_size", 2.5, "is 2.5, not a whole number"),
    ("optimization.batch_size", 0, "is 0, and must be above 0"),
    ("optimization.warmup_ratio", 2, "is 2, and must be at most 1"),
    ("optimization.num_epochs", float("inf"), "is inf, not a finite number"),
    ("optimization.lr_scheduler", "cosin", "did you mean `cosine`?"),
    ("optimization", 3, "is 3, not a section of keys and values"),
    ("arms.0.lora_dropout", 1.0, "is 1.0, and must be below 1"),
    ("arms.0.lora_alpha", [1], "is [1], neither a number nor a text"),
    ("arms", {}, "not a list"),
    ("arms", [], "is empty, and needs an entry"),
    ("model", {}, "is empty, and needs an entry"),
    ("train.t", "file.jsonl", "a file is named by `source: FILE` below it"),
    ("train.t.source", 3, "is 3, not a text; put it in quotes"),
    ("train.t.source", "", "is empty"),
    ("train.t.columns", "q", "is 'q', not a mapping of names to values"),
    ("evaluate.e.in_domain_for", "t", "is 't', not a list: write [t]"),
    ("seeds", 3, "is 3, not a list: for 3 seeds write [0, 1, 2]"),
    ("seeds", 7321, "is 7321, not a list: write [7321]"),
    ("evaluate.e.role", "keep", "is 'keep', and can be `retention`"),
    ("evaluate.e.scorer", "judge", "not written as file.py:function"),
    ("execute.num_workers", "many", "is 'many', neither a whole number nor `auto`"),
    ("execute.num_workers", True, "is true, neither a whole number nor `auto`"),
    ("execute.pack_size", 0, "is 0, neither a number above 0 nor `auto`"),
    ("optimization.warmup_ratio", False, "is false, not a number"),
    ("evaluate.e.in_domain_for", True, "is true, not a list"),
    ("analyse.spectra", "often", "is 'often', not true or false"),
    ("study", "a b", "'a b' is no name"),
    ("study", "x" * 100, "longer than 80 characters"),
    ("study", None, "is null, not a text"),
]


@pytest.mark.parametrize(("key", "value", "text"), CASES, ids=[f"{key}={value!r:.12}" for key, value, _ in CASES])
def test_what_is_wrong_is_said_in_plain_words(key, value, text):
    (mistake,) = found(key, value)
    assert mistake.key == key
    assert text in mistake.text
    for jargon in ("Input should", "Tuple", "Dictionary", "dictionary", "instance of", "unable to", "valid"):
        assert jargon not in mistake.text


def sections(kind=Section):
    return [each for sub in kind.__subclasses__() for each in (sub, *sections(sub))]


def takes_numbers(field):
    """Whether a number may stand in a field of a JSON schema, and no truth value in its place."""
    kinds = {each.get("type") for each in (field, *field.get("anyOf", ()))}
    return "boolean" not in kinds and bool(kinds & {"integer", "number"})


def test_no_number_of_a_study_file_is_true_or_false():
    seen = []
    for section in sections():
        for key, field in section.model_json_schema(mode="validation")["properties"].items():
            if takes_numbers(field):
                with pytest.raises(ValidationError) as caught:
                    section.model_validate({key: True})
                wrong = [error["type"] for error in caught.value.errors() if error["loc"][0] == key]
                assert {"int_type", "float_type"} & set(wrong), f"{section.__name__}.{key}"
                seen.append(key)
    assert len(seen) > 45
    assert {"pack_size", "checkpoint_seconds", "llm_int8_threshold", "num_train_epochs", "number"} <= set(seen)


@pytest.mark.parametrize(("key", "value", "at"), [
    ("arms.0.rank", [2, True], ".1"), ("arms.0.rank", True, ".0"), ("arms.0.learning_rate", True, ".0"),
    ("arms.0.rank_pattern", {"q": True}, ".q"), ("seeds", [True], ".0"), ("derive.truncate", [2, True], ".1"),
])  # fmt: skip
def test_no_number_of_a_list_or_a_mapping_is_true(key, value, at):
    (mistake,) = found(key, value)
    assert mistake.key == f"{key}{at}"
    assert mistake.text.startswith("is true, not a ")


def test_what_follows_from_a_deeper_mistake_is_left_out():
    (mistake,) = found("arms.0.learning_rate", "fast")
    assert (mistake.key, mistake.text) == ("arms.0.learning_rate.0", "is 'fast', not a number")
    (mistake,) = found("seeds", [-1])
    assert mistake.key == "seeds.0"


def test_several_mistakes_each_have_their_key():
    study = {**copy.deepcopy(STUDY), "seeds": "x", "keep": "some"}
    with pytest.raises(ValidationError) as caught:
        Study.model_validate(study)
    assert {mistake.key for mistake in mistakes(caught.value)} == {"seeds", "keep"}


def test_a_name_that_is_none_is_shown():
    (mistake,) = found("evaluate.a/b", {"source": "x"})
    assert "'a/b' is no name" in mistake.text


def test_our_own_messages_stay_as_they_are():
    (mistake,) = found("seeds", [0, 0])
    assert (mistake.key, mistake.text) == ("seeds", "'seeds' names a seed twice")
