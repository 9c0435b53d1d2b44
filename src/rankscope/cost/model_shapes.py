"""The sizes of a model: from its folder, or for common models from a table, so that no hub has to be reached."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from ruamel.yaml import YAML

from rankscope.data.experts import expert_parameters, outside_linear_layers
from rankscope.data.shapes import layer_matrices, num_parameters, tensor_shapes
from rankscope.quantization import QuantizationConfig

Shapes = Mapping[str, tuple[int, ...]]
_TABLE = Path(__file__).parent / "models.yaml"


@dataclass(frozen=True)
class ModelShape:
    """What a model's cost depends on.

    Attributes:
        tensors: Every tensor's shape by name; a tied head once.
        d_mlp: Hidden values of one token in a layer's MLP; of a mixture, in all experts that it goes through.
        is_tied: The output head is the embedding table.
        expert_share: Of a mixture of experts, how many of them a token goes through, over all.
        quantization: How the matrices inside the layers are held, where not as they are.
    """

    tensors: Shapes
    num_layers: int
    d_model: int
    d_mlp: int
    num_heads: int
    num_kv_heads: int
    d_head: int
    vocab_size: int
    is_tied: bool
    expert_share: float = 1.0
    quantization: QuantizationConfig | None = None

    def base_bytes(self, width: int) -> float:
        """The weights in memory.

        Args:
            width: Bytes of a weight that is not quantised.
        """
        if self.quantization is None:
            return width * self.num_parameters
        held = sum(self.quantization.weight_bytes(*shape) for shape in self.matrices)
        return held + width * (self.num_parameters - sum(d_out * d_in for d_out, d_in in self.matrices))

    @functools.cached_property
    def adapted(self) -> dict[str, Any]:
        """What arms train of it, by the arm's settings, as far as `pieces.adapted` was asked."""
        return {}

    @functools.cached_property
    def num_parameters(self) -> int:
        """All of them, a tied head once."""
        return num_parameters(dict(self.tensors))

    @functools.cached_property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """The weights inside the layers, as (d_out, d_in)."""
        return tuple(layer_matrices(dict(self.tensors)).values())

    @functools.cached_property
    def num_multiplied(self) -> int:
        """Parameters that every token is multiplied with: those of the layers; the head sees scored positions only."""
        experts = self.expert_share * sum(expert_parameters(self.tensors).values())
        return sum(d_out * d_in for d_out, d_in in self.matrices) + round(experts)

    @functools.cached_property
    def num_in_layers(self) -> int:
        """Parameters that a batch is multiplied with inside the layers: its tokens go through all experts."""
        return sum(d_out * d_in for d_out, d_in in self.matrices) + sum(expert_parameters(self.tensors).values())


class TableEntry(BaseModel):
    """A line of models.yaml, under the names that stand there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ids: tuple[str, ...]
    form: Literal["llama", "gpt2", "neox", "phi3"]
    type: str
    parameters: int
    layers: int
    d_model: int
    d_mlp: int
    heads: int
    kv_heads: int
    d_head: int
    vocab: int
    tied: bool
    biases: bool = False
    qk_norm: bool = False
    norms: int = 2
    positions: int = 0
    characters: float = 4.2


@functools.cache
def known_models() -> dict[str, TableEntry]:
    """The table of common models by hub id."""
    document = YAML(typ="safe").load(_TABLE.read_text(encoding="utf-8"))
    entries = [TableEntry.model_validate(entry) for entry in document["models"]]
    return {name.lower(): entry for entry in entries for name in entry.ids}


def known_model(source: str) -> TableEntry | None:
    """The table's entry for a hub id, whatever its case, or None."""
    # An entry is a line: reading one of them is a hundred times faster than reading all, and `plan` is to be quick.
    lines = _TABLE.read_text(encoding="utf-8").splitlines()
    near = [line for line in lines if line.startswith("  - ") and source.lower() in line.lower()]
    entries = (TableEntry.model_validate(YAML(typ="safe").load(line)[0]) for line in near)
    return next((entry for entry in entries if source.lower() in map(str.lower, entry.ids)), None)


def shape_of_entry(entry: TableEntry) -> ModelShape:
    """The shape of a model in the table, with tensors named as its architecture names them."""
    build = {"llama": _llama, "phi3": _llama, "gpt2": _gpt2, "neox": _neox}[entry.form]
    return ModelShape(
        tensors=build(entry),
        num_layers=entry.layers,
        d_model=entry.d_model,
        d_mlp=entry.d_mlp,
        num_heads=entry.heads,
        num_kv_heads=entry.kv_heads,
        d_head=entry.d_head,
        vocab_size=entry.vocab,
        is_tied=entry.tied,
    )


