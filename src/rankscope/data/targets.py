"""Whether the modules that an arm names exist in a base, found from its tensors' names before a model is loaded."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

from rankscope.data.architectures import taken_for_experts
from rankscope.data.experts import expert_modules, expert_parameters, named_parameters, outside_linear_layers
from rankscope.data.few_bits import check_few_bits
from rankscope.data.shapes import layer_matrices
from rankscope.errors import UserError, in_arm, near_miss
from rankscope.methods.checks import schedule_refusal
from rankscope.methods.options import DEFAULT_TARGETS, FEEDFORWARD_TARGETS
from rankscope.methods.resolve import ALL_LINEAR, PEFT_TARGETS
from rankscope.methods.table import HEADS, architecture_refusal
from rankscope.runs import ArmSettings, RunSettings

GROUPS = ("attention", "mlp")
# How architectures call the matrix that writes a sublayer's result into the residual stream.
_ATTENTION_OUT = ("o_proj", "out_proj", "c_proj", "dense", "wo")
_MLP_OUT = ("down_proj", "c_proj", "fc2", "fc_out", "dense_4h_to_h", "w2")
# Matrices that the code of state-space models reads past their layers, always or with its kernels: whatever is put in a
# layer's place is passed over there.
_READ_PAST = {
    **dict.fromkeys(("mamba", "falcon_mamba"), ("x_proj", "dt_proj", "out_proj")),
    **dict.fromkeys(("mamba2", "falcon_h1", "nemotron_h", "bamba", "granitemoehybrid", "zamba2"), ("out_proj",)),
    "jamba": ("dt_proj",),
}
# Files of some models leave out what their class puts in front: h.0.attn.c_attn is transformer.h.0.attn.c_attn.
_PREFIXES = ("", "model.", "transformer.", "gpt_neox.")
_EXPERTS_MEND = (
    "name experts by `target_parameters: [experts.gate_up_proj, experts.down_proj]`; they are no linear layers"
)


def resolve_runs(
    runs: Iterable[RunSettings], shapes: Mapping[str, dict[str, tuple[int, ...]]], model_types: Mapping[str, str]
) -> tuple[RunSettings, ...]:
    """Runs with the names of their base's modules for the words that arms use.

    Args:
        runs: As the study expands to them.
        shapes: By base, the shapes of its tensors.
        model_types: By base, as its configuration names its architecture.

    Raises:
        UserError: An arm names modules or layers that are not there, or its schedule does not fit its steps.
    """
    runs = tuple(runs)
    check_few_bits(runs)
    for arm in {run.arm.label: run.arm for run in runs}.values():
        if targets := arm.options.get("target_modules"):
            check_targets({arm.label: targets}, shapes, vectors=not arm.capabilities.adapts_matrices)
        check_parameters(arm, shapes)
        check_names(arm, shapes)
    resolved, arms = [], {}
    for run in runs:
        base = run.base.name
        if (run.arm.label, base) not in arms:
            arms[run.arm.label, base] = resolve_targets(run.arm, base, shapes[base], model_types[base])
        arm = arms[run.arm.label, base]
        if why := schedule_refusal(arm.method, arm.options, run.num_steps):
            raise in_arm(arm.label, why[0], why[1], "change it, or train for more steps")
        resolved.append(run.model_copy(update={"arm": arm}))
    return tuple(resolved)


def resolve_targets(arm: ArmSettings, base: str, shapes: dict[str, tuple[int, ...]], model_type: str) -> ArmSettings:
    """An arm with the names of a base's modules for the words that stand for them.

    `attention` and `mlp` become names; so does `all-linear` where layers are chosen, since PEFT takes the two together
    for names only. Methods whose modules PEFT chooses by architecture get PEFT's choice.

    Args:
        arm: The arm.
        base: The base's name in the study.
        shapes: Of the base's tensors.
        model_type: Of the base's configuration, for example `llama`.

    Raises:
        UserError: The base has no such layers or modules.
    """
    if why := architecture_refusal(arm.method, model_type):
        raise in_arm(arm.label, "method", f"not on base {base}: {why}", "choose another method or base")
    options = dict(arm.options)
    for key in ("layers", "layers_to_transform"):
        if options.get(key) is not None:
            options[key] = _layers(arm.label, key, options[key], base, shapes)
    targets = options.get("target_modules")
    if targets is None and arm.method in PEFT_TARGETS:
        options |= _chosen_by_peft(arm, base, model_type)
    elif isinstance(targets, str) and targets.lower() in GROUPS:
        options["target_modules"] = _group(arm.label, targets.lower(), base, shapes, model_type)
    elif isinstance(targets, str) and targets.lower() == ALL_LINEAR and _needs_names(arm, shapes, model_type):
        options["target_modules"] = _linear(arm, base, shapes, model_type)
    if arm.method == "lora" and options.get("target_modules"):
        _check_not_taken(arm.label, options["target_modules"], shapes, model_type)
    resolved = arm if options == arm.options else arm.model_copy(update={"options": options})
    _check_not_past(resolved, base, shapes, model_type)
    if "placement" in options:
        _check_sublayers(arm, base, shapes)
    _check_initialisation(resolved, base, shapes)
    return resolved


def read_past(shapes: dict[str, tuple[int, ...]], model_type: str) -> list[str]:
    """The linear layers that an adapter would be in without effect, because their weight is read past them.

    Args:
        shapes: Of a base's tensors.
        model_type: Of its configuration.
    """
    return sorted(name for name in _layer_modules(shapes) if _short(name) in _READ_PAST.get(model_type, ()))


def left_past(targets: object, shapes: dict[str, tuple[int, ...]], model_type: str) -> list[str]:
    """Those of `read_past` that a word for many modules would mean, and leaves out.

    Args:
        targets: `target_modules` as an arm says them.
        shapes: Of a base's tensors.
        model_type: Of its configuration.
    """
    word = targets.lower() if isinstance(targets, str) else None
    past = read_past(shapes, model_type) if word in (ALL_LINEAR, *GROUPS) else []
    return past if word == ALL_LINEAR else [name for name in past if _is_attention(name) == (word == "attention")]


def _check_not_past(arm: ArmSettings, base: str, shapes: dict[str, tuple[int, ...]], model_type: str) -> None:
    past, targets = set(read_past(shapes, model_type)), arm.options.get("target_modules")
    excluded = target_modules(arm.options.get("exclude_modules") or [], shapes)
    if past and targets and past & target_modules(targets, shapes).keys() - excluded.keys():
        text = f"the code of {model_type} reads {_short(min(past))} of base {base} past its layer and any adapter"
        others = sorted({_short(name) for name in _layer_modules(shapes) - past})
        raise in_arm(arm.label, "target_modules", text, f"name some of {', '.join(others)}; all-linear means these")


def _check_sublayers(arm: ArmSettings, base: str, shapes: dict[str, tuple[int, ...]]) -> None:
    placement = arm.options["placement"]
    if all(len(left) == number for _, left, number in bare_sublayers(shapes, placement)):
        what = "MLP" if placement == "pfeiffer" else "sublayer"
        text = f"base {base} has no {what} that a bottleneck is known to stand behind"
        mend = "choose a method of PEFT's for this base"
        if sublayer_outputs(layer_matrices(shapes), "houlsby"):
            mend = f"say `placement: houlsby`, which is behind attention too, or {mend}"
        raise in_arm(arm.label, "placement", text, mend)


def bare_sublayers(shapes: dict[str, tuple[int, ...]], placement: str) -> list[tuple[str, list[int], int]]:
    """The sublayers that a placement means: of each kind in which layers none is known, and how many layers there are.

    Args:
        shapes: Of a base's tensors.
        placement: Of bottlenecks.
    """
    matrices = layer_matrices(shapes)
    layers = {layer_number(name) for name in matrices}
    found = sublayer_outputs(matrices, placement)
    kinds = {"attention": True, "MLP": False} if placement == "houlsby" else {"MLP": False}
    return [
        (what, sorted(layers - {layer_number(name) for name in found if _is_attention(name) == wanted}), len(layers))
        for what, wanted in kinds.items()
    ]


def _check_initialisation(arm: ArmSettings, base: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """Whether an initialisation from the base's own matrices finds as many directions as it needs."""
    start = str(arm.options.get("init_lora_weights", ""))
    if not arm.capabilities.alters_base and start != "loftq":
        return
    matrices = target_modules(arm.options["target_modules"], shapes, arm.options.get("layers_to_transform"))
    needed = max(arm.options["r"], *(arm.options.get("rank_pattern") or {}).values(), 1)
    needed *= 2 if start == "lora_ga" else 1  # it takes A and B from different directions of the gradient
    for name, shape in matrices.items():
        if needed > min(shape):
            text = f"{start} takes {needed} directions out of each matrix, and {name} of base {base} has {min(shape)}"
            raise in_arm(arm.label, "init_lora_weights", text, "choose a lower rank, or other target_modules")


