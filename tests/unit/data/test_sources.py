import json
import os

import datasets
import polars as pl
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankscope.data import readers
from rankscope.data.parts import read_contents
from rankscope.data.readers import READERS, read_file
from rankscope.data.sources import _hub, read_rows
from rankscope.errors import MachineError, UserError
from rankscope.spec import Data

ROWS = [{"question": "What, exactly?", "answer": 'He said "no"\nand left'}, {"question": "Où?", "answer": "là"}]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def values(rows):
    return [row.values for row in rows]


def read(source, role="train", **more):
    return read_rows(Data(source=str(source), **more), role)


WRITERS = {
    ".jsonl": jsonl(ROWS),
    ".ndjson": "\n" + jsonl(ROWS).replace("\n", "\n\n"),
    ".json": json.dumps(ROWS, indent=2),
    ".csv": 'question,answer\r\n"What, exactly?","He said ""no""\nand left"\r\nOù?,là\r\n',
    ".tsv": 'question\tanswer\nWhat, exactly?\t"He said ""no""\nand left"\nOù?\tlà\n',
}


@pytest.mark.parametrize("ending", list(WRITERS))
def test_each_format_gives_the_same_rows(tmp_path, ending):
    assert values(read_file(write(tmp_path / f"a{ending}", WRITERS[ending]))) == ROWS


def test_a_byte_order_mark_is_no_part_of_the_first_field(tmp_path):
    assert values(read_file(write(tmp_path / "a.csv", b"\xef\xbb\xbf" + WRITERS[".csv"].encode()))) == ROWS


def test_json_with_one_object_a_line_is_read_too(tmp_path):
    assert values(read_file(write(tmp_path / "a.json", jsonl(ROWS)))) == ROWS


@pytest.mark.parametrize(
    ("document", "lines"),
    [
        ('{\n"a": {"q": 1},\n\n"b": {"q": 2}\n}', [(2, {"id": "a", "q": 1}), (4, {"id": "b", "q": 2})]),
        ('{"version": 1, "data": [\n{"q": 1},\n{"q": 2}]}', [(2, {"q": 1}), (3, {"q": 2})]),
        ('{"a": {"id": "own"}}', [(1, {"id": "own"})]),
        ('{"q": 1}', [(1, {"q": 1})]),
        ('{"q": {"x": 1}, "p": 2}\n{"q": {}, "p": 4}', [(1, {"q": {"x": 1}, "p": 2}), (2, {"q": {}, "p": 4})]),
        ('{"messages": [{"role": "user"}]}', [(1, {"messages": [{"role": "user"}]})]),
    ],
)
def test_json_documents_that_are_one_object(tmp_path, document, lines):
    rows = read_file(write(tmp_path / "a.json", document))
    assert [(row.line, row.values) for row in rows] == lines


def test_texts_between_ends_of_text_keep_their_paragraphs(tmp_path):
    rows = read_file(write(tmp_path / "a.txt", "\nOne.\n\nTwo.\n<|endoftext|>\n\nThree.\n"))
    assert [(row.line, row.values["text"]) for row in rows] == [(2, "One.\n\nTwo."), (7, "Three.")]


def test_parquet_keeps_types(tmp_path):
    rows = [{"question": "a", "choices": ["x", "y"], "answer": 1}]
    pl.DataFrame(rows).write_parquet(tmp_path / "a.parquet")
    assert values(read_file(tmp_path / "a.parquet")) == rows


@pytest.mark.parametrize(
    ("ending", "content", "lines"),
    [
        (".jsonl", '{"a": 1}\n\n{"a": 2}\n', [1, 3]),
        (".json", '[\n  {"a":\n 1},\n\n  {"a": 2}, {"a": 3}]', [2, 5, 5]),
        (".csv", 'a\n1\n"2\n2"\n3\n', [2, 3, 5]),
        (".txt", "\n one\ntwo\n \n\nthree\n\n\nfour", [2, 6, 9]),
    ],
)
def test_rows_know_their_line(tmp_path, ending, content, lines):
    rows = read_file(write(tmp_path / f"a{ending}", content))
    assert [row.line for row in rows] == lines
    assert rows[-1].where == f"{tmp_path / f'a{ending}'}:{lines[-1]}"


