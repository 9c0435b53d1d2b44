"""What each tensor of a base is: its names in the model and in the files, its orientation, tables, experts.

Read off the base's own modules, built without weights, so nothing large is in memory.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightTransform,
)
from transformers.pytorch_utils import Conv1D

from rankscope.models.opening import AS_IT_IS, skeleton
from rankscope.models.quantized import quantized_modules, rounded
from rankscope.models.tensor_files import TensorFiles
from rankscope.runs import Opening


@dataclass(frozen=True)
class Source:
    """Where a base's matrix lies: tensors of the files, put together along their rows, oriented (d_out, d_in).

    Attributes:
        keys: The names in the files, usually one; several where the model fuses what the files hold apart.
        expert: Which slice along the first axis, of a tensor that holds all experts.
        transposed: It is stored as (d_in, d_out).
        rounded: The model holds it in few bits, so that it is other numbers than those of the files.
    """

    keys: tuple[str, ...]
    expert: int | None = None
    transposed: bool = False
    rounded: bool = False


class BaseTensors:
    """The base's tensors on disk, and what each of them is.

    Args:
        folder: A Hugging Face folder with safetensors.
        opening: What the study says of it.

    Attributes:
        quantized: Modules that the study holds in 4 or 8 bits.
        keys: By the name of the parameter in the model, its name in the files. Older files leave the model's own
            prefix out (`h.0.attn.c_attn.weight` for `transformer.h.0...`). A tied weight has one name here.
        tables: Parameters of embeddings and of the output head.
        transposed: Weights stored as (d_in, d_out).
    """

    def __init__(self, folder: Path, opening: Opening = AS_IT_IS) -> None:
        self.folder = folder
        self.opening = opening
        self.files = TensorFiles.of_model(folder)
        model = skeleton(folder, opening)
        modules = dict(model.named_modules())
        head = model.get_output_embeddings()
        self.tables = {
            f"{name}.weight" for name, module in modules.items() if isinstance(module, nn.Embedding) or module is head
        }
        self.transposed = {f"{name}.weight" for name, module in modules.items() if isinstance(module, Conv1D)}
        # PEFT's own rule for the orientation of fused experts: an attribute that only some of those modules have.
        self._transposed_experts = {name for name, module in modules.items() if getattr(module, "is_transposed", False)}
        self._prefix = f"{model.base_model_prefix}."
        self._modules = set(modules)
        # Tied weights are one parameter of several names; the first one stands for all.
        first: dict[int, str] = {}
        parameters = model.named_parameters(remove_duplicate=False)
        self._parameters = {name: first.setdefault(id(parameter), name) for name, parameter in parameters}
        conversions = get_model_conversion_mapping(model)
        self._converters = [item for item in conversions if isinstance(item, WeightConverter)]
        self._renamings = [item for item in conversions if not isinstance(item, WeightConverter)]
        self.keys = {self.canonical(key): key for key in self.files.files}
        self._bits = opening.quantization_config
        self.quantized = frozenset() if self._bits is None else quantized_modules(model, self._bits)
        self._experts = self._fused_experts()

    def canonical(self, key: str) -> str:
        """The name in the model of a tensor of the files; of tied weights the first name."""
        name = self.parameter(key)
        return self._parameters.get(name, name)

    def parameter(self, key: str) -> str:
        """The name in the model of a tensor of the files, tied weights under their own names."""
        if key in self._parameters:
            return key
        for candidate in (self._prefix + key, _renamed(key, self._renamings)):
            # The second: names that newer versions of transformers have changed (`block_sparse_moe`, now `mlp`).
            if candidate in self._parameters or candidate.rpartition(".")[0] in self._modules:
                return candidate
        return key

    def is_optional(self, name: str) -> bool:
        """Whether a tensor is no weight but a buffer, such as a causal mask, which files may hold or not."""
        return name.rpartition(".")[0] in self._modules and name not in self._parameters

    def source(self, name: str) -> Source:
        """Where a tensor lies.

        Raises:
            KeyError: The base has none of that name.
        """
        is_rounded = name.removesuffix(".weight") in self.quantized and name.endswith(".weight")
        return Source((self.keys[name],), transposed=name in self.transposed, rounded=is_rounded)

    def expert_sources(self, name: str) -> list[Source]:
        """Where the matrices of all experts lie that the model holds in one parameter of three axes.

        Raises:
            KeyError: The base has no such parameter, or it is put together in a way that is not known here.
        """
        if name in self.keys:
            transposed = name.rpartition(".")[0] in self._transposed_experts
            number = self.files.shape(self.keys[name])[0]
            return [Source((self.keys[name],), expert, transposed) for expert in range(number)]
        experts = self._experts[name]
        return [Source(experts[expert]) for expert in sorted(experts)]

    def is_experts(self, name: str) -> bool:
        """Whether a tensor of the files holds the matrices of all experts of a layer."""
        return name.rpartition(".")[0].endswith("experts") and self._has_three_axes(name)

    def expert_parameters(self, module: str) -> list[str]:
        """The parameters of three axes of a module, in the model's order."""
        found = [name for name in self._parameters if name.rpartition(".")[0] == module]
        return [name for name in found if name in self._experts or self._has_three_axes(name)]

    def shape(self, source: Source) -> tuple[int, ...]:
        """The shape of a source, without reading it."""
        shapes = [self.files.shape(key) for key in source.keys]
        shape = shapes[0] if source.expert is None else shapes[0][1:]
        shape = (sum(shape[0] for shape in shapes), *shape[1:]) if len(shapes) > 1 else shape
        return shape[::-1] if source.transposed else shape

    def read(self, source: Source, rows: tuple[int, int] | None = None) -> Tensor:
        """Read a source, all of it or some rows of one that is a single tensor stored as it is.

        What the model holds in few bits is given as the numbers that these stand for.
        """
        if rows is not None:
            return self.files.read_rows(source.keys[0], *rows)
        if source.expert is not None:
            tensor = self.files.read_rows(source.keys[0], source.expert, source.expert + 1)[0]
        else:
            parts = [self.files.read(key) for key in source.keys]
            tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        tensor = tensor.T if source.transposed else tensor
        return rounded(tensor, self._bits) if source.rounded and self._bits is not None else tensor

    def _has_three_axes(self, name: str) -> bool:
        return name in self.keys and len(self.files.shape(self.keys[name])) == 3

    def _fused_experts(self) -> dict[str, dict[int, tuple[str, ...]]]:
        """By fused parameter and expert, the tensors of the files that it is put together from, in their order."""
        found: dict[str, dict[int, dict[int, str]]] = {}
        for key in self.files.files:
            for converter in self._converters:
                target, pattern = converter.rename_source_key(_renamed(key, self._renamings))
                if pattern is None or not _is_stack(converter):
                    continue
                number = re.search(r"\.experts\.(\d+)\.", key)
                if number is not None:
                    part = converter.source_patterns.index(pattern)
                    found.setdefault(target, {}).setdefault(int(number[1]), {})[part] = key
        return {
            target: {expert: tuple(parts[part] for part in sorted(parts)) for expert, parts in experts.items()}
            for target, experts in found.items()
        }


def _renamed(key: str, renamings: Sequence[WeightTransform]) -> str:
    """A tensor's name after all renamings; transformers' own function for it is not in its first versions of 5."""
    for renaming in renamings:
        key, _ = renaming.rename_source_key(key)
    return key


def _is_stack(converter: WeightConverter) -> bool:
    """Whether a conversion puts experts one behind the other, each made of its parts along the rows."""
    merge, *rest = converter.operations
    if not isinstance(merge, MergeModulelist) or merge.dim != 0:
        return False
    return not rest or (len(rest) == 1 and isinstance(rest[0], Concatenate) and rest[0].dim == 1)