def check_targets(
    arms: Mapping[str, str | Sequence[str]], shapes: Mapping[str, dict[str, tuple[int, ...]]], *, vectors: bool = False
) -> None:
    """Compare the `target_modules` of arms with the modules of every base, by PEFT's rules.

    Args:
        arms: By label, `target_modules`: names, a regular expression, or a word for many.
        shapes: By base, the shapes of its tensors.
        vectors: Modules without a matrix, such as normalisations, count too.

    Raises:
        UserError: A name is in no base, or a base has nothing of what an arm names; with the nearest names.
    """
    modules = {base: _modules(of_base, vectors) for base, of_base in shapes.items()}
    for arm, targets in arms.items():
        if isinstance(targets, str) and targets.lower() in (ALL_LINEAR, *GROUPS):
            continue
        wanted = [targets] if isinstance(targets, str) else list(targets)
        _check_pattern(arm, targets)
        for target in wanted:
            if any(_matches(target, names, is_pattern=isinstance(targets, str)) for names in modules.values()):
                continue
            if any(_short(target) in expert_modules(of_base) for of_base in shapes.values()):
                text = f"'{target}' is in experts, or chooses between them"
                raise in_arm(arm, "target_modules", text, _EXPERTS_MEND)
            raise _unknown(arm, target, {name for names in modules.values() for name in names})
        for base, names in modules.items():
            if not any(_matches(target, names, is_pattern=isinstance(targets, str)) for target in wanted):
                raise _unknown(arm, ", ".join(wanted), names, f" in base {base}")


