"""Arithmetic against torch's own counter, memory against what autograd keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from architectures import CONFIGS
from rankscope.cost.devices import Device
from rankscope.cost.loads import TrainingLoad
from rankscope.cost.memory import (
    CONTEXT_BYTES_GPU,
    PROCESS_BYTES_CPU,
    TRAINED_LOGITS,
    host_bytes,
    training_bytes,
)
from rankscope.cost.model_shapes import ModelShape, shape_of_folder
from rankscope.cost.passes import Work, backward, forward, halving
from rankscope.cost.pieces import adapted, train_piece
from rankscope.data.examples import TokenisedExample
from rankscope.models import heads
from rankscope.models.joined import never_join
from rankscope.models.methods.making import make_trainable
from rankscope.runs import RunSettings
from rankscope.spec import Execute
from rankscope.train.loop import accumulate_gradients
from tiny import VOCAB, full_run, lora_run, tiny_llama

ROWS, LENGTH, PROMPT = 8, 40, 24
EXAMPLES = [TokenisedExample(str(i), tuple(range(i, i + LENGTH)), PROMPT) for i in range(ROWS)]
SCORED = LENGTH - PROMPT
RUNS = [full_run(1e-3, 0, 4), lora_run(1, 1e-3, 0, 4), lora_run(16, 1e-3, 0, 4)]


def shape_of(num_layers: int) -> ModelShape:
    model = tiny_llama(torch.float32, num_layers=num_layers)
    return ModelShape(
        {name: tuple(parameter.shape) for name, parameter in model.named_parameters()},
        num_layers=num_layers, d_model=32, d_mlp=48, num_heads=4, num_kv_heads=2, d_head=8, vocab_size=VOCAB,
        is_tied=True,
    )  # fmt: skip


SHAPE, LARGER = shape_of(2), shape_of(4)


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


def in_half(run: RunSettings, bf16: bool = True) -> RunSettings:
    return run.model_copy(update={"optimization": run.optimization.model_copy(update={"bf16": bf16})})


def kept_bytes(run: RunSettings, model: PreTrainedModel, *, is_joined: bool) -> int:
    """What autograd keeps of a forward pass, weights aside."""
    if not is_joined:  # as on a GPU
        never_join(model)
    pack = make_trainable(model, (run,))
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        accumulate_gradients(pack, {0: EXAMPLES}, 8192)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    return sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in weights)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("is_joined", [False, True])
@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.arm.label)
def test_memory_of_a_layer_is_what_autograd_keeps_of_it(run: RunSettings, is_joined: bool, bf16: bool) -> None:
    """Two layers more, so that what lies before and behind layers does not count."""
    run = in_half(run, bf16)
    four, two = (kept_bytes(run, tiny_llama(torch.float32, num_layers=n), is_joined=is_joined) for n in (4, 2))
    measured = four - two
    load = TrainingLoad(ROWS, (LENGTH,) * ROWS, SCORED / LENGTH, 0, 0)
    two, four = (
        training_bytes(run, load, shape, Execute(), on_gpu=not is_joined) - 4 * owned(run, shape, is_joined)
        for shape in (SHAPE, LARGER)
    )
    assert measured == pytest.approx(four - two, rel=0.1)


def mixture(num_layers: int) -> PreTrainedModel:
    """Sixteen experts of Mixtral's proportions, of which a token goes through two."""
    options = {**CONFIGS["mixtral"][1], "num_local_experts": 16, "num_experts_per_tok": 2, "intermediate_size": 112}
    config = AutoConfig.for_model("mixtral", **options | {"num_hidden_layers": num_layers, "vocab_size": VOCAB})
    config._experts_implementation = "eager"
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


