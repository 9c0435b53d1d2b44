"""Whether a model's folder is of an architecture that can be loaded, found before torch is imported."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankscope.data.shapes import tensor_shapes
from rankscope.errors import UserError

_CAUSAL, _MASKED = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_MASKED_LM_MAPPING_NAMES"
# What of a folder's code loads a causal model; its tokenizer's is never asked for.
_CLASSES = ("AutoConfig", "AutoModelForCausalLM")
# Of a trusted folder transformers runs it too, asked by no configuration, and puts it in place of `model.generate`.
GENERATION_CODE = "custom_generate"
# Whose options are scored in trees: tried with an additive 4-D mask against separate rows, in sdpa and eager
# (tests/unit/models/test_masks.py). Not here: Gemma 2 and BLOOM (no sdpa), Qwen3.5 (linear attention takes no such
# mask: silently wrong).
IN_TREES = frozenset({"llama", "qwen2", "qwen3", "mistral", "phi3", "gpt2", "gpt_neox", "opt", "falcon", "mixtral"})
# How architectures call the same: the matrix of token embeddings; in the configuration its width, and how many layers.
_EMBEDDINGS = frozenset({"embed_tokens", "wte", "embed_in", "word_embeddings"})
_WIDTHS = ("word_embed_proj_dim", "embedding_size", "hidden_size", "n_embd", "d_model")
_DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_TAKEN = {
    "mixtral": frozenset({"gate", "w1", "w2", "w3"}),
    "qwen2_moe": frozenset({"gate", "gate_proj", "up_proj", "down_proj"}),
}


def check_architecture(folder: Path, name: str, *, trust_remote_code: bool | None) -> None:
    """Compare a model's configuration with what the installed transformers, or the folder's own code, can load.

    Args:
        folder: A Hugging Face folder.
        name: The base's name in the study.
        trust_remote_code: The study's word on the folder's code; None where there is no study yet to say it.

    Raises:
        UserError: It is of no causal model, or of another or of another size than the weights are; the weights are
            quantised; it needs code that the study does not allow, or its code is not what the study allows.
    """
    path = folder / "config.json"
    config = read_json(path)
    if config.get("quantization_config") is not None:
        mend = "name the folder or id of the same model in 16 or 32 bits"
        raise UserError("the folder's weights are quantised, so they are not there as numbers", where=path, mend=mend)
    code, known, kind = _code(config), _model_types(_CAUSAL), config.get("model_type")
    if code and trust_remote_code is None and kind not in (known or ()):
        return
    if trust_remote_code:
        _check_generation(folder)
    if trust_remote_code and code:
        _check_code(folder, code)
        return
    if known is None or kind in known:
        _check_direction(path, config)
        shapes = tensor_shapes(folder)
        _check_names(folder, str(kind), shapes)
        _check_sizes(folder, config, shapes)
        return
    if code:
        files = ", ".join(_files(code))
        what = f"only Python code of its own ({files}) can load it, and would run with all rights that you have"
        mend = f"read that code, then say `trust_remote_code: true` beside `source:` of model.{name}"
        raise UserError(what, where=path, mend=mend)
    what = f"model_type '{kind}' is no causal language model that the installed transformers knows"
    what = what if kind else "it names no model_type, so the architecture is not known"
    raise UserError(what, where=path, mend="name a causal language model, or install a newer transformers")


def tree_refusal(config: Mapping[str, Any]) -> str | None:
    """Why options cannot stand behind one prompt in a model of this configuration, or None where they can."""
    config = config.get("text_config") or config
    kind = config.get("model_type")
    if kind not in IN_TREES:
        return f"option trees were not tried with {kind}"
    if kind == "falcon" and config.get("alibi"):
        return "option trees need positions that can be set; ALiBi's cannot"
    return None


def code_warnings(name: str, folder: Path, *, trust: bool) -> list[str]:
    """What a person should know of a base whose folder holds code: that it is run, or that it is not.

    Args:
        name: The base's name in the study.
        folder: Its folder.
        trust: The study's word.
    """
    code = _code(read_json(folder / "config.json"))
    if not code:
        return []
    files = ", ".join(_files(code))
    if trust:
        return [f"base {name}: Python code of its folder is run ({files}), because of trust_remote_code"]
    return [f"base {name}: Python code of its folder ({files}) is not run; transformers' own class is loaded instead"]


def _check_direction(path: Path, config: dict[str, Any]) -> None:
    """Encoders load as causal models, and then see the answers that they are asked for."""
    kind = config.get("model_type")
    is_encoder = kind in (_model_types(_MASKED) or ()) and not (config.get("is_decoder") or config.get("causal"))
    if config.get("is_encoder_decoder") or is_encoder:
        which = "an encoder-decoder" if config.get("is_encoder_decoder") else "an encoder, which sees what comes later"
        what = f"model_type '{kind}' is {which}, and no causal language model"
        raise UserError(what, where=path, mend="name a causal language model")


def _check_names(folder: Path, kind: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A configuration over another architecture's weights: most of them have names that its class does not.

    What is left, such as biases that the files lack, shows when the model is loaded. Classes made of others do not have
    all names in their own file.
    """
    module = kind.replace("-", "_").removesuffix("_text")
    source = _source(f"models/{module}/modeling_{module}.py")
    if source is None or "AutoModel.from_config" in source:
        return
    renamed = _source("conversion_mapping.py") or ""  # what names in files become when they are read
    words = set(re.findall(r"\w+", source + renamed if f'"{kind}"' in renamed else source))
    # Experts lie in files under names of their own, and are joined when they are read.
    matrices = [name for name, shape in shapes.items() if len(shape) > 1 and ".experts." not in name]
    foreign = [name for name in matrices if name.removesuffix(".weight").rpartition(".")[2] not in words]
    if foreign and 2 * len(foreign) >= len(matrices):
        what = f"{len(foreign)} of the {len(matrices)} matrices in the files have names that no '{kind}' has"
        what += f", such as {foreign[0]}"
        mend = "is config.json of this model? Save or download the whole model again"
        raise UserError(what, where=folder / "config.json", mend=mend)


