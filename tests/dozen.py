"""Tiny models of some architectures with random weights, and texts for them."""

from __future__ import annotations

import copy

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

SIZE = dict(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=32,
)
_FALCON = {**SIZE, "new_decoder_architecture": False, "multi_query": True, "ffn_hidden_size": 24}
CONFIGS = {
    "llama": LlamaConfig(**SIZE),
    "qwen2": Qwen2Config(**SIZE),
    "qwen3": Qwen3Config(**SIZE, head_dim=4),
    "mistral-window": MistralConfig(**SIZE, sliding_window=3),
    "qwen2-window": Qwen2Config(**SIZE, use_sliding_window=True, sliding_window=3, max_window_layers=1),
    "gemma2": Gemma2Config(**SIZE, head_dim=4, sliding_window=3),
    "phi3": Phi3Config(**SIZE, pad_token_id=0),
    "gpt2": GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=3, n_head=4),
    "gpt-neox": GPTNeoXConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4
    ),
    "gpt-neo": GPTNeoConfig(
        vocab_size=40,
        hidden_size=16,
        num_layers=4,
        num_heads=4,
        attention_types=[[["global", "local"], 2]],
        window_size=3,
        max_position_embeddings=32,
    ),
    "opt": OPTConfig(
        vocab_size=40, hidden_size=16, ffn_dim=24, num_hidden_layers=3, num_attention_heads=4, word_embed_proj_dim=16
    ),
    "bloom": BloomConfig(vocab_size=40, hidden_size=16, n_layer=3, n_head=4),
    "gemma3": Gemma3TextConfig(**SIZE, head_dim=4, sliding_window=3, sliding_window_pattern=2),
    "falcon": FalconConfig(**_FALCON, alibi=False),
    "falcon-alibi": FalconConfig(**_FALCON, alibi=True, parallel_attn=False),
    "mixtral": MixtralConfig(**SIZE, num_local_experts=2),
}


def make_model(name, **options):
    torch.manual_seed(0)
    config = copy.deepcopy(CONFIGS[name])  # a model writes its attention implementation into it
    return AutoModelForCausalLM.from_config(config, **options).eval()


def texts(*lengths):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 40, (length,), generator=generator).tolist() for length in lengths]
