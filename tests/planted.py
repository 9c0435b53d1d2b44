"""A tiny base, and adapters of it with planted singular values."""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

CONFIG = LlamaConfig(
    vocab_size=40,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=32,
    tie_word_embeddings=False,
)
SCALING = 2.0


class Quiet:
    """A watcher that keeps what it is told."""

    def __init__(self):
        self.messages, self.counts = [], []

    def message(self, text):
        self.messages.append(text)

    def progress(self, what, done, total):
        self.counts.append((what, done, total))


def orthonormal(rows, columns, generator):
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64)).Q


def factors_with(values, d_out, d_in, generator):
    """`A` and `B` of an update whose singular values, after the scaling, are the ones given."""
    U, V = orthonormal(d_out, len(values), generator), orthonormal(d_in, len(values), generator)
    root = (torch.tensor(values, dtype=torch.float64) / SCALING).sqrt()
    return root[:, None] * V.T, U * root


def values_of(name, rank):
    """The singular values planted in a matrix: each matrix has its own decay."""
    layer = int(name.split("layers.")[1].split(".")[0]) if "layers." in name else 0
    decay = 0.3 + 0.2 * layer + (0.15 if "down_proj" in name else 0.0)
    return [(1.0 + layer) * decay**index for index in range(rank)]


def plant(base, folder, seed=1, **options):
    """An adapter made by PEFT, with planted singular values in every matrix."""
    rank = options.get("r", 6)
    defaults = {"r": rank, "lora_alpha": int(SCALING * rank), "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**{**defaults, **options}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, module in model.named_modules():
            if hasattr(module, "lora_A") and "default" in module.lora_A:
                A, B = module.lora_A["default"].weight, module.lora_B["default"].weight
                new_A, new_B = factors_with(values_of(name, A.shape[0]), B.shape[0], A.shape[1], generator)
                A.copy_(new_A)
                B.copy_(new_B)
    model.save_pretrained(folder)
    return model
