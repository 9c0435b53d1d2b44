"""A tiny random model of every architecture that rankscope is tried on; nothing here is downloaded."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCAB = 61
_SHAPE = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.1, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_GPT2 = {
    "vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.1,
    "bos_token_id": 1, "eos_token_id": 2, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1,
}  # fmt: skip
_ALL_HEADS = {key: value for key, value in _SHAPE.items() if key != "num_key_value_heads"}
_FALCON = {**_ALL_HEADS, "new_decoder_architecture": False, "multi_query": True, "bias": True}

CONFIGS: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", {**_SHAPE, "tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    "qwen2": ("qwen2", {**_SHAPE, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {**_SHAPE, "head_dim": 8}),
    "mistral": ("mistral", {**_SHAPE, "sliding_window": 6}),
    "gemma2": ("gemma2", {**_SHAPE, "head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3_text", {**_SHAPE, "head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8}),
    "phi3": ("phi3", {**_SHAPE, "sliding_window": None}),
    "gpt2": ("gpt2", _GPT2),
    "gpt_neox": ("gpt_neox", {**_ALL_HEADS, "hidden_dropout": 0.1}),
    "opt": ("opt", {**_ALL_HEADS, "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.1}),
    "falcon": ("falcon", {**_FALCON, "alibi": False}),
    "falcon, ALiBi": ("falcon", {**_FALCON, "alibi": True, "parallel_attn": False}),
    "mixtral": ("mixtral", {**_SHAPE, "num_local_experts": 4, "sliding_window": None}),
}
# Mixtures whose layers hold linear MLPs beside the experts: shared experts, and in DeepSeek a dense first layer.
SHARED: dict[str, tuple[str, dict[str, object]]] = {
    "qwen2_moe": ("qwen2_moe", {**_SHAPE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
                                "shared_expert_intermediate_size": 24, "decoder_sparse_step": 1}),
    "deepseek_v3": ("deepseek_v3", {**_ALL_HEADS, "num_key_value_heads": 4, "n_routed_experts": 4,
                                    "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
                                    "n_group": 1, "topk_group": 1, "q_lora_rank": None, "kv_lora_rank": 8,
                                    "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}),
}  # fmt: skip


# Names that are no other's: tokens_embed and positions_embed; a linear layer beside the tables.
OWN_NAMES: dict[str, tuple[str, dict[str, object]]] = {
    "openai-gpt": ("openai-gpt", _GPT2),
    "gemma3n": ("gemma3n_text", {**_SHAPE, "head_dim": 8, "vocab_size_per_layer_input": VOCAB, "laurel_rank": 4,
                                 "hidden_size_per_layer_input": 4, "num_kv_shared_layers": 0, "altup_num_inputs": 2,
                                 "layer_types": ["sliding_attention", "full_attention"],
                                 "activation_sparsity_pattern": [0.0, 0.0]}),
}  # fmt: skip


def tiny_model(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The same weights at every call."""
    model_type, options = (CONFIGS | SHARED | OWN_NAMES)[name]
    config = AutoConfig.for_model(model_type, **options)
    config._experts_implementation = "eager"  # the grouped product of experts knows no float64
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    return model.to(dtype).eval().requires_grad_(False)