def test_text_is_split_into_paragraphs_that_keep_their_blanks(tmp_path):
    rows = read_file(write(tmp_path / "a.txt", "\r\n one\r\ntwo \r\n \r\n\r\n = Three = \r\n"))
    assert values(rows) == [{"text": " one\ntwo "}, {"text": " = Three = "}]


BROKEN = {
    "empty.jsonl": ("", "no rows", None),
    "empty.json": ("", "no rows", None),
    "no_rows.json": ("[]", "no rows", None),
    "empty.csv": ("", "no rows", None),
    "header.csv": ("question,answer\n", "no rows", None),
    "empty.txt": (" \n\n", "no rows", None),
    "empty.parquet": ("", "not a valid parquet", None),
    "cut.jsonl": ('{"a": 1}\n{"a": ', "no JSON", 2),
    "cut.json": ('[{"a": 1},\n{"a": ', "not valid JSON", 2),
    "open.json": ('[{"a": 1},\n', "not valid JSON", 2),
    "deep.jsonl": ("[" * 100_000, "no JSON", 1),
    "digits.jsonl": ("1" * 10_000, "no JSON", 1),
    "list.jsonl": ('{"a": 1}\n[1, 2]\n', "a list, not an object", 2),
    "number.jsonl": ("3\n", "a number, not an object", 1),
    "string.json": ('[{"a": 1},\n\n"b"]', "a string, not an object", 3),
    "scalar.json": ("3", "not a JSON list", 1),
    "latin.jsonl": (b'{"a": 1}\n{"a": "\xe9"}\n', "not UTF-8", 2),
    "latin.csv": (b"a\n1\n\xe9\n", "not UTF-8", 3),
    "latin.txt": (b"a\n\n\n\xe9\n", "not UTF-8", 4),
    "surrogate.jsonl": ('{"a": "\\ud800"}\n', "surrogate", 1),
    "ragged.csv": ("a,b\n1,2\n1,2,3\n", "3 cells", 3),
    "twins.csv": ("a,a\n1,2\n", "one name", 1),
    "quote.csv": ('a\n1\n"2\n', "not a valid table", 3),
    "weights.pkl": ("x", "not read", None),
    "data.bin": ("x", "not read", None),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_malformed_files_are_refused_with_line_and_mend(tmp_path, name):
    content, message, line = BROKEN[name]
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=message) as caught:
        read_file(path)
    assert caught.value.where == (f"{path}:{line}" if line else str(path))
    assert caught.value.mend


@pytest.mark.parametrize("source", ["missing.jsonl", "./missing", "data/missing.csv"])
def test_missing_files_are_refused(source):
    with pytest.raises(UserError, match="there is no file, preset or hub id") as caught:
        read(source)
    assert caught.value.mend


def test_a_revision_of_a_local_file_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl(ROWS))
    with pytest.raises(UserError, match="there are no revisions") as caught:
        read(path, revision="main")
    assert caught.value.key == ("revision",) and caught.value.mend


def test_unknown_preset_names_the_nearest():
    with pytest.raises(UserError, match="did you mean the preset 'gsm8k'"):
        read("gsm8")
    with pytest.raises(UserError, match="did you mean 'medmcqa'"):
        read("x.jsonl", preset="medmqca")


def test_hub_data_that_cannot_be_had_is_refused():
    def load(*_arguments, **_options):
        raise ConnectionError("Couldn't reach the Hub")

    with pytest.raises(UserError, match="Couldn't reach the Hub") as caught:
        _hub(Data(source="nobody/nothing"), "train", load)
    assert "HF_HUB_OFFLINE" in caught.value.mend


def test_hub_data_goes_through_the_preset(monkeypatch):
    asked = {}

    def load(name, subset, **options):
        asked.update(name=name, subset=subset, **options)
        return datasets.Dataset.from_list([{"question": "a", "answer": "b"}] * 3)

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = read("gsm8k", max_examples=2, revision="r1")
    assert asked == {"name": "openai/gsm8k", "subset": "main", "revision": "r1", "split": "train"}
    assert (len(rows.rows), rows.origin, rows.preset.name) == (2, "hub", "gsm8k")
    read("medmcqa", role="test")
    assert asked["split"] == "validation"  # the test split has no answers
    assert read("openai/gsm8k").preset.name == "gsm8k"


