"""Reading back what training changed, from disk, one matrix at a time.

Both models are never in memory: safetensors files are opened where a tensor is needed. What a tensor is (a matrix, an
embedding table, stored transposed as GPT-2's Conv1D) is read off the base's own modules, built without weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from peft import LoraConfig, PeftConfig
from peft.utils import CONFIG_NAME
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from rankscope.errors import UserError
from rankscope.models.methods import ADAPTER, MODEL
from rankscope.models.tensor_files import TensorFiles

_PEFT_PREFIX = "base_model.model."
# Initialisations that take a part out of the base, so that B @ A is not what the model moved by.
_ALTERS_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Factors:
    """A LoRA update as it is stored: `delta_W = scaling * B @ A`, oriented (d_out, d_in)."""

    A: Float[Tensor, "rank d_in"]
    B: Float[Tensor, "d_out rank"]
    scaling: float

    @property
    def rank(self) -> int:
        """The rank that was granted."""
        return self.A.shape[0]

    def delta_W(self) -> Float[Tensor, "d_out d_in"]:
        """The update written out, in float64; for what cannot use the factors."""
        return self.scaling * (self.B.double() @ self.A.double())


@dataclass(frozen=True)
class Update:
    """What training did to one tensor of the base; either `factors` or `delta_W` is there.

    Attributes:
        name: The module's path in the base, `model.layers.0.self_attn.q_proj`; a bias keeps its `.bias`.
        layer: The index of its layer, None outside the layers.
        module: The last part of the name, `q_proj`.
        kind: `matrix` for the weight of a linear layer, `table` for embeddings and the output head, `vector` for
            norms and biases, `other` for anything of three axes or more.
        shape: (d_out, d_in) for a matrix, as stored for the rest.
        factors: Of a LoRA adapter.
        delta_W: Tuned less base, of full fine-tuning or of a module that an adapter saved whole.
        read_W0: Reads the base's tensor from disk, oriented like the update.
    """

    name: str
    layer: int | None
    module: str
    kind: Literal["matrix", "table", "vector", "other"]
    shape: tuple[int, ...]
    read_W0: Callable[[], Tensor]
    factors: Factors | None = None
    delta_W: Float[Tensor, "*shape"] | None = None


def trained_folder(train: Path) -> Path:
    """The folder with a run's adapter or weights inside its training folder.

    Raises:
        UserError: It holds neither.
    """
    for name in (ADAPTER, MODEL):
        if (train / name).is_dir():
            return train / name
    raise UserError("holds no trained weights", where=train, mend="run the study again: it trains what is missing")


def iter_updates(base_folder: Path, trained_folder: Path) -> Iterator[Update]:
    """What a training run changed, tensor by tensor, in the order of the layers.

    Args:
        base_folder: The base, a Hugging Face folder with safetensors.
        trained_folder: A PEFT folder (LoRA), or a Hugging Face folder of the whole tuned model.

    Raises:
        UserError: A folder is not of that form, or the tuned weights do not belong to this base.
    """
    base = _Base(base_folder)
    if (trained_folder / CONFIG_NAME).is_file():
        yield from _iter_adapter(base, trained_folder)
    else:
        yield from _iter_full(base, trained_folder)


def _iter_full(base: _Base, folder: Path) -> Iterator[Update]:
    tuned = TensorFiles.of_model(folder)
    names = {base.canonical(key): key for key in tuned.files}
    for name in sorted(base.keys.keys() ^ names.keys(), key=_in_order):
        if not base.is_optional(name):
            where = "base" if name in base.keys else "tuned model"
            raise UserError(f"{name} is in the {where} only", where=folder, mend="is this the base it was tuned from?")
    for name in sorted(base.keys.keys() & names.keys(), key=_in_order):
        if not base.is_optional(name):
            yield base.dense_update(name, partial(tuned.read, names[name]), folder)


def _iter_adapter(base: _Base, folder: Path) -> Iterator[Update]:
    config = _lora_config(folder)
    adapter = TensorFiles.of_adapter(folder)
    for key in sorted(adapter.files, key=_in_order):
        stem = key.removeprefix(_PEFT_PREFIX)
        if stem.endswith(".lora_A.weight"):
            name = stem.removesuffix(".lora_A.weight")
            other = key.replace(".lora_A.", ".lora_B.")
            A, B = adapter.read(key), adapter.read(other)
        elif stem.endswith(".lora_embedding_A"):
            # (rank, vocab) and (d_model, rank); the table is (vocab, d_model), so their roles swap and transpose.
            name = stem.removesuffix(".lora_embedding_A")
            other = key.replace(".lora_embedding_A", ".lora_embedding_B")
            A, B = adapter.read(other).T, adapter.read(key).T
        elif ".lora_" in stem or ".base_layer." in stem:
            # The other half of a pair (DoRA's magnitudes and LoRA's biases were refused above), or the copy of the
            # base's own table that PEFT saves with an adapter on embeddings.
            continue
        else:
            yield base.dense_update(base.canonical(stem), partial(adapter.read, key), folder)
            continue
        # The rank stands in the tensors, whatever `rank_pattern` made of `r`.
        yield base.factored_update(name, Factors(A, B, _scaling(config, name, rank=A.shape[0])), folder)


def _scaling(config: LoraConfig, name: str, rank: int) -> float:
    """PEFT's factor on `B @ A` for one module: alpha/rank, or alpha/sqrt(rank) for rank-stabilised LoRA."""
    alpha = float(config.lora_alpha)
    for pattern, value in (config.alpha_pattern or {}).items():
        # PEFT's own rule: a whole name, or a regular expression for its end; the first that matches counts.
        if re.match(rf"(.*\.)?({pattern})$", name):
            alpha = float(value)
            break
    return alpha / math.sqrt(rank) if config.use_rslora else alpha / rank


