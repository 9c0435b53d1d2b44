"""The updates of a LoRA folder: plain and rank-stabilised LoRA, DoRA, experts, tokens, and what was saved whole."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from rankscope.errors import UserError
from rankscope.models.base_tensors import BaseTensors, Source
from rankscope.models.lora_folder import Adapted, LoraFolder
from rankscope.models.updates import (
    NUMBERS_AT_ONCE,
    WRONG_BASE,
    Factors,
    Rows,
    Update,
    by,
    check_name,
    expert_name,
    finite,
    in_order,
    make_update,
    wrong_shape,
)
from rankscope.models.whole_tensors import WholeTensors


class LoraTensors:
    """Reads the updates of a LoRA folder.

    Args:
        base: The base's tensors.
        lora: The folder.
    """

    def __init__(self, base: BaseTensors, lora: LoraFolder) -> None:
        self.base = base
        self.lora = lora
        self.files = lora.files

    def updates(self) -> list[Update]:
        """What the adapter changed: its adapted modules, and what was saved whole beside them."""
        updates = []
        for module in sorted(self.lora.adapted, key=in_order):
            updates += self._adapted(self.lora.adapted[module])
        whole = {self._parameter(name): key for name, key in self.lora.whole.items()}
        updates += WholeTensors(self.base, self.files).updates(whole)
        return sorted(updates, key=lambda update: in_order(update.name))

    def _parameter(self, name: str) -> str:
        """The base's name of a tensor saved whole, without an adapter's name that a state dict keeps inside."""
        found = self.base.parameter(name)
        if self.base.canonical(found) not in self.base.keys:
            shorter = re.sub(r"\.[^.]+(\.(weight|bias))$", r"\1", name)
            if self.base.canonical(shorter) in self.base.keys:
                return self.base.parameter(shorter)
        return found

    def _adapted(self, adapted: Adapted) -> list[Update]:
        module = adapted.module.replace(".base_layer", "")
        parameter = self.base.parameter(f"{module}.weight")
        experts = self.base.expert_parameters(module)
        if "A" in adapted.keys and experts and self.base.canonical(parameter) not in self.base.keys:
            return self._adapted_experts(adapted, module, experts)
        check_name(self.base, self.base.canonical(parameter))
        updates = []
        if "tokens" in adapted.keys:
            updates.append(self._tokens(parameter, adapted))
        if "A" in adapted.keys or "embedding_A" in adapted.keys:
            updates.append(self._low_rank(parameter, adapted))
        if "B_bias" in adapted.keys:
            updates.append(self._low_rank_bias(module, adapted))
        return updates

    def _low_rank(self, parameter: str, adapted: Adapted) -> Update:
        source = self.base.source(self.base.canonical(parameter))
        d_out, d_in, rank = self._sizes(adapted)
        shape = self.base.shape(source)
        is_table = self.base.canonical(parameter) in self.base.tables
        if (d_out, d_in) != shape and not (is_table and d_in == shape[1]):
            raise wrong_shape(self.base, parameter, shape, (d_out, d_in))
        num_rows = min(d_out, shape[0])
        scaling = self.lora.scaling(adapted.module.replace(".base_layer", ""), rank)
        read = partial(self._factors, adapted, scaling, num_rows)
        update = make_update(self.base, parameter, (num_rows, d_in), source)
        update = replace(update, rank=rank, num_added_rows=d_out - shape[0])
        if "magnitude" not in adapted.keys:
            return replace(update, read_factors=read)
        rows = self._dora_table_rows if "embedding_A" in adapted.keys else self._dora_rows
        return replace(update, read_rows=rows(adapted, source, read))

    def _dora_rows(self, adapted: Adapted, source: Source, read: Callable[[], Factors]) -> Rows:
        """DoRA on a linear layer: `m_i / ||W0 + scaling B A||_i` stretches row i of `W0 + scaling B A`."""
        is_table = self.base.canonical(self.base.parameter(f"{adapted.module}.weight")) in self.base.tables

        def rows(start: int, stop: int) -> Tensor:
            factors = read()
            W0 = self.base.read(source, (start, stop) if is_table else None).double()
            W = factors.scaling * (factors.B[start:stop].double() @ factors.A.double())
            W += W0
            magnitude = self.files.read(adapted.keys["magnitude"]).flatten()[start:stop].double()
            W *= (magnitude / torch.linalg.vector_norm(W, dim=1))[:, None]
            return finite(W.sub_(W0), adapted.module)

        return rows

    def _dora_table_rows(self, adapted: Adapted, source: Source, read: Callable[[], Factors]) -> Rows:
        """DoRA on an embedding table: there the magnitudes are of its columns, over the whole vocabulary."""
        magnitude = partial(self.files.read, adapted.keys["magnitude"])

        def shifted(start: int, stop: int) -> tuple[Tensor, Tensor]:
            factors, W0 = read(), self.base.read(source, (start, stop)).double()
            return W0, W0 + factors.scaling * (factors.B[start:stop].double() @ factors.A.double())

        @functools.cache
        def stretch() -> Tensor:
            num_rows, d_model = self.base.shape(source)
            squares = torch.zeros(d_model, dtype=torch.float64)
            for start in range(0, num_rows, step := max(1, NUMBERS_AT_ONCE // d_model)):
                squares += shifted(start, min(start + step, num_rows))[1].square().sum(0)
            return magnitude().flatten().double() / squares.sqrt()

        def rows(start: int, stop: int) -> Tensor:
            W0, W = shifted(start, stop)
            return finite(W.mul_(stretch()).sub_(W0), adapted.module)

        return rows

    def _low_rank_bias(self, module: str, adapted: Adapted) -> Update:
        """The bias of LoRA's second matrix (`lora_bias`), which moves the layer's own."""
        name = self.base.parameter(f"{module}.bias")
        check_name(self.base, name)
        scaling = self.lora.scaling(module, self._sizes(adapted)[2])
        source, shape = self.base.source(name), self.files.shape(adapted.keys["B_bias"])
        if self.base.shape(source) != shape:
            raise wrong_shape(self.base, name, self.base.shape(source), shape)

        def rows(start: int, stop: int) -> Tensor:
            return finite(scaling * self.files.read(adapted.keys["B_bias"])[start:stop].double(), name)

        return replace(make_update(self.base, name, shape, source), read_rows=rows)

    def _tokens(self, parameter: str, adapted: Adapted) -> Update:
        """Rows of single tokens that were trained (`trainable_token_indices`), saved as they are now."""
        source = self.base.source(self.base.canonical(parameter))
        chosen = self.lora.config.trainable_token_indices
        if isinstance(chosen, dict):
            module = adapted.module
            chosen = next((ids for name, ids in chosen.items() if f".{module}".endswith(f".{name}")), None)
        shape, stored = self.base.shape(source), self.files.shape(adapted.keys["tokens"])
        if chosen is None or stored != (len(chosen), shape[1]) or max(chosen) >= shape[0]:
            text = f"the trained tokens of {adapted.module} do not fit its settings or the base"
            raise UserError(text, where=self.lora.folder, mend=WRONG_BASE)

        def rows(start: int, stop: int) -> Tensor:
            delta_W = torch.zeros(stop - start, shape[1], dtype=torch.float64)
            inside = [place for place, token in enumerate(chosen) if start <= token < stop]
            for place in inside:
                token = chosen[place]
                W0 = self.base.read(source, (token, token + 1)).double()
                delta_W[token - start] = (self.files.read_rows(adapted.keys["tokens"], place, place + 1) - W0)[0]
            return finite(delta_W, parameter)

        return replace(make_update(self.base, parameter, shape, source), read_rows=rows)

    def _adapted_experts(self, adapted: Adapted, module: str, parameters: list[str]) -> list[Update]:
        """One update an expert: PEFT keeps the factors of all experts of a parameter in one pair of tensors."""
        # Several parameters of one module are wrapped one around the other, the model's first one innermost.
        targets = self.lora.config.target_parameters or ()
        named = [name for name in parameters if any(f".{name}".endswith(f".{target}") for target in targets)]
        depth = adapted.module.count(".base_layer")
        parameter = dict(enumerate(reversed(named or parameters))).get(depth)
        if parameter is None:
            mend = "name in target_parameters of adapter_config.json what the weights belong to, or save it again"
            raise UserError(f"no parameter of {module} is adapted by its settings", where=self.lora.folder, mend=mend)
        sources = self.base.expert_sources(parameter)
        number = len(sources)
        d_out, d_in, ranks = self._sizes(adapted)
        if ranks % number:
            raise wrong_shape(self.base, parameter, (number, *self.base.shape(sources[0])), (ranks, d_out, d_in))
        rank = ranks // number
        scaling = self.lora.scaling(module, rank)

        def factors(expert: int) -> Factors:
            A = self.files.read_rows(adapted.keys["A"], expert * rank, (expert + 1) * rank)
            # PEFT's order: experts run fastest along the columns of B, slowest along the rows of A.
            B = self.files.read(adapted.keys["B"]).reshape(d_out, rank, number)[:, :, expert]
            return Factors(finite(A, parameter), finite(B, parameter), scaling)

        updates = []
        for expert, source in enumerate(sources):
            if self.base.shape(source) != (d_out, d_in):
                raise wrong_shape(self.base, parameter, self.base.shape(source), (d_out, d_in))
            name = expert_name(parameter, expert)
            update = make_update(self.base, name, (d_out, d_in), source)
            updates.append(replace(update, rank=rank, read_factors=partial(factors, expert)))
        return updates

    def _sizes(self, adapted: Adapted) -> tuple[int, int, int]:
        """d_out, d_in and rank as the tensors have them, whatever `rank_pattern` made of `r`."""
        if "A" in adapted.keys:
            A, B = self.files.shape(adapted.keys["A"]), self.files.shape(adapted.keys["B"])
        else:
            # (rank, vocab) and (d_model, rank); the table is (vocab, d_model), so their roles swap and transpose.
            B, A = self.files.shape(adapted.keys["embedding_A"]), self.files.shape(adapted.keys["embedding_B"])
            A, B = A[::-1], B[::-1]
        if len(A) != 2 or len(B) != 2 or 0 in (*A, *B):
            text = f"the factors of {adapted.module} are {by(A)} and {by(B)}: they were saved in part only"
            mend = "gather the shards (DeepSpeed ZeRO-3, FSDP) before save_pretrained"
            raise UserError(text, where=self.lora.folder, mend=mend)
        if A[0] != B[1]:
            text = f"the factors of {adapted.module} do not fit each other: {by(A)} and {by(B)}"
            raise UserError(text, where=self.lora.folder, mend="save the adapter again")
        return B[0], A[1], A[0]

    def _factors(self, adapted: Adapted, scaling: float, num_rows: int) -> Factors:
        if "A" in adapted.keys:
            A, B = self.files.read(adapted.keys["A"]), self.files.read(adapted.keys["B"])
        else:
            A, B = self.files.read(adapted.keys["embedding_B"]).T, self.files.read(adapted.keys["embedding_A"]).T
        return Factors(finite(A, adapted.module), finite(B, adapted.module)[:num_rows], scaling)
