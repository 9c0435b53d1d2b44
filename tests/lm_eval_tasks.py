"""Local task files of lm_eval, one of each kind, with their rows; nothing here is downloaded."""

from __future__ import annotations

import json
from pathlib import Path

_TASKS = {
    "ours_choice": """
output_type: multiple_choice
doc_to_text: "Question: {{q}}\\nAnswer:"
doc_to_target: right
doc_to_choice: "{{options}}"
fewshot_split: shots
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
    "ours_exact_choice": """
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_target: right
doc_to_choice: "{{options}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
    "ours_blank": """
output_type: multiple_choice
doc_to_text: right
doc_to_target: " were in the house."
doc_to_choice: "{{['The ' + options[0], 'The ' + options[1]]}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "ours_last_word": """
output_type: loglikelihood
doc_to_text: "{{q}}"
doc_to_target: "{{' ' + options[right]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "ours_text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{q}} {{options[0]}} {{q}}"
metric_list:
  - {metric: word_perplexity}
  - {metric: byte_perplexity}
  - {metric: bits_per_byte}
""",
    "ours_sum": """
output_type: generate_until
doc_to_text: "Question: {{q}}\\nAnswer:"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["e", "Question:"], do_sample: false, max_gen_toks: 12}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}
filter_list:
  - name: strict-match
    filter:
      - {function: regex, regex_pattern: "#### ([0-9]+)"}
      - {function: take_first}
  - name: flexible-extract
    filter:
      - {function: regex, group_select: -1, regex_pattern: "([0-9]+)"}
      - {function: take_first}
""",
}
NAMES = tuple(_TASKS)


def rows(number: int, first: int = 0) -> list[dict]:
    options = [["a small house", "the river"], ["aspirin", "a claim of the court"], ["Berlin", "loose pens and boxes"]]
    return [
        {"q": f"Which drug or house, number {n}?", "options": options[n % 3], "right": n % 2, "answer": str(n % 10)}
        for n in range(first, first + number)
    ]


def write_tasks(folder: Path) -> Path:
    """Task files in a folder of their own, with their data beside it; returns the folder."""
    tasks = folder / "tasks"
    tasks.mkdir(parents=True)
    files = {}
    for split, values in (("test", rows(9)), ("shots", rows(4, first=50))):
        path = folder / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in values))
        files[split] = str(path)
    for name, text in _TASKS.items():
        data = {"data_files": files, "cache_dir": str(folder / "cache")}
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {json.dumps(data)}\ntest_split: test\n"
        (tasks / f"{name}.yaml").write_text(f"{head}{text}metadata: {{version: 1.0}}\n")
    (tasks / "group.yaml").write_text("group: ours_both\ntask: [ours_choice, ours_exact_choice]\n")
    return tasks
