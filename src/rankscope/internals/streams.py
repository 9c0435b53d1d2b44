"""What flows between and inside a model's layers, handed out a layer at a time while it runs.

The residual stream is what a decoder layer gives to the next one. A neuron's activation is what the layer's MLP puts
into its last matrix: behind the activation function, and behind the gate where there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from rankscope.errors import NotAvailable
from rankscope.internals.patterns import Batch, attention_modules, run_model

# What architectures call the last matrix of a layer's MLP; `c_proj` is also the name of an attention's.
_LAST = ("down_proj", "dense_4h_to_h", "fc2", "fc_out", "mlp.c_proj")

OnLayer = Callable[[int, Float[Tensor, "batch pos size"]], None]


def show_streams(model: PreTrainedModel, batch: Batch, on_layer: OnLayer) -> None:
    """Run a model over a batch and hand each layer's residual stream to a function as it comes.

    Args:
        model: A causal model of transformers, in evaluation mode.
        batch: The texts; where they are padding, what is handed out means nothing.
        on_layer: Takes the layer's index and its stream.

    Raises:
        NotAvailable: The architecture's layers are not known.
    """

    def hook(layer: int) -> Callable[..., None]:
        def hand_on(_module: nn.Module, _arguments: Any, output: Any) -> None:
            on_layer(layer, output[0] if isinstance(output, tuple | list) else output)  # a list in GPT-1

        return hand_on

    with ExitStack() as stack:
        for layer, name in _layers(model).items():
            handle = model.get_submodule(name).register_forward_hook(hook(layer))
            stack.callback(handle.remove)
        run_model(model, batch)


def show_neurons(model: PreTrainedModel, batch: Batch, on_layer: OnLayer) -> None:
    """Run a model over a batch and hand the activations of each layer's neurons to a function as they come.

    Raises:
        NotAvailable: A layer's MLP is not known, as that of a mixture of experts, whose neurons see some tokens only.
    """

    def hook(layer: int) -> Callable[..., None]:
        def hand_on(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            # OPT puts all positions of all texts on one axis.
            activations = arguments[0]
            on_layer(layer, activations.reshape(*batch.input_ids.shape, activations.shape[-1]))

        return hand_on

    with ExitStack() as stack:
        for layer, module in _last_matrices(model).items():
            handle = module.register_forward_pre_hook(hook(layer))
            stack.callback(handle.remove)
        run_model(model, batch)


def is_relu(model: PreTrainedModel) -> bool:
    """Whether neurons are exactly 0 where they are silent."""
    config = model.config.get_text_config()
    # Architectures name the key differently, and each has one of them.
    names = ("hidden_act", "activation_function", "hidden_activation", "activation")
    return next((getattr(config, name) for name in names if hasattr(config, name)), None) == "relu"


def _layers(model: PreTrainedModel) -> dict[int, str]:
    """The decoder layers' names by their index: of each attention module, the part up to the layer's number."""
    found = {}
    for layer, name in attention_modules(model):
        parts = name.split(".")
        found[layer] = ".".join(parts[: next(i for i, part in enumerate(parts) if part.isdigit()) + 1])
    return found


def _last_matrices(model: PreTrainedModel) -> dict[int, nn.Module]:
    found = {}
    for layer, name in _layers(model).items():
        inside = [
            path
            for path, _ in model.get_submodule(name).named_modules()
            if any(path == last or path.endswith(f".{last}") for last in _LAST) and "experts" not in path
        ]
        if len(inside) != 1:
            kind = type(model).__name__
            raise NotAvailable(f"the neurons of {kind} are not known: layer {layer} has {len(inside)} known MLPs")
        found[layer] = model.get_submodule(f"{name}.{inside[0]}")
    return found
