"""Methods that put virtual tokens before every text: PEFT's model as one whose positions are the text's alone."""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from peft.utils import PeftType
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput


class PromptModel(PreTrainedModel):
    """A causal model with virtual tokens in front; who calls it sees neither them nor their logits.

    Texts go through PEFT's own forward. Generation needs padding on the left and positions that do not count it,
    which PEFT's forward does not take; there the virtual tokens, PEFT's too, are put in front here.

    Args:
        wrapped: PEFT's model of a prompt method.
    """

    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, wrapped: PeftModel) -> None:
        base: PreTrainedModel = wrapped.get_base_model()
        config = copy.deepcopy(base.config)
        super().__init__(config)
        self.peft = wrapped
        self._num_virtual: int = wrapped.active_peft_config.num_virtual_tokens
        self._has_cached_prompt = wrapped.active_peft_config.peft_type == PeftType.PREFIX_TUNING
        text = self.config.get_text_config()
        # Virtual tokens take up positions: so many fewer are left for a text.
        if getattr(text, "max_position_embeddings", None):  # ALiBi models have no such key
            text.max_position_embeddings -= self._num_virtual
        self._num_tokens = 0
        self._head_hook = self.get_output_embeddings().register_forward_pre_hook(self._drop_virtual)

    @property
    def dtype(self) -> torch.dtype:
        """The base's; virtual tokens may be held in another one."""
        return self.peft.get_base_model().dtype

    def get_output_embeddings(self) -> nn.Module:
        """The base's output head."""
        return self.peft.get_base_model().get_output_embeddings()

    def get_input_embeddings(self) -> nn.Module:
        """The base's embeddings."""
        return self.peft.get_base_model().get_input_embeddings()

    def forward(
        self,
        input_ids: Int[Tensor, "batch pos"],
        attention_mask: Int[Tensor, "batch seen"] | None = None,
        position_ids: Int[Tensor, "batch pos"] | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
    ) -> ModelOutput:
        """The logits of the text's positions.

        Args:
            input_ids: The text; the virtual tokens are not in it.
            attention_mask: Of the text and what was generated before; given when generating.
            position_ids: In the text; given when generating.
            past_key_values: What an earlier call with `use_cache` returned.
            use_cache: Whether the call is the first or a later step of a generation.
        """
        self._num_tokens = input_ids.shape[1]
        if not use_cache:
            return self.peft(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return self._generate(input_ids, attention_mask, position_ids, past_key_values)

    def remove(self) -> None:
        """Leave the base as it was."""
        self._head_hook.remove()

    def _generate(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past_key_values: Any
    ) -> ModelOutput:
        base, batch = self.peft.get_base_model(), input_ids.shape[0]
        inputs: dict[str, Any] = {"input_ids": input_ids, "past_key_values": past_key_values}
        positions = self._num_virtual + position_ids
        if past_key_values is None and self._has_cached_prompt:
            inputs["past_key_values"] = self.peft.get_prompt(batch, max_cache_len=-1)
        elif past_key_values is None:
            tokens = base.get_input_embeddings()(input_ids)
            prompts = self.peft.get_prompt(batch_size=batch).to(tokens.dtype)
            inputs = {"inputs_embeds": torch.cat([prompts, tokens], dim=1)}
            before = torch.arange(self._num_virtual, device=input_ids.device).expand(batch, -1)
            positions = torch.cat([before, positions], dim=1)
        virtual = attention_mask.new_ones(batch, self._num_virtual)
        mask = torch.cat([virtual, attention_mask], dim=1)
        return base(attention_mask=mask, position_ids=positions, use_cache=True, **inputs)

    def _drop_virtual(self, _head: nn.Module, arguments: tuple[Float[Tensor, "batch all d_model"]]) -> tuple[Tensor]:
        """Virtual positions are not scored, so the head never sees them; it runs before other hooks on the head."""
        return (arguments[0][:, -self._num_tokens :],)
