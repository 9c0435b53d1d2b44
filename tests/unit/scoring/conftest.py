"""A small tokenizer and tiny random models; nothing here is downloaded."""

import json

import pytest
import tokenizers
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rankscope.data.examples import Item
from rankscope.data.tokens import Tokenizer
from rankscope.runs import TaskSettings

CORPUS = [
    "Question: Which drug lowers the fever of a child? Answer: aspirin, ibuprofen or paracetamol.",
    "The court held that the statute of limitations had run before the claim was brought.",
    "Anna buys 6 boxes of 4 pens and 24 loose pens. 6 * 4 = 24. 24 + 24 = 48. #### 48",
    "Once upon a time there was a little girl who lived in a small house near the river in Berlin.",
]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 3, trainer)
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


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
            bos_token_id=0,
            eos_token_id=1,
            **options,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return LlamaForCausalLM(config).to(dtype).eval()

    return make


@pytest.fixture(scope="session")
def make_settings():
    def make(scoring="multiple_choice", answer="text", max_new_tokens=16, stop=()):
        return TaskSettings(
            name="task", scoring=scoring, kind="recall", answer=answer, max_new_tokens=max_new_tokens, stop=stop,
            fingerprint="f", num_items=1,
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
    return [
        Item(f"i{number}", prompts[number % 5], options[number % 5], options[number % 5][0], 0, "even odd".split()[number % 2])
        for number in range(10)
    ]
