"""A run in a pack follows PEFT's own training of that run alone, step by step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.nn import functional
from transformers import get_cosine_schedule_with_warmup

from rankscope.data.examples import TokenisedExample
from rankscope.data.order import batches
from rankscope.models.methods.making import load_tuned, make_trainable
from rankscope.models.methods.pack import Texts, TrainablePack
from rankscope.runs import RunSettings
from rankscope.train.loop import RunState, diverged_above, divergence, start_run, train
from solo import Silent
from tiny import VOCAB, examples, full_run, lora_run, tiny_llama

EXAMPLES = examples(24)
ACCUMULATED_TWICE = 300  # positions in a pass, so that every step of the mixed pack takes two


class Passes(Silent):
    """Notes which runs have rows in each training pass through the model: a list for every step of the loop."""

    def __init__(self, pack: TrainablePack) -> None:
        super().__init__()
        self.by_step: list[list[tuple[int, ...]]] = []
        self._route = pack.route
        pack.route = self._noted

    def wants_stop(self) -> bool:
        self.by_step.append([])  # the loop asks once before every step
        return False

    def _noted(self, members: Sequence[int], num_rows: Sequence[int], *, is_training: bool, texts: Texts = ()) -> None:
        if is_training:  # validation passes through the model too
            self.by_step[-1].append(tuple(members))
        self._route(members, num_rows, is_training=is_training, texts=texts)


def trained(
    runs: list[RunSettings], dtype: torch.dtype, max_tokens: int
) -> tuple[TrainablePack, list[RunState], list[list[tuple[int, ...]]]]:
    """Runs through our loop, and by step the runs that had rows in each pass."""
    pack = make_trainable(tiny_llama(dtype), runs)
    states = []
    for index, run in enumerate(runs):
        order = batches(len(EXAMPLES), run.optimization.batch_size, run.num_steps, run.seed)
        states.append(start_run(pack, index, EXAMPLES, EXAMPLES[:4], order))
    passes = Passes(pack)
    train(pack, states, max_tokens, passes)
    return pack, states, passes.by_step


def losses_of(state: RunState) -> list[float]:
    return [log.loss_nats_per_token for log in state.logs]


def ours(runs: list[RunSettings], dtype: torch.dtype, max_tokens: int) -> tuple[list[list[float]], list[dict]]:
    pack, states, _ = trained(runs, dtype, max_tokens)
    copies = [{k: v.detach().clone() for k, v in pack.state(i).items()} for i in range(len(runs))]
    return [losses_of(state) for state in states], copies


def reference(run: RunSettings, dtype: torch.dtype, extra_padding: int = 0) -> tuple[list[float], dict]:
    """Plain PEFT and torch, one padded batch a step, logits at every position, labels masked with -100."""
    model = tiny_llama(dtype)
    if run.arm.method == "lora":
        with torch.random.fork_rng():
            torch.manual_seed(run.seed)
            model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **run.arm.options))
        decayed = [p for p in model.parameters() if p.requires_grad]
        groups = [{"params": decayed, "weight_decay": run.optimization.weight_decay}]
    else:
        model.requires_grad_(True)
        norms = [p for p in model.parameters() if p.ndim == 1]
        others = [p for p in model.parameters() if p.ndim > 1]
        decay = run.optimization.weight_decay
        groups = [{"params": others, "weight_decay": decay}, {"params": norms, "weight_decay": 0}]
    said = run.optimization
    betas, eps = (said.adam_beta1, said.adam_beta2), said.adam_epsilon
    optimizer = torch.optim.AdamW(groups, lr=run.learning_rate, betas=betas, eps=eps)
    warmup = math.ceil(run.num_steps * run.optimization.warmup_ratio)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, run.num_steps)
    losses = []
    for batch in batches(len(EXAMPLES), run.optimization.batch_size, run.num_steps, run.seed):
        loss = reference_loss(model, [EXAMPLES[i] for i in batch], extra_padding)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for g in groups for p in g["params"]], said.max_grad_norm or math.inf)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, {k.replace(".default", ""): v for k, v in model.named_parameters() if v.requires_grad}


def reference_loss(model: torch.nn.Module, batch: list[TokenisedExample], extra_padding: int) -> torch.Tensor:
    length = max(len(example.input_ids) for example in batch) + extra_padding
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for row, example in enumerate(batch):
        number = len(example.input_ids)
        ids[row, :number] = torch.tensor(example.input_ids)
        mask[row, :number] = 1
        labels[row, example.num_prompt_tokens : number] = ids[row, example.num_prompt_tokens : number]
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1))


def mixed_pack(num_steps: int) -> list[RunSettings]:
    """Four ranks, two rates and two seeds; and a fifth run that leaves the pack halfway."""
    return [
        lora_run(1, 1e-3, seed=0, num_steps=num_steps),
        lora_run(4, 3e-3, seed=0, num_steps=num_steps),
        lora_run(16, 1e-3, seed=1, num_steps=num_steps, use_rslora=True),
        lora_run(64, 3e-3, seed=1, num_steps=num_steps),
        lora_run(8, 1e-3, seed=1, num_steps=num_steps // 2),
    ]


def assert_near(mine: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """The same names, all in float64, and no tensor further from PEFT's than 1e-8 of its length."""
    assert set(mine) == set(expected)
    for name, tensor in mine.items():
        assert tensor.dtype == expected[name].dtype == torch.float64, name
        distance = torch.linalg.vector_norm(tensor - expected[name])
        assert distance <= 1e-8 * torch.linalg.vector_norm(expected[name]), name


