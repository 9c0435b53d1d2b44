"""A small byte-level tokenizer that opens texts with `<s>`, trained on four sentences; nothing here is downloaded."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers

BOS, EOS = 0, 1
_SENTENCES = [
    "Question: Which drug lowers the fever of a child? Answer: aspirin, ibuprofen or paracetamol.",
    "The court held that the statute of limitations had run before the claim was brought.",
    "Anna buys 6 boxes of 4 pens and 24 loose pens. 6 * 4 = 24. 24 + 24 = 48. #### 48",
    "Once upon a time there was a little girl who lived in a small house near the river in Berlin.",
]


def save_tokenizer(folder: Path) -> Path:
    """Write tokenizer.json and tokenizer_config.json as transformers would; returns the folder."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_SENTENCES * 3, trainer)
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
