"""The verb as a person calls it: what is printed where, and the exit status of everything that is refused."""

import json
import shutil

import pytest

from planted import CONFIG
from rankscope.cli import main


def call(models, tuned, tmp_path, *options):
    return main(["audit", str(models / "base"), str(models / tuned), "--out", str(tmp_path / "out"), *options])


def test_words_and_the_page(models, tmp_path, capsys):
    assert call(models, "one", tmp_path, "--layers", "0-1") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("- Rank 6 is used to ")
    assert f"report: {tmp_path / 'out' / 'index.html'}" in printed
    assert {path.name for path in (tmp_path / "out" / "tables").iterdir()} == {
        "matrices.csv", "others.csv", "singular_values.csv"
    }  # fmt: skip


def test_json_is_all_that_is_printed(models, tmp_path, capsys):
    assert call(models, "one", tmp_path, "--json", "--against", str(models / "two"), "--truncate", "2") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["truncation"]["ranks"] and document["against"]["matrices"]
    assert len(document["matrices"]) == 21


def test_folders_of_one_name_have_audits_of_their_own(models, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run, source in (("a", "one"), ("b", "two")):
        shutil.copytree(models / source, tmp_path / run / "final")
        for spelling in (f"{run}/final", f"./{run}/final/"):  # the second audits it again
            assert main(["audit", str(models / "base"), spelling]) == 0
    assert len({line for line in capsys.readouterr().out.splitlines() if line.startswith("report: ")}) == 2
    (first, second) = sorted((tmp_path / "results").iterdir())
    assert first.name.endswith("a-final") and second.name.endswith("b-final")
    assert main(["audit", str(models / "base"), "b/final", "--out", str(first)]) == 2
    error = capsys.readouterr().err
    assert "holds the audit of ./a/final/ against" in error and "--out" in error


def changed(models, folder, **settings):
    """The base under another configuration."""
    shutil.copytree(models / "base", folder)
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(document | settings))


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        ({"hidden_act": "gelu"}, "(hidden_act is gelu, the base's silu)"),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, "rope_parameters.rope_theta is 500000.0"),
        ({"use_cache": False, "transformers_version": "4.0.0", "eos_token_id": 7, "attention_dropout": 0.1}, None),
    ],
)
def test_a_configuration_that_is_not_the_bases_is_said(models, tmp_path, capsys, settings, note):
    changed(models, tmp_path / "tuned", **settings)
    assert main(["audit", str(models / "base"), str(tmp_path / "tuned"), "--out", str(tmp_path / "out")]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if "config.json" in line]
    assert len(notes) == (note is not None) and all(note in line for line in notes)


@pytest.mark.parametrize("option", [("--layers", "3-1"), ("--layers", "a"), ("--truncate", "1.5"), ("--truncate", "0")])
def test_options_that_make_no_sense(models, tmp_path, capsys, option):
    with pytest.raises(SystemExit) as caught:
        call(models, "one", tmp_path, *option)
    assert caught.value.code == 2 and option[1] in capsys.readouterr().err


class TestRefused:
    """Each ends with status 2 and names the folder and the mend."""

    def refused(self, capsys, *arguments):
        assert main(["audit", *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert "mend:" in error
        return error

    def test_no_such_folder(self, models, tmp_path, capsys):
        assert "no such folder" in self.refused(capsys, models / "base", tmp_path / "nothing")
        assert "no model folder" in self.refused(capsys, tmp_path / "nothing", models / "one")

    def test_a_file(self, models, capsys):
        assert "is a file" in self.refused(capsys, models / "base", models / "one" / "adapter_config.json")

    def test_a_trainers_folder_with_checkpoints_inside(self, models, tmp_path, capsys):
        for step in (500, 1000):
            (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
            (tmp_path / "run" / f"checkpoint-{step}" / "adapter_config.json").write_text("{}")
        error = self.refused(capsys, models / "base", tmp_path / "run")
        assert "neither an adapter" in error and "checkpoint-1000" in error

    def test_pickles(self, models, tmp_path, capsys):
        folder = tmp_path / "pickled"
        folder.mkdir()
        (folder / "adapter_config.json").write_bytes((models / "one" / "adapter_config.json").read_bytes())
        (folder / "adapter_model.bin").write_bytes(b"")
        error = self.refused(capsys, models / "base", folder)
        assert "adapter_model.bin" in error and "python -c" in error and "weights_only=True" in error
        (folder / "adapter_config.json").rename(folder / "config.json")
        (folder / "adapter_model.bin").rename(folder / "pytorch_model.bin")
        error = self.refused(capsys, models / "base", folder)
        assert "pytorch_model.bin" in error and "save_pretrained" in error

    def test_a_base_of_pickles(self, models, tmp_path, capsys):
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "pytorch_model.bin").write_bytes(b"")
        assert "pickles only" in self.refused(capsys, tmp_path, models / "one")

    def test_a_configuration_with_other_heads(self, models, tmp_path, capsys):
        changed(models, tmp_path / "tuned", num_attention_heads=CONFIG.num_attention_heads * 2)
        error = self.refused(capsys, models / "base", tmp_path / "tuned", "--out", tmp_path / "out")
        assert "config.json: num_attention_heads is " in error and not (tmp_path / "out").exists()

    def test_the_other_one_does_not_fit(self, models, tmp_path, capsys):
        out = ("--out", tmp_path / "out")
        error = self.refused(capsys, models / "base", models / "one", "--against", tmp_path / "none", *out)
        assert "no such folder" in error and not (tmp_path / "out").exists()