@pytest.mark.parametrize(
    ("max_tokens", "least", "most"),
    [(10_000, 1, 1), (ACCUMULATED_TWICE, 2, 2), (60, 4, math.inf)],
    ids=["one batch", "accumulation 2", "some rows at a time"],
)
def test_a_mixed_pack_equals_peft_alone_in_float64(tmp_path: Path, max_tokens: int, least: int, most: float) -> None:
    runs = mixed_pack(20)
    pack, states, passes = trained(runs, torch.float64, max_tokens)
    assert len(passes) == 20 and all(least <= len(step) <= most for step in passes)
    for index, (run, state) in enumerate(zip(runs, states, strict=True)):
        expected, parameters = reference(run, torch.float64)
        assert len(state.logs) == len(expected) == run.num_steps
        assert losses_of(state) == pytest.approx(expected, rel=1e-8, abs=0)
        assert_near(pack.state(index), parameters)
        pack.save(index, tmp_path / str(index))
        assert_near(load_file(tmp_path / str(index) / "adapter" / "adapter_model.safetensors"), parameters)


def test_accumulation_divides_each_runs_batch_and_not_only_the_runs() -> None:
    """Were each pass some runs' whole batches, no gradient would be a sum over two passes."""
    runs = mixed_pack(20)
    _, _, passes = trained(runs, torch.float64, ACCUMULATED_TWICE)
    for index, run in enumerate(runs):
        num_divided = sum(all(index in members for members in step) for step in passes)
        # Rows go by length, and now and then all of a batch's eight are among the shorter ones.
        assert num_divided >= 0.8 * run.num_steps


def test_losses_fall_so_that_the_comparison_means_something() -> None:
    losses, _ = ours([lora_run(16, 1e-2, seed=0, num_steps=40)], torch.float32, 10_000)
    assert losses[0][-1] < losses[0][0] - 0.3


@pytest.mark.parametrize("max_tokens", [10_000, 60], ids=["one batch", "some rows at a time"])
@pytest.mark.parametrize(
    "runs",
    [[lora_run(8, 1e-3, 0, 10)], [full_run(1e-3, 0, 10)], mixed_pack(10)],
    ids=["lora", "full", "ranks 1, 4, 16 and 64"],
)
def test_ten_steps_in_float32(runs: list[RunSettings], max_tokens: int) -> None:
    losses, _ = ours(runs, torch.float32, max_tokens)
    for run, mine in zip(runs, losses, strict=True):
        expected, _ = reference(run, torch.float32)
        assert max(abs(a - b) for a, b in zip(mine, expected, strict=True)) < 1e-5


