"""Bases in 4 or 8 bits, held by bitsandbytes: which modules those are, and the numbers that their weights stand for."""

from __future__ import annotations

import logging

from jaxtyping import Float
from peft.utils.integrations import dequantize_bnb_weight
from torch import Tensor, nn
from transformers import BitsAndBytesConfig
from transformers.quantizers import AutoHfQuantizer

from rankscope.quantization import QuantizationConfig

# LLM.int8 rounds a row's largest weight to this.
_INT8_MAX = 127.0
# The smallest number above zero in 16 bits: of the rows only one of zeros, which stays one, has a smaller scale.
_SMALLEST_SCALE = 2.0**-24


def bits_and_bytes(config: QuantizationConfig) -> BitsAndBytesConfig:
    """The object by which transformers is told what a study says."""
    # In every layer and step: that inputs are rounded, which is what LLM.int8 means.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return BitsAndBytesConfig(**config.model_dump(mode="json"))  # lists, for it takes no tuple


def is_quantized(module: nn.Module) -> bool:
    """Whether a module is a linear layer of bitsandbytes."""
    return type(module).__module__.startswith("bitsandbytes.")


def keep_unpacked(model: nn.Module) -> None:
    """Have 4-bit layers multiply in the precision that they were told, on every processor.

    Where a processor has AVX512-BF16, bitsandbytes would repack a layer's weights at its first use without gradients:
    its factors rounded to bfloat16, products in bfloat16, and an error for matrices narrower than a block.

    Args:
        model: As transformers has loaded it; changed.
    """
    for module in model.modules():
        if is_quantized(module):
            module.support_avx512bf16_for_cpu = False


def quantized_modules(skeleton: nn.Module, config: QuantizationConfig) -> frozenset[str]:
    """The modules that transformers holds in few bits, by its own choice.

    Args:
        skeleton: The base's modules without weights; they are exchanged.
        config: What the study says.
    """
    quantizer = AutoHfQuantizer.from_config(bits_and_bytes(config), pre_quantized=False)
    quantizer.preprocess_model(model=skeleton, device_map={"": "cpu"})
    return frozenset(name for name, module in skeleton.named_modules() if is_quantized(module))


def rounded(W0: Float[Tensor, "d_out d_in"], config: QuantizationConfig) -> Float[Tensor, "d_out d_in"]:
    """A matrix as it is once bitsandbytes has rounded it: what a quantised layer multiplies with, in float32.

    Args:
        W0: The matrix of the files.
        config: How it is rounded.
    """
    import bitsandbytes.functional as bnb

    W0 = W0.float().contiguous()
    if config.load_in_8bit:
        scales = W0.half().abs().amax(dim=1, keepdim=True).float().clamp_min(_SMALLEST_SCALE)
        return (W0.half().float() * (_INT8_MAX / scales)).round() * scales / _INT8_MAX
    packed, state = bnb.quantize_4bit(
        W0, quant_type=config.bnb_4bit_quant_type, compress_statistics=config.bnb_4bit_use_double_quant
    )
    return bnb.dequantize_4bit(packed, state)


def dequantized(module: nn.Module) -> Float[Tensor, "d_out d_in"]:
    """The weight of a quantised layer as numbers, in float32."""
    return dequantize_bnb_weight(module.weight, state=getattr(module, "state", None)).float()


def num_weights(parameter: nn.Parameter) -> int:
    """How many numbers a parameter stands for; of 4 bits two lie in one byte."""
    state = getattr(parameter, "quant_state", None)  # of bitsandbytes' 4-bit parameters alone
    return parameter.numel() if state is None else state.shape.numel()
