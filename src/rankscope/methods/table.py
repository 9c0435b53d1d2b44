"""What each method is called and can do: the one table that plan, stages and docs read.

A method's abilities depend on its options (LoRA packs, but not with an initialisation that takes a part out of the
base), so what others ask is `capabilities(method, options)`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rankscope.methods.options import PEFT_METHODS

# Output heads: adapted like a layer where they are named; files leave them out where they are tied.
HEADS = ("lm_head", "embed_out")
# Initialisations of LoRA that subtract what they put into `B @ A` from the base's weight.
ALTERING = ("pissa", "olora", "corda", "lora_ga")
# Initialisations that PEFT refuses to make in float64.
FLOAT32_ONLY = ("pissa", "olora", "corda", "mica")
# What the packed layers do; an adapter with any other option runs in PEFT's own layers, alone.
_PACKED_OPTIONS = frozenset({
    "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "init_lora_weights", "loraplus_lr_ratio",
    "eva_config", "corda_config", "lora_ga_config", "bias",
})  # fmt: skip
_VIRTUAL = "virtual tokens stand before every text and no weight of the base changes"


@dataclass(frozen=True)
class Capabilities:
    """What a method with its options can do.

    Attributes:
        saves: A whole `model` for `from_pretrained`, or an `adapter` beside the base.
        in_packed_layers: It runs in our own LoRA layers; else in PEFT's model or its own.
        packs: Runs of it may share one copy of the base and one forward pass.
        own_rows: Why each option of an item needs a row of its own, where it does: then option trees are off.
        merges: The trained model can be written as weights of the base's own architecture.
        alters_base: Its initialisation takes a part out of the base, so that its factors alone are not the update.
        adapts_matrices: Its `target_modules` are linear layers; else any module with weights.
        has_factors: The update of a matrix is `scaling * B @ A`, and is analysed from these.
        not_available: By analysis, why it can say nothing of this method.
    """

    saves: Literal["model", "adapter"]
    in_packed_layers: bool = False
    packs: bool = False
    own_rows: str | None = None
    merges: bool = True
    alters_base: bool = False
    adapts_matrices: bool = True
    has_factors: bool = False
    not_available: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A method with a name of its own in the documentation; all others are PEFT's, by PEFT's name.

    Attributes:
        summary: What is trained, in half a sentence.
        capabilities: Of the method with its usual options.
        rank_option: The option that `rank` sets; None: it has no rank.
        example: Options as an example, for the table of methods.
    """

    name: str
    summary: str
    capabilities: Capabilities
    rank_option: str | None = None
    example: Mapping[str, Any] = field(default_factory=dict)


def _prompt(name: str, summary: str) -> Method:
    rows = f"{name} puts virtual tokens before every row"
    refusals = {
        **dict.fromkeys(("spectra", "subspaces"), _VIRTUAL),
        "attention": "its patterns have keys that the base's have not, those of the virtual tokens",
        **dict.fromkeys(("representations", "neurons"), "its texts have positions that the base's have not"),
    }
    can = Capabilities("adapter", own_rows=rows, merges=False, not_available=refusals)
    return Method(name, summary, can, example={"num_virtual_tokens": 20})


_ADAPTER = Capabilities("adapter")
_BOTTLENECK = Capabilities(
    "adapter",
    merges=False,
    not_available=dict.fromkeys(("spectra", "subspaces"), "it is a function beside the base, whose weights stay"),
)
NAMED: tuple[Method, ...] = (
    Method("full", "all parameters of the base, or those of some layers (`layers`, `freeze_embeddings`)",
           Capabilities("model")),
    Method("lora", "a product of two thin matrices beside each weight matrix",
           Capabilities("adapter", in_packed_layers=True, packs=True, has_factors=True), "r",
           {"r": 16, "target_modules": "all-linear"}),
    Method("adalora", "LoRA whose ranks are moved to where they matter", _ADAPTER, "target_r",
           {"target_r": 16, "init_r": 24, "target_modules": "all-linear"}),
    Method("ia3", "one factor for each key, value and inner activation", _ADAPTER),
    Method("vera", "vectors that scale fixed random matrices", _ADAPTER, "r",
           {"r": 256, "target_modules": "all-linear"}),
    Method("oft", "a rotation of each weight matrix, in blocks", _ADAPTER, None,
           {"oft_block_size": 32, "target_modules": "all-linear"}),
    _prompt("prompt_tuning", "embeddings of virtual tokens before the text"),
    _prompt("p_tuning", "the same, made by a small network"),
    _prompt("prefix_tuning", "keys and values of virtual tokens, in every layer"),
    Method("ln_tuning", "the weights of the normalisations", Capabilities("adapter", adapts_matrices=False)),
    Method("bottleneck", "two small networks in every layer (Houlsby), or one (Pfeiffer)", _BOTTLENECK, None,
           {"placement": "houlsby", "reduction_factor": 16}),
)  # fmt: skip
BY_NAME = {method.name: method for method in NAMED}
# PEFT has no way to write it as weights of a base without biases.
_NOT_MERGED = ("beft",)
_UNMERGED = "PEFT cannot write it as weights of the base"
# They ask for the base's output and not for its weights; tests compare them with the base's numbers written out.
OVER_FEW_BITS = frozenset({
    "lora", "adalora", "ia3", "vera", "oft", "prompt_tuning", "p_tuning", "prefix_tuning", "ln_tuning", "bottleneck",
    "hira", "pvera", "randlora", "road",
})  # fmt: skip
# Architectures whose matrices are transformers' Conv1D, and PEFT's methods that take no such layer.
_CONV1D = ("gpt2", "openai-gpt")
ONLY_LINEAR = frozenset({
    "oft", "adamss", "beft", "boft", "c3a", "delora", "glora", "hra", "loha", "lokr", "miss", "osf", "peanut",
    "psoft", "road", "shira", "supertuning",
})  # fmt: skip
# Heads that share keys and values without saying so in the words that PEFT reads.
_SHARED_KEYS = ("falcon", "gpt_bigcode")
# PEFT has them, but they are no way to train one model on one data set.
REFUSED = {
    "xlora": "it mixes adapters that were trained before",
    "poly": "it routes several tasks",
    "multitask_prompt_tuning": "it is trained on several tasks at once",
    "cartridge": "it is distilled from a long text, not trained on examples",
    "lily": "it averages over all tokens of a batch, later ones and other texts' too, so no score is a text's own",
    "cpt": "its loss treats the tokens of a context in ways that no other method's does",
    "shadow": "it trains a second model beside the base",
    "trainable_tokens": "it trains new tokens, and the tokenizer of a study has none",
    "adaption_prompt": "it replaces the attention of old Llama classes and fails with current ones",
}


