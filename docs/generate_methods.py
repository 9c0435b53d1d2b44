"""Write docs/methods.md from the table of methods, and trainable parameters from the shapes of a 7B Llama.

`python docs/generate_methods.py` writes the page; with `--check` it fails where the page is not what would be written.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from generated import write_or_check

from rankscope.cost.model_shapes import known_model, shape_of_entry
from rankscope.data.targets import resolve_targets
from rankscope.methods.options import PEFT_METHODS, PEFT_VERSION, options_of
from rankscope.methods.resolve import resolved_options
from rankscope.methods.table import (
    BY_NAME,
    NAMED,
    ONLY_LINEAR,
    OVER_FEW_BITS,
    REFUSED,
    Method,
    method_named,
    method_names,
)
from rankscope.runs import ArmSettings
from rankscope.sizes import num_trainable

PAGE = Path(__file__).with_name("methods.md")
MODEL = "meta-llama/Llama-2-7b-hf"
# Options under which a method is shown once more, since they change what it can do or how much it trains.
VARIANTS: Mapping[str, tuple[dict[str, Any], ...]] = {
    "full": ({"layers": [30, 31], "freeze_embeddings": True},),
    "lora": (
        {"r": 16, "target_modules": "attention"},
        {"r": 16, "use_dora": True},
        {"r": 16, "loraplus_lr_ratio": 16},
        {"r": 16, "init_lora_weights": "pissa"},
        {"r": 16, "modules_to_save": ["embed_tokens"]},
    ),
    "bottleneck": ({"placement": "pfeiffer", "reduction_factor": 16},),
}
_INTRODUCTION = """How a model can be made trainable: what an arm's `method` may be. This page is written by
    `docs/generate_methods.py` from `src/rankscope/methods/table.py`, which plan, stages and report read.
    `studies/methods.yaml` has an arm of each."""
_COLUMNS = """Trainable parameters are those on Llama 2 7B with the options shown. **Packs**: several runs share one
    copy of the base and one forward pass (the others run alone, through the same loop). **Trees**: the options of a
    multiple-choice item are scored in one row; else each in a row of its own. **Merges**: the trained model can be
    written as weights of the base's own architecture; then its update can be looked at matrix by matrix. **Alters**:
    the initialisation takes a part out of the base."""
_LORA = """Options have PEFT's names; the ones of `lora` that people set most are in [study_file.md](study_file.md).
    `lora_alpha` is a number or a multiple of the rank (`2r`, the default). `target_modules` is `all-linear` (the
    default), `attention`, `mlp`, a list of names, or a regular expression for whole paths. A run starts from PEFT's
    own initialisation under its seed. `eva`, `corda` and `lora_ga` look at examples first: those of the run's own
    first steps, eight at most; without that PEFT silently keeps another initialisation. `loftq` starts from
    what 4 bits lose of each matrix, so it needs a base in 4 bits. With any option that is not in the packed layers
    (`modules_to_save`, `bias`,
    `use_qalora` and others) a run goes through PEFT's own model, alone."""
_ALTERS = """`pissa`, `olora`, `corda` and `lora_ga` subtract what they put into `B @ A` from the base. What is saved is
    an adapter of the true base, by PEFT's own conversion: `[B, -B0] [A; A0]`, so its rank is **twice** the one that was
    trained. Scores, spectra and everything else compare with the true base. They need float32 weights, as in PEFT, and
    do not go with `use_dora`."""
_STATE_SPACES = """\
The code of Mamba, Jamba, Bamba, Falcon-H1 and their kin reads the weights of some matrices (`out_proj`, `dt_proj`,
`x_proj`) past their layers, always or with its kernels. An adapter there would be passed over, so `all-linear` leaves
them as they are and the plan names them; naming them is refused.
"""
_EXPERTS = """transformers holds the experts of a mixture (Mixtral, Qwen-MoE and others) in one tensor of three axes,
    whatever their files look like, and the router in a module of its own kind; neither is a linear layer. `all-linear`
    means linear layers, so it leaves them as they are, and the plan says so with their names and their share of the
    parameters (PEFT from 0.21 on reads `all-linear` as experts and router too, on Mixtral and others). Shared experts
    are linear layers and are adapted, by names such as `shared_expert.gate_proj`; but on DeepSeek, GLM-4 MoE and
    others whose experts transformers converts as it does Qwen2-MoE's, PEFT's LoRA puts experts in the place of every
    name that ends in `gate_proj`, `up_proj` or `down_proj`. There `all-linear` leaves shared experts and dense layers
    out, the plan names them, and naming them is refused; methods other than `lora` adapt them. `target_parameters:
    [experts.gate_up_proj, experts.down_proj]` adapts experts, `gate.weight` the router; such a run goes through PEFT's
    own model, alone, without `lora_dropout` and `use_dora`. Its spectra are those of each expert's matrices, gates and
    ups apart."""