@pytest.mark.parametrize("bf16", [False, True])
def test_of_a_mixture_every_expert_is_copied_and_every_one_that_a_token_goes_through_is_kept(
    bf16: bool, tmp_path: Path
) -> None:
    """Not counted: what experts keep beside their hidden values, as copies of what goes in; 13 to 16% here."""
    run, load = in_half(RUNS[0], bf16), TrainingLoad(ROWS, (LENGTH,) * ROWS, SCORED / LENGTH, 0, 0)
    kept, forecast = [], []
    for num_layers in (4, 2):
        model, folder = mixture(num_layers), tmp_path / str(num_layers)
        model.save_pretrained(folder)
        shape = shape_of_folder(folder)
        kept.append(kept_bytes(run, model, is_joined=False))
        whole = training_bytes(run, load, shape, Execute(), on_gpu=True)
        forecast.append(whole - 4 * owned(run, shape, on_cpu=False))
    assert forecast[0] - forecast[1] == pytest.approx(kept[0] - kept[1], rel=0.2)


def test_all_experts_of_a_mixture_are_copied_to_bfloat16_once_a_pass() -> None:
    experts = {"model.layers.0.mlp.experts.gate_up_proj": (8, 6, 4), "model.layers.0.mlp.experts.down_proj": (8, 4, 3)}
    shape = replace(SHAPE, tensors={**SHAPE.tensors, **experts}, expert_share=1 / 4)
    moved = halving(shape).moved - halving(SHAPE).moved
    assert moved == 1.5 * (8 * 6 * 4 + 8 * 4 * 3), "read in float32, written at half the width"


def owned(run: RunSettings, shape: ModelShape, on_cpu: bool) -> int:
    """Weights, gradients, AdamW's two values, and on a processor the copy of those that a checkpoint takes."""
    part = adapted(run.arm, shape)
    times = (3 if part.is_full else 4) + (2 if on_cpu else 0)
    return shape.num_parameters + times * part.num_trainable


def test_the_head_makes_as_many_logits_at_a_time_as_the_forecast_says() -> None:
    assert TRAINED_LOGITS == heads._MAX_LOGITS


# Of the tiny Llama: what lies outside of layers, and the layers.
OUTSIDE, LAYERS = VOCAB * 32 + 32, 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32)


@pytest.mark.parametrize(("shard", "offload"), [(2, False), (4, False), (2, True), (1, True)])
def test_a_model_in_parts_holds_its_part_and_what_is_whole_at_a_time(shard: int, offload: bool) -> None:
    run, execute = RUNS[0], Execute(shard=shard, cpu_offload=offload)
    load = TrainingLoad(0, (LENGTH,) * 100, 0.0, 0, 0)
    one, parts = (training_bytes(run, load, SHAPE, it, on_gpu=True) for it in (Execute(), execute))
    assert SHAPE.num_parameters == OUTSIDE + LAYERS
    # Weights, gradients and AdamW's two values; gathered are what is outside with its gradient, and of the layers two
    # with the gradient of one. Each process has its share of the rows.
    gathered = 4 * (2 * OUTSIDE + 3 * LAYERS / 2)
    activations = one - CONTEXT_BYTES_GPU - 4 * 4 * (OUTSIDE + LAYERS) - 4 * 2 * VOCAB * 32
    held = 0 if offload else 4 * 4 * (OUTSIDE + LAYERS) / shard
    expected = CONTEXT_BYTES_GPU + held + gathered + activations / shard + 4 * 2 * VOCAB * 32
    assert parts == pytest.approx(expected, abs=2)
    lora = [training_bytes(RUNS[2], load, SHAPE, it, on_gpu=True) for it in (Execute(), execute)]
    assert lora[0] == lora[1], "an adapter is trained in one process"


@pytest.mark.parametrize(
    ("execute", "optim", "a_parameter"),
    [
        ({}, "adamw", 4 * 2),  # AdamW's two values, copied for a checkpoint
        ({"shard": 2}, "adamw", 4 * (1 + 2 + 2)),  # whole, and the copy of the larger file
        ({"cpu_offload": True}, "adamw", 4 * (1 + 1 + 2) + 4 * (1 + 2 + 2)),  # with weights, gradients, AdamW's values
        ({"shard": 4, "cpu_offload": True}, "adamw", 4 * (1 + 1 + 2) + 4 * (1 + 2 + 2)),
        ({"cpu_offload": True}, "adamw_8bit", 4 * (1 + 1) + 2 * (1 + 4 / 256) + 4 * (1 + 2 + 2)),
    ],
)
def test_what_gpus_leave_to_their_machine(execute: dict, optim: str, a_parameter: float) -> None:
    run = RUNS[0].model_copy(update={"optimization": RUNS[0].optimization.model_copy(update={"optim": optim})})
    said, size = Execute(**execute), OUTSIDE + LAYERS
    processes = said.shard * PROCESS_BYTES_CPU
    assert host_bytes(run, SHAPE, said) == pytest.approx(processes + a_parameter * size, abs=2)
    assert host_bytes(RUNS[1], SHAPE, said) == processes + 4 * size, "a base with a small adapter: as it is read"


