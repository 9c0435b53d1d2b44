"""Where a tuned model's configuration is not its base's, so that the same weights would compute something else."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from rankscope.errors import UserError, first_line
from rankscope.models.opening import read_config

_MOST_NAMED = 6
# What of a configuration no weight is used by: where it is from, its precision, its training, its special tokens.
_IDLE = re.compile(
    r"_name_or_path|transformers_version|(torch_)?dtype|use_cache|architectures|auto_map|vocab_size|initializer_range"
    r"|pretraining_tp|id2label|label2id|.*dropout.*|.*_pdrop|.*token_ids?|.*aux_loss_coef|output_router_logits"
)
# By these a matrix is cut into heads, which training never changes.
_HEADS = {"num_attention_heads", "num_key_value_heads", "num_kv_heads", "head_dim", "n_head", "num_heads", "n_heads"}


def configuration_notes(base: Path, tuned: Path) -> list[str]:
    """What a reader is told of a whole tuned model whose `config.json` disagrees with the base's; nothing otherwise.

    Both are read by transformers, which fills in what a file leaves out and knows older spellings.

    Raises:
        UserError: They cut their matrices into other heads, so that one of them is not of these weights.
    """
    if not (tuned / "config.json").is_file():
        return []
    base_config = read_config(base)
    before = dict(_leaves(base_config.to_dict()))
    try:
        after = dict(_leaves(read_config(tuned).to_dict()))
    except (ValueError, OSError, KeyError) as error:
        return [f"the tuned model's config.json was not compared with the base's: {first_line(error)}"]
    known = _known(base_config) | _said(before) & _said(after)
    names = [
        name for name in {**before, **after} if before.get(name) != after.get(name) and name.partition(".")[0] in known
    ]
    if not names:
        return []
    if other := next((name for name in names if name.rpartition(".")[2] in _HEADS), None):
        what = f"{other} is {after.get(other)}, and {before.get(other)} in the base's"
        mend = "put the config.json there that was saved with these weights, or name the base that they were tuned from"
        raise UserError(what, where=tuned / "config.json", mend=mend)
    said = [
        f"{name} is {after.get(name, 'unset')}, the base's {before.get(name, 'unset')}" for name in names[:_MOST_NAMED]
    ]
    more = f"; and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return [
        f"the tuned model's config.json is not the base's ({'; '.join(said)}{more}): its weights are compared as they "
        "are, but the two models use them differently; is this the base it was tuned from?"
    ]


def _known(config: PretrainedConfig) -> set[str]:
    """What a configuration's class reads; a file may hold more, which transformers keeps and no model asks for."""
    return {*inspect.signature(type(config)).parameters, *PretrainedConfig().to_dict(), "quantization_config"}


def _said(leaves: dict[str, Any]) -> set[str]:
    return {name.partition(".")[0] for name, value in leaves.items() if value is not None}


def _with_heads(node: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the numbers of its heads, which follow from others where it leaves them out."""
    heads, width = node.get("num_attention_heads"), node.get("hidden_size")
    if not (isinstance(heads, int) and heads > 0 and isinstance(width, int)):
        return node
    derived = {"num_key_value_heads": heads, "head_dim": width // heads}
    said = node | {key: value for key, value in derived.items() if node.get(key) is None}
    if "num_kv_heads" in node and node.get("multi_query") and not node.get("new_decoder_architecture"):
        said["num_kv_heads"] = 1  # whatever a Falcon's file says
    return said


def _leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The plain values of a configuration, each with its dotted name."""
    if not isinstance(node, dict):
        yield name, node
        return
    for key, child in _with_heads(node).items():
        if not _IDLE.fullmatch(str(key)):
            yield from _leaves(child, f"{name}.{key}" if name else str(key))
