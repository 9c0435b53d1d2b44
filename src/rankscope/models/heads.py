"""The output head at chosen positions only and in chunks: no tensor of batch x length x vocabulary is ever made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional
from transformers import PreTrainedModel

# Logits held at once: 64 MiB in float32. Fewer make the products of a processor narrow and slow.
_MAX_LOGITS = 2**24
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_TOLERANCE_HALF = 0.1


@dataclass(frozen=True)
class _Head:
    """How an architecture makes logits of the hidden states that enter its head: scaled, then capped.

    Attributes:
        is_known: False where the model's own logits came out otherwise; then its own forward has to make them.
    """

    scale: float
    cap: float | None
    is_known: bool = True

    def logits(self, model: PreTrainedModel, hidden: Float[Tensor, "scored d_model"]) -> Float[Tensor, "scored vocab"]:
        logits = model.get_output_embeddings()(hidden)
        logits = logits if self.scale == 1.0 else logits * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


_HEADS: WeakKeyDictionary[PreTrainedModel, _Head] = WeakKeyDictionary()


def is_plain(model: PreTrainedModel) -> bool:
    """Whether a model is one of transformers' own, and no wrapper that has to see whole rows (virtual tokens)."""
    # A model in parts is of a class that FSDP has made of its own.
    own = next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))
    return own.__module__.startswith("transformers.")


def find_head(model: PreTrainedModel) -> None:
    """Find out how a base makes its logits before adapters are in it, whose dropout would draw and make a difference.

    Args:
        model: A causal model.
    """
    if model not in _HEADS:
        first = torch.zeros(1, dtype=torch.long, device=model.device)
        scored_log_likelihoods(model, first, first, first, input_ids=torch.arange(3, device=model.device)[None])


def scored_losses(
    model: PreTrainedModel,
    positions: Int[Tensor, " scored"],
    targets: Int[Tensor, " scored"],
    weights: Float[Tensor, " scored"],
    **inputs: Any,
) -> tuple[Float[Tensor, ""], Float[Tensor, " scored"]]:
    """Run a causal model and return the weighted sum of its losses at some positions, ready for `backward`.

    The head's logits and their gradients exist for one chunk of positions at a time: the gradient is taken while a
    chunk is there, so nothing is computed twice.

    Args:
        model: Any causal model of transformers whose head is a module.
        positions: Indices into batch x length, row by row. The logits at a position predict the token after it.
        targets: That token.
        weights: The share of each position in the sum.
        **inputs: `input_ids` of shape batch x length, and what else the model's forward takes.

    Returns:
        The sum, and each position's -ln p in nats (float32 or better), which carries no gradient.
    """
    head, hidden = _head_and_hidden(model, positions, inputs)
    if hidden is None:
        nll = negative_log_likelihoods(_own_logits(model, positions, inputs), targets)
        return (nll * weights).sum(), nll.detach()
    parameters = [parameter for parameter in model.get_output_embeddings().parameters() if parameter.requires_grad]
    return _WeightedLoss.apply(lambda h: head.logits(model, h), _width(model), hidden, targets, weights, *parameters)


def scored_log_likelihoods(
    model: PreTrainedModel,
    positions: Int[Tensor, " scored"],
    which: Int[Tensor, " targets"],
    targets: Int[Tensor, " targets"],
    **inputs: Any,
) -> Float[Tensor, " targets"]:
    """Run a causal model and return ln p of targets at some positions, in nats; no gradient.

    Args:
        model: Any causal model of transformers whose head is a module.
        positions: Indices into batch x length. Each costs a row of logits, however many targets it has.
        which: For each target, the index of its position in `positions`; ascending.
        targets: Token ids.
        **inputs: `input_ids` of shape batch x length, and what else the model's forward takes.
    """
    with torch.no_grad():
        head, hidden = _head_and_hidden(model, positions, inputs)
        if hidden is None:
            return _log_likelihoods(_own_logits(model, positions, inputs), which, targets)
        values = []
        for start, stop in _chunks(len(positions), model):
            first, last = torch.searchsorted(which, torch.tensor([start, stop], device=which.device)).tolist()
            logits = head.logits(model, hidden[start:stop])
            values.append(_log_likelihoods(logits, which[first:last] - start, targets[first:last]))
        return torch.cat(values)


def scored_logits(
    model: PreTrainedModel, positions: Int[Tensor, " scored"], **inputs: Any
) -> Float[Tensor, "scored vocab"]:
    """Run a causal model and return its logits at the given positions, all of them at once.

    Args:
        model: Any causal model of transformers whose head is a module.
        positions: Indices into batch x length, row by row.
        **inputs: `input_ids` of shape batch x length, and what else the model's forward takes.
    """
    return _own_logits(model, positions, inputs)


def negative_log_likelihoods(
    logits: Float[Tensor, "scored vocab"], targets: Int[Tensor, " scored"]
) -> Float[Tensor, " scored"]:
    """-ln p of each target under its row of logits, in nats, computed in float32 or better."""
    return functional.cross_entropy(_wide(logits), targets, reduction="none")


