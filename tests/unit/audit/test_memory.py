"""An audit holds one matrix at a time: its memory does not follow the size of the model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

HIDDEN, WIDE, VOCAB, RANK = 2304, 4608, 64, 8
MATRICES = {
    **{f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"},
    "mlp.gate_proj": (WIDE, HIDDEN),
    "mlp.up_proj": (WIDE, HIDDEN),
    "mlp.down_proj": (HIDDEN, WIDE),
}
CODE = """
import resource, sys
from pathlib import Path
from rankscope.audit.stage import Request, run

class Quiet:
    def message(self, text): pass
    def progress(self, what, done, total): pass

for name in sys.argv[2:]:
    root = Path(sys.argv[1]) / name
    run(Request(str(root / "base"), str(root / "adapter"), root / "out"), Quiet())
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def write_sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> int:
    """A safetensors file of zeros that takes no room on the disk; returns its size in bytes."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        size = 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + offset)
    return offset


def write_models(root: Path, num_layers: int) -> int:
    base, adapter = root / "base", root / "adapter"
    base.mkdir(parents=True), adapter.mkdir()
    names = {f"model.layers.{layer}.{name}": shape for layer in range(num_layers) for name, shape in MATRICES.items()}
    norms = {f"model.layers.{i}.{kind}_layernorm.weight": (HIDDEN,) for i in range(num_layers)
             for kind in ("input", "post_attention")}  # fmt: skip
    tables = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "lm_head.weight": (VOCAB, HIDDEN)}
    weights = {f"{name}.weight": shape for name, shape in names.items()}
    size = write_sparse(base / "model.safetensors", {**weights, **norms, **tables, "model.norm.weight": (HIDDEN,)})
    config = {"model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": WIDE, "num_hidden_layers": num_layers,
              "num_attention_heads": 8, "vocab_size": VOCAB, "tie_word_embeddings": False}  # fmt: skip
    (base / "config.json").write_text(json.dumps(config))
    tensors = {}
    for name, (d_out, d_in) in names.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.ones(RANK, d_in)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.ones(d_out, RANK)
    save_file(tensors, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": RANK}))
    return size


def peaks_in_bytes(root: Path, *names: str) -> list[int]:
    """The most memory that one process has held after each of several audits, one after the other."""
    command = [sys.executable, "-c", CODE, str(root), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [int(line) * (1 if sys.platform == "darwin" else 1024) for line in done.stdout.split()]


def test_memory_does_not_follow_the_number_of_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKSCOPE_CACHE", str(tmp_path / "cache"))
    write_models(tmp_path / "small", 1)
    size = write_models(tmp_path / "large", 4)
    assert size > 8e8
    small, large = peaks_in_bytes(tmp_path, "small", "large")
    # Three layers more are 640 MB; what the allocator keeps and the pages of one matrix are far from that.
    assert large - small < size / 5
