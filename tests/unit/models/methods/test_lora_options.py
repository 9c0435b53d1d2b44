"""Every option of LoRA trains as in PEFT alone, in packs too, and is read back by PEFT on the true base."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from peft import EvaConfig, LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.lora import initialize_lora_eva_weights
from peft.tuners.lora.config import CordaConfig, LoraGAConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga

from rankscope.errors import UserError
from rankscope.models import heads
from rankscope.models.joined import can_join
from rankscope.models.methods import initial
from rankscope.models.methods.initial import configured
from rankscope.models.methods.making import load_tuned, make_trainable
from rankscope.models.methods.pack import TrainablePack
from rankscope.models.packed import DrawnText, PackedLoraLinear, Routing, mixed
from rankscope.runs import RunSettings
from rankscope.train import loop
from solo import EXAMPLES, IDS, calibration, logits, losses_of, reference, trained
from tiny import VOCAB, lora_run, method_run, tiny_llama

PACKED = {
    "dora": {"use_dora": True},
    "dora-rslora": {"use_dora": True, "use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6}, "alpha_pattern": {"(k|v)_proj": 3.0}},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def peft_model(run: RunSettings, dtype: torch.dtype) -> PeftModel:
    options = {name: value for name, value in run.arm.options.items() if name != "loraplus_lr_ratio"}
    model = tiny_llama(dtype)
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))


def test_variants_in_one_pack_equal_peft_alone_in_float64() -> None:
    runs = [method_run("lora", 3e-3, seed, 8, rank=4, **said) for seed, said in enumerate(PACKED.values())]
    _, states = trained(tiny_llama(torch.float64), runs, max_tokens=200)
    for run, state in zip(runs, states, strict=True):
        assert losses_of(state) == pytest.approx(reference(peft_model(run, torch.float64), run), rel=1e-8)


@pytest.mark.parametrize(
    ("said", "modules", "layers"),
    [
        ({"target_modules": "attention"}, LINEAR[:4], "01"),
        ({"target_modules": "mlp"}, LINEAR[4:], "01"),
        ({"layers_to_transform": [-1]}, LINEAR, "1"),
        ({"target_modules": r".*layers\.0\..*_proj"}, LINEAR, "0"),
    ],
)
def test_modules_that_a_word_stands_for(said: dict, modules: list[str], layers: str) -> None:
    run = method_run("lora", 3e-3, 0, 4, rank=4, **said)
    pack, (state,) = trained(tiny_llama(torch.float64), [run])
    assert losses_of(state) == pytest.approx(reference(peft_model(run, torch.float64), run), rel=1e-8)
    assert {name.split(".")[-3] for name in pack.state(0)} == set(modules)
    assert {name.split(".")[4] for name in pack.state(0)} == set(layers)


def test_loraplus_is_pefts_own_in_a_pack_too() -> None:
    runs = [
        method_run("lora", 1e-3, 0, 8, rank=4, use_dora=True, loraplus_lr_ratio=16.0),
        method_run("lora", 3e-3, 1, 8, rank=16),
        method_run("lora", 3e-3, 1, 4, rank=2, use_rslora=True, loraplus_lr_ratio=4.0),
    ]
    _, states = trained(tiny_llama(torch.float64), runs)
    for run, state in zip(runs, states, strict=True):
        wrapped, groups = peft_model(run, torch.float64), None
        if ratio := run.arm.options.get("loraplus_lr_ratio"):
            theirs = create_loraplus_optimizer(
                wrapped, torch.optim.AdamW, lr=run.learning_rate, loraplus_lr_ratio=ratio, loraplus_weight_decay=0.01
            )
            made = [{key: group[key] for key in ("params", "weight_decay", "lr")} for group in theirs.param_groups]
            # PEFT's vectors without decay are those of normalisations and biases; DoRA's lengths are of neither.
            groups = [group for group in made if group["params"]]
        assert losses_of(state) == pytest.approx(reference(wrapped, run, groups), rel=1e-8)
    assert states[0].logs[0].learning_rate < 1e-3


def started_by_peft(run: RunSettings) -> PeftModel:
    """PEFT's initialisations with the preprocessing of PEFT's own documentation."""
    model, options = tiny_llama(torch.float32), run.arm.options
    batches, kind = calibration(run), options["init_lora_weights"]
    nested = {"eva": ("eva_config", EvaConfig), "corda": ("corda_config", CordaConfig),
              "lora_ga": ("lora_ga_config", LoraGAConfig)}  # fmt: skip
    said = {**options, "target_modules": LINEAR}
    if kind in nested:
        name, config = nested[kind]
        said[name] = config()
    config = LoraConfig(task_type="CAUSAL_LM", **said)

    def one_by_one() -> None:
        with torch.no_grad():
            for batch in batches:
                for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
                    model(ids[: int(mask.sum())][None])

    def gradients() -> None:
        model.eval()
        for batch in batches:
            model(**batch).loss.backward()

    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        if kind == "corda":
            preprocess_corda(model, config, run_model=one_by_one)
        if kind == "lora_ga":
            preprocess_loraga(model, config, train_step=gradients)
        wrapped = get_peft_model(model, config)
        if kind == "eva":
            initialize_lora_eva_weights(wrapped, batches, show_progress_bar=False)
    return wrapped


INITIAL = ["pissa", "pissa_niter_4", "olora", "eva", "corda", "lora_ga"]


@pytest.mark.filterwarnings("ignore:lora with eva:UserWarning", "ignore:Full backward hook:UserWarning")
@pytest.mark.parametrize("kind", INITIAL)
def test_an_initialisation_with_its_preprocessing(kind: str, tmp_path: Path) -> None:
    run = method_run("lora", 1e-3, 0, 5, rank=4, init_lora_weights=kind)
    pack, (state,) = trained(tiny_llama(torch.float32), [run])
    assert losses_of(state) == pytest.approx(reference(started_by_peft(run), run), abs=1e-5)
    # It is not LoRA's own start, which PEFT keeps where nobody preprocesses.
    plain = make_trainable(tiny_llama(torch.float32), [lora_run(4, 1e-3, 0, 5)])
    ours = make_trainable(tiny_llama(torch.float32), [run], calibration)
    first = next(iter(plain.state(0)))
    assert ours.state(0)[first].shape != plain.state(0)[first].shape or not torch.allclose(
        ours.state(0)[first], plain.state(0)[first]
    )
    # Untrained it is the base, and what is saved is an adapter of the true base.
    torch.testing.assert_close(logits(ours), tiny_llama(torch.float32)(IDS).logits, rtol=0, atol=2e-6)
    mine = logits(pack)
    pack.save(0, tmp_path)
    theirs = PeftModel.from_pretrained(tiny_llama(torch.float32), str(tmp_path / "adapter"))
    torch.testing.assert_close(mine, theirs(IDS).logits, rtol=0, atol=2e-6)
    again = load_tuned(tiny_llama(torch.float32), [run], [tmp_path])
    torch.testing.assert_close(mine, logits(again), rtol=0, atol=2e-6)
    alters = kind != "eva"
    assert pack.alters_base == alters == run.arm.capabilities.alters_base
    assert theirs.peft_config["default"].r == (8 if alters else 4)  # PEFT's converting path doubles the rank


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], r".*q_proj|lm_head"], ids=str)
def test_an_adapted_head_that_is_tied_is_pefts_and_leaves_the_embeddings(
    targets: list[str] | str, tmp_path: Path
) -> None:
    run = lora_run(4, 1e-2, 0, 5, target_modules=targets)
    pack, (state,) = trained(tiny_llama(torch.float64), [run])
    assert losses_of(state) == pytest.approx(reference(peft_model(run, torch.float64), run), rel=1e-8)
    mine = logits(pack)
    pack.save(0, tmp_path)
    theirs = PeftModel.from_pretrained(tiny_llama(torch.float64), str(tmp_path / "adapter"))(IDS).logits
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
    again = load_tuned(tiny_llama(torch.float64), [run], [tmp_path])
    torch.testing.assert_close(mine, logits(again), rtol=0, atol=1e-6)
    # The head sees scored positions only, so nobody could say which are whose.
    assert not run.packs
    with pytest.raises(ValueError, match="cannot tell whose"):
        make_trainable(tiny_llama(torch.float64), [run, run])


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_dropout_before_the_head_does_not_make_all_logits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """How a model makes its logits is found out without adapters: two draws would look like a head of another kind."""
    monkeypatch.setattr(heads, "_MAX_LOGITS", 4 * VOCAB)
    model = tiny_llama(torch.float32)
    assert can_join(model)  # its check makes logits of its own
    sizes: list[int] = []
    model.lm_head.register_forward_hook(lambda _module, _inputs, logits: sizes.append(logits.numel()))
    run = lora_run(4, 1e-2, 0, 2, lora_dropout=0.5, target_modules=["q_proj", "lm_head"])
    pack = make_trainable(model, [run])
    with torch.no_grad():  # as a checkpoint may leave it: at the start adapters change nothing
        for tensor in pack.state(0).values():
            tensor.add_(0.1)
    sizes.clear()
    loop.accumulate_gradients(pack, {0: EXAMPLES}, 10_000)
    assert 0 < max(sizes) <= 4 * VOCAB


def test_a_saved_dora_adapter_gives_peft_the_same_logits(tmp_path: Path) -> None:
    run = method_run("lora", 1e-2, 0, 5, rank=4, use_dora=True)
    model = tiny_llama(torch.float32)
    pack, _ = trained(model, [run])
    mine = logits(pack)
    pack.save(0, tmp_path)
    pack.close()
    theirs = PeftModel.from_pretrained(tiny_llama(torch.float32), str(tmp_path / "adapter"))(IDS).logits
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
    torch.testing.assert_close(mine, logits(load_tuned(model, [run], [tmp_path])), rtol=0, atol=1e-6)


def test_dora_with_dropout_shows_the_frozen_matrix_the_same_input() -> None:
    """With the same draws: ours come from the run's generator, PEFT's from torch's."""
    run = method_run("lora", 1e-2, 0, 1, rank=4, use_dora=True, lora_dropout=0.5, target_modules=["q_proj"])
    pack = make_trainable(tiny_llama(torch.float64), [run])
    wrapped = peft_model(run, torch.float64).train()
    theirs = {name.replace(".default", ""): parameter for name, parameter in wrapped.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # as training may have left it: at the start nothing is stretched
        for name, tensor in pack.state(0).items():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))
            theirs[name if name in theirs else f"{name}.weight"].copy_(tensor)
    pack.route((0,), (1,), is_training=True)
    with torch.random.fork_rng():
        torch.set_rng_state(pack.generator(0).get_state())
        expected = wrapped(IDS).logits
    torch.testing.assert_close(pack.model(IDS).logits, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("is_joined", [True, False])
@pytest.mark.parametrize("max_tokens", [10_000, 40])
def test_runs_drop_out_the_same_in_whatever_pack_and_micro_batch_and_nothing_in_validation(
    monkeypatch: pytest.MonkeyPatch, is_joined: bool, max_tokens: int
) -> None:
    """Alone the examples of a step share a row; here they are divided, padded, and beside those of other runs."""
    runs = [
        method_run("lora", 1e-2, 5, 4, rank=4, lora_dropout=0.5),
        method_run("lora", 1e-2, 6, 4, rank=4, lora_dropout=0.2),
        method_run("lora", 1e-2, 7, 4, rank=2, lora_dropout=0.2, use_dora=True),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "can_join", lambda _: is_joined)
        _, together = trained(tiny_llama(torch.float64), runs, max_tokens)
    for run, state in zip(runs, together, strict=True):
        pack, (alone,) = trained(tiny_llama(torch.float64), [run])
        assert losses_of(state) == pytest.approx(losses_of(alone), rel=1e-10)
        assert state.validations[-1].loss_nats_per_token == pytest.approx(loss_without_dropout(pack), rel=1e-10)


def test_every_step_layer_text_and_seed_draws_for_itself() -> None:
    """What a layer of ones lets through, which is what was kept: of 100 positions and 64 inputs."""
    seen: dict[tuple[int, ...], torch.Tensor] = {}
    for seed, step, text, number in itertools.product((0, 1), (0, 1), (5, 6), (0, 1)):
        drawn = DrawnText(mixed(mixed(seed, step), text), 100, 100)
        layer = PackedLoraLinear(torch.nn.Linear(64, 64), Routing(is_training=True, texts=((drawn,),)), number)
        layer.add(torch.ones(1, 64), torch.ones(64, 1), 1.0, 0.25)
        seen[seed, step, text, number] = layer._dropped_out(torch.ones(100, 64), 0) > 0
    assert all(abs(kept.float().mean() - 0.75) < 0.03 for kept in seen.values())  # five standard errors
    for one, other in itertools.combinations(seen.values(), 2):
        assert abs((one == other).float().mean() - 0.625) < 0.04, "alike as often as chance has it"


def loss_without_dropout(pack: TrainablePack) -> float:
    """Of the examples that `trained` validates on, one at a time."""
    pack.route((0,), (1,), is_training=False)
    lost = []
    with torch.no_grad():
        for example in EXAMPLES[:4]:
            ids = torch.tensor(example.input_ids)
            log_p = pack.model(ids[None]).logits[0, :-1].log_softmax(-1)
            lost += (-log_p.gather(1, ids[1:, None])[example.num_prompt_tokens - 1 :]).flatten().tolist()
    return sum(lost) / len(lost)


def test_what_peft_cannot_do_names_the_arm() -> None:
    run = method_run("lora", 1e-2, 0, 1, rank=4, init_lora_weights="pissa")
    with pytest.raises(UserError, match="arm lora: Please initialize PiSSA under float32"):
        make_trainable(tiny_llama(torch.float64), [run])


def test_an_option_that_peft_does_not_have_names_the_arm() -> None:
    run = method_run("lora", 1e-2, 0, 1, rank=4)
    with pytest.raises(UserError, match=r"arm lora: .*no_such_option") as caught:
        configured(LoraConfig, {"no_such_option": 1}, run)
    assert caught.value.mend == "change the arm's options"


@pytest.mark.parametrize("kind", ["eva", "corda", "lora_ga"])
def test_a_bug_of_ours_is_no_wrong_option(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In what prepares an initialisation, and where PEFT calls back into it."""

    def broken(*_: object) -> None:
        raise TypeError("a bug")

    for callback in ("_run", "_step") if kind != "eva" else ("_batches",):
        monkeypatch.setattr(initial, callback, broken)
    run = method_run("lora", 1e-2, 0, 1, rank=4, init_lora_weights=kind)
    with pytest.raises(TypeError, match="a bug"):
        make_trainable(tiny_llama(torch.float32), [run], calibration=calibration)