class _WeightedLoss(torch.autograd.Function):
    """The weighted sum of losses over chunks, whose gradient is taken chunk by chunk in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_of: Callable[[Tensor], Tensor],
        width: int,
        hidden: Tensor,
        targets: Tensor,
        weights: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        grads = [torch.zeros_like(tensor) for tensor in (hidden, *parameters)]
        values = []
        for start in range(0, len(hidden), width):
            chunk = slice(start, start + width)
            with torch.enable_grad():
                part = hidden[chunk].detach().requires_grad_()
                nll = negative_log_likelihoods(logits_of(part), targets[chunk])
                loss = (nll * weights[chunk]).sum()
            # Of adapters in the head only those take part whose rows are here.
            found = torch.autograd.grad(loss, [part, *parameters], allow_unused=True)
            grads[0][chunk] = found[0]
            for total, grad in zip(grads[1:], found[1:], strict=True):
                if grad is not None:
                    total += grad
            values.append(nll.detach())
        ctx.save_for_backward(*grads)
        nll = torch.cat(values)
        ctx.mark_non_differentiable(nll)
        return (nll * weights).sum(), nll

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, *parameters = (saved * grad for saved in ctx.saved_tensors)
        return None, None, hidden, None, None, *parameters


def _head_and_hidden(
    model: PreTrainedModel, positions: Tensor, inputs: dict[str, Any]
) -> tuple[_Head, Float[Tensor, "scored d_model"] | None]:
    """The model's head, and what enters it at some positions; None where the model has to make its logits itself.

    The first time the model's own forward makes the logits of one position too, and they are compared.
    """
    if model not in _HEADS and not is_plain(model):
        _HEADS[model] = _Head(1.0, None, is_known=False)
    if model in _HEADS:
        head = _HEADS[model]
        return head, _hidden_states(model, positions, inputs, num_own=0)[0] if head.is_known else None
    config = model.config.get_text_config()
    # Each of these keys belongs to a few architectures (Cohere, Granite, Gemma 2) and is absent elsewhere.
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    head = _Head(float(scale), getattr(config, "final_logit_softcapping", None))
    hidden, own = _hidden_states(model, positions, inputs, num_own=1)
    with torch.no_grad():
        largest = float(own.abs().max().clamp(min=1.0))
        differences = (own - head.logits(model, hidden[:1])).abs()
    is_finite = bool(torch.isfinite(own).all())
    # A comparison with NaN is false, and where the model gives nothing finite, nothing can be told yet.
    is_half = torch.is_autocast_enabled(own.device.type)
    tolerance = _TOLERANCE_HALF if is_half else _TOLERANCE.get(model.dtype, _TOLERANCE_HALF)
    is_right = bool((differences <= tolerance * largest).all())
    if is_finite:
        _HEADS[model] = _Head(head.scale, head.cap, is_known=is_right)
    return head, hidden if is_right else None


def _own_logits(model: PreTrainedModel, positions: Tensor, inputs: dict[str, Any]) -> Tensor:
    """Logits by the model's own forward, with whatever an architecture does to them."""
    return _forward(model, lambda hidden: hidden[positions], inputs).squeeze(0)


def _hidden_states(
    model: PreTrainedModel, positions: Tensor, inputs: dict[str, Any], num_own: int
) -> tuple[Tensor, Tensor]:
    """What enters the head at some positions, and the model's own logits of the first `num_own` of them."""
    found = []

    def take(hidden: Tensor) -> Tensor:
        found.append(hidden[positions])
        return found[0][:num_own].detach()

    own = _forward(model, take, inputs)
    return found[0], own.squeeze(0).detach()


def _forward(model: PreTrainedModel, gather: Callable[[Tensor], Tensor], inputs: dict[str, Any]) -> Tensor:
    """The model's forward, its head fed with what `gather` makes of the hidden states (positions d_model)."""

    def hook(_head: torch.nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
        hidden = arguments[0]  # batch pos d_model
        return (gather(hidden.reshape(-1, hidden.shape[-1])).unsqueeze(0),)

    handle = model.get_output_embeddings().register_forward_pre_hook(hook)
    try:
        return model(use_cache=False, **inputs).logits
    finally:
        handle.remove()


def _chunks(number: int, model: PreTrainedModel) -> Iterator[tuple[int, int]]:
    """Begin and end of the stretches whose logits fit the limit."""
    width = _width(model)
    for start in range(0, number, width):
        yield start, min(start + width, number)


def _width(model: PreTrainedModel) -> int:
    return max(1, _MAX_LOGITS // model.config.get_text_config().vocab_size)


def _log_likelihoods(logits: Tensor, which: Tensor, targets: Tensor) -> Tensor:
    wide = _wide(logits)
    return wide[which, targets] - torch.logsumexp(wide, dim=-1)[which]


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
