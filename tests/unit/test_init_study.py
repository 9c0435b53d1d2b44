"""`rankscope init`: what it finds, and that what it writes is a study."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rankscope import init_study
from rankscope.cli import DONE, USER_ERROR, main
from rankscope.data import sources
from rankscope.data.hub import model_folder
from rankscope.data.smallworld.rows import rows
from rankscope.errors import UserError
from rankscope.init_study import parse_columns, write_study
from rankscope.study_file import load_study

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"
YOUR_DATA = Path(__file__).parents[2] / "studies" / "your_data.yaml"


def write(path: Path, values: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in values), encoding="utf-8")
    return path


def questions(number: int) -> list[dict]:
    return [{"question": f"What is number {n}?", "answer": f"It is {n}."} for n in range(number)]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write(tmp_path / "ours.jsonl", questions(300))


def test_your_data_is_exactly_what_init_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data are those of docs/tutorial.md."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    write(Path("data/ours.jsonl"), rows("medical_new", "train"))
    write_study("smallworld:base", "data/ours.jsonl", Path("studies/your_data.yaml"))
    assert Path("studies/your_data.yaml").read_text(encoding="utf-8") == YOUR_DATA.read_text(encoding="utf-8")


def test_rows_without_a_right_answer_are_said_to_be_judged_by_loss(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [[{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
             for row in questions(300)]  # fmt: skip
    chats = write(data.parent / "chats.jsonl", [{"messages": each} for each in turns])
    for file, is_said in ((chats, True), (data, False)):
        out = data.parent / f"{file.stem}.yaml"
        assert main(["init", "--model", "smallworld:base", "--train", str(file), "--out", str(out)]) == DONE
        assert ("rows read as messages are judged by loss; to judge by right" in capsys.readouterr().out) is is_said
        assert ("  # Judged by loss; to judge by right answers, add" in out.read_text(encoding="utf-8")) is is_said
        load_study(out)


@pytest.mark.parametrize(("number", "is_few"), [(300, True), (1500, False)])
def test_few_rows_to_compare_losses_on_are_said(
    data: Path, capsys: pytest.CaptureFixture[str], number: int, is_few: bool
) -> None:
    write(data, [{"text": f"This is text {n} of a few."} for n in range(number)])
    assert main(["init", "--model", "smallworld:base", "--train", str(data), "--out", "study.yaml"]) == DONE
    said = "test rows are few to compare losses on"
    assert (said in capsys.readouterr().out) == (said in Path("study.yaml").read_text()) == is_few


def test_the_tutorial_shows_what_init_and_plan_say_today(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    write(Path("data/ours.jsonl"), rows("medical_new", "train"))
    blocks = {block.split()[1]: block for block in TUTORIAL.read_text().split("\n    $ ")[1:]}
    for verb, text in (("init", blocks["init"]), ("plan", blocks["plan"])):
        command, *shown = text.replace("\\\n", " ").splitlines()
        assert main(shlex.split(command)[1:]) == DONE
        said = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
        shown = list(itertools.takewhile(lambda line: not line or line.startswith("    "), shown))
        # Times and memory are this machine's, and operations a forecast.
        for line in (
            re.sub("; [0-9,]+ billion.*", "", line[4:].rstrip()) for line in shown if line.strip() not in ("", "...")
        ):
            if not line.startswith(("time:", "  of one of them:", "memory:", "disk:")):
                assert any(each.startswith(line.removesuffix("...)").removesuffix("...")) for each in said), line
        assert len(shown) >= 6, verb
    yaml = re.findall(r"```yaml\n(.*?)```", TUTORIAL.read_text(), re.DOTALL)[0]
    written = [line.split("#")[0].split() for line in YOUR_DATA.read_text().splitlines()]
    for line in yaml.splitlines():
        assert line.split("#")[0].split() in written


def test_it_says_what_it_found_and_how_long_it_will_take(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(data, [*questions(300), *questions(3)])
    assert main(["init", "--model", "smallworld:base", "--train", str(data), "--out", "study.yaml"]) == DONE
    said = capsys.readouterr().out
    assert "303 rows, 3 of them repetitions, read as question_answer" in said
    assert ">>> It is 0.<|end|><<<" in said and "the longest" in said
    # What the test items cannot tell is said at once, and stands in the file too.
    (remark,) = (line for line in said.splitlines() if "tell differences of about" in line)
    assert remark.startswith("22 test items and 2 seeds") and f"# {remark}\n" in Path("study.yaml").read_text()
    assert "time: about" in said.splitlines()[-1]
    assert main(["plan", "study.yaml"]) == DONE


def test_a_forecast_that_cannot_be_made_does_not_hide_the_file(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(init_study, "SMALL_WORLD", ("  lost: {source: no/such/set/there, role: retention}",))
    assert main(["init", "--model", "smallworld:base", "--train", str(data), "--out", "study.yaml"]) == DONE
    said = capsys.readouterr().out
    line = Path("study.yaml").read_text().splitlines().index("  lost: {source: no/such/set/there, role: retention}")
    assert f"cannot be said yet: study.yaml:{line + 1}: evaluate.lost.source: there is no" in said
    assert Path("study.yaml").is_file()


def test_where_a_tasks_data_are_not_here_the_time_is_that_of_known_sizes(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*_arguments: object, **_named: object) -> None:
        raise UserError("cannot be had from the hub", where="wikitext", mend="check the network")

    monkeypatch.setattr(init_study, "SMALL_WORLD", ("  text: {source: wikitext2, role: retention}",))
    monkeypatch.setattr(sources, "_hub", unreachable)
    assert main(["init", "--model", "smallworld:base", "--train", str(data), "--out", "study.yaml"]) == DONE
    *_, time, cause, _mend, named = capsys.readouterr().out.splitlines()
    assert time.startswith("time: about ") and time.endswith(", from the sizes that are known, since")
    assert cause == "wikitext: cannot be had from the hub" and named.endswith(": evaluate.text.source")


@pytest.mark.parametrize(("size", "tasks"), [(3e6, 2), (1.35e8, 3), (7e9, 4)])
def test_rates_ranks_and_tasks_suit_the_size(
    data: Path, monkeypatch: pytest.MonkeyPatch, size: float, tasks: int
) -> None:
    monkeypatch.setattr(init_study, "num_parameters", lambda _shapes: int(size))
    monkeypatch.setattr(
        init_study, "SMALL_WORLD", next(s.retention for s in init_study.SCALES if size < s.most_parameters)
    )
    write_study("smallworld:base", str(data), Path("study.yaml"))
    study = load_study("study.yaml")
    full, lora = study.arms
    assert len(full.learning_rate) == len(lora.learning_rate) >= 3
    assert lora.learning_rate == pytest.approx([10 * rate for rate in full.learning_rate])
    assert full.learning_rate == tuple(sorted(full.learning_rate))
    assert len(lora.rank) >= 2 and all(rank <= 64 for rank in lora.rank)  # the embedded model's matrices are small
    retention = [task for task in study.evaluate.values() if task.role == "retention"]
    assert len(retention) == tasks


def test_a_model_whose_weights_are_not_of_its_configuration_is_refused(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = data.parent / "base"
    shutil.copytree(model_folder("smallworld:base"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    command = ["init", "--model", str(folder), "--train", str(data), "--out", "study.yaml"]
    assert main(command) == USER_ERROR
    error = capsys.readouterr().err
    assert "config.json: 22 of the 22 matrices in the files have names that no 'gpt2' has" in error and "mend:" in error
    assert not Path("study.yaml").exists()
    # Whether code of the folder's own may be run is for the study to say, which is yet to be written.
    code = {"model_type": "ours", "auto_map": {"AutoModelForCausalLM": "modeling.Ours"}}
    (folder / "config.json").write_text(json.dumps(config | code))
    assert main(command) == DONE
    assert "trust_remote_code: true" in capsys.readouterr().out


def test_columns_are_named_and_written(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(data, [{"q": f"Is {n} even?", "yes": "It is", "no": "It is not", "key": "It is"} for n in range(300)])
    command = ["init", "--model", "smallworld:base", "--train", str(data), "--out", "study.yaml"]
    assert main(command) == USER_ERROR
    said = capsys.readouterr().err
    assert "no form that is known" in said and "`--columns question=q answer=a` for `init`" in said
    assert "`columns: {question: q, answer: a}` in the study file" in said and "study.yaml" not in said
    assert main([*command, "--columns", "question=Q", "answer=key"]) == USER_ERROR
    said = capsys.readouterr().err
    assert "no field 'Q'" in said and "`--columns` of `init`" in said and "it has q, yes, no, key" in said
    assert main([*command, "--columns", "question=q", "choices=yes,no", "answer=key"]) == DONE
    assert "read as multiple_choice" in capsys.readouterr().out
    study = load_study("study.yaml")
    columns = {"question": "q", "choices": ("yes", "no"), "answer": "key"}
    assert study.train["ours"].columns == study.evaluate["ours_test"].columns == columns


def test_fields_that_it_does_not_read_are_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["init", "--model", "smallworld:base", "--train", str(data), "--out"]
    assert main([*command, "one.yaml"]) == DONE
    assert "not read" not in capsys.readouterr().out
    write(data, [{**row, "passage": "P"} for row in questions(300)])
    assert main([*command, "two.yaml"]) == DONE
    assert "  not read of its rows: passage\n" in capsys.readouterr().out


@pytest.mark.parametrize("pair", ["question", "=q", "question="])
def test_columns_that_are_no_pairs_are_refused(pair: str) -> None:
    with pytest.raises(UserError, match="names no column") as caught:
        parse_columns([pair])
    assert caught.value.where == "--columns" and caught.value.mend


def test_a_folder_with_splits_is_not_cut(data: Path) -> None:
    folder = Path("set")
    folder.mkdir()
    write(folder / "train.jsonl", questions(50))
    write(folder / "test.jsonl", questions(12))
    write_study("smallworld:base", "set", Path("study.yaml"))
    study = load_study("study.yaml")
    assert (study.train["set"].split, study.train["set"].part) == ("train", None)
    assert study.evaluate["set_test"].split == "test"
    assert "12 test items" in Path("study.yaml").read_text()


def test_rows_that_ask_the_same_cannot_be_cut(data: Path) -> None:
    write(data, [{"question": "Write a poem.", "answer": f"Poem {n}"} for n in range(100)])
    with pytest.raises(UserError, match="100 rows ask 1 different things") as caught:
        write_study("smallworld:base", str(data), Path("study.yaml"))
    assert "--columns" in caught.value.mend and not Path("study.yaml").exists()


def test_max_length_leaves_nearly_all_rows_whole(data: Path) -> None:
    write_study("smallworld:base", str(data), Path("short.yaml"))
    write(data, [{"question": f"{n} " + "drug " * 150, "answer": "Yes"} for n in range(300)])
    write_study("smallworld:base", str(data), Path("long.yaml"))
    assert load_study("short.yaml").optimization.max_length == 64
    assert load_study("long.yaml").optimization.max_length == 256  # the context of the model


@given(st.text(min_size=1, max_size=20).filter(lambda text: not set(text) & set("/\0") and text.strip(". ")))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_file_is_called_a_study_is_written(tmp_path: Path, name: str) -> None:
    try:
        data = write(tmp_path / f"{name}.jsonl", questions(120))
    except (OSError, UnicodeEncodeError):
        return  # no name that this file system has
    out = tmp_path / "study.yaml"
    out.unlink(missing_ok=True)
    write_study("smallworld:base", str(data), out)
    study = load_study(out)
    (training,) = study.train.values()
    assert training.source == str(data)


@pytest.mark.parametrize("name", ["validation", "123", "null", "yes", "1e5", "-x-", "~"])
def test_names_that_yaml_or_a_study_would_misread(data: Path, name: str) -> None:
    path = write(Path(f"{name}.jsonl"), questions(120))
    write_study("smallworld:base", str(path), Path("study.yaml"))
    load_study("study.yaml")