def check_parameters(arm: ArmSettings, shapes: Mapping[str, dict[str, tuple[int, ...]]]) -> None:
    """Compare the `target_parameters` of an arm with the parameters of every base.

    Args:
        arm: The arm.
        shapes: By base, the shapes of its tensors.

    Raises:
        UserError: A base has no such parameter.
    """
    for base, of_base in shapes.items():
        names = named_parameters(of_base)
        for target in arm.options.get("target_parameters") or ():
            # Files leave out what their class puts in front, and experts are known by the ends of their names.
            if any(f".{name}".endswith(f".{target}") or f".{target}".endswith(f".{name}") for name in names):
                continue
            ends = sorted(expert_parameters(of_base)) or sorted({_short(name, 2) for name in names if len(name) > 1})
            mend = near_miss(target, ends, cutoff=0.4) or f"name some of {', '.join(ends[:8])}"
            text = f"no parameter of base {base} is called '{target}'"
            raise in_arm(arm.label, "target_parameters", text, mend)


def check_names(arm: ArmSettings, shapes: Mapping[str, dict[str, tuple[int, ...]]]) -> None:
    """Compare names that PEFT passes over in silence, where nothing is called so, with the modules of the bases.

    Args:
        arm: The arm, whose `modules_to_save`, `rank_pattern` and `alpha_pattern` are looked at.
        shapes: By base, the shapes of its tensors.

    Raises:
        UserError: No base has a module of that name.
    """
    paths = {prefix + path for of_base in shapes.values() for path in _paths(of_base) for prefix in _PREFIXES}
    for key in ("modules_to_save", "rank_pattern", "alpha_pattern"):
        for name in arm.options.get(key) or ():
            wanted = re.compile(rf"(.*\.)?({name})" if key != "modules_to_save" else rf".*{re.escape(name)}")
            if not any(wanted.fullmatch(path) for path in paths):
                ends = sorted({_short(path) for path in paths if not _short(path).isdigit()})
                mend = near_miss(name, ends, cutoff=0.4) or f"name some of {', '.join(ends[:12])}"
                raise in_arm(arm.label, key, f"no module is called '{name}'", mend)