def test_hub_rows_are_not_cut_before_their_part_is_taken():
    def load(*_arguments, **_options):
        return datasets.Dataset.from_list([{"text": str(number)} for number in range(9)])

    assert len(_hub(Data(source="org/set", part="test", max_examples=2), "test", load)[0]) == 9
    assert len(_hub(Data(source="org/set", max_examples=2), "test", load)[0]) == 2
    # Rows that say what subject they are of may be sorted by it: which of them are taken is known later.
    assert len(_hub(Data(source="org/set", max_examples=2), "test", load, has_categories=True)[0]) == 9


def test_small_world_is_read_by_task_and_split():
    train, validation = (read("smallworld:medical_new", split=split) for split in ("train", "validation"))
    assert train.kind == "recall"
    assert {"question", "choices", "answer"} <= set(train.rows[0].values)
    assert values(train.rows) != values(validation.rows)
    # Its rows say their category, by which they may be sorted; so which five of them are taken is known later.
    _, understood = read_contents(Data(source="smallworld:general_recall", max_examples=5), "test")
    assert len(understood.contents) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [({"source": "smallworld:medical_recal"}, "no task"), ({"source": "smallworld:general_text"}, "no split 'train'")],
)
def test_small_world_names_what_it_has(options, message):
    with pytest.raises(UserError, match=message) as caught:
        read(**options)
    assert "medical_recall" in caught.value.mend or "test" in caught.value.mend


def test_misspelt_small_world_is_no_unknown_preset():
    with pytest.raises(UserError) as caught:
        read("smalworld:medical_nw")
    assert caught.value.mend == "did you mean 'smallworld:medical_new'?"


def test_folder_with_a_file_for_each_split(tmp_path):
    for name in ("train", "dev", "test"):
        write(tmp_path / f"{name}.jsonl", jsonl([{"text": name}]))
    write(tmp_path / "LICENSE", "x")
    assert [values(read(tmp_path, role).rows)[0]["text"] for role in ("train", "validation", "test")] == [
        "train", "dev", "test"
    ]  # fmt: skip
    assert values(read(tmp_path, split="test").rows) == [{"text": "test"}]
    with pytest.raises(UserError, match="no split 'extra'") as caught:
        read(tmp_path, split="extra")
    assert "dev, test, train" in caught.value.mend


def test_folder_with_a_folder_for_each_split_and_a_file_for_each_subject(tmp_path):
    for name in ("anatomy", "law"):
        write(tmp_path / "test" / f"{name}_test.csv", f"question\n{name}?\n")
        write(tmp_path / "dev" / f"{name}_dev.csv", f"question\n{name}!\n")
    rows = read(tmp_path, "test").rows
    assert [(row.values["question"], row.category) for row in rows] == [("anatomy?", "anatomy"), ("law?", "law")]
    assert [row.category for row in read(tmp_path, "validation").rows] == ["anatomy", "law"]


def test_folder_laid_out_like_a_repository_of_the_hub(tmp_path):
    for name in ("train", "test"):
        (tmp_path / "data").mkdir(exist_ok=True)
        pl.DataFrame([{"text": name}]).write_parquet(tmp_path / "data" / f"{name}-00000-of-00001.parquet")
    assert values(read(tmp_path, "test").rows) == [{"text": "test"}]
    with pytest.raises(UserError, match="no split 'other'"):
        read(tmp_path, split="other")


def test_parts_are_read_in_natural_order_and_are_no_categories(tmp_path):
    for number in (10, 2, 1):
        write(tmp_path / f"part{number}.jsonl", jsonl([{"text": str(number)}]))
    assert [row.values["text"] for row in read(tmp_path).rows] == ["1", "2", "10"]
    shards = tmp_path / "shards"
    for number in (1, 0):
        write(shards / f"train-0000{number}-of-00002.jsonl", jsonl([{"text": str(number)}]))
    assert [(row.values["text"], row.category) for row in read(shards).rows] == [("0", None), ("1", None)]


