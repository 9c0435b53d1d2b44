"""Which models are derived of which arms, as the study file asks."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from rankscope.expansion import derived_points, expand_arms
from rankscope.spec import Study


def derived(**derive: object) -> dict[str, list[str]]:
    arms = [
        {"method": "full", "learning_rate": 1e-5},
        {"method": "lora", "rank": [2, 4, 8], "learning_rate": 1e-4},
        {"method": "ia3", "learning_rate": 1e-3},
    ]
    study = Study.model_validate(
        {
            "study": "derived",
            "model": "base",
            "train": {"new": {"source": "train.jsonl"}},
            "arms": arms,
            "seeds": [0],
            "evaluate": {"new": {"source": "test.jsonl", "in_domain_for": ["new"]}},
            "derive": derive,
        }
    )
    expanded = [arm for arm, _ in expand_arms(study)]
    return {arm.label: [point.name for point in derived_points(study, arm, expanded)] for arm in expanded}


def test_nothing_is_derived_unless_the_study_asks() -> None:
    assert set(map(tuple, derived().values())) == {()}


def test_true_stands_for_the_usual_amounts_and_the_studys_lower_ranks() -> None:
    points = derived(rewind=True, truncate=True, intruders=True)
    rewound = [f"rewind/{share}" for share in ("0.25", "0.5", "0.75", "1.25")]
    scaled = [f"intruders/{share}" for share in ("0", "0.25", "0.5", "0.75")]
    assert points["lora-r4"] == [*rewound, "truncate/2", *scaled]
    assert points["full"] == [*rewound, "truncate/2", "truncate/4", "truncate/8", *scaled]
    assert points["ia3"] == [], "its updates are no sum of factors"


def test_a_list_names_the_amounts_in_any_order() -> None:
    points = derived(rewind=[0.9, 0.1, 0.1], truncate=[3, 6], intruders=[0])
    assert points["lora-r4"] == ["rewind/0.1", "rewind/0.9", "truncate/3", "intruders/0"]
    assert points["lora-r2"] == ["rewind/0.1", "rewind/0.9", "intruders/0"]
    assert derived(rewind=1, truncate=1, intruders=0)["lora-r4"] == ["rewind/1", "truncate/1", "intruders/0"]


def test_arms_are_named_as_plan_shows_them() -> None:
    points = derived(rewind=[0.5], arms="lora-r8")
    assert points == {"full": [], "lora-r2": [], "lora-r4": [], "lora-r8": ["rewind/0.5"], "ia3": []}


@pytest.mark.parametrize("wrong", [{"rewind": "much"}, {"rewind": [-1.0]}, {"truncate": [0]}, {"intruders": [2.0]}])
def test_what_is_no_amount_is_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        derived(**wrong)