@pytest.mark.parametrize("rate", [1e-3, 1e-2])
def test_longer_runs_in_float32_drift_no_more_than_peft_from_itself(rate: float) -> None:
    """Rounding grows from step to step: PEFT with other padding is no nearer to itself than ours is to it."""
    run = lora_run(64, rate, seed=0, num_steps=40)
    (mine,), _ = ours([run], torch.float32, 10_000)
    expected, _ = reference(run, torch.float32)
    others = [reference(run, torch.float32, extra_padding=number)[0] for number in (1, 3, 5, 7, 11, 17)]
    own_drift = max(abs(a - b) for other in others for a, b in zip(other, expected, strict=True))
    drift = max(abs(a - b) for a, b in zip(mine, expected, strict=True))
    assert expected[-1] < expected[0] - 0.2 and 0.0 < own_drift < 1e-2  # else nothing is compared
    # At the lower rate losses of about 4 drift by two or three units of float32's last place. Where a processor rounds
    # so that PEFT's happen to agree, one such unit in ours would be a multiple of nothing: two of them are always left.
    smallest = 2 * 4 * torch.finfo(torch.float32).eps
    # Of ten seeds none drifted 1.6 times as far as PEFT; a wrong gradient is off by orders of magnitude.
    assert drift <= 2.0 * max(own_drift, smallest)


@pytest.mark.parametrize(
    "said", [{}, {"adam_beta1": 0.5, "adam_beta2": 0.9, "adam_epsilon": 1e-3, "max_grad_norm": 0.0}], ids=str
)
def test_full_fine_tuning_in_float64(said: dict[str, float]) -> None:
    run = full_run(1e-3, seed=2, num_steps=20, **said)
    (mine,), (state,) = ours([run], torch.float64, 60)
    expected, parameters = reference(run, torch.float64)
    assert mine == pytest.approx(expected, rel=1e-8)
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, parameters[name], rtol=1e-6, atol=1e-10)


def test_a_saved_adapter_gives_peft_the_same_logits(tmp_path: Path) -> None:
    run = lora_run(4, 1e-2, seed=0, num_steps=5, use_rslora=True)
    model = tiny_llama(torch.float32)
    pack = make_trainable(model, [run])
    order = batches(len(EXAMPLES), 8, 5, 0)
    train(pack, [start_run(pack, 0, EXAMPLES, EXAMPLES[:4], order)], 10_000, Silent())
    ids = torch.arange(3, 20)[None]
    pack.route((0,), (1,), is_training=False)
    with torch.no_grad():
        mine = model(ids).logits
        pack.save(0, tmp_path)
        pack.close()
        untouched = model(ids).logits
        again = load_tuned(model, [run], [tmp_path])
        again.route((0,), (1,), is_training=False)
        reloaded = model(ids).logits
        again.close()
        whole = model(ids).logits
        theirs = PeftModel.from_pretrained(tiny_llama(torch.float32), tmp_path / "adapter")(ids).logits
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
    torch.testing.assert_close(mine, reloaded, rtol=0, atol=1e-6)  # folded into the base's weights
    base = tiny_llama(torch.float32)(ids).logits
    assert torch.equal(untouched, base) and torch.equal(whole, base)
    assert (mine - untouched).abs().max() > 1e-3


def test_an_untrained_adapter_changes_nothing() -> None:
    model = tiny_llama(torch.float32)
    ids = torch.arange(3, 20).repeat(2, 1)  # the same rows before and after: another batch size rounds otherwise
    with torch.no_grad():
        before = model(ids).logits
        pack = make_trainable(model, [lora_run(4, 1e-3, 0, 1), lora_run(8, 1e-3, 1, 1)])
        pack.route((0, 1), (1, 1), is_training=False)
        after = model(ids).logits
    assert torch.equal(before, after)


def test_a_run_that_diverges_leaves_the_pack_and_the_others_do_not_notice() -> None:
    good = lora_run(4, 1e-3, seed=0, num_steps=12)
    bad = lora_run(4, 1e8, seed=0, num_steps=12)
    alone, _ = ours([good], torch.float64, 10_000)
    together, _ = ours([bad, good], torch.float64, 10_000)
    assert len(together[0]) < 12
    assert together[1] == pytest.approx(alone[0], rel=1e-12)


def test_a_loss_beyond_twice_that_of_guessing_is_no_training() -> None:
    assert diverged_above(make_trainable(tiny_llama(torch.float32), [full_run(1e-3, 0, 1)])) == 2 * math.log(VOCAB)


@pytest.mark.parametrize(
    ("loss", "norm", "why"),
    [
        (7.9, 1e9, None),
        (8.1, 1.0, "loss_too_high"),
        (math.nan, math.nan, "loss_not_finite"),
        (math.inf, 1.0, "loss_not_finite"),
        (7.9, math.inf, "gradient_not_finite"),
    ],
)
def test_it_is_known_what_ended_a_run(loss: float, norm: float, why: str | None) -> None:
    assert divergence(loss, norm, 8.0) == why
