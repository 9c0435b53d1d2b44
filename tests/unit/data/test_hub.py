import json

import huggingface_hub
import huggingface_hub.constants
import pytest

from model_folders import write_model
from rankscope.data import hub
from rankscope.data.hub import fingerprint, local_model, model_folder
from rankscope.errors import UserError


def test_complete_folder_is_taken(tmp_path):
    assert model_folder(str(write_model(tmp_path / "model"))) == tmp_path / "model"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_folder_that_lacks_a_file_is_refused(tmp_path, name):
    folder = write_model(tmp_path / "model")
    (folder / name).unlink()
    with pytest.raises(UserError, match=r"missing") as caught:
        model_folder(str(folder))
    assert name.split(".")[-1] in str(caught.value)
    assert caught.value.mend


def test_pickled_weights_are_refused_with_the_mend(tmp_path):
    folder = write_model(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="never read") as caught:
        model_folder(str(folder))
    assert "safetensors" in caught.value.mend


def test_adapter_is_refused_as_a_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="an adapter, not a model") as caught:
        model_folder(str(tmp_path))
    assert "merge" in caught.value.mend


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "a/b/c", "~/nowhere-at-all"])
def test_missing_folder_is_refused(source):
    with pytest.raises(UserError, match="no model folder"):
        model_folder(source)


@pytest.mark.parametrize("source", list(hub.PACKAGED))
def test_bases_of_the_package_are_found_by_name(source):
    assert (model_folder(source) / "README.md").is_file()


@pytest.mark.parametrize(
    ("source", "mend"),
    [
        ("smallworld:plane", "did you mean smallworld:plain?"),
        ("smallworld:bse", "did you mean smallworld:base?"),
        ("smalworld:base", "did you mean smallworld:base?"),
        ("smallworld:", "did you mean smallworld:base?"),
        ("smallworld:xxxxxxxxxxxxxxxxxxxx", "name smallworld:base or smallworld:plain"),
    ],
)
def test_base_that_the_package_lacks_is_refused_with_the_one_meant(source, mend):
    assert local_model(source) is not None  # so that nobody asks a hub for it
    with pytest.raises(UserError, match=f"the package has no base '{source}'") as caught:
        model_folder(source)
    assert caught.value.mend == mend


def test_file_is_no_folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is a file"):
        model_folder(str(tmp_path / "model.safetensors"))


def test_hub_id_that_is_not_cached_is_refused_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="nobody/nothing") as caught:
        model_folder("nobody/nothing")
    assert "HF_HUB_OFFLINE" in caught.value.mend


def test_text_that_is_no_hub_id_is_refused():
    with pytest.raises(UserError, match="neither a folder nor a hub id"):
        model_folder("what is this?")


def test_hub_id_is_fetched_without_pickles(tmp_path, monkeypatch):
    folder = write_model(tmp_path / "snapshot")
    asked = {}

    def fetch(source, **options):
        asked.update(source=source, **options)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert model_folder("org/name", "abc") == folder
    assert (asked["source"], asked["revision"]) == ("org/name", "abc")
    assert not any("bin" in pattern or pattern == "*" for pattern in asked["allow_patterns"])
    assert not any(pattern.endswith(".py") for pattern in asked["allow_patterns"])
    assert model_folder("org/name", with_code=True) == folder
    assert "*.py" in asked["allow_patterns"] and asked["ignore_patterns"] == ["custom_generate/*"]


def test_fingerprint_changes_with_any_part_and_with_nothing_else(tmp_path):
    one, two = write_model(tmp_path / "one"), write_model(tmp_path / "two")
    assert fingerprint(one) == fingerprint(two)
    (two / "README.md").write_text("a card")
    assert fingerprint(one) == fingerprint(two)
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        before, content = fingerprint(two), (two / name).read_bytes()
        (two / name).write_bytes(content + b" ")
        assert fingerprint(two) != before
        (two / name).write_bytes(content)
    (two / "chat_template.jinja").write_text("x")
    assert fingerprint(one) != fingerprint(two)


def test_fingerprint_of_a_large_file_sees_both_ends_and_size(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_WHOLE_BYTES", 100)
    monkeypatch.setattr(hub, "_END_BYTES", 10)
    path = tmp_path / "model.safetensors"
    (tmp_path / "config.json").write_text(json.dumps({}))
    path.write_bytes(b"a" * 200)
    before = fingerprint(tmp_path)
    for changed in (b"b" + b"a" * 199, b"a" * 199 + b"b", b"a" * 201):
        path.write_bytes(changed)
        assert fingerprint(tmp_path) != before
