"""Bases as transformers opens them and adapters as PEFT does; a folder's own code runs only where a study says so."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from rankscope.data.shapes import tensor_shapes
from rankscope.errors import UserError, first_line
from rankscope.models.quantized import bits_and_bytes, keep_unpacked
from rankscope.runs import Opening

AS_IT_IS = Opening()
# Of the largest logit; in 8 bits the rows of a batch round one another in their third digit (docs/methods.md).
_ROUNDING, _ROUNDING_8_BITS = 1e-3, 0.05


def read_config(folder: Path, opening: Opening = AS_IT_IS) -> PretrainedConfig:
    """A base's configuration.

    Args:
        folder: A Hugging Face folder.
        opening: What the study says of it.
    """
    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=opening.trust_remote_code)


def read_model(folder: Path, dtype: torch.dtype, opening: Opening = AS_IT_IS, device: str = "cpu") -> PreTrainedModel:
    """A causal model from a Hugging Face folder, safetensors only.

    Args:
        folder: The folder.
        dtype: Of its weights.
        opening: What the study says of it.
        device: Where quantised weights are made; others are read into the host's memory.

    Raises:
        UserError: The folder lacks weights that the architecture has, or has them in other shapes, so that transformers
            would draw them at random; or it holds parts of layers that the architecture has not, which would be left
            out.
    """
    bits = opening.quantization_config
    options = {} if bits is None else {"quantization_config": bits_and_bytes(bits), "device_map": {"": device}}
    model, found = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=opening.trust_remote_code,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are refused below, by name
        **options,
    )
    name = type(model).__name__
    other = [f"{key} {tuple(there)} for {tuple(wanted)}" for key, there, wanted in sorted(found["mismatched_keys"])]
    for keys, what in (
        (found["missing_keys"], f"the files lack weights that {name} has"),
        (other, f"weights in the files are of other shapes than those of {name}"),
        (_left_out(model, found["unexpected_keys"], folder), f"the files hold weights that {name} would leave out"),
    ):
        if keys:
            some = ", ".join(sorted(keys)[:3]) + (f" and {len(keys) - 3} others" if len(keys) > 3 else "")
            mend = "is config.json of this model? Save the whole model again"
            raise UserError(f"{what}: {some}", where=folder, mend=mend)
    if bits is not None:
        keep_unpacked(model)
    return model


def _left_out(model: PreTrainedModel, names: Collection[str], folder: Path) -> list[str]:
    """Of tensors that the model has no place for, the weights of layers; without these it is another model.

    No harm does what is no weight, as the masks in old files (a number, or four axes), a head of another task, or
    layers behind the last that predict further tokens.
    """
    if not names:
        return []
    config = model.config.get_text_config()
    depth = getattr(config, "num_hidden_layers", 0)  # not every architecture counts them by this name
    further = range(depth, depth + (getattr(config, "num_nextn_predict_layers", None) or 0))
    own, shapes = [name for name, _ in model.named_parameters()], tensor_shapes(folder)
    found = []
    for name in names:
        numbered = re.match(r"(.*?\.)(\d+)\.", name)
        is_in_layers = numbered is not None and any(other.startswith(numbered[1]) for other in own)
        if is_in_layers and int(numbered[2]) not in further and 1 <= _num_axes(name, shapes) <= 3:
            found.append(name)
    return [name for name in found if not name.endswith(".inv_freq")]  # what positions were computed by


def _num_axes(name: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Of a tensor in the files, where names may lack the model's prefix or have another; 1 where it is not found."""
    ends = (len(shape) for other, shape in shapes.items() if f".{name}".endswith(f".{other}") or other.endswith(name))
    return next(ends, 1)


def read_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    """PEFT's model of an adapter, in the precision of its base.

    Args:
        base: The base; PEFT puts its layers into it.
        folder: A PEFT folder.

    Raises:
        UserError: PEFT cannot put this adapter on this base, or does not find all of its tensors.
    """
    try:
        with warnings.catch_warnings():
            # What PEFT does not find in the file stays as it was drawn at random, and only a warning says so.
            warnings.filterwarnings("error", message=".*missing adapter keys")
            return PeftModel.from_pretrained(base, str(folder), autocast_adapter_dtype=False).eval()
    except torch.OutOfMemoryError:
        raise  # a RuntimeError too, but of the machine and not of the adapter
    except (SafetensorError, ValueError, TypeError, KeyError, OSError, RuntimeError, UserWarning) as error:
        mend = "give the base that it was tuned from, and the whole folder as PEFT's save_pretrained writes it"
        raise UserError(f"PEFT cannot load it: {first_line(error)[:200]}", where=folder, mend=mend) from error


@torch.no_grad()
def check_looks_back(model: PreTrainedModel, folder: Path, opening: Opening) -> None:
    """Refuse a model whose logits depend on what comes later: its scores would be of texts that it has seen.

    Encoders, and code of a folder's own, may load as causal models all the same.

    Args:
        model: In evaluation mode.
        folder: What it was read from.
        opening: What the study says of it.

    Raises:
        UserError: It looks ahead.
    """
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 0]], device=model.device)  # they differ at the end alone
    one, other = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, :-1].float()
    bits = opening.quantization_config
    rounding = _ROUNDING_8_BITS if bits is not None and bits.load_in_8bit else _ROUNDING
    if (one - other).abs().max() > rounding * one.abs().max():
        what = f"{type(model).__name__} sees what comes later in a text, so its likelihoods are none"
        raise UserError(what, where=folder, mend="name a causal language model")


def skeleton(folder: Path, opening: Opening = AS_IT_IS) -> nn.Module:
    """A base's modules without weights.

    Args:
        folder: A Hugging Face folder.
        opening: What the study says of it.

    Raises:
        UserError: The configuration is of no model that can be built, or of a quantised one.
    """
    try:
        config = read_config(folder, opening)
    except (ValueError, OSError, KeyError) as error:
        text = f"the configuration is of no model that transformers knows ({first_line(error)})"
        mend = "take transformers of a version that has it, or put the right config.json there"
        raise UserError(text, where=folder / "config.json", mend=mend) from None
    if getattr(config, "quantization_config", None) is not None:  # an attribute that only quantised models have
        text = "the base is quantised, so its weights are not in the files as numbers"
        raise UserError(text, where=folder, mend="give the same model without quantisation")
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=opening.trust_remote_code)
