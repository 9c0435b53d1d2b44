"""Time and memory of `rankscope audit` on an adapter of a 7B model's shape, made on the spot.

`python benchmarks/audit_7b.py --folder build/audit_7b [--layers 0-3]` writes a base of 13 GB (a sparse file: layer 0 is
full of random numbers, of the other layers' matrices a strip is) and a LoRA adapter of rank 64 on all linear layers,
audits it, and prints seconds of the clock and of the processor, and the largest memory of the process.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

HIDDEN, WIDE, LAYERS, VOCAB, RANK = 4096, 11008, 32, 32000, 64
MATRICES = {
    **{f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"},
    "mlp.gate_proj": (WIDE, HIDDEN),
    "mlp.up_proj": (WIDE, HIDDEN),
    "mlp.down_proj": (HIDDEN, WIDE),
}
BYTES = 2  # bfloat16
# Of the matrices behind layer 0 so many rows are written; the rest of the file is a hole and reads as zeros.
STRIP = 256


def main() -> None:
    """Write the two folders where they are missing, and audit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--layers", help="only these layers")
    options = parser.parse_args()
    if not (options.folder / "adapter" / "adapter_config.json").is_file():
        write_base(options.folder / "base")
        write_adapter(options.folder / "adapter")
    from rankscope.cli import main as rankscope

    arguments = ["audit", options.folder / "base", options.folder / "adapter", "--out", options.folder / "out"]
    arguments += ["--layers", options.layers] if options.layers else []
    started = time.perf_counter()
    status = rankscope([str(argument) for argument in arguments])
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        f"status {status}: {time.perf_counter() - started:.0f} s, processor {usage.ru_utime + usage.ru_stime:.0f} s, "
        f"{torch.get_num_threads()} threads, peak memory {usage.ru_maxrss / 2**20:.2f} GB"
    )
    sys.exit(status)


def write_base(folder: Path) -> None:
    """A Llama of 7B in one safetensors file that takes less than a gigabyte on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "lm_head.weight": (VOCAB, HIDDEN)}
    shapes["model.norm.weight"] = (HIDDEN,)
    for layer in range(LAYERS):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in MATRICES.items()}
        kinds = ("input_layernorm", "post_attention_layernorm")
        shapes |= {f"model.layers.{layer}.{kind}.weight": (HIDDEN,) for kind in kinds}
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        size = BYTES * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(0)
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            if "_proj" in name:
                rows = shape[0] if ".layers.0." in name else STRIP
                W0 = torch.randn(rows, shape[1], generator=generator).mul_(0.02).bfloat16()
                stream.seek(8 + len(text) + header[name]["data_offsets"][0])
                stream.write(W0.view(torch.uint8).numpy().data)
        stream.truncate(8 + len(text) + offset)
    config = {"model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": WIDE, "num_hidden_layers": LAYERS,
              "num_attention_heads": 32, "vocab_size": VOCAB, "tie_word_embeddings": False}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def write_adapter(folder: Path) -> None:
    """LoRA of rank 64 on all linear layers, its directions falling off."""
    folder.mkdir(parents=True, exist_ok=True)
    generator, tensors = torch.Generator().manual_seed(1), {}
    decay = torch.exp(-torch.arange(RANK) / 12.0)
    for layer in range(LAYERS):
        for name, (d_out, d_in) in MATRICES.items():
            module = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(RANK, d_in, generator=generator).bfloat16()
            B = torch.randn(d_out, RANK, generator=generator) * decay * 1e-3
            tensors[f"{module}.lora_B.weight"] = B.bfloat16()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK,
              "target_modules": "all-linear", "base_model_name_or_path": "made-up/7b"}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    main()