_FEW_BITS = """With `quantization_config` beside a base's `source`, bitsandbytes holds the linear layers of that base in
    4 or 8 bits (QLoRA); embeddings, the output head, normalisations and experts in one tensor stay as they are. Scores,
    verdicts and analyses are of this base: its matrices are what the bits stand for, and records and report say so.
    These methods train over it: {names}; of LoRA what the packed layers have, with every initialisation that leaves
    the base alone. Everything else is refused: `full`, because 4 bits have no gradients, `pissa`, `olora`, `corda` and
    `lora_ga`, because they take a part out of weights that cannot hold the rest. `loftq` sets `scaling * B @ A` to the
    best approximation of `W0` less its 4 bits (one step of LoftQ; PEFT's `replace_lora_weights_loftq` does the same
    with `lora_alpha` = `r`); an arm's update begins with that, and so does its spectrum. Runs pack over 4 bits. Over 8
    bits they do not: LLM.int8 looks for large inputs in all rows of a batch, so a row's numbers depend, in their third
    digit, on the others. `plan --forecast` needs gradients of the base's matrices and is refused. A folder whose
    weights are stored quantised is refused too: its own numbers are not there."""
_OTHERS = """Any other method of PEFT can be named, with PEFT's options and defaults; `target_modules` is `all-linear`
    where nothing is said. They run alone, in PEFT's own layers. Options are checked against PEFT {version}. The sizes
    that a base allows (a block that divides its width, a rank below it) are PEFT's to refuse. On GPT-2, whose matrices
    are transformers' Conv1D, PEFT has none of {linear}; `prefix_tuning` does not go with Falcon's shared keys."""


def page() -> str:
    """The whole page as Markdown."""
    lines = ["# Methods", "", _wrapped(_INTRODUCTION), "", _wrapped(_COLUMNS), ""]
    lines += ["| method | what is trained | options | trainable on 7B | packs | trees | merges | alters |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for method in NAMED:
        lines.append(_row(method, method.example))
        lines += [_row(method, said, summary="") for said in VARIANTS.get(method.name, ())]
    lines += ["", "## Options of LoRA", "", _wrapped(_LORA), "", _wrapped(_ALTERS)]
    names = ", ".join(f"`{name}`" for name in method_names() if name in OVER_FEW_BITS)
    lines += ["", "## Over a base in 4 or 8 bits", "", _wrapped(_FEW_BITS.format(names=names))]
    lines += ["", "## Mixtures of experts", "", _wrapped(_EXPERTS)]
    lines += ["", "## State spaces", "", _wrapped(_STATE_SPACES)]
    lines += ["", "## What an analysis cannot say", "", "An analysis that can say nothing of a method says so.", ""]
    lines += ["| method | analysis | why |", "|---|---|---|"]
    lines += [row for name in method_names() for row in _refusals(name)]
    lines += [
        "",
        "## Other methods of PEFT",
        "",
        _wrapped(_OTHERS.format(version=PEFT_VERSION, linear=", ".join(f"`{name}`" for name in sorted(ONLY_LINEAR)))),
        "",
    ]
    lines += ["| method | options |", "|---|---|"]
    lines += [f"| `{name}` | {_options(name)} |" for name in method_names() if name not in BY_NAME]
    lines += ["", "Not supported, and refused with the reason:", ""]
    lines += [f"- `{name}`: {REFUSED[name]}" for name in sorted(REFUSED) if name in PEFT_METHODS]
    return "\n".join(lines) + "\n"


def arm(method: str, said: Mapping[str, Any]) -> ArmSettings:
    """An arm as a study on the 7B Llama would have it."""
    options = dict(said)
    rank = options.pop("r", None) or options.pop("target_r", None)
    settings = ArmSettings(label=method, method=method, options=resolved_options(method, rank, options))
    return resolve_targets(settings, "llama", dict(shape_of_entry(known_model(MODEL)).tensors), "llama")


def _row(method: Method, said: Mapping[str, Any], summary: str | None = None) -> str:
    settings = arm(method.name, said)
    can, shape = settings.capabilities, shape_of_entry(known_model(MODEL))
    number = num_trainable(settings, shape.tensors)
    counted = "counted in training" if number is None else f"{number:,} ({100 * number / shape.num_parameters:.3g}%)"
    options = ", ".join(f"`{name}: {_value(value)}`" for name, value in said.items())
    marks = [_mark(can.packs), _mark(not can.own_rows), _mark(can.merges), _mark(can.alters_base)]
    what = method.summary if summary is None else summary
    return "| " + " | ".join([f"`{method.name}`", what, options, counted, *marks]) + " |"


def _refusals(name: str) -> list[str]:
    refusals = method_named(name).capabilities.not_available
    return [f"| `{name}` | {analysis} | {why} |" for analysis, why in refusals.items()]


def _options(name: str) -> str:
    return ", ".join(f"`{option}`" for option in sorted(options_of(name)))


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).replace("'", "")


def _mark(value: bool) -> str:
    return "yes" if value else "no"


def _wrapped(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), width=120, break_on_hyphens=False, break_long_words=False)


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, page(), "docs/generate_methods.py", sys.argv[1:]))
