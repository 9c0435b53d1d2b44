"""A study in the shape of the paper's, of models and data that no test machine has."""

from __future__ import annotations

from typing import Any

from rankscope.spec import Study

PAPER: dict[str, Any] = {
    "study": "paper",
    "model": {"llama": "meta-llama/Llama-3.1-8B-Instruct", "qwen": "Qwen/Qwen2.5-7B-Instruct"},
    "train": {"medmcqa": {"source": "medmcqa", "max_examples": 10000}, "gsm8k": {"source": "gsm8k"}},
    "arms": [
        {"method": "full", "learning_rate": [5e-6, 1e-5, 3e-5]},
        {"method": "lora", "rank": [8, 16, 32, 64, 128], "learning_rate": [5e-5, 1e-4, 3e-4]},
    ],
    "optimization": {"num_epochs": 2, "batch_size": 32},
    "seeds": [0, 1, 2],
    "evaluate": {
        "medmcqa": {"source": "medmcqa", "in_domain_for": ["medmcqa"]},
        "gsm8k": {"source": "gsm8k", "in_domain_for": ["gsm8k"]},
        "mmlu": {"source": "mmlu", "role": "retention"},
        "wikitext": {"source": "wikitext2", "role": "retention"},
    },
}


def paper(**changes: Any) -> Study:
    return Study.model_validate({**PAPER, **changes})
