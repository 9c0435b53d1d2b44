"""A small tokenizer and tiny random models; nothing here is downloaded."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rankscope.data.examples import Item
from rankscope.data.tokens import Tokenizer
from rankscope.runs import TaskSettings
from small_tokenizer import BOS, EOS, save_tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder):
    return Tokenizer.from_folder(tokenizer_folder)


@pytest.fixture(scope="session")
def make_llama(tokenizer):
    def make(dtype=torch.float64, context=128, seed=0, **options):
        config = LlamaConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=context,
            # Wide enough that random models have opinions and ties do not occur.
            initializer_range=0.3,
            bos_token_id=BOS,
            eos_token_id=EOS,
            **options,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return LlamaForCausalLM(config).to(dtype).eval()

    return make


@pytest.fixture(scope="session")
def make_settings():
    def make(scoring="multiple_choice", answer="text", max_new_tokens=16, stop=(), scorer=None):
        return TaskSettings(
            name="task", scoring=scoring, kind="recall", answer=answer, max_new_tokens=max_new_tokens, stop=stop,
            fingerprint="f", num_items=1, scorer=scorer,
        )  # fmt: skip

    return make


@pytest.fixture(scope="session")
def choice_items():
    prompts = [
        "Question: Which drug lowers the fever of a child?\nAnswer:",
        "Question: Where did the little girl live?\nAnswer:",
        "The court held that the claim",
        "Anna buys 6 boxes of 4 pens and 24 loose pens. How many pens? ",
        "",
    ]
    options = [
        (" aspirin", " ibuprofen and paracetamol together", " water"),
        (" in a small house near the river", " Berlin", " on a boat", " Berlin"),
        (" was brought", " had run before the statute"),
        ("48", "24", "6 * 4 = 24. 24 + 24 = 48"),
        ("Once upon a time", "The court"),
    ]
    pairs = [(prompt, choices) for prompt, choices in zip(prompts, options, strict=True)] * 2
    return [
        Item(f"i{number}", prompt, choices, choices[0], 0, ("even", "odd")[number % 2])
        for number, (prompt, choices) in enumerate(pairs)
    ]
