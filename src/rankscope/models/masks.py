"""Attention masks of trees of texts: one prompt, several branches behind it, none of which sees another.

Which architectures take such a mask is a list of what was tried, because a wrong mask is silent: where a model ignores
it, branches see each other and every likelihood is a little off. The list alone is not trusted either: scoring
compares a tree with separate rows on a few items of each form (scoring/likelihoods.py).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from rankscope.data.architectures import tree_refusal


def option_tree_refusal(model: PreTrainedModel) -> str | None:
    """Why a model cannot score all options of an item in one row, or None where it can.

    Args:
        model: A plain causal model; adapters inside its modules do not matter.
    """
    config = model.config.get_text_config()
    if type(model).__module__.startswith("transformers_modules."):  # a folder's own code, whatever it is called
        return f"option trees were not tried with {type(model).__name__}, which is code of the model's folder"
    if why := tree_refusal(config.to_dict()):
        return why
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"option trees need sdpa or eager attention, not {config._attn_implementation}"
    return None


def attention_window(model: PreTrainedModel) -> int | None:
    """How many positions back the model's sliding attention sees, or None where it has none.

    Trap: a tree's branches stand further from the prompt in the row than in their texts, so a window counted along the
    row is silently wrong. Within the window there is nothing to count: trees are no deeper than this.
    """
    config = model.config.get_text_config()
    return getattr(config, "sliding_window", None)  # only architectures with windows have the key


def tree_mask(ends: Int[Tensor, "batch pos"], dtype: torch.dtype) -> Float[Tensor, "batch 1 query_pos key_pos"]:
    """The additive mask of trees: a token sees what precedes it in its own text, and the texts that this branches from.

    Additive, because a mask of booleans is right in sdpa and silently wrong in eager attention. Every token sees at
    least itself, padding included, so no row of the softmax is empty.

    Args:
        ends: For each place in the row, up to where it may be seen; see `TextTree.ends`. Of padding, the next place.
        dtype: The model's.
    """
    index = torch.arange(ends.shape[1], device=ends.device)
    seen = (index <= index[:, None]) & (index[:, None] < ends[:, None, :])
    mask = torch.zeros(seen.shape, dtype=dtype, device=ends.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min).unsqueeze(1)
