"""A base in 4 or 8 bits: what its weights stand for, and training over it as PEFT trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.loftq_utils import _low_rank_decomposition
from torch.nn import functional
from transformers import PreTrainedModel

from architectures import tiny_model
from rankscope.data.order import batches
from rankscope.methods.table import OVER_FEW_BITS
from rankscope.models.base_tensors import BaseTensors
from rankscope.models.loading import load_model
from rankscope.models.merged import read_whole
from rankscope.models.methods.making import load_tuned, make_trainable
from rankscope.models.methods.pack import ADAPTER, num_parameters
from rankscope.models.quantized import dequantized, is_quantized
from rankscope.models.weights import read_tuned
from rankscope.quantization import QuantizationConfig
from rankscope.runs import Opening, RunSettings
from rankscope.train.loop import start_run, train
from solo import EXAMPLES, Silent, losses_of, stopped_and_resumed
from tiny import lora_run, method_run, tiny_llama

pytest.importorskip("bitsandbytes", reason="the extra bitsandbytes is not installed")

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
KINDS = {"nf4": NF4, "double": {**NF4, "bnb_4bit_use_double_quant": True}, "fp4": {"load_in_4bit": True},
         "int8": {"load_in_8bit": True}}  # fmt: skip
# What methods need to be told on the tiny Llama.
OPTIONS = {
    "lora": {"rank": 4}, "adalora": {"rank": 2, "tinit": 1, "tfinal": 1, "deltaT": 1}, "vera": {"rank": 4},
    "oft": {"oft_block_size": 8}, "hira": {"rank": 2}, "pvera": {"rank": 2}, "randlora": {"rank": 4},
    "road": {"group_size": 8},
    **{key: {"num_virtual_tokens": 3} for key in ("prompt_tuning", "p_tuning", "prefix_tuning")},
}  # fmt: skip


def opening(kind: str = "nf4") -> Opening:
    return Opening(quantization_config=QuantizationConfig(**KINDS[kind]))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_llama(torch.float32).save_pretrained(folder)
    return folder


def model_of(folder: Path, kind: str = "nf4") -> PreTrainedModel:
    return load_model(folder, torch.float32, "cpu", opening(kind))


def over(run: RunSettings, kind: str = "nf4") -> RunSettings:
    return run.model_copy(update={"base": run.base.model_copy(update={"opening": opening(kind)})})


def trained(model: PreTrainedModel, runs: list[RunSettings]) -> tuple[object, list[list[float]]]:
    pack = make_trainable(model, runs)
    states = []
    for index, run in enumerate(runs):
        order = batches(len(EXAMPLES), run.optimization.batch_size, run.num_steps, run.seed)
        states.append(start_run(pack, index, EXAMPLES, EXAMPLES[:4], order))
    train(pack, states, 10_000, Silent())
    return pack, [[log.loss_nats_per_token for log in state.logs] for state in states]


def padded(chosen: list) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    length = max(len(example.input_ids) for example in chosen)
    ids, mask = torch.zeros(len(chosen), length, dtype=torch.long), torch.zeros(len(chosen), length, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, example in enumerate(chosen):
        number = len(example.input_ids)
        ids[row, :number], mask[row, :number] = torch.tensor(example.input_ids), 1
        labels[row, example.num_prompt_tokens : number] = ids[row, example.num_prompt_tokens : number]
    return ids, mask, labels


def peft_losses(folder: Path, run: RunSettings) -> list[float]:
    """PEFT and torch alone, over transformers' own 4-bit base, at a constant rate."""
    with torch.random.fork_rng():
        model = model_of(folder)
        torch.manual_seed(run.seed)
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **run.arm.options))
    assert sum(type(module).__name__ == "Linear4bit" for module in model.modules()) >= 14
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=run.learning_rate, weight_decay=run.optimization.weight_decay)
    losses = []
    for batch in batches(len(EXAMPLES), run.optimization.batch_size, run.num_steps, run.seed):
        ids, mask, labels = padded([EXAMPLES[index] for index in batch])
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        loss = functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, run.optimization.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def constant(run: RunSettings) -> RunSettings:
    settings = run.optimization.model_copy(update={"lr_scheduler": "constant", "warmup_ratio": 0.0})
    return over(run.model_copy(update={"optimization": settings}))


