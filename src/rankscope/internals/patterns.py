"""A model's attention patterns, handed out a layer at a time while it runs.

Modules compute patterns they can show with the `eager` implementation only, so it is switched on for the run. A hook
on each attention module hands its pattern on and takes it out of the module's output: no two layers' patterns are in
memory together, however deep the model is.

The divergence needs the base's and the tuned model's pattern of one layer together, and a tuned model is the base
with its weights changed in place, so the two cannot run side by side. Therefore the base's patterns are kept on disk
by whoever calls this, one file for each batch and layer, once for all runs (`packed_pattern` keeps what is visible,
in the model's own precision, so that equal models give exactly equal patterns), and read back as the tuned model
comes to that layer. Keeping the queries and keys instead would save less than half of it at the usual head sizes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention

from rankscope.errors import NotAvailable
from rankscope.models.heads import scored_logits

# What transformers calls the attention module of a decoder layer, over all architectures.
_NAMES = ("self_attn", "attn", "attention", "self_attention")


@dataclass(frozen=True)
class LayerPattern:
    """One layer's attention on a batch.

    Attributes:
        layer: The layer's index in the model.
        pattern: After the softmax; heads that share keys each have their own.
        visible: Which keys a query may see; none for a query that is padding.
    """

    layer: int
    pattern: Float[Tensor, "batch head query_pos key_pos"]
    visible: Bool[Tensor, "batch query_pos key_pos"]


@dataclass(frozen=True)
class Batch:
    """Texts as a rectangle of tokens, padded on the right, so that positions are the ones of the text alone.

    Attributes:
        lengths: The number of tokens of each row.
    """

    input_ids: Int[Tensor, "batch pos"]
    lengths: Int[Tensor, " batch"]

    @property
    def is_token(self) -> Bool[Tensor, "batch pos"]:
        """Where a token is and no padding."""
        return torch.arange(self.input_ids.shape[1]) < self.lengths.unsqueeze(1)


def batches(texts: Sequence[Sequence[int]], max_tokens: int) -> list[Batch]:
    """Texts of like length together, at most `max_tokens` with padding in a batch (a longer text is one alone)."""
    groups: list[list[Sequence[int]]] = []
    for text in sorted(texts, key=len, reverse=True):
        if groups and len(groups[-1][0]) * (len(groups[-1]) + 1) <= max_tokens:
            groups[-1].append(text)
        else:
            groups.append([text])
    return [_batch(group) for group in groups]


def _batch(texts: Sequence[Sequence[int]]) -> Batch:
    input_ids = torch.zeros(len(texts), max(len(text) for text in texts), dtype=torch.int64)
    for row, text in enumerate(texts):
        input_ids[row, : len(text)] = torch.tensor(text, dtype=torch.int64)
    return Batch(input_ids, torch.tensor([len(text) for text in texts]))


def show_patterns(model: PreTrainedModel, batch: Batch, on_layer: Callable[[LayerPattern], None]) -> None:
    """Run a model over a batch and hand each layer's pattern to a function as it comes.

    Args:
        model: A causal model of transformers, in evaluation mode.
        batch: The texts.
        on_layer: Takes each layer's pattern; it is freed when the function lets go of it.

    Raises:
        NotAvailable: The architecture's modules do not show their pattern.
    """
    is_token = batch.is_token.to(model.device)
    with ExitStack() as stack:
        stack.enter_context(_eager(model))
        for layer, name in attention_modules(model):
            handle = model.get_submodule(name).register_forward_hook(_hook(layer, is_token, on_layer), with_kwargs=True)
            stack.callback(handle.remove)
        run_model(model, batch)


def run_model(model: PreTrainedModel, batch: Batch) -> None:
    """Run a model over a batch, for what its hooks see on the way."""
    # Nobody looks at the logits: the head is run on a single position.
    first = torch.zeros(1, dtype=torch.int64, device=model.device)
    is_token = batch.is_token.to(model.device)
    with torch.no_grad():
        scored_logits(model, first, input_ids=batch.input_ids.to(model.device), attention_mask=is_token.long())


def packed_pattern(layer: LayerPattern) -> Float[Tensor, "num_visible head"]:
    """The visible part of a pattern, which is all of it, as a table."""
    return layer.pattern.transpose(1, 2).transpose(2, 3)[layer.visible]


def unpacked_pattern(
    packed: Float[Tensor, "num_visible head"], visible: Bool[Tensor, "batch query_pos key_pos"]
) -> Float[Tensor, "batch head query_pos key_pos"]:
    """The pattern that `packed_pattern` made a table of; zero where nothing is visible."""
    pattern = packed.new_zeros(*visible.shape, packed.shape[1])
    pattern[visible] = packed
    return pattern.permute(0, 3, 1, 2)


@contextmanager
def _eager(model: PreTrainedModel) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def attention_modules(model: PreTrainedModel) -> list[tuple[int, str]]:
    """The names of the layers' attention modules with the index of the layer, in order.

    Raises:
        NotAvailable: None are known.
    """
    names = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in _NAMES]
    # GPT-Neo wraps its attention in another one: the inner one shows the pattern.
    inner = [name for name in names if not any(other.startswith(f"{name}.") for other in names)]
    found = []
    for name in inner:
        layer = next((int(part) for part in name.split(".") if part.isdigit()), None)
        if layer is not None:
            found.append((layer, name))
    if not found:
        raise NotAvailable(f"no attention modules are known in {type(model).__name__}")
    return found


def _hook(
    layer: int, is_token: Bool[Tensor, "batch pos"], on_layer: Callable[[LayerPattern], None]
) -> Callable[..., Any]:
    def hand_on(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Any, ...]) -> Any:
        if not isinstance(output, tuple) or len(output) < 2 or not isinstance(output[1], Tensor):
            raise NotAvailable(f"{type(module).__name__} does not show its attention pattern")
        arguments = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        mask = arguments.get("attention_mask", arguments.get("kwargs", {}).get("attention_mask"))
        is_mask = mask is None or mask.ndim == 4
        visible = _visible(module, mask, is_token) if is_mask else None
        if visible is None or not _is_pattern(output[1], visible, is_token):
            # Linear attention shows its state, and gpt-oss keeps a share of each row for no key.
            text = f"what {type(module).__name__} shows is no share of attention for each key that a query sees"
            raise NotAvailable(text)
        on_layer(LayerPattern(layer, output[1], visible))
        # The layer above keeps its output until it is done; without the pattern that costs nothing.
        return output[0], None, *output[2:]

    return hand_on


def _is_pattern(
    shown: Tensor, visible: Bool[Tensor, "batch query_pos key_pos"], is_token: Bool[Tensor, "batch pos"]
) -> bool:
    """Whether the row of every token sums to 1 over what it sees; in half precision it is off by less than this."""
    if shown.ndim != 4 or shown.shape[2:] != visible.shape[1:]:
        return False
    sums = torch.einsum("bhqk,bqk->bqh", shown, visible.to(shown.dtype))[is_token]
    return bool(((sums - 1).abs() < 0.01).all())


def _visible(module: nn.Module, mask: Tensor | None, is_token: Bool[Tensor, "batch pos"]) -> Tensor:
    """Which keys each query may see, from the mask that the module itself was given: windows are in it."""
    num_pos = is_token.shape[1]
    visible = torch.ones(num_pos, num_pos, dtype=torch.bool, device=is_token.device).tril()
    visible = visible & is_token.unsqueeze(2)  # padding is behind every text, so no query of a text comes to its keys
    if mask is not None:
        allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        # All heads see the same keys.
        visible = visible & allowed[:, 0, :, :num_pos]
    if isinstance(module, GPTNeoSelfAttention):
        # Its window is in a buffer of its own, not in the mask.
        visible = visible & module.bias[0, :, :num_pos, :num_pos]
    return visible
