"""A copy of a LoRA adapter cut to fewer directions, in PEFT's form, with its error."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from rankscope.audit.result import Truncation
from rankscope.errors import UserError
from rankscope.internals.pairs import difference_norm
from rankscope.internals.spectra import lora_singular_values, update_norm
from rankscope.internals.truncation import kept_directions, truncated
from rankscope.models.lora_folder import Adapted, LoraFolder
from rankscope.models.methods.folders import PEFT_PREFIX
from rankscope.models.updates import Factors, Update
from rankscope.models.weights import Tuned


def cut_adapter(tuned: Tuned, asked: float | int) -> Cut:
    """Cut the matrices of an adapter to the directions that hold a share of their energy, or to so many of them.

    Every matrix has the rank that it needs (`rank_pattern`), and the scaling is in the factors. What is no pair of
    LoRA's factors on a linear layer (modules saved whole, embeddings, experts in one tensor) is copied as it is.

    Raises:
        UserError: It is no adapter, or one with DoRA, whose update is not of low rank.
    """
    lora = tuned.lora
    if lora is None:
        mend = "its updates are of full rank; a study can train LoRA of a rank that you choose instead"
        raise UserError("only an adapter can be cut to a lower rank", where=tuned.folder, mend=mend)
    if lora.config.use_dora:
        mend = "train LoRA without use_dora at the lower rank"
        text = "DoRA rescales every row, so its update is not of low rank and cannot be cut"
        raise UserError(text, where=tuned.folder, mend=mend)
    cut = Cut(lora, {update.name: update for update in tuned.updates}, asked)
    cut.run()
    return cut


class Cut:
    """A copy of an adapter in PEFT's form, cut.

    Args:
        lora: The adapter.
        updates: Its updates by name.
        asked: As for `kept_directions`.

    Attributes:
        tensors: The copy's tensors, by the names that PEFT gives them.
        ranks: By matrix that was cut, the rank that was kept.
    """

    def __init__(self, lora: LoraFolder, updates: dict[str, Update], asked: float | int) -> None:
        self.lora = lora
        self.updates = updates
        self.asked = asked
        self.tensors: dict[str, Tensor] = {}
        self.ranks: dict[str, int] = {}
        self.copied: dict[str, tuple[int, float]] = {}
        self.num_parameters = self.num_before = 0
        self._norms: list[float] = []
        self._errors: list[float] = []

    def run(self) -> None:
        """Cut every pair, and copy everything else under PEFT's own names."""
        for module, adapted in self.lora.adapted.items():
            update = self.updates.get(module)
            is_pair = {"A", "B"} <= adapted.keys.keys() and update is not None and update.read_factors is not None
            if is_pair and update.kind != "other":
                self._cut_pair(module, adapted, update.factors)
            else:
                self._copy(module, adapted)
        for name, key in self.lora.whole.items():
            self.tensors[PEFT_PREFIX + name] = self.lora.files.read(key)
        for name, key in self.lora.base_copies.items():
            path, _, last = name.rpartition(".")
            self.tensors[f"{PEFT_PREFIX}{path}.base_layer.{last}"] = self.lora.files.read(key)
        if not self.ranks:
            what = "it has no pairs of factors that could be cut"
            raise UserError(what, where=self.lora.folder, mend="leave --truncate out, or name a LoRA adapter")

    def _cut_pair(self, module: str, adapted: Adapted, factors: Factors) -> None:
        files, dtype = self.lora.files, factors.A.dtype
        # All rows of a head that was resized, not only those that the base has.
        whole = Factors(factors.A, files.read(adapted.keys["B"]), factors.scaling)
        S = lora_singular_values(whole.A, whole.B, whole.scaling)
        k = kept_directions(S, self.asked)
        smaller = truncated(whole, k)
        smaller = Factors(smaller.A.to(dtype).contiguous(), smaller.B.to(dtype).contiguous(), 1.0)
        self.tensors[f"{PEFT_PREFIX}{module}.lora_A.weight"] = smaller.A
        self.tensors[f"{PEFT_PREFIX}{module}.lora_B.weight"] = smaller.B
        if "B_bias" in adapted.keys:
            bias = files.read(adapted.keys["B_bias"])
            self.tensors[f"{PEFT_PREFIX}{module}.lora_B.bias"] = (bias.double() * whole.scaling).to(bias.dtype)
        self.ranks[module] = smaller.rank
        self.num_parameters += smaller.A.numel() + smaller.B.numel()
        self.num_before += whole.A.numel() + whole.B.numel()
        self._norms.append(update_norm(S))
        self._errors.append(difference_norm(whole, smaller))

    def _copy(self, module: str, adapted: Adapted) -> None:
        """A module that is not cut, with the rank and alpha that it had."""
        names = {
            "A": "lora_A.weight", "B": "lora_B.weight", "B_bias": "lora_B.bias", "embedding_A": "lora_embedding_A",
            "embedding_B": "lora_embedding_B", "tokens": "token_adapter.trainable_tokens_delta",
        }  # fmt: skip
        for part, key in adapted.keys.items():
            self.tensors[f"{PEFT_PREFIX}{module}.{names[part]}"] = self.lora.files.read(key).contiguous()
        if "tokens" in adapted.keys and len(adapted.keys) == 1:
            return
        update = self.updates.get(module.replace(".base_layer", "")) or next(
            update for name, update in self.updates.items() if name.startswith(module.replace(".base_layer", "") + ".")
        )
        self.copied[module] = update.rank, self.lora.scaling(module.replace(".base_layer", ""), update.rank)

    def settings(self) -> dict[str, Any]:
        """The adapter's settings with a rank and an alpha for each module, so that a scaling of 1 comes out."""
        ranks = dict(self.ranks)
        alphas = {module: float(rank) for module, rank in ranks.items()}
        for module, (rank, scaling) in self.copied.items():
            ranks[module.replace(".base_layer", "")] = rank
            alphas[module.replace(".base_layer", "")] = scaling * rank
        common = max(set(self.ranks.values()), key=list(self.ranks.values()).count)
        return {
            **self.lora.stored,
            "r": common,
            "lora_alpha": common,
            "use_rslora": False,
            "rank_pattern": {module: rank for module, rank in ranks.items() if rank != common},
            "alpha_pattern": {module: alpha for module, alpha in alphas.items() if alpha != common},
        }

    def result(self, folder: str) -> Truncation:
        """What there is to say of the copy, once it lies in a folder."""
        notes = f"{len(self.copied)} adapted modules are no pairs on linear layers and were copied as they are"
        return Truncation(
            folder=folder,
            asked=str(self.asked),
            error=math.hypot(*self._errors) / (math.hypot(*self._norms) or 1.0),
            ranks=self.ranks,
            num_parameters=self.num_parameters,
            num_before=self.num_before,
            notes=(notes,) if self.copied else (),
        )