def _lora_config(folder: Path) -> LoraConfig:
    config = PeftConfig.from_pretrained(str(folder))
    where = folder / CONFIG_NAME
    if not isinstance(config, LoraConfig):
        raise UserError(f"an adapter of type {config.peft_type} cannot be read yet, only LoRA", where=where)
    if config.use_dora or config.lora_bias:
        option = "use_dora" if config.use_dora else "lora_bias"
        raise UserError(f"an adapter with {option} is more than B @ A and cannot be read yet", where=where)
    if str(config.init_lora_weights).startswith(_ALTERS_BASE):
        text = f"init_lora_weights '{config.init_lora_weights}' altered the base, so B @ A is not the update"
        mend = "save it with PEFT's path_initial_model_for_weight_conversion"
        raise UserError(text, where=where, mend=mend)
    return config


class _Base:
    """The base's tensors on disk, and what each of them is.

    Attributes:
        keys: By the name of the parameter in the model, its name in the files. Older files leave the model's own
            prefix out (`h.0.attn.c_attn.weight` for `transformer.h.0...`).
        tables: Parameters of embeddings and of the output head.
        transposed: Weights stored as (d_in, d_out).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = TensorFiles.of_model(folder)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        modules = dict(model.named_modules())
        head = model.get_output_embeddings()
        self.tables = {
            f"{name}.weight" for name, module in modules.items() if isinstance(module, nn.Embedding) or module is head
        }
        self.transposed = {f"{name}.weight" for name, module in modules.items() if isinstance(module, Conv1D)}
        self._prefix = f"{model.base_model_prefix}."
        self._modules = set(modules)
        # Tied weights are one parameter of several names; the first one stands for all.
        first: dict[int, str] = {}
        parameters = model.named_parameters(remove_duplicate=False)
        self._parameters = {name: first.setdefault(id(parameter), name) for name, parameter in parameters}
        self.keys = {self.canonical(key): key for key in self.files.files}

    def canonical(self, key: str) -> str:
        """The name in the model of a tensor of the files."""
        longer = self._prefix + key
        if key not in self._parameters and longer.rpartition(".")[0] in self._modules:
            key = longer
        return self._parameters.get(key, key)

    def is_optional(self, name: str) -> bool:
        """Whether a tensor is no weight but a buffer, such as a causal mask, which files may hold or not."""
        return name.rpartition(".")[0] in self._modules and name not in self._parameters

    def dense_update(self, name: str, read: Callable[[], Tensor], folder: Path) -> Update:
        """A tensor that was saved whole, as its difference from the base's."""
        self._check_name(name, folder)
        W0, W = self._read(name), self._orient(name, read())
        if W0.shape != W.shape:
            raise self._wrong_base(name, tuple(W0.shape), tuple(W.shape), folder)
        # In float64, because a difference of near equals keeps few of float32's digits.
        return self._update(name, tuple(W.shape), delta_W=W.double() - W0.double())

    def factored_update(self, module: str, factors: Factors, folder: Path) -> Update:
        """A pair of LoRA's factors for the weight of a module."""
        name = self.canonical(f"{module}.weight")
        self._check_name(name, folder)
        shape = (factors.B.shape[0], factors.A.shape[1])
        base_shape = self.files.shape(self.keys[name])
        base_shape = base_shape[::-1] if name in self.transposed else base_shape
        if shape != base_shape:
            raise self._wrong_base(name, base_shape, shape, folder)
        return self._update(name, shape, factors=factors)

    def _update(
        self, name: str, shape: tuple[int, ...], *, factors: Factors | None = None, delta_W: Tensor | None = None
    ) -> Update:
        path = name.removesuffix(".weight")
        kinds: dict[int, Literal["vector", "matrix"]] = {0: "vector", 1: "vector", 2: "matrix"}
        return Update(
            name=path,
            layer=_layer(path),
            module=path.removesuffix(".bias").rpartition(".")[2] + (".bias" if path.endswith(".bias") else ""),
            kind="table" if name in self.tables else kinds.get(len(shape), "other"),
            shape=shape,
            read_W0=partial(self._read, name),
            factors=factors,
            delta_W=delta_W,
        )

    def _read(self, name: str) -> Tensor:
        return self._orient(name, self.files.read(self.keys[name]))

    def _orient(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.T if name in self.transposed else tensor

    def _check_name(self, name: str, folder: Path) -> None:
        if name not in self.keys:
            raise UserError(
                f"{name} was tuned, but the base in {self.folder} has no such tensor",
                where=folder,
                mend="give the base that it was tuned from",
            )

    def _wrong_base(self, name: str, base: tuple[int, ...], tuned: tuple[int, ...], folder: Path) -> UserError:
        text = f"{name} is {_by(base)} in the base in {self.folder} and {_by(tuned)} in the tuned weights"
        return UserError(text, where=folder, mend="give the base that it was tuned from")


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape)


def _layer(name: str) -> int | None:
    """The first number in a module's path: `model.layers.3.mlp.down_proj` is of layer 3."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _in_order(name: str) -> tuple[int, str]:
    """Layers in the order of their numbers (10 after 9); what is outside them comes first."""
    layer = _layer(name)
    return -1 if layer is None else layer, name
