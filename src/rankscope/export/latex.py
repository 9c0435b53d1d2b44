"""LaTeX tables in the form of the paper: what was trained on, by what was tested, by method; and the verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rankscope.records import ArmResult, Interval, TaskComparison, Verdict

MAIN = "main.tex"
_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}", "'": r"\textquotesingle{}",
    "\N{MINUS SIGN}": r"\textminus{}",  # as our own sentences write it
}  # fmt: skip
_RELATIONS = {"in_domain": "in", "out_of_domain": "out", "retention": "ret."}
_NONE = "--"
# T1 has quotes that are told apart; textcomp's straight one is part of LaTeX itself since 2020.
_PREAMBLE = r"""% Every table of this folder in one document: pdflatex main.tex
\documentclass[10pt,landscape]{article}
\usepackage[T1]{fontenc}
\usepackage{textcomp}
\usepackage[margin=1.5cm]{geometry}
\usepackage{booktabs}
\begin{document}
"""


def escape(text: str) -> str:
    """Text as LaTeX prints it: no character of it is a command, and what pdfLaTeX has no letter for is a `?`."""
    return "".join(_SPECIAL.get(letter, letter if _is_printable(letter) else "?") for letter in text)


def _is_printable(letter: str) -> bool:
    # The letters of Latin-1 are those that every LaTeX with T1 fonts has; others would stop it.
    return " " <= letter <= "~" or ("\u00c0" <= letter <= "\u00ff" and letter not in "\u00d7\u00f7")


def main_document(names: Iterable[str]) -> str:
    """A document that holds the tables of these files, to see them and to try that they compile."""
    return _PREAMBLE + "".join(f"\\input{{{name}}}\n\\clearpage\n" for name in names) + "\\end{document}\n"


def train_test_table(base: str, comparisons: Sequence[TaskComparison], arms: Sequence[str]) -> str:
    """One base: a row for each training set and task, a column for each arm.

    A cell is the tuned model's score with half the width of its interval; a star marks a difference from the base
    whose interval leaves out zero.

    Args:
        base: Its name.
        comparisons: Those of whole tasks on this base.
        arms: The columns, in the order of the study.
    """
    columns = [arm for arm in arms if any(one.arm == arm for one in comparisons)]
    lines = []
    for training_set in dict.fromkeys(one.training_set for one in comparisons):
        part = [one for one in comparisons if one.training_set == training_set]
        for index, task in enumerate(dict.fromkeys(one.task for one in part)):
            by_arm = {one.arm: one for one in part if one.task == task}
            first = next(iter(by_arm.values()))
            cells = [
                escape(training_set) if index == 0 else "",
                escape(task),
                _RELATIONS[first.relation],
                "\\%" if first.unit == "accuracy" else "nats",
                _number(first.base_value, first.unit),
                *(_score(by_arm.get(arm)) for arm in columns),
            ]
            lines.append(_row(cells))
        lines.append("\\midrule")
    head = _row(["trained on", "tested on", "", "", "base", *map(escape, columns)])
    confidence = max((one.difference.confidence for one in comparisons), default=0.95)
    caption = (
        f"{escape(base)}: each method at its own best learning rate, mean over seeds; accuracy in percent or loss in "
        f"nats per token. $\\pm$ is half the width of the {100 * confidence:g}\\% interval over items and seeds of the "
        "difference from the base; * marks differences whose interval leaves out zero. in, out: in and out of the "
        "domain of training; ret.: what the base could do before."
    )
    return _table("llll" + "r" * (len(columns) + 1), head, lines[:-1], caption, f"tab:train-test-{base}")


def verdict_table(verdict: Verdict) -> str:
    """The arms of one verdict: rate, trained parameters, gain and forgetting with intervals; the winner bold."""
    lines = [_row(_arm_cells(arm, is_recommended=arm.arm == verdict.arm)) for arm in verdict.arms]
    head = _row(["method", "rate", "trained", "gain (points)", "forgotten (points)", "gain (nats)",
                 "forgotten (nats)", "within budget"])  # fmt: skip
    decided = f"recommended: {escape(verdict.arm)}" if verdict.arm else "undecided"
    if verdict.arm == "base":
        decided = "recommended: the base as it is"
    caption = f"{escape(verdict.base)} trained on {escape(verdict.training_set)}, {decided}. {escape(verdict.rule)}"
    return _table("lrrrrrrl", head, lines, caption, f"tab:verdict-{verdict.base}-{verdict.training_set}")


def _arm_cells(arm: ArmResult, *, is_recommended: bool) -> list[str]:
    name = escape(arm.arm)
    return [
        f"\\textbf{{{name}}}" if is_recommended else name,
        _NONE if arm.learning_rate is None else f"{arm.learning_rate:g}",
        _NONE if arm.num_trainable is None else f"{arm.num_trainable:,}".replace(",", "\\,"),
        _interval(arm.gain, "accuracy"),
        _interval(arm.forgetting, "accuracy"),
        _interval(arm.gain_nats, "nats"),
        _interval(arm.forgetting_nats, "nats"),
        arm.eligible,
    ]


def _score(one: TaskComparison | None) -> str:
    if one is None:
        return _NONE
    low, high = one.difference.low, one.difference.high
    value = _number(one.tuned_value, one.unit)
    if low is None or high is None:
        return value
    star = "*" if low > 0 or high < 0 else "\\phantom{*}"
    return f"{value}\\,$\\pm$\\,{_number((high - low) / 2, one.unit)}{star}"


def _interval(interval: Interval | None, unit: str) -> str:
    if interval is None:
        return _NONE
    value = f"${_number(interval.value, unit)}$"
    if interval.low is None or interval.high is None:
        return value
    return f"{value} $[{_number(interval.low, unit)},\\,{_number(interval.high, unit)}]$"


def _number(value: float, unit: str) -> str:
    text = f"{100 * value:.1f}" if unit == "accuracy" else f"{value:.3f}"
    return text.removeprefix("-") if float(text) == 0.0 else text


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _table(columns: str, head: str, lines: Sequence[str], caption: str, label: str) -> str:
    body = "\n".join(lines)
    # A label is no text: a name's letters are taken as they are, and names have no others.
    return (
        "% needs \\usepackage{booktabs}\n\\begin{table}[htbp]\n\\centering\\footnotesize\n"
        f"\\setlength{{\\tabcolsep}}{{4pt}}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{head}\n\\midrule\n{body}\n"
        f"\\bottomrule\n\\end{{tabular}}\n\\caption{{{caption}}}\n\\label{{{label}}}\n\\end{{table}}\n"
    )