@pytest.mark.parametrize("kind", ["nf4", "double"])
def test_no_processor_multiplies_in_less_than_was_said(base: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Where a processor has AVX512-BF16, bitsandbytes repacks layers that are used without gradients, in bfloat16."""
    ids = torch.arange(3, 20)[None]
    found = []
    for has_it in (False, True):
        monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda answer=has_it: answer)
        with torch.no_grad():
            found.append(model_of(base, kind)(ids).logits)
    assert torch.equal(*found)


def test_modules_that_are_to_stay_as_they_are_do(base: Path) -> None:
    config = QuantizationConfig(load_in_4bit=True, llm_int8_skip_modules=("lm_head", "up_proj"))
    model = load_model(base, torch.float32, "cpu", Opening(quantization_config=config))
    left = {name.rpartition(".")[2] for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    assert left == {"lm_head", "up_proj"}


# Weights --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_is_read_as_the_numbers_that_its_layer_multiplies_with(tmp_path: Path, kind: str, name: str) -> None:
    tiny_model(name).save_pretrained(tmp_path)
    model, tensors = model_of(tmp_path, kind), BaseTensors(tmp_path, opening(kind))
    plain = BaseTensors(tmp_path)
    held = {path for path, module in model.named_modules() if is_quantized(module)}
    assert held == tensors.quantized and len(held) >= 8
    for path in held:
        source = tensors.source(f"{path}.weight")
        W0, layer = tensors.read(source), model.get_submodule(path)
        torch.testing.assert_close(W0, dequantized(layer), rtol=0, atol=1e-7)
        difference = (W0 - plain.read(plain.source(f"{path}.weight"))).abs().max()
        assert 1e-4 < difference < 0.2  # few bits are not the files' numbers, and near them
        if kind != "int8":  # whose inputs are rounded too
            x = torch.randn(5, W0.shape[1], generator=torch.Generator().manual_seed(0))
            expected = functional.linear(x, W0, layer.bias)
            torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    table = next(name for name in sorted(tensors.tables) if name in tensors.keys)
    assert torch.equal(tensors.read(tensors.source(table)), plain.read(plain.source(table)))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_zeros_and_of_the_smallest_numbers_are_what_bitsandbytes_holds(tmp_path: Path, kind: str) -> None:
    model, path = tiny_llama(torch.float32), "model.layers.0.mlp.down_proj"
    with torch.no_grad():
        weight = model.get_submodule(path).weight
        weight[3] = 0.0
        weight[4] *= 1e-6 / weight[4].abs().max()  # subnormal in 16 bits
        weight[5] = 2.0**-24
    model.save_pretrained(tmp_path)
    tensors = BaseTensors(tmp_path, opening(kind))
    W0 = tensors.read(tensors.source(f"{path}.weight"))
    held = dequantized(model_of(tmp_path, kind).get_submodule(path))
    assert torch.equal(W0[3], torch.zeros(48)) and W0[4].any()
    torch.testing.assert_close(W0, held, rtol=1e-5, atol=1e-10)


def test_four_bits_are_sixteen_values_in_every_block(base: Path) -> None:
    tensors = BaseTensors(base, opening())
    W0 = tensors.read(tensors.source("model.layers.0.mlp.down_proj.weight"))
    assert all(len(block.unique()) <= 16 for block in W0.reshape(-1, 64))


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_counted_as_numbers_and_not_as_bytes(base: Path, kind: str) -> None:
    assert num_parameters(model_of(base, kind)) == num_parameters(tiny_llama(torch.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_a_matrix_are_those_that_bitsandbytes_holds(base: Path, kind: str) -> None:
    layer = model_of(base, kind).model.layers[0].mlp.down_proj
    config = opening(kind).quantization_config
    if kind == "int8":
        layer(torch.zeros(1, 48))  # its scales are where they stay after the first forward pass
        held = layer.weight.nbytes + layer.state.SCB.nbytes
    else:
        state = layer.weight.quant_state
        held = layer.weight.nbytes + state.absmax.nbytes + (state.state2.absmax.nbytes if state.state2 else 0)
    assert config.weight_bytes(32, 48) == pytest.approx(held, abs=4)  # the outer factors are of begun blocks


# Training -------------------------------------------------------------------------------------------------------------


def test_a_pack_over_four_bits_equals_peft_over_the_same_base_step_by_step(base: Path) -> None:
    runs = [
        constant(lora_run(2, 1e-2, seed=0, num_steps=12)),
        constant(lora_run(8, 3e-3, seed=1, num_steps=12, use_rslora=True)),
        constant(lora_run(4, 1e-2, seed=2, num_steps=8, use_dora=True)),
    ]
    _, losses = trained(model_of(base), runs)
    for run, mine in zip(runs, losses, strict=True):
        assert mine == pytest.approx(peft_losses(base, run), abs=1e-5)
        assert mine[-1] < mine[0] - 0.05
    _, (unquantised,) = trained(load_model(base, torch.float32, "cpu"), runs[:1])
    assert max(abs(a - b) for a, b in zip(unquantised, losses[0], strict=True)) > 1e-3  # the bits are felt


@pytest.mark.filterwarnings("ignore:Unsupported layer type")  # ln_tuning's, of every norm that is not torch's
@pytest.mark.filterwarnings("ignore:.*rank_pattern keys did not match")
@pytest.mark.filterwarnings("ignore:Adapter 'default'")  # a matrix whose rank AdaLoRA has taken away altogether
@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("method", sorted(OVER_FEW_BITS))
def test_a_method_trains_saves_and_reloads_over_few_bits(tmp_path: Path, base: Path, method: str, kind: str) -> None:
    run = over(method_run(method, 1e-2, 0, 4, **OPTIONS.get(method, {})), kind)
    model = model_of(base, kind)
    ids, mask, _ = padded(EXAMPLES[:3])
    before = model(input_ids=ids, attention_mask=mask).logits.detach()
    pack, _ = trained(model, [run])
    pack.route([0], [3], is_training=False)
    with torch.no_grad():
        mine = pack.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    assert (mine - before).abs().max() > 1e-4
    pack.save(0, tmp_path)
    # What few bits stand for, written out as weights: the same model, but for rounding (of inputs too, in 8 bits).
    whole = read_whole(BaseTensors(base, opening(kind)))
    for other, tolerance in ((model_of(base, kind), 1e-5), (whole, 1e-4 if kind == "nf4" else 0.1)):
        again = load_tuned(other, (run,), (tmp_path,))
        again.route([0], [3], is_training=False)
        with torch.no_grad():
            found = again.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        torch.testing.assert_close(found[mask.bool()], mine[mask.bool()], rtol=0, atol=tolerance)


def test_the_adapter_is_one_that_peft_loads_over_the_same_base(tmp_path: Path, base: Path) -> None:
    pack, _ = trained(model_of(base), [over(lora_run(4, 1e-2, 0, 4, use_dora=True))])
    pack.save(0, tmp_path)
    ids = torch.tensor([EXAMPLES[0].input_ids])
    pack.route([0], [1], is_training=False)
    with torch.no_grad():
        mine = pack.model(input_ids=ids).logits
        theirs = PeftModel.from_pretrained(model_of(base), str(tmp_path / ADAPTER)).eval()(input_ids=ids).logits
    torch.testing.assert_close(theirs, mine, rtol=0, atol=1e-5)


# LoftQ ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [4, 8])
def test_loftq_starts_at_the_nearest_model_of_its_rank(base: Path, alpha: int) -> None:
    run = over(lora_run(4, 1e-2, 0, 2, init_lora_weights="loftq", lora_alpha=alpha))
    assert run.packs
    pack = make_trainable(model_of(base), [run])
    true, held = BaseTensors(base), BaseTensors(base, opening())
    state = pack.state(0)
    assert len(state) == 28
    for name in true.keys:
        key = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.weight" not in state:
            continue
        A, B = state[f"{key}.lora_A.weight"], state[f"{key}.lora_B.weight"]
        lost = true.read(true.source(name)) - held.read(held.source(name))
        S = torch.linalg.svdvals(lost.double())
        left = torch.linalg.vector_norm(lost - alpha / 4 * (B @ A))
        assert float(left.detach()) == pytest.approx(float(S[4:].square().sum().sqrt()), rel=1e-4)  # Eckart and Young
        if alpha == 4:  # PEFT's own, which knows no scaling
            theirs = _low_rank_decomposition(lost, reduced_rank=4)
            torch.testing.assert_close(B @ A, theirs["L"] @ theirs["R"], rtol=0, atol=1e-6)


def test_loftq_is_saved_for_peft_without_its_preprocessing(tmp_path: Path, base: Path) -> None:
    run = over(lora_run(4, 1e-2, 0, 4, init_lora_weights="loftq"))
    pack, _ = trained(model_of(base), [run])
    pack.save(0, tmp_path)
    ids = torch.tensor([EXAMPLES[0].input_ids])
    pack.route([0], [1], is_training=False)
    with torch.no_grad():
        mine = pack.model(input_ids=ids).logits
        theirs = PeftModel.from_pretrained(model_of(base), str(tmp_path / ADAPTER)).eval()(input_ids=ids).logits
    torch.testing.assert_close(theirs, mine, rtol=0, atol=1e-5)


def test_a_stopped_loftq_run_ends_as_if_it_had_not_been(tmp_path: Path, base: Path) -> None:
    run = over(lora_run(4, 1e-2, 0, 4, init_lora_weights="loftq"))
    _, (whole,) = trained(model_of(base), [run])

    resumed = stopped_and_resumed(lambda: model_of(base), run, tmp_path, after_steps=2)
    assert losses_of(resumed) == whole


# What is read back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options"), [("lora", {"rank": 4, "use_dora": True}), ("ia3", {}), ("oft", {"oft_block_size": 8})]
)
def test_updates_are_those_of_the_base_that_was_trained_over(
    tmp_path: Path, base: Path, method: str, options: dict
) -> None:
    """The base's numbers plus the update are a plain model with the logits of the trained one."""
    run = over(method_run(method, 1e-2, 0, 4, **options))
    pack, _ = trained(model_of(base), [run])
    pack.save(0, tmp_path)
    ids = torch.tensor([EXAMPLES[0].input_ids])
    pack.route([0], [1], is_training=False)
    with torch.no_grad():
        mine = pack.model(input_ids=ids).logits
    whole = read_whole(BaseTensors(base, opening()))
    updates = read_tuned(base, tmp_path / ADAPTER, opening()).updates
    assert updates
    for update in updates:
        W0 = update.read_W0()
        weight = whole.get_submodule(update.name).weight
        assert torch.equal(weight, W0)
        with torch.no_grad():
            weight.copy_(W0.double() + torch.cat(list(update.iter_rows())))
    with torch.no_grad():
        torch.testing.assert_close(whole(input_ids=ids).logits, mine, rtol=0, atol=1e-4)
