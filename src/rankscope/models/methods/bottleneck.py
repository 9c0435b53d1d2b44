"""Bottleneck adapters (Houlsby; Pfeiffer): small networks behind the sublayers of every layer.

    output of a sublayer + up(activation(down(output of the sublayer)))

Houlsby puts one behind attention and one behind the MLP, Pfeiffer one behind the MLP; each before the residual
connection is added. `up` starts at zero, so an untrained adapter changes nothing. The format of the folder is in
docs/bottleneck_adapters.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rankscope.data.targets import sublayer_outputs
from rankscope.errors import DamagedFile, UserError
from rankscope.models.group import ALONE
from rankscope.models.methods.pack import ADAPTER, Texts, num_parameters, put_back
from rankscope.models.quantized import is_quantized
from rankscope.models.seeding import seeded
from rankscope.runs import RunSettings

CONFIG, WEIGHTS = "bottleneck_config.json", "bottleneck.safetensors"
FORMAT_VERSION = 1
_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}
# The standard deviation of `down`, as in Houlsby et al. (arXiv 1902.00751).
_SPREAD = 0.01


class BottleneckLayer(nn.Module):
    """A frozen layer with a bottleneck behind it.

    Args:
        base_layer: The sublayer's last matrix: `nn.Linear`, or transformers' `Conv1D`.
        width: What it puts out.
        inner: The width of the bottleneck.
        non_linearity: `relu`, `gelu` or `silu`.
    """

    def __init__(self, base_layer: nn.Module, width: int, inner: int, non_linearity: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        weight = next(base_layer.parameters())
        dtype = torch.float32 if is_quantized(base_layer) else weight.dtype
        self.down = nn.Linear(width, inner).to(weight.device, dtype)
        self.up = nn.Linear(inner, width).to(weight.device, dtype)
        self.activation = _ACTIVATIONS[non_linearity]()
        nn.init.normal_(self.down.weight, std=_SPREAD)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        """The sublayer's output with what the bottleneck adds."""
        output = self.base_layer(x)
        return output + self.up(self.activation(self.down(output)))


def add_bottlenecks(model: PreTrainedModel, options: dict[str, Any]) -> dict[str, BottleneckLayer]:
    """Put bottlenecks into a model; returns them by the module that each stands behind.

    Args:
        model: The base.
        options: `placement`, `reduction_factor` (the sublayer's width over the bottleneck's), `non_linearity`.

    Raises:
        UserError: The architecture's sublayers are not known.
    """
    linear = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D))}
    names = sublayer_outputs(linear, options["placement"])
    if not names:
        text = f"no sublayers of {type(model).__name__} are known to put a bottleneck behind"
        raise UserError(text, where="method bottleneck", mend="use a method of PEFT's for this base")
    layers = {}
    for name in names:
        module = linear[name]
        width = module.nf if isinstance(module, Conv1D) else module.out_features
        inner = max(1, width // options["reduction_factor"])
        layers[name] = BottleneckLayer(module, width, inner, options["non_linearity"])
        model.set_submodule(name, layers[name])
    return layers


def load_bottlenecks(model: PreTrainedModel, folder: Path) -> dict[str, BottleneckLayer]:
    """Put saved bottleneck adapters into their base, which is changed in place.

    Args:
        model: The base.
        folder: What a run saved: `.../train/adapter`.

    Raises:
        DamagedFile: The folder does not hold the adapters of this architecture.
    """
    document = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    layers = add_bottlenecks(model, document["options"])
    saved = load_file(folder / WEIGHTS)
    tensors = _tensors(layers)
    if saved.keys() != tensors.keys():
        raise DamagedFile(f"{folder} does not hold the bottleneck adapters of {type(model).__name__}")
    with torch.no_grad():
        for name, parameter in tensors.items():
            parameter.copy_(saved[name])
    return layers


class BottleneckPack:
    """One run of bottleneck adapters; `fresh` starts it, `saved` reads it back.

    Args:
        model: The base with its bottlenecks.
        runs: The one run.
        layers: The bottlenecks by module.
        num_base_parameters: Of the base alone.
    """

    alters_base = False
    group = ALONE

    def __init__(
        self, model: PreTrainedModel, runs: tuple[RunSettings, ...], layers: dict[str, BottleneckLayer], number: int
    ) -> None:
        if len(runs) != 1:
            raise ValueError("runs of bottleneck adapters cannot share one base")
        self.model = model
        self.runs = runs
        self.num_base_parameters = number
        self._layers = layers
        self._generator = torch.Generator().manual_seed(runs[0].seed)

    @classmethod
    def fresh(cls, model: PreTrainedModel, runs: tuple[RunSettings, ...]) -> BottleneckPack:
        """The run before its first step, drawn under its seed."""
        number = num_parameters(model)
        with seeded(runs[0].seed):
            layers = add_bottlenecks(model, runs[0].arm.options)
        return cls(model, runs, layers, number)

    @classmethod
    def saved(cls, model: PreTrainedModel, runs: tuple[RunSettings, ...], folder: Path) -> BottleneckPack:
        """The trained run from its training folder."""
        number = num_parameters(model)
        return cls(model, runs, load_bottlenecks(model, folder / ADAPTER), number)

    def route(self, members: Sequence[int], num_rows: Sequence[int], *, is_training: bool, texts: Texts = ()) -> None:
        """Nothing to do: all rows are the one run's."""

    def parameter_groups(self, index: int) -> list[dict[str, Any]]:
        """The matrices, which decay, and the biases, which do not."""
        weight_decay, tensors = self.runs[0].optimization.weight_decay, list(self.state(index).values())
        return [
            {"params": [t for t in tensors if t.ndim > 1], "weight_decay": weight_decay},
            {"params": [t for t in tensors if t.ndim <= 1], "weight_decay": 0.0},
        ]

    def regularisation(self, index: int) -> Tensor | None:
        """None."""
        return None

    def after_step(self, index: int, step: int) -> None:
        """Nothing to do."""

    def state(self, index: int) -> dict[str, Tensor]:
        """`down` and `up` of every bottleneck, by the names of the saved file."""
        return _tensors(self._layers)

    def load_state(self, index: int, state: dict[str, Tensor]) -> None:
        """Put saved tensors back."""
        put_back(self.state(index), state)

    def generator(self, index: int) -> torch.Generator:
        """Nothing is drawn."""
        return self._generator

    def save(self, index: int, folder: Path) -> list[str]:
        """A folder for `load_bottlenecks`."""
        target = folder / ADAPTER
        target.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state(index).items()}
        save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
        document = {
            "format_version": FORMAT_VERSION,
            "base_model_name_or_path": self.runs[0].base.source,
            "options": self.runs[0].arm.options,
        }
        (target / CONFIG).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        return [f"{ADAPTER}/{WEIGHTS}", f"{ADAPTER}/{CONFIG}"]

    def close(self) -> None:
        """Take the bottlenecks out of the base."""
        for name, layer in self._layers.items():
            self.model.set_submodule(name, layer.base_layer)


def _tensors(layers: dict[str, BottleneckLayer]) -> dict[str, nn.Parameter]:
    return {
        f"{name}.{part}": parameter
        for name, layer in layers.items()
        for part, parameter in layer.named_parameters()
        if not part.startswith("base_layer.")
    }