def test_a_pack_holds_one_base_and_of_all_else_as_many_as_it_has_runs() -> None:
    load, run = TrainingLoad(0, (LENGTH,) * 100, SCORED / LENGTH, 0, 0), RUNS[2]
    once = CONTEXT_BYTES_GPU + 4 * SHAPE.num_parameters
    one, four = (training_bytes(run, load, SHAPE, Execute(), on_gpu=True, together=n) - once for n in (1, 4))
    assert one > 16 * adapted(run.arm, SHAPE).num_trainable
    assert four == pytest.approx(4 * one, abs=4)


def test_on_processors_the_first_process_has_a_whole_checkpoint_beside_its_part() -> None:
    load, size = TrainingLoad(0, (LENGTH,) * 100, 0.0, 0, 0), OUTSIDE + LAYERS
    found = {n: training_bytes(RUNS[0], load, SHAPE, Execute(shard=n), on_gpu=False) for n in (1, 2, 4)}
    head = 4 * 2 * VOCAB * 32
    activations = found[1] - PROCESS_BYTES_CPU - 4 * (4 + 2) * size - head
    for shard in (2, 4):
        # Whole are the weights, AdamW's two values, and the copy of those two that is written.
        whole = 4 * (1 + 2 + 2) * size + 4 * (2 * OUTSIDE + 3 * LAYERS / 2) + head
        assert found[shard] == pytest.approx(PROCESS_BYTES_CPU + whole + (4 * 4 * size + activations) / shard, abs=2)


def test_states_in_8_bits_take_a_byte_each_and_four_for_every_block() -> None:
    load, run = TrainingLoad(0, (LENGTH,) * 100, 0.0, 0, 0), RUNS[0]
    eight = run.model_copy(update={"optimization": run.optimization.model_copy(update={"optim": "adamw_8bit"})})
    whole, less = (training_bytes(it, load, SHAPE, Execute(), on_gpu=True) for it in (run, eight))
    assert whole - less == pytest.approx((OUTSIDE + LAYERS) * 2 * (4 - 1 - 4 / 256), abs=2)


def test_gradient_checkpointing_keeps_one_tensor_a_layer() -> None:
    load = TrainingLoad(0, (LENGTH,) * 100, 0.0, 0, 0)
    kept = [
        training_bytes(RUNS[0], load, SHAPE, Execute(gradient_checkpointing=on), on_gpu=True) for on in (False, True)
    ]
    layer = 4 * (6 * 32 + 2 * (32 + 16) + 4 * 48)
    # Of three layers' activations (one has its gradients) one is left, and the inputs of both.
    assert kept[0] - kept[1] == pytest.approx(8 * LENGTH * (3 * layer - layer - 2 * 4 * 32), abs=2)