def method_names() -> list[str]:
    """Every method that a study can name: ours first, then PEFT's others."""
    others = [name for name in PEFT_METHODS if name not in BY_NAME and name not in REFUSED]
    return [*BY_NAME, *others]


def method_named(name: str) -> Method:
    """The method of that name.

    Raises:
        KeyError: There is none.
    """
    if name in BY_NAME:
        return BY_NAME[name]
    known = PEFT_METHODS[name]
    if name in _NOT_MERGED:
        can = Capabilities("adapter", merges=False, not_available=dict.fromkeys(("spectra", "subspaces"), _UNMERGED))
        return Method(name, "as PEFT has it", can, "r" if "r" in known.options else None)
    if known.is_prompt:
        return _prompt(name, "as PEFT has it")
    return Method(name, "as PEFT has it", _ADAPTER, "r" if "r" in known.options else None)


def capabilities(method: str, options: Mapping[str, Any]) -> Capabilities:
    """What a method with its options can do."""
    can = method_named(method).capabilities
    if method != "lora":
        return can
    is_packed = is_plain_lora(options)
    alters = str(options.get("init_lora_weights", "")).startswith(ALTERING)
    return Capabilities(
        "adapter",
        in_packed_layers=is_packed,
        packs=is_packed and not alters and not _may_adapt_head(options.get("target_modules")),
        alters_base=alters,
        has_factors=is_packed and not options.get("use_dora"),
    )


def is_plain_lora(options: Mapping[str, Any]) -> bool:
    """Whether LoRA with these options trains `A`, `B` and DoRA's lengths of linear layers and nothing else."""
    said = {name for name, value in options.items() if value not in (None, False)}
    is_mica = options.get("init_lora_weights") == "mica"  # it freezes B
    return said <= _PACKED_OPTIONS and options.get("bias", "none") == "none" and not is_mica


def _may_adapt_head(targets: str | Sequence[str] | None) -> bool:
    """Whether an output head is among them: it sees scored positions only, and cannot tell whose they are."""
    if not isinstance(targets, str):
        return not set(HEADS).isdisjoint(targets or ())
    try:
        return any(re.fullmatch(targets, head) for head in HEADS)
    except re.error:  # `check_targets` refuses it, with the arm's name
        return False


def architecture_refusal(method: str, model_type: str) -> str | None:
    """Why a method cannot be trained on an architecture, or None where it can, or nothing is known.

    Args:
        method: A known method.
        model_type: Of the base's configuration.
    """
    if model_type in _CONV1D and method in ONLY_LINEAR:
        return f"PEFT's {method} takes linear layers only, and the matrices of {model_type} are Conv1D"
    if model_type in _SHARED_KEYS and method == "prefix_tuning":
        return f"PEFT makes keys and values for every head, and heads of {model_type} share them"
    return None


def few_bits_refusal(method: str, options: Mapping[str, Any]) -> str | None:
    """Why a method cannot be trained over a base in 4 or 8 bits, or None where it can."""
    if method == "full":
        return "weights of 4 or 8 bits have no gradients, so they cannot be trained themselves"
    if method not in OVER_FEW_BITS:
        return f"{method} works on the base's weights as numbers, or was not tried with bitsandbytes"
    start = str(options.get("init_lora_weights", ""))
    if start.startswith(ALTERING):
        return f"{start} takes a part out of the base's weights, which 4 or 8 bits cannot hold"
    if method == "lora" and not is_plain_lora(options):
        return "of LoRA only what the packed layers have was tried over 4 or 8 bits"
    return None
