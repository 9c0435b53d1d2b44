"""A million rows: read, understood, cut, compared and counted in minutes and within ten gigabytes or so."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from model_folders import write_tokenizer

_CODE = """
import resource, sys
from rankscope.data.contamination import TrainingWords
from rankscope.data.prepare import prepare_task, prepare_training_set
from rankscope.data.tokens import Tokenizer
from rankscope.spec import Task, TrainingSet

folder, train, test = sys.argv[1:]
tokenizer = Tokenizer.from_folder(folder)
data = prepare_training_set("base", "ours", TrainingSet(source=train), tokenizer, 64, 16)
task = prepare_task("base", "t", Task(source=test), tokenizer)
exact, ngram = TrainingWords(data.said).overlaps({"t": task.said})["t"]
print(data.summaries[0].num_rows, len(data.examples), exact, ngram)
"""


@pytest.mark.heavy
@pytest.mark.parametrize("ending", ["jsonl"])
def test_a_million_rows(tmp_path: Path, ending: str) -> None:
    folder = write_tokenizer(tmp_path / "model", bos=True)
    train = tmp_path / f"train.{ending}"
    with train.open("w", encoding="utf-8") as stream:
        if ending == "csv":
            stream.write("question,answer\n")
        for number in range(1_000_000):
            row = {
                "question": f"What is number {number} in the long list of all the numbers that there are?",
                "answer": "It is.",
            }
            stream.write(json.dumps(row) + "\n" if ending == "jsonl" else f"{row['question']},{row['answer']}\n")
    test = tmp_path / "test.jsonl"
    rows = [
        {"question": f"What is number {n} in the long list of all the numbers that there are?", "answer": "x"}
        for n in range(5)
    ]
    rows.append(
        {"question": "And what is not there at all, of all the things that one could ask for today?", "answer": "x"}
    )
    test.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-c", _CODE, str(folder), str(train), str(test)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-2000:]
    num_rows, num_trained, exact, ngram = map(int, done.stdout.split())
    assert num_rows == 1_000_000
    assert abs(num_trained - 900_000) < 2000  # a tenth is held out
    assert exact <= 5 and ngram == 5
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < 12e9