@pytest.mark.parametrize("run", [RUNS[0], RUNS[2]], ids=lambda run: run.arm.label)
def test_what_bfloat16_checkpointing_and_parts_do_to_the_time_of_a_run(run: RunSettings) -> None:
    """On a device that does one operation a second, four in bfloat16, and moves values in no time."""
    device = Device("d", arithmetic=1.0, moved=1e30, operation_seconds=0.0, memory_bytes=1, half_arithmetic=4.0)
    load = TrainingLoad(0, (LENGTH,) * 100, SCORED / LENGTH, 0, 0)
    part, tokens, steps = adapted(run.arm, SHAPE), 8 * LENGTH, run.num_steps

    def seconds(it: RunSettings, **execute: object) -> float:
        return train_piece(it, load, SHAPE, device, Execute(**execute)).seconds

    whole, again = seconds(run), seconds(run, gradient_checkpointing=True)
    layers = 2 * tokens * (SHAPE.num_multiplied + part.num_multiplied) + 2 * 2 * tokens * LENGTH * 32 * 2
    assert again - whole == pytest.approx(steps * layers, rel=1e-6)
    assert seconds(in_half(run)) == pytest.approx(whole / 4, rel=1e-4)
    shared = seconds(run, shard=2)
    assert shared == pytest.approx(whole / 2 if part.is_full else whole, rel=1e-4)


def test_a_model_in_parts_exchanges_weights_twice_and_gradients_once() -> None:
    device = Device("d", arithmetic=1e30, moved=1e30, operation_seconds=0.0, memory_bytes=1)
    load = TrainingLoad(0, (LENGTH,) * 100, SCORED / LENGTH, 0, 0)
    run = RUNS[0]
    times = {n: train_piece(run, load, SHAPE, device, Execute(shard=n)).seconds for n in (1, 2, 4)}
    sent = 3 * 4 * (OUTSIDE + LAYERS) / 20e9 * run.num_steps
    assert times[2] - times[1] == pytest.approx(sent / 2, rel=1e-3)
    assert times[4] - times[1] == pytest.approx(sent * 3 / 4, rel=1e-3)


def test_a_model_in_the_hosts_memory_is_updated_at_the_hosts_speed() -> None:
    """A GPU that moves a value a second has nothing more to do for AdamW, and the host does not get faster by GPUs."""
    load, run, size = TrainingLoad(0, (LENGTH,) * 100, SCORED / LENGTH, 0, 0), RUNS[0], OUTSIDE + LAYERS
    slow, fast = (Device("d", 1e30, moved, 0.0, memory_bytes=1) for moved in (1.0, 1e30))
    saved = {
        device.moved: train_piece(run, load, SHAPE, device, Execute()).seconds
        - train_piece(run, load, SHAPE, device, Execute(cpu_offload=True)).seconds
        for device in (slow, fast)
    }
    # The norm and the clipping of gradients, and AdamW with its two values: eleven values each, of four bytes.
    host, link = 11 * 4 * size / 50e9, 3 * 4 * size / 20e9
    assert saved[1.0] == pytest.approx(11 * size * run.num_steps, rel=1e-6)
    assert -saved[1e30] == pytest.approx((host + link) * run.num_steps, rel=1e-3)
    two, offloaded = (
        train_piece(run, load, SHAPE, fast, Execute(shard=2, cpu_offload=on)).seconds for on in (False, True)
    )
    assert offloaded - two == pytest.approx((host + link / 2) * run.num_steps, rel=1e-3)
    lora, same = (train_piece(RUNS[2], load, SHAPE, slow, Execute(cpu_offload=on)).seconds for on in (False, True))
    assert lora == same, "an adapter lies on its device"


def test_validation_rows_are_there_beside_what_a_processor_keeps_of_a_step() -> None:
    few, many = (TrainingLoad(0, (LENGTH,) * 100, 0.5, 50, number) for number in (0, 2000))
    # One layer at a time, and logits of every second position three times.
    checked = 4 * (2000 * (4 * 32 + 2 * (32 + 16) + 3 * 48) + 3 * 1000 * VOCAB)
    sizes = {
        on_gpu: [training_bytes(RUNS[0], load, SHAPE, Execute(), on_gpu=on_gpu) for load in (few, many)]
        for on_gpu in (False, True)
    }
    assert sizes[False][1] - sizes[False][0] == pytest.approx(checked, abs=2)
    assert 0 < sizes[True][1] - sizes[True][0] < checked, "a GPU's allocator gives one what the other had"


def test_work_adds_up() -> None:
    assert Work(1.0, 2.0, 3.0) + Work(1.0, 1.0, 1.0).times(2) == Work(3.0, 4.0, 5.0)
