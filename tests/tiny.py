"""A tiny Llama with random weights, runs and examples for it; nothing here is downloaded."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from rankscope.data.examples import TokenisedExample
from rankscope.data.targets import resolve_targets
from rankscope.methods.checks import refusal
from rankscope.methods.resolve import resolved_options
from rankscope.runs import ArmSettings, BaseSettings, RunSettings, TrainingData
from rankscope.spec import Optimization

VOCAB = 61


def tiny_llama(dtype: torch.dtype, seed: int = 0, num_layers: int = 2) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return model.to(dtype).eval().requires_grad_(False)


def examples(number: int, seed: int = 0) -> list[TokenisedExample]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index in range(number):
        length = int(torch.randint(5, 20, (1,), generator=generator))
        prompt = int(torch.randint(1, length - 2, (1,), generator=generator))
        ids = torch.randint(3, VOCAB, (length,), generator=generator).tolist()
        made.append(TokenisedExample(f"e{index}", tuple(ids), prompt))
    return made


def lora_run(rank: int, rate: float, seed: int, num_steps: int, **options: object) -> RunSettings:
    settings = {"r": rank, "lora_alpha": 2.0 * rank, "lora_dropout": 0.0, "use_rslora": False}
    arm = ArmSettings(
        label=f"lora-r{rank}", method="lora", options=settings | {"target_modules": "all-linear"} | options
    )
    return _run(arm, rate, seed, num_steps)


def method_run(method: str, rate: float, seed: int, num_steps: int, **said: object) -> RunSettings:
    """A run of any method on the tiny Llama, its options resolved as a study's are."""
    rank = said.pop("rank", None)
    assert refusal(method, [rank] if rank else [], said) is None
    arm = ArmSettings(label=method, method=method, options=resolved_options(method, rank, said))
    shapes = {name: tuple(tensor.shape) for name, tensor in tiny_llama(torch.float32).state_dict().items()}
    return _run(resolve_targets(arm, "tiny", shapes, "llama"), rate, seed, num_steps)


def full_run(rate: float, seed: int, num_steps: int, **optimization: object) -> RunSettings:
    return _run(ArmSettings(label="full", method="full", options={}), rate, seed, num_steps, **optimization)


def _run(arm: ArmSettings, rate: float, seed: int, num_steps: int, **optimization: object) -> RunSettings:
    defaults = {"batch_size": 8, "warmup_ratio": 0.2, "weight_decay": 0.01, "num_validations": 2}
    return RunSettings(
        base=BaseSettings(name="tiny", source="tiny", revision=None, fingerprint="f"),
        training_set=TrainingData(name="set", fingerprint="d", validation_fingerprint="v", num_examples=24),
        arm=arm,
        learning_rate=rate,
        seed=seed,
        num_steps=num_steps,
        optimization=Optimization(**(defaults | optimization)),
    )


def save_tiny(folder: Path) -> Path:
    tiny_llama(torch.float32).save_pretrained(folder)
    return folder
