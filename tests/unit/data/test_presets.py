"""Every preset reads every layout in which its data set is published, with the right answers."""

import json
from pathlib import Path

import pytest

from rankscope.data.forms import understand
from rankscope.data.presets import Preset, all_presets, find_preset
from rankscope.data.readers import Row
from rankscope.data.sources import Rows, read_rows
from rankscope.errors import UserError
from rankscope.spec import Data

NAMES = (
    "arc_challenge",
    "arc_easy",
    "casehold",
    "gsm8k",
    "hellaswag",
    "legalbench",
    "mathqa",
    "medmcqa",
    "medqa",
    "mmlu",
    "mmlu_letters",
    "openbookqa",
    "piqa",
    "pubmedqa",
    "tinystories",
    "truthfulqa_mc",
    "wikitext2",
    "winogrande",
)

# preset: rows as the hub has them, then of the last one: question, options, answer, category
HUB = {
    "gsm8k": ([{"question": "Q", "answer": "1+1=2\n#### 2"}], "Q", (), "1+1=2\n#### 2", None),
    "mathqa": (
        [
            {
                "Problem": "Q",
                "options": "a ) 38 , b ) 1,000 , c ) none",
                "correct": "b",
                "Rationale": "",
                "category": "gain",
            }
        ],
        "Q",
        ("38", "1,000", "none"),
        "1,000",
        "gain",
    ),
    "mmlu": (
        [{"question": "Q", "choices": ["0", "2", "1"], "answer": 1, "subject": "law"}],
        "Q",
        ("0", "2", "1"),
        "2",
        "law",
    ),
    "medmcqa": (
        [
            {
                "question": "Q",
                "opa": "a",
                "opb": "b",
                "opc": "c",
                "opd": "d",
                "cop": 3,
                "subject_name": "law",
                "exp": None,
            }
        ],
        "Q",
        ("a", "b", "c", "d"),
        "d",
        "law",
    ),
    "medqa": (
        [
            {
                "id": "t-0",
                "sent1": "Q",
                "sent2": "",
                "ending0": "a",
                "ending1": "b",
                "ending2": "c",
                "ending3": "d",
                "label": 2,
            }
        ],
        "Q",
        ("a", "b", "c", "d"),
        "c",
        None,
    ),
    "pubmedqa": (
        [
            {
                "pubid": 1,
                "question": "Is it?",
                "context": {"contexts": ["One.", "Two."], "labels": ["A", "B"], "meshes": []},
                "long_answer": "It is.",
                "final_decision": "yes",
            }
        ],
        "Abstract: One.\nTwo.\nQuestion: Is it?",
        ("yes", "no", "maybe"),
        "yes",
        None,
    ),
    "casehold": ([{"context": "Q", "endings": ["x", "y"], "label": 1}], "Q", ("x", "y"), "y", None),
    "legalbench": (
        [{"answer": "No", "index": "0", "text": "P"}, {"answer": "Yes", "index": "1", "text": "Q"}],
        "Q",
        ("No", "Yes"),
        "Yes",
        None,
    ),
    "hellaswag": (
        [
            {
                "ind": 4,
                "activity_label": "Baking",
                "ctx_a": "A man is shown.",
                "ctx_b": "he",
                "ctx": "A man is shown. he",
                "endings": ["bakes [substeps] a  cake.", " sleeps [title] Well."],
                "label": "1",
            }
        ],
        "Baking: A man is shown. He",
        ("bakes a cake.", "sleeps. Well."),
        "sleeps. Well.",
        None,
    ),
    "arc_easy": (
        [{"id": "M", "question": "Q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}],
        "Q",
        ("x", "y"),
        "y",
        None,
    ),
    "openbookqa": (
        [{"id": "7-9", "question_stem": "Q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}],
        "Q",
        ("x", "y"),
        "y",
        None,
    ),
    "piqa": ([{"goal": "Q", "sol1": "x", "sol2": "y", "label": 1}], "Q", ("x", "y"), "y", None),
    "truthfulqa_mc": (
        [{"question": "Q", "mc1_targets": {"choices": ["x", "y", "z"], "labels": [0, 1, 0]}, "mc2_targets": {}}],
        "Q",
        ("x", "y", "z"),
        "y",
        None,
    ),
    "winogrande": (
        [{"sentence": "Ann saw Bo; _ ran.", "option1": "Ann", "option2": "Bo", "answer": "2"}],
        "Ann saw Bo;",
        ("Ann ran.", "Bo ran."),
        "Bo ran.",
        None,
    ),
    "wikitext2": ([{"page": "Text."}], "Text.", (), "Text.", None),
    "tinystories": ([{"text": "Text."}], "Text.", (), "Text.", None),
}
HUB |= {"arc_challenge": HUB["arc_easy"], "mmlu_letters": HUB["mmlu"]}

_STEM = {"stem": "Q", "choices": [{"text": "x", "label": "A"}, {"text": "y", "label": "B"}]}
_MEDQA = {"question": "Q", "answer": "b", "options": {"A": "a", "B": "b"}, "meta_info": "step1", "answer_idx": "B"}
_PUBMED = {
    "QUESTION": "Is it?",
    "CONTEXTS": ["One.", "Two."],
    "LABELS": [],
    "MESHES": [],
    "YEAR": "2011",
    "reasoning_required_pred": "yes",
    "final_decision": "no",
    "LONG_ANSWER": "No.",
}
_HELLA = {
    "ind": 24,
    "activity_label": "Roof",
    "ctx_a": "A man sits.",
    "ctx_b": "he",
    "ctx": "A man sits. he",
    "split": "val",
    "endings": ["falls.", "sings."],
    "label": 1,
    "source_id": "activitynet~x",
}
_CASES = (
    "Unnamed: 0,citing_prompt,holding_0,holding_1,holding_2,holding_3,holding_4,score_0,label\n0,Q,a,b,c,d,e,0.5,3\n"
)

# preset: files as their authors publish them (name -> content), the split to ask for, and what the last row must say
ORIGINALS = {
    "arc_easy": (
        {"ARC-Easy-Train.jsonl": "x", "ARC-Easy-Test.jsonl": [{"id": "x", "question": _STEM, "answerKey": "B"}]},
        "test",
        "Q",
        ("x", "y"),
        "y",
        None,
    ),
    "arc_challenge": (
        {"ARC-Challenge-Dev.jsonl": [{"id": "x", "question": _STEM, "answerKey": "A"}]},
        "validation",
        "Q",
        ("x", "y"),
        "x",
        None,
    ),
    "casehold": (
        {"train.csv": "x", "test.csv": _CASES.replace("Unnamed: 0", "")},
        "test",
        "Q",
        tuple("abcde"),
        "d",
        None,
    ),
    "gsm8k": ({"test.jsonl": [{"question": "Q", "answer": "#### 2"}]}, "test", "Q", (), "#### 2", None),
    "hellaswag": (
        {"hellaswag_test.jsonl": [{"ctx": "no answers here"}], "hellaswag_val.jsonl": [_HELLA]},
        "test",
        "Roof: A man sits. He",
        ("falls.", "sings."),
        "sings.",
        None,
    ),
    "legalbench": (
        {
            "train.tsv": "index\tanswer\ttext\n0\tNo\tP\n",
            "test.tsv": 'index\tanswer\ttext\tslice\n0\tNo\tThe mark "Ivory"\tx\n1\tYes\tQ\ty\n',
        },
        "test",
        "Q",
        ("No", "Yes"),
        "Yes",
        None,
    ),
    "mathqa": (
        {
            "dev.json": [
                {
                    "Problem": "Q",
                    "Rationale": "",
                    "options": "a ) 1 , b ) 2 , c ) 3",
                    "correct": "c",
                    "annotated_formula": "",
                    "linear_formula": "",
                    "category": "gain",
                }
            ]
        },
        "validation",
        "Q",
        ("1", "2", "3"),
        "3",
        "gain",
    ),
    "medmcqa": (
        {
            "test.json": '{"question": "no answer"}\n',
            "dev.json": json.dumps(
                {
                    "question": "Q",
                    "opa": "a",
                    "opb": "b",
                    "opc": "c",
                    "opd": "d",
                    "cop": 2,
                    "subject_name": "law",
                    "topic_name": None,
                    "id": "i",
                    "choice_type": "single",
                }
            ),
        },
        "test",
        "Q",
        tuple("abcd"),
        "b",
        "law",
    ),
    "medqa": ({"US/dev.jsonl": "", "test.jsonl": [_MEDQA]}, "test", "Q", ("a", "b"), "b", None),
    # No first line of names, twins among the options, and a first row that counts.
    "mmlu": (
        {
            "dev/law_dev.csv": "x",
            "test/anatomy_test.csv": "One?,1,1,2,3,D\n",
            "test/law_test.csv": 'Two?,1,2,3,4,D\nQ,0,"1, 2",2,3,B\n',
        },
        "test",
        "Q",
        ("0", "1, 2", "2", "3"),
        "1, 2",
        "law",
    ),
    "openbookqa": (
        {"train.jsonl": "", "test.jsonl": [{"id": "x", "question": _STEM, "answerKey": "B"}]},
        "test",
        "Q",
        ("x", "y"),
        "y",
        None,
    ),
    "piqa": (
        {
            "tests.jsonl": [{"goal": "no", "sol1": "x", "sol2": "y"}],
            "dev-labels.lst": "0\n1\n",
            "dev.jsonl": [{"goal": "P", "sol1": "x", "sol2": "y"}, {"goal": "Q", "sol1": "x", "sol2": "y"}],
        },
        "test",
        "Q",
        ("x", "y"),
        "y",
        None,
    ),
    "pubmedqa": (
        {
            "ori_pqal.json": json.dumps(
                {"21645374": {**_PUBMED, "final_decision": "yes"}, "16418930": _PUBMED}, indent=4
            ),
            "test_ground_truth.json": '{"16418930": "no"}',
        },
        "test",
        "Abstract: One.\nTwo.\nQuestion: Is it?",
        ("yes", "no", "maybe"),
        "no",
        None,
    ),
    "tinystories": (
        {"TinyStoriesV2-GPT4-valid.txt": "Once.\n\nAgain.\n<|endoftext|>\nQ\n\nend.\n<|endoftext|>\n"},
        "validation",
        "Q\n\nend.",
        (),
        "Q\n\nend.",
        None,
    ),
    "truthfulqa_mc": (
        {"mc_task.json": [{"question": "Q", "mc1_targets": {"x": 0, "y": 1}, "mc2_targets": {"x": 0, "y": 1}}]},
        "test",
        "Q",
        ("x", "y"),
        "y",
        None,
    ),
    "wikitext2": (
        {"wiki.train.raw": "x", "wiki.test.raw": " \n = Title = \n \n Words . \n"},
        "test",
        " = Title = \n \n Words . ",
        (),
        " = Title = \n \n Words . ",
        None,
    ),
    "winogrande": (
        {
            "test.jsonl": [{"sentence": "no _", "option1": "a", "option2": "b"}],
            "train_xs.jsonl": "",
            "train_xl.jsonl": "",
            "dev.jsonl": [
                {"qID": "x", "sentence": "Ann saw Bo; _ ran.", "option1": "Ann", "option2": "Bo", "answer": "1"}
            ],
        },
        "test",
        "Ann saw Bo;",
        ("Ann ran.", "Bo ran."),
        "Ann ran.",
        None,
    ),
}
ORIGINALS |= {"mmlu_letters": ORIGINALS["mmlu"]}


def hub_rows(preset: str, values: list[dict]) -> Rows:
    found = [Row(row, "hub", line) for line, row in enumerate(values, start=1)]
    return Rows(found, "hub", find_preset(preset), True)


def write(folder: Path, files: dict) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = (
                json.dumps(content) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in content)
            )
        path.write_text(content, encoding="utf-8")
    return folder


def test_these_are_the_presets() -> None:
    assert tuple(all_presets()) == NAMES
    assert set(HUB) == set(ORIGINALS) == set(NAMES)
    assert find_preset("wikitext").name == "wikitext2"


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_the_hub(name: str) -> None:
    values, question, options, answer, category = HUB[name]
    content = understand(hub_rows(name, values)).contents[-1]
    assert (content.question, content.options, content.answer, content.category) == (
        question,
        options,
        answer,
        category,
    )


@pytest.mark.parametrize("name", NAMES)
def test_files_of_the_authors(name: str, tmp_path: Path) -> None:
    files, split, question, options, answer, category = ORIGINALS[name]
    folder = write(tmp_path / "data", files)
    rows = read_rows(Data(source=str(folder), preset=name, split=split), "test")
    content = understand(rows).contents[-1]
    assert (content.question, content.options, content.answer, content.category) == (
        question,
        options,
        answer,
        category,
    )
    assert rows.version.sha256 and rows.version.commit is None


@pytest.mark.parametrize("preset", all_presets().values(), ids=NAMES)
def test_a_preset_says_what_a_table_needs(preset: Preset) -> None:
    assert preset.about and preset.domain and preset.kind in ("recall", "reasoning", "text")
    assert {"train", "validation", "test"} - set(preset.hub.splits) <= {"validation"}
    assert (preset.few_shot_split is None) == (preset.kind == "text" or preset.name in ("pubmedqa", "truthfulqa_mc"))


def test_all_rows_of_a_table_without_names_are_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "mmlu", ORIGINALS["mmlu"][0])
    contents = understand(read_rows(Data(source=str(folder)), "test")).contents
    assert [content.question for content in contents] == ["One?", "Two?", "Q"]
    assert [content.row.line for content in contents] == [1, 1, 2]


def test_a_split_of_labels_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "piqa", {**ORIGINALS["piqa"][0], "dev-labels.lst": "0\n"})
    with pytest.raises(UserError, match="1 right answers for 2 rows"):
        read_rows(Data(source=str(folder)), "test")


def test_a_task_of_legalbench_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of them is named") as caught:
        read_rows(Data(source="legalbench"), "test")
    assert "abercrombie" in caught.value.mend
    write(tmp_path / "legalbench" / "tasks" / "hearsay", ORIGINALS["legalbench"][0])
    rows = read_rows(Data(source=str(tmp_path / "legalbench"), subset="hearsay", preset="legalbench"), "test")
    assert len(rows.rows) == 2 and "hearsay" in rows.description
    with pytest.raises(UserError, match="no subset 'heresy'") as caught:
        read_rows(Data(source=str(tmp_path / "legalbench"), subset="heresy"), "test")
    assert caught.value.mend


# The columns of tasks, as the hub and the authors' tables have them, and what the second row must ask.
LEGAL = {
    "ucc_v_common_law": ({"contract": "P"}, {"contract": "Q"}, "Q"),
    "function_of_decision_section": ({"Paragraph": "P", "Citation": "1"}, {"Paragraph": "Q", "Citation": "1"}, "Q"),
    "privacy_policy_entailment": (
        {"text": "P", "description": "It is so."},
        {"text": "Q", "description": "It is not."},
        "Q\nDescription: It is not.",
    ),
    "corporate_lobbying": (
        dict.fromkeys(("bill_title", "bill_summary", "company_name", "company_description"), "P"),
        {"bill_title": "T", "bill_summary": "S", "company_name": "N", "company_description": "D"},
        "Bill: T\nS\nCompany: N\nD",
    ),
    "sara_entailment": (
        {"statute": "S", "description": "D", "question": "P", "text": "S D P"},
        {"statute": "S", "description": "D", "question": "Q", "text": "S D Q"},
        "Statute: S\nDescription: D\nQuestion: Q",
    ),
}


@pytest.mark.parametrize("task", LEGAL)
def test_a_task_of_legalbench_asks_all_that_its_rows_say(task: str) -> None:
    first, second, question = LEGAL[task]
    content = understand(hub_rows("legalbench", [{**first, "answer": "No"}, {**second, "answer": "Yes"}])).contents[-1]
    assert (content.question, content.options, content.answer) == (question, ("No", "Yes"), "Yes")


def test_choices_of_legalbench_are_their_texts() -> None:
    row = {"question": "Q", **{f"choice_{number}": f"holding {number}" for number in range(5)}, "index": "0"}
    content = understand(hub_rows("legalbench", [{**row, "answer": "3"}, {**row, "answer": "1"}])).contents[0]
    assert content.options == tuple(f"holding {number}" for number in range(5))
    assert content.answer == "holding 3"


def test_free_answers_are_no_options() -> None:
    values = [{"text": f"Q{number}", "answer": f"Answer {number}"} for number in range(30)]
    with pytest.raises(UserError, match="30 different answers"):
        understand(hub_rows("legalbench", values))


def test_options_marked_twice_are_refused() -> None:
    row = {"question": "Q", "mc1_targets": {"choices": ["x", "y"], "labels": [1, 1]}}
    with pytest.raises(UserError, match="marks 2 options as right"):
        understand(hub_rows("truthfulqa_mc", [row]))


def test_lines_of_wikitext_that_are_blank_are_no_rows() -> None:
    understood = understand(
        hub_rows("wikitext2", [{"text": ""}, {"text": " = A = \n"}, {"text": ""}, {"text": " B \n"}])
    )
    assert (len(understood.contents), understood.num_blank) == (1, 2)


def test_a_template_that_does_not_fit_is_refused_with_the_row() -> None:
    row = {"question": "Q", "context": {"labels": []}, "final_decision": "yes"}
    with pytest.raises(UserError, match="does not fit the preset's template") as caught:
        understand(hub_rows("pubmedqa", [row]))
    assert caught.value.where == "hub:1"


OWN = """
name: ours
about: our exam questions
kind: recall
domain: plumbing
scoring: multiple_choice
prompt: "{question}\\nAnswer:"
hub: {id: our-org/exam, splits: {test: exam}}
layouts:
  - {has: [stem, good, bad], question: "{{stem}} ({{year}})", options: [good, bad], answer: key}
"""


def test_a_preset_of_ones_own_is_a_file(tmp_path: Path) -> None:
    preset = tmp_path / "ours.yaml"
    preset.write_text(OWN)
    write(tmp_path, {"exam.jsonl": [{"stem": "Q", "year": 1999, "good": "x", "bad": "y", "key": "A"}]})
    rows = read_rows(Data(source=str(tmp_path / "exam.jsonl"), preset=str(preset)), "test")
    content = understand(rows).contents[0]
    assert (content.question, content.options, content.answer) == ("Q (1999)", ("x", "y"), "x")
    assert rows.preset.domain == "plumbing"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "not valid YAML"),
        ("- 1", "no preset"),
        (OWN.replace("kind: recall", "kind: memory"), "kind is 'memory', and can be"),
        (OWN.replace("layouts", "layers"), "layouts is missing; layers is no key here"),
        (OWN + "heading: '('\n", "no regular expression"),
        (None, "cannot be read"),
    ],
)
def test_a_preset_that_is_none_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "ours.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_rows(Data(source=str(tmp_path), preset=str(path)), "test")
    assert caught.value.where == str(path) and caught.value.mend
    assert caught.value.key == ("preset",)