def _check_sizes(folder: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A configuration over the weights of another size: of more layers than it names, transformers reads the first.

    What has no effect on the embedding or the number of layers, such as heads, shows when the model is loaded.
    """
    named = {name: name.removesuffix(".weight").rpartition(".")[2] for name in shapes}
    embeddings = [name for name, last in named.items() if last in _EMBEDDINGS and len(shapes[name]) == 2]
    is_of_parts = any(isinstance(value, dict) and "hidden_size" in value for value in config.values())
    if len(embeddings) != 1 or is_of_parts or "text_config" in config:
        return  # each part has sizes of its own
    stem = re.escape(embeddings[0].removesuffix(".weight").removesuffix(named[embeddings[0]]))
    numbers = (re.match(rf"{stem}(?:layers|h|blocks)\.(\d+)\.", name) for name in shapes)
    layers = {int(number[1]) for number in numbers if number}
    found = [(_WIDTHS, {shapes[embeddings[0]][1]})]
    if layers:
        # Layers that predict further tokens may stand behind the others; they are not loaded.
        further = int(config.get("num_nextn_predict_layers") or 0)
        found.append((_DEPTHS, {max(layers) + 1, max(layers) + 1 - further}))
    for keys, sizes in found:
        key = next((key for key in keys if config.get(key) is not None), None)  # a default need not stand there
        if key is not None and config[key] not in sizes:
            what = f"{key} is {config[key]}, and the weights in the files are of {max(sizes)}"
            mend = "is config.json of this model? Save or download the whole model again"
            raise UserError(what, where=folder / "config.json", mend=mend)


@functools.cache
def _model_types(names: str) -> frozenset[str] | None:
    """The `model_type`s in a list of the installed transformers; None where it is not found."""
    value = _assigned("models/auto/modeling_auto.py", names)
    return frozenset(dict(ast.literal_eval(value.args[0]))) if isinstance(value, ast.Call) else None


def taken_for_experts(model_type: str) -> frozenset[str]:
    """The last parts of names that PEFT's LoRA takes for experts and routers in an architecture, whatever they are.

    PEFT's `convert_peft_config_for_transformers` puts experts in the place of any target that ends so: a shared expert
    or a dense layer of these architectures cannot be adapted by it.
    """
    return _TAKEN.get(_expert_layouts().get(model_type, ""), frozenset())


@functools.cache
def _expert_layouts() -> dict[str, str]:
    """By `model_type` the architecture whose conversion transformers, and after it PEFT, uses for its experts."""
    value = _assigned("conversion_mapping.py", "_MODEL_TO_CONVERSION_PATTERN")
    return {"mixtral": "mixtral"} | (ast.literal_eval(value) if isinstance(value, ast.Dict) else {})


def _assigned(file: str, name: str) -> ast.expr | None:
    """What a file of transformers assigns to a name; None where either is not found."""
    for node in ast.parse(_source(file) or "").body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return node.value
    return None


def _source(file: str) -> str | None:
    """A file of transformers; read as text, since importing it would import torch."""
    found = importlib.util.find_spec("transformers")
    path = Path(*found.submodule_search_locations or (), file) if found else None
    return path.read_text(encoding="utf-8") if path is not None and path.is_file() else None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a model's folder, such as its configuration.

    Raises:
        UserError: It holds no JSON object.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"not valid JSON ({error})", where=path, mend="download the model again") from None
    if not isinstance(config, dict):
        raise UserError("not a JSON object", where=path, mend="download the model again")
    return config


def _code(config: dict[str, Any]) -> list[str]:
    """The classes of the folder's own that load a model: `modeling_ours.OurModel`."""
    classes = config.get("auto_map") or {}
    return [str(classes[name]) for name in _CLASSES if classes.get(name)]


def _files(code: list[str]) -> list[str]:
    return list(dict.fromkeys(f"{name.rpartition('.')[0]}.py" for name in code))


def _check_generation(folder: Path) -> None:
    """Answers are to come from one way of generating, which is the same for every base."""
    if (folder / GENERATION_CODE).exists():
        what = f"its {GENERATION_CODE} would be run, and would write the answers in place of transformers' own generate"
        mend = f"copy the model into a folder without {GENERATION_CODE}, and name that"
        raise UserError(what, where=folder / GENERATION_CODE, mend=mend)


def _check_code(folder: Path, code: list[str]) -> None:
    where, mend = folder / "config.json", "copy the files into a folder, and name that"
    for reference in code:  # as a whole: transformers looks for the repository first, a dot in whose name is no file's
        if "--" in reference:
            repository = reference.partition("--")[0]
            what = f"its code lies in another repository ({repository}), which is not pinned with it"
            raise UserError(what, where=where, mend=mend)
        if "/" in reference:
            what = f"auto_map names the code '{reference}', which is not directly in the folder"
            raise UserError(what, where=where, mend=f"{mend}; its auto_map has to name them as `file.Class`")
    for name in _files(code):
        if not (folder / name).is_file():
            raise UserError(f"config.json names the code {name}, which is not there", where=folder, mend="copy it too")
