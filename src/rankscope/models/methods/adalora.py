"""AdaLoRA's two additions to a step: the orthogonality loss, and the budget that moves ranks between matrices."""

from __future__ import annotations

import torch
from peft import PeftModel
from peft.tuners.adalora import AdaLoraModel
from torch import Tensor

from rankscope.runs import RunSettings

_SMOOTHED, _UNCERTAIN, _KEPT = "importance.", "uncertainty.", "kept."


class RankBudget:
    """AdaLoRA's regulariser and rank allocator, PEFT's own, with a state that can be written to a checkpoint.

    Args:
        tuner: PEFT's AdaLoRA model, in training.
    """

    def __init__(self, tuner: AdaLoraModel) -> None:
        self._tuner = tuner
        self._config = tuner.peft_config[tuner.trainable_adapter_name]
        self._allocator = tuner.rankallocator

    @classmethod
    def of(cls, wrapped: PeftModel, run: RunSettings) -> RankBudget | None:
        """The budget of an AdaLoRA run in training; None for every other method, and where nothing is trained."""
        tuner = wrapped.base_model
        is_trained = isinstance(tuner, AdaLoraModel) and not wrapped.active_peft_config.inference_mode
        return cls(tuner) if is_trained else None

    def orthogonality(self) -> Tensor:
        """`weight * mean ||A A' - I||_F` over all `A` and, transposed, all `B`: what PEFT adds to the loss.

        PEFT adds it in a forward pass that is given labels, and ours is not.
        """
        penalties = []
        for name, parameter in self._tuner.model.named_parameters():
            if self._tuner.trainable_adapter_name not in name:
                continue
            if "lora_A" in name or "lora_B" in name:
                square = parameter @ parameter.T if "lora_A" in name else parameter.T @ parameter
                penalties.append(torch.linalg.norm(square - torch.eye(len(square)).to(square)))
        return self._config.orth_reg_weight * torch.stack(penalties).mean()

    def after_step(self, step: int) -> None:
        """Measure importance by the gradients, and prune to the step's budget; steps are counted from 0."""
        self._tuner.update_and_allocate(step)

    def state(self) -> dict[str, Tensor]:
        """The smoothed importances, their uncertainties, and which directions are kept."""
        kept = self._config.rank_pattern or {}
        return {
            **{_SMOOTHED + name: tensor for name, tensor in self._allocator.exp_avg_ipt.items()},
            **{_UNCERTAIN + name: tensor for name, tensor in self._allocator.exp_avg_unc.items()},
            **{_KEPT + name: torch.tensor(values) for name, values in kept.items()},
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave."""
        device = next(self._tuner.parameters()).device

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): state[name].to(device) for name in state if name.startswith(prefix)}

        self._allocator.exp_avg_ipt, self._allocator.exp_avg_unc = part(_SMOOTHED), part(_UNCERTAIN)
        # PEFT asks of `ipt` only whether a name is in it; its numbers are made anew in every step.
        self._allocator.ipt = {name: torch.zeros_like(value) for name, value in part(_SMOOTHED).items()}
        self._config.rank_pattern = {name: values.tolist() for name, values in part(_KEPT).items()} or None
