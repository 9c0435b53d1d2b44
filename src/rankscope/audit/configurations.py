"""Where a tuned model's configuration is not its base's, so that the same weights would compute something else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rankscope.errors import UserError, first_line
from rankscope.models.opening import read_config

_MOST = 6
# What of a configuration no weight is used by: where it is from, its precision, its training, its special tokens.
_IDLE = re.compile(
    r"_name_or_path|transformers_version|(torch_)?dtype|use_cache|architectures|auto_map|vocab_size|initializer_range"
    r"|pretraining_tp|id2label|label2id|.*dropout.*|.*_pdrop|.*token_ids?|.*aux_loss_coef|output_router_logits"
)
# By these a matrix is cut into heads, which training never changes.
_HEADS = {"num_attention_heads", "num_key_value_heads", "head_dim", "n_head", "num_heads", "n_heads"}


def configuration_notes(base: Path, tuned: Path) -> list[str]:
    """What a reader is told of a whole tuned model whose `config.json` disagrees with the base's; nothing otherwise.

    Both are read by transformers, which fills in what a file leaves out and knows older spellings.

    Raises:
        UserError: They cut their matrices into other heads, so that one of them is not of these weights.
    """
    if not (tuned / "config.json").is_file():
        return []
    before = dict(_leaves(read_config(base).to_dict()))
    try:
        after = dict(_leaves(read_config(tuned).to_dict()))
    except (ValueError, OSError, KeyError) as error:
        return [f"the tuned model's config.json was not compared with the base's: {first_line(error)}"]
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if not names:
        return []
    if other := next((name for name in names if name.rpartition(".")[2] in _HEADS), None):
        what = f"{other} is {after.get(other)}, and {before.get(other)} in the base's"
        mend = "put the config.json there that was saved with these weights, or name the base that they were tuned from"
        raise UserError(what, where=tuned / "config.json", mend=mend)
    said = [f"{name} is {after.get(name, 'unset')}, the base's {before.get(name, 'unset')}" for name in names[:_MOST]]
    more = f"; and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return [
        f"the tuned model's config.json is not the base's ({'; '.join(said)}{more}): its weights are compared as they "
        "are, but the two models use them differently; is this the base it was tuned from?"
    ]


def _leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The plain values of a configuration, each with its dotted name."""
    if not isinstance(node, dict):
        yield name, node
        return
    for key, child in node.items():
        if not _IDLE.fullmatch(str(key)):
            yield from _leaves(child, f"{name}.{key}" if name else str(key))