def target_modules(
    targets: str | Sequence[str], shapes: dict[str, tuple[int, ...]], layers: Sequence[int] | None = None
) -> dict[str, tuple[int, int]]:
    """The matrices of a base that PEFT would adapt, with their shapes, by module.

    Args:
        targets: `target_modules` as resolved: names, an expression, or `all-linear`.
        shapes: Of the base's tensors.
        layers: `layers_to_transform`.
    """
    matrices = {name.removesuffix(".weight"): shape for name, shape in layer_matrices(shapes).items()}
    if layers is not None:
        matrices = {name: shape for name, shape in matrices.items() if layer_number(name) in layers}
    if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        return matrices
    wanted = [targets] if isinstance(targets, str) else targets
    is_pattern = isinstance(targets, str)
    return {
        name: shape
        for name, shape in matrices.items()
        if any(_matches(target, [name], is_pattern=is_pattern) for target in wanted)
    }


def layer_number(name: str) -> int | None:
    """The first number in a tensor's path: `model.layers.3.mlp.down_proj` is of layer 3."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def sublayer_outputs(names: Iterable[str], placement: str) -> list[str]:
    """The matrices that write into the residual stream: attention's last, and the MLP's last, of every layer.

    Args:
        names: Of tensors or modules.
        placement: `houlsby` means both, `pfeiffer` the MLP's only.
    """
    found = []
    for name in names:
        module = name.removesuffix(".weight")
        is_attention = _is_attention(module)
        ends = _ATTENTION_OUT if is_attention else _MLP_OUT
        is_wanted = placement == "houlsby" or not is_attention
        if is_wanted and layer_number(module) is not None and _short(module) in ends:
            found.append(name)
    return found


def _layers(arm: str, key: str, value: int | Sequence[int], base: str, shapes: dict[str, tuple[int, ...]]) -> list[int]:
    """Layer numbers from 0, the last for -1, each of which the base has."""
    number = 1 + max((layer_number(name) or 0 for name in _layer_modules(shapes)), default=-1)
    wanted = list(value) if isinstance(value, Sequence) else [value]
    for layer in wanted:
        if not -number <= layer < number:
            mend = f"name some of 0 to {number - 1}; -1 is the last"
            raise in_arm(arm, key, f"base {base} has no layer {layer}", mend)
    return sorted({layer % number for layer in wanted})


def _chosen_by_peft(arm: ArmSettings, base: str, model_type: str) -> dict[str, list[str]]:
    by_type = DEFAULT_TARGETS[arm.method]
    if model_type not in by_type:
        text = f"PEFT has no choice of modules for {arm.method} on {model_type}, the architecture of base {base}"
        more = " and feedforward_modules" if arm.method in FEEDFORWARD_TARGETS else ""
        raise in_arm(arm.label, "method", text, f"state target_modules{more}")
    found = {"target_modules": by_type[model_type]}
    if arm.method in FEEDFORWARD_TARGETS and arm.options.get("feedforward_modules") is None:
        found["feedforward_modules"] = FEEDFORWARD_TARGETS[arm.method].get(model_type, [])
    return found


def _needs_names(arm: ArmSettings, shapes: dict[str, tuple[int, ...]], model_type: str) -> bool:
    """Whether PEFT would take `all-linear` otherwise than it is meant: with layers, or as experts too, from 0.21 on."""
    if read_past(shapes, model_type):
        return True
    is_of_experts = arm.method == "lora" and bool(expert_parameters(shapes))
    return is_of_experts or arm.options.get("layers_to_transform") is not None


def _linear(arm: ArmSettings, base: str, shapes: dict[str, tuple[int, ...]], model_type: str) -> list[str]:
    """The names of linear layers: two parts of a path where the last one alone is also an expert's or a router's."""
    left, experts = set(left_out(arm.method, shapes, model_type)), expert_modules(shapes)
    modules = _layer_modules(shapes) - left - set(read_past(shapes, model_type))
    if not modules:
        text = f"base {base} has no linear layers beside its experts"
        raise in_arm(arm.label, "target_modules", text, _EXPERTS_MEND)
    return sorted({_short(name, 2 if _short(name) in experts else 1) for name in modules})


def left_out(method: str, shapes: dict[str, tuple[int, ...]], model_type: str) -> list[str]:
    """The linear layers that `all-linear` cannot reach, because PEFT's LoRA would adapt experts in their place.

    Args:
        method: An arm's.
        shapes: Of a base's tensors.
        model_type: Of its configuration.
    """
    taken = taken_for_experts(model_type) if method == "lora" and expert_parameters(shapes) else frozenset()
    return sorted(name for name in _layer_modules(shapes) if _short(name) in taken)


def _check_not_taken(
    arm: str, targets: str | Sequence[str], shapes: dict[str, tuple[int, ...]], model_type: str
) -> None:
    adapted = target_modules(targets, shapes)
    if taken := [name for name in left_out("lora", shapes, model_type) if name in adapted]:
        text = f"PEFT's LoRA takes names that end in {_short(taken[0])} on {model_type} for its experts, {taken[0]} too"
        mend = "leave such names out (all-linear does), or choose another method than lora"
        raise in_arm(arm, "target_modules", text, mend)


def _group(arm: str, group: str, base: str, shapes: dict[str, tuple[int, ...]], model_type: str) -> list[str]:
    """Names that mean the matrices of attention, or those that are not attention's, and no others."""
    past = set(read_past(shapes, model_type))
    modules = _layer_modules(shapes) - past
    inside = {name for name in modules if _is_attention(name) == (group == "attention")}
    if not inside:
        mend = f"name some of {', '.join(sorted({_short(name) for name in modules}))}"
        mend = _EXPERTS_MEND if expert_parameters(shapes) else mend
        raise in_arm(arm, "target_modules", f"base {base} has no {group} matrices", mend)
    outside = {_short(name) for name in (modules | past) - inside}
    # c_proj is of both in GPT-2; attn.c_proj is not.
    return sorted({_short(name) if _short(name) not in outside else _short(name, 2) for name in inside})


