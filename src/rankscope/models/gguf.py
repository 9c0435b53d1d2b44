"""A GGUF file made into a Hugging Face folder by transformers' own reader, in a process of its own.

Run as `python -m rankscope.models.gguf FILE FOLDER`: the plan, which knows no torch, calls it so.
"""

from __future__ import annotations

import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer


def convert(file: Path, folder: Path) -> None:
    """Write a GGUF file's model, dequantised to float32, and its tokenizer as safetensors and JSON.

    Args:
        file: The GGUF file; of an architecture that transformers reads.
        folder: Where to write; made if it does not exist.

    Raises:
        ValueError, ImportError, OSError: transformers cannot read it; its message says why.
    """
    # Both are told to run no code of the file's, which has none; `dtype` because weights of 4 bits name no precision.
    options = {"gguf_file": file.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(file.parent, dtype="float32", trust_remote_code=False, **options)
    # The weights are whole again: transformers refuses to save what it takes for quantised, and would read it as such.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, trust_remote_code=False, **options)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