def test_folder_without_data_is_refused(tmp_path):
    write(tmp_path / "model.pkl", "x")
    with pytest.raises(UserError, match="no data files"):
        read(tmp_path)


def test_folders_of_datasets_are_read_without_the_library(tmp_path):
    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": table, "test": table.select([1])}).save_to_disk(tmp_path / "several")
    assert values(read(tmp_path / "one").rows) == ROWS
    assert values(read(tmp_path / "several", "test").rows) == ROWS[1:]
    with pytest.raises(UserError, match="no split 'other'"):
        read(tmp_path / "several", split="other")
    write(tmp_path / "one" / "state.json", "[]")
    with pytest.raises(UserError, match=r"state.json"):
        read(tmp_path / "one")


def test_state_of_a_saved_data_set_cannot_point_outside_its_folder(tmp_path):
    write(tmp_path / "secret.txt", "secret")
    write(tmp_path / "one" / "state.json", json.dumps({"_data_files": [{"filename": "../secret.txt"}]}))
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "one")


_CONTENTS = st.one_of(st.binary(max_size=200), st.text(max_size=100).map(lambda text: text.encode(errors="replace")))


@pytest.mark.parametrize("ending", list(READERS))
@given(content=_CONTENTS)
@settings(max_examples=60, deadline=None)
def test_no_content_whatever_raises_anything_but_a_users_error(tmp_path_factory, ending, content):
    path = tmp_path_factory.getbasetemp() / f"fuzz-{os.getpid()}{ending}"
    path.write_bytes(content)
    try:
        rows = read_file(path)
    except UserError as error:
        assert error.where
        assert error.mend
    else:
        assert rows
        assert all(isinstance(row.values, dict) for row in rows)


_TABLE = pl.DataFrame([{**row, "choices": ["x", "y"]} for row in ROWS] * 5)


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
@pytest.mark.parametrize("asked", [2**63 - 64, 10_000, None])
def test_a_damaged_length_is_told_from_a_real_shortage_of_memory(tmp_path, monkeypatch, ending, asked):
    """pyarrow says both with one error, in which the number stands."""
    path = tmp_path / f"a{ending}"
    (_TABLE.write_parquet if ending == ".parquet" else _TABLE.write_ipc_stream)(path)

    def fail(*_arguments):
        if asked is not None and asked > 2**60:
            pyarrow.allocate_buffer(asked)  # the library's own words
        raise MemoryError("" if asked is None else f"malloc of size {asked} failed")

    monkeypatch.setitem(readers.READERS, ending, lambda _content, path: readers._table(fail, path))
    if asked is not None and asked > 2**60:
        with pytest.raises(UserError, match=r"not a valid .* file .a length of 9,223,372,036,854,775,") as caught:
            read_file(path)
        assert caught.value.where == str(path) and caught.value.mend
    else:
        with pytest.raises(MachineError, match=f"a{ending}: there is not enough memory"):
            read_file(path)


_TABLE_WRITERS = {"parquet": _TABLE.write_parquet, "stream": _TABLE.write_ipc_stream, "arrow": _TABLE.write_ipc}


@pytest.mark.parametrize("kind", list(_TABLE_WRITERS))
def test_both_kinds_of_arrow_files_are_read(tmp_path, kind):
    path = tmp_path / ("a.parquet" if kind == "parquet" else "a.arrow")
    _TABLE_WRITERS[kind](path)
    assert values(read_file(path)) == _TABLE.to_dicts()


@pytest.mark.parametrize("kind", list(_TABLE_WRITERS))
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_damaged_tables_raise_nothing_but_a_users_error(tmp_path_factory, kind, data):
    ending = ".parquet" if kind == "parquet" else ".arrow"
    path = tmp_path_factory.getbasetemp() / f"damaged-{os.getpid()}-{kind}{ending}"
    _TABLE_WRITERS[kind](path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        read_file(path)
    except UserError as error:
        assert error.where == str(path)