def _layer_modules(shapes: dict[str, tuple[int, ...]]) -> set[str]:
    return {name.removesuffix(".weight") for name in layer_matrices(shapes)}


def _is_attention(name: str) -> bool:
    return any("attn" in part or "attention" in part for part in name.split("."))


def _short(name: str, parts: int = 1) -> str:
    return ".".join(name.split(".")[-parts:])


def _paths(shapes: dict[str, tuple[int, ...]]) -> set[str]:
    """Every tensor and every module of a base, layers and the model itself among them."""
    parts = [name.split(".") for name in shapes]
    return {".".join(path[:end]) for path in parts for end in range(1, len(path) + 1)} | set(HEADS)


def _modules(shapes: dict[str, tuple[int, ...]], vectors: bool) -> set[str]:
    inside = shapes.keys() - outside_linear_layers(shapes) if vectors else set()
    others = {name.removesuffix(".weight") for name in inside if name.endswith(".weight")}
    return _layer_modules(shapes) | set(HEADS) | others


def _matches(target: str, names: Iterable[str], *, is_pattern: bool) -> bool:
    """PEFT's rule: a name is the end of a module's path, a pattern is all of it."""
    paths = (prefix + name for name in names for prefix in _PREFIXES)
    if not is_pattern:
        return any(path == target or path.endswith(f".{target}") for path in paths)
    pattern = re.compile(target)
    return any(pattern.fullmatch(path) for path in paths)


def _check_pattern(arm: str, targets: str | Sequence[str]) -> None:
    try:
        re.compile(targets if isinstance(targets, str) else "")
    except re.error as error:
        text = f"'{targets}' is no regular expression ({error})"
        mend = "mend the expression, or write module names as a list: [q_proj, v_proj]"
        raise in_arm(arm, "target_modules", text, mend) from None


def _unknown(arm: str, target: str, names: set[str], where: str = "") -> UserError:
    ends = sorted({name.rsplit(".", 1)[-1] for name in names if name not in HEADS})
    wanted = target.rsplit(".", 1)[-1]
    if wanted in ends:
        mend = f"a text is a regular expression for a whole path; write names as a list: [{wanted}]"
    elif close := difflib.get_close_matches(wanted, ends, n=3, cutoff=0.5):
        mend = f"did you mean {' or '.join(repr(name) for name in close)}? There are {', '.join(ends)}"
    else:
        mend = f"name some of {', '.join(ends)}, or leave it out: all of them are adapted"
    return in_arm(arm, "target_modules", f"no module{where} is called '{target}'", mend)
