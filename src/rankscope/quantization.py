"""A base in 4 or 8 bits: what a study says of it, and how many bytes a weight then takes."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from rankscope.section import Section

# bitsandbytes keeps one float32 factor for 64 weights; quantised again, one byte, and a float32 for 256 of those.
_BLOCK, _OUTER_BLOCK = 64, 256


class QuantizationConfig(Section):
    """A base held in 4 or 8 bits by bitsandbytes, with the keys and defaults of transformers' BitsAndBytesConfig."""

    load_in_4bit: bool = Field(False, description="4 bits a weight (QLoRA)")
    load_in_8bit: bool = Field(False, description="8 bits a weight, inputs rounded to 8 bits too (LLM.int8)")
    bnb_4bit_quant_type: Literal["fp4", "nf4"] = Field(
        "fp4", description="the 16 values of a 4-bit weight; QLoRA's are nf4"
    )
    bnb_4bit_use_double_quant: bool = Field(False, description="round the 4-bit weights' factors too: 0.4 bits less")
    bnb_4bit_compute_dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of products with 4-bit weights"
    )
    llm_int8_threshold: float = Field(6.0, ge=0.0, description="inputs above it are multiplied unrounded, of 8 bits")
    llm_int8_skip_modules: tuple[str, ...] | None = Field(
        None, description="modules that stay as they are; the output head where not stated"
    )

    @model_validator(mode="after")
    def _one_width(self) -> Self:
        if self.load_in_4bit == self.load_in_8bit:
            text = "says `load_in_4bit: true` or `load_in_8bit: true`, one of the two"
            raise PydanticCustomError("bits", text, {"key": "load_in_4bit"})
        other = "bnb_4bit_" if self.load_in_8bit else "llm_int8_threshold"
        for key, field in type(self).model_fields.items():
            if key.startswith(other) and getattr(self, key) != field.default:
                text = "'{key}' is of no use in {bits} bits"
                raise PydanticCustomError("other_bits", text, {"key": key, "bits": self.bits})
        return self

    @property
    def bits(self) -> int:
        """4 or 8."""
        return 4 if self.load_in_4bit else 8

    @property
    def label(self) -> str:
        """How people call it: `4 bits (nf4)`."""
        return "8 bits (LLM.int8)" if self.load_in_8bit else f"4 bits ({self.bnb_4bit_quant_type})"

    def weight_bytes(self, d_out: int, d_in: int) -> float:
        """What a matrix takes in memory, its factors included."""
        if self.load_in_8bit:
            return d_out * d_in + 4 * d_out
        blocks = d_out * d_in / _BLOCK
        factors = blocks + 4 * blocks / _OUTER_BLOCK if self.bnb_4bit_use_double_quant else 4 * blocks
        return d_out * d_in / 2 + factors
