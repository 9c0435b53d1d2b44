"""A mistake that shows late is named with its line in the study file, or with the override that made it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankscope.errors import UserError, within
from rankscope.places import naming_lines
from rankscope.study_file import load_study

STUDY = """\
study: small
model:
  one: smallworld:base
  two.5: {source: smallworld:plain}
train:
  ours: {source: a.jsonl}
arms:
  - {method: full, learning_rate: 1e-3}
  - method: lora
    rank: [2, 4]
    learning_rate: 1e-3
    target_modules: [q_proj]
evaluate:
  test: {source: b.jsonl, in_domain_for: [ours]}
execute:
  device: cpu
"""


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (UserError("bad", where="execute.device"), "study.yaml:16: execute.device"),
        (UserError("bad", where="optimization.bf16"), "optimization.bf16"),
        (UserError("bad", where="data.jsonl:3"), "data.jsonl:3"),
        (UserError("bad", where="model.two.5", key=("model", "two.5")), "study.yaml:4: model.two.5"),
        (UserError("bad", where="arm full", key=("arms", "full")), "study.yaml:8: arm full"),
        (UserError("bad", where="x", key=("arms", "lora-r4", "target_modules")), "study.yaml:12: x"),
        (UserError("bad", where="x", key=("arms", "lora-r4", "use_dora")), "study.yaml:9: x"),
        (UserError("bad"), None),
    ],
)
def test_the_line_of_a_key(tmp_path: Path, error: UserError, where: str | None) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY, encoding="utf-8")
    with pytest.raises(UserError) as caught, naming_lines(path, load_study(path)):
        raise error
    expected = where.replace("study.yaml", str(path)) if where else None
    assert (caught.value.where, caught.value.what) == (expected, "bad")


def test_an_override_instead_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY, encoding="utf-8")
    # The last is of the same section, which the file does not have, and not of the key that is meant.
    overrides = ["arms.1.target_modules=[k_proj]", "optimization.bf16=true", "optimization.max_steps=3"]
    study = load_study(path, overrides)
    for key, number in ((("arms", "lora-r2", "target_modules"), 0), (("optimization", "bf16"), 1)):
        with pytest.raises(UserError) as caught, naming_lines(path, study, overrides):
            raise UserError("bad", where="x", key=key)
        assert caught.value.where == f"--set {overrides[number]}: x"


@pytest.mark.parametrize(
    ("section", "key", "place"),
    [
        (("train", "ours"), None, "study.yaml:6: train.ours.source"),
        (("train", "ours"), "columns", "study.yaml:6: train.ours.columns"),
        (("model", "two.5"), None, "study.yaml:4: model.two.5.source"),  # names may have dots
        (("evaluate", "test", "few_shot"), None, "study.yaml:14: evaluate.test.few_shot.source"),
    ],
)
def test_a_file_keeps_its_line_and_the_key_that_asked_for_it_stands_below(
    tmp_path: Path, section: tuple[str, ...], key: str | None, place: str
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY, encoding="utf-8")
    keys = None if key is None else (key,)
    place = place.replace("study.yaml", str(path))
    for where, shown in (
        ("a.jsonl:3", f"a.jsonl:3: bad\n  mend: mend it\n  named in {place}"),
        (None, f"{place}: bad\n  mend: mend it"),
    ):
        with pytest.raises(UserError) as caught, naming_lines(path, load_study(path)):
            with within(*section[:1]), within(*section[1:], default="source"):
                raise UserError("bad", where=where, mend="mend it", key=keys)
        assert caught.value.message() == str(caught.value) == shown