def shape_of_folder(folder: Path) -> ModelShape:
    """The shape of a model on this machine, from its configuration and the headers of its files."""
    tensors = tensor_shapes(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config") or config
    matrices = layer_matrices(tensors)
    others = outside_linear_layers(tensors) | matrices.keys()
    tables = [shape for name, shape in tensors.items() if len(shape) == 2 and name not in others]
    vocab_size, d_model = max(tables, default=(1, min((min(shape) for shape in matrices.values()), default=1)))
    d_model = _first(config, ("hidden_size", "n_embd", "d_model"), d_model)
    num_heads = _first(config, ("num_attention_heads", "n_head", "num_heads"), max(1, d_model // 64))
    # A matrix that is wider than the model on one side belongs to its MLP; without any, there is none to speak of.
    d_mlp = max((max(shape) for shape in matrices.values()), default=4 * d_model)
    return ModelShape(
        tensors=tensors,
        num_layers=_first(config, ("num_hidden_layers", "n_layer", "num_layers"), _num_layers(tensors)),
        d_model=d_model,
        d_mlp=_expert_width(config) or _first(config, ("intermediate_size", "n_inner", "ffn_dim"), d_mlp),
        num_heads=num_heads,
        num_kv_heads=_first(config, ("num_key_value_heads",), num_heads),
        d_head=_first(config, ("head_dim",), max(1, d_model // num_heads)),
        vocab_size=vocab_size,
        is_tied=len(tables) < 2,
        expert_share=_first(config, ("num_experts_per_tok",), 1) / max(1, _first(config, _NUM_EXPERTS, 1)),
    )


_NUM_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def _expert_width(config: Mapping[str, object]) -> int:
    """Hidden values of a token in all experts that it goes through; 0 for a model without experts."""
    if not _first(config, _NUM_EXPERTS, 0):
        return 0
    one = _first(config, ("moe_intermediate_size", "intermediate_size"), 0)
    shared = _first(config, ("shared_expert_intermediate_size",), one * _first(config, ("n_shared_experts",), 0))
    return one * _first(config, ("num_experts_per_tok",), 1) + shared


def _first(config: Mapping[str, object], names: tuple[str, ...], default: int) -> int:
    """The first of several spellings that a configuration has; architectures do not agree on one."""
    return next((value for name in names if isinstance(value := config.get(name), int)), default)


def _num_layers(tensors: Shapes) -> int:
    numbers = [int(part) for name in tensors for part in name.split(".") if part.isdigit()]
    return max(numbers, default=0) + 1


def _llama(entry: TableEntry) -> Shapes:
    wide, narrow = entry.heads * entry.d_head, entry.kv_heads * entry.d_head
    d, d_mlp = entry.d_model, entry.d_mlp
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (wide, d),
        "self_attn.k_proj.weight": (narrow, d),
        "self_attn.v_proj.weight": (narrow, d),
        "self_attn.o_proj.weight": (d, wide),
        "mlp.gate_proj.weight": (d_mlp, d),
        "mlp.up_proj.weight": (d_mlp, d),
        "mlp.down_proj.weight": (d, d_mlp),
    }
    if entry.form == "phi3":
        layer = {
            "self_attn.qkv_proj.weight": (wide + 2 * narrow, d),
            "self_attn.o_proj.weight": (d, wide),
            "mlp.gate_up_proj.weight": (2 * d_mlp, d),
            "mlp.down_proj.weight": (d, d_mlp),
        }
    if entry.biases:
        layer |= {f"self_attn.{name}_proj.bias": (size,) for name, size in (("q", wide), ("k", narrow), ("v", narrow))}
    if entry.qk_norm:
        layer |= {"self_attn.q_norm.weight": (entry.d_head,), "self_attn.k_norm.weight": (entry.d_head,)}
    names = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
    layer |= {f"{name}.weight": (d,) for name in names[: entry.norms]}
    tensors = {"model.embed_tokens.weight": (entry.vocab, d), **_repeated("model.layers", layer, entry.layers)}
    tensors["model.norm.weight"] = (d,)
    return tensors if entry.tied else tensors | {"lm_head.weight": (entry.vocab, d)}


def _gpt2(entry: TableEntry) -> Shapes:
    d, d_mlp = entry.d_model, entry.d_mlp
    layer: dict[str, tuple[int, ...]] = {
        # Conv1D keeps (d_in, d_out).
        "attn.c_attn.weight": (d, 3 * d),
        "attn.c_proj.weight": (d, d),
        "mlp.c_fc.weight": (d, d_mlp),
        "mlp.c_proj.weight": (d_mlp, d),
        "attn.c_attn.bias": (3 * d,),
        "attn.c_proj.bias": (d,),
        "mlp.c_fc.bias": (d_mlp,),
        "mlp.c_proj.bias": (d,),
    }
    layer |= {f"{name}.{kind}": (d,) for name in ("ln_1", "ln_2") for kind in ("weight", "bias")}
    tensors = {"wte.weight": (entry.vocab, d), "wpe.weight": (entry.positions, d)}
    tensors |= _repeated("h", layer, entry.layers)
    return tensors | {"ln_f.weight": (d,), "ln_f.bias": (d,)}


def _neox(entry: TableEntry) -> Shapes:
    d, d_mlp = entry.d_model, entry.d_mlp
    sizes = {
        "attention.query_key_value": (3 * d, d),
        "attention.dense": (d, d),
        "mlp.dense_h_to_4h": (d_mlp, d),
        "mlp.dense_4h_to_h": (d, d_mlp),
    }
    layer: dict[str, tuple[int, ...]] = {f"{name}.weight": size for name, size in sizes.items()}
    layer |= {f"{name}.bias": (size[0],) for name, size in sizes.items()}
    norms = ("input_layernorm", "post_attention_layernorm")
    layer |= {f"{name}.{kind}": (d,) for name in norms for kind in ("weight", "bias")}
    tensors = {"gpt_neox.embed_in.weight": (entry.vocab, d), **_repeated("gpt_neox.layers", layer, entry.layers)}
    tensors |= {"gpt_neox.final_layer_norm.weight": (d,), "gpt_neox.final_layer_norm.bias": (d,)}
    return tensors | {"embed_out.weight": (entry.vocab, d)}


def _repeated(prefix: str, layer: Shapes, number: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.{index}.{name}": shape for index in range(number) for name, shape in layer.items()}
