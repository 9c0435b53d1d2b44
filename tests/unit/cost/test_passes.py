"""Arithmetic against torch's own counter, memory against what autograd keeps."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from rankscope.cost.loads import TrainingLoad
from rankscope.cost.memory import PROCESS_BYTES_CPU, training_bytes
from rankscope.cost.model_shapes import ModelShape
from rankscope.cost.passes import Work, backward, forward
from rankscope.cost.pieces import adapted
from rankscope.data.examples import TokenisedExample
from rankscope.models.methods.making import make_trainable
from rankscope.runs import RunSettings
from rankscope.spec import Execute
from rankscope.train.loop import accumulate_gradients
from tiny import VOCAB, full_run, lora_run, tiny_llama

ROWS, LENGTH, PROMPT = 8, 40, 24
EXAMPLES = [TokenisedExample(str(i), tuple(range(i, i + LENGTH)), PROMPT) for i in range(ROWS)]
SCORED = LENGTH - PROMPT
RUNS = [full_run(1e-3, 0, 4), lora_run(1, 1e-3, 0, 4), lora_run(16, 1e-3, 0, 4)]
SHAPE = ModelShape(
    {name: tuple(parameter.shape) for name, parameter in tiny_llama(torch.float32).named_parameters()},
    num_layers=2, d_model=32, d_mlp=48, num_heads=4, num_kv_heads=2, d_head=8, vocab_size=VOCAB, is_tied=True,
)  # fmt: skip


def plain_step(run: RunSettings) -> None:
    """A forward and a backward in plain torch and PEFT, the head at scored positions only."""
    model = whole = tiny_llama(torch.float32)
    if run.arm.rank is None:
        whole.requires_grad_(True)
    else:
        whole = get_peft_model(model, LoraConfig(r=run.arm.rank, target_modules="all-linear", task_type="CAUSAL_LM"))
    input_ids = torch.tensor([example.input_ids for example in EXAMPLES])
    hidden = model.model(input_ids=input_ids, use_cache=False).last_hidden_state[:, PROMPT - 1 : -1]
    logits = model.lm_head(hidden.reshape(-1, hidden.shape[-1]))
    torch.nn.functional.cross_entropy(logits, input_ids[:, PROMPT:].reshape(-1)).backward()


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.arm.label)
def test_arithmetic_is_what_torch_counts(run: RunSettings) -> None:
    with FlopCounterMode(display=False) as counter:
        plain_step(run)
    part = adapted(run.arm, SHAPE)
    sizes = (ROWS * LENGTH, LENGTH, ROWS * SCORED)
    expected = forward(SHAPE, *sizes, part) + backward(SHAPE, *sizes, part)
    # The counter does not know the attention kernel of a processor: two products forward, four backward.
    uncounted = 3 * 2 * 2 * ROWS * LENGTH * LENGTH * 32 * 2
    if not part.is_full:  # nothing before the first layer's queries, keys and values wants a gradient
        uncounted += 2 * ROWS * LENGTH * 32 * (32 + 16 + 16) + 2 * ROWS * LENGTH * 3 * run.arm.rank * 32
    assert counter.get_total_flops() == pytest.approx(expected.arithmetic - uncounted, rel=0.005)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.arm.label)
def test_memory_is_what_autograd_keeps(run: RunSettings) -> None:
    model = tiny_llama(torch.float32)
    pack = make_trainable(model, (run,))
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        accumulate_gradients(pack, {0: EXAMPLES}, 8192)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    measured = sum(size for pointer, size in kept.items() if pointer not in weights)
    load = TrainingLoad(ROWS, (LENGTH,) * ROWS, SCORED / LENGTH, 0, 0)
    part = adapted(run.arm, SHAPE)
    # Weights, gradients, AdamW's two values, and the copy of those that a checkpoint takes.
    owned = SHAPE.num_parameters + (5 if part.is_full else 6) * part.num_trainable
    whole = training_bytes(run, load, SHAPE, Execute(), on_gpu=False) - PROCESS_BYTES_CPU - 4 * owned
    # Before the backward there are no logits yet, which the head makes in pieces, and no layer's gradients.
    later = 3 * ROWS * SCORED * VOCAB + ROWS * LENGTH * (576 if part.is_full else 512)
    assert measured == pytest.approx(whole - 4 * later, rel=0.1)


def test_work_adds_up() -> None:
    assert Work(1.0, 2.0, 3.0) + Work(1.0, 1.0, 1.0).times(2) == Work(3.0, 4.0, 5.0)
