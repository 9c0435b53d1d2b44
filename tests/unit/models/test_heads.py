"""The head in chunks: the same losses and gradients as all logits at once, and none of their memory."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rankscope.models import heads
from rankscope.models.heads import scored_log_likelihoods, scored_losses

_SHAPE = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.3, "pad_token_id": 0,
}  # fmt: skip
ARCHITECTURES = {
    "tied": ("llama", {**_SHAPE, "tie_word_embeddings": True}),
    "untied": ("llama", {**_SHAPE, "tie_word_embeddings": False}),
    "capped": ("gemma2", {**_SHAPE, "head_dim": 8, "final_logit_softcapping": 3.0}),
    "scaled": ("cohere", {**_SHAPE, "logit_scale": 0.25}),
    "divided": ("granite", {**_SHAPE, "logits_scaling": 4.0}),
    "with a bias": ("phi", {**_SHAPE, "num_key_value_heads": 4}),
}
POSITIONS = torch.tensor([2, 3, 4, 9, 11, 12, 13])
TARGETS = torch.tensor([5, 6, 7, 8, 9, 10, 96])
WEIGHTS = torch.tensor([0.5, 0.25, 1.0, 0.125, 2.0, 0.1, 0.3], dtype=torch.float64)
IDS = torch.arange(3, 17).reshape(2, 7)


def tiny(name: str) -> PreTrainedModel:
    model_type, options = ARCHITECTURES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **options))
    return model.double().eval()


def plain(model: PreTrainedModel) -> torch.Tensor:
    logits = model(IDS).logits.reshape(14, 97)[POSITIONS]
    return functional.cross_entropy(logits, TARGETS, reduction="none")


@pytest.fixture(params=[2**24, 3 * 97], ids=["one chunk", "chunks of three"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "_MAX_LOGITS", request.param)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_losses_and_gradients_equal_those_of_all_logits(name: str) -> None:
    model = tiny(name)
    expected = plain(model)
    wanted = torch.autograd.grad((expected * WEIGHTS).sum(), list(model.parameters()))
    for _ in range(2):  # the first time the head is compared with the model's own
        loss, nll = scored_losses(model, POSITIONS, TARGETS, WEIGHTS, input_ids=IDS)
        torch.testing.assert_close(nll, expected.detach(), rtol=0, atol=1e-11)
        found = torch.autograd.grad(2.0 * loss, list(model.parameters()))
        torch.testing.assert_close([each / 2.0 for each in found], list(wanted), rtol=1e-9, atol=1e-11)
    assert heads._HEADS[model].is_known


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_log_likelihoods_of_several_targets_at_a_position(name: str) -> None:
    model = tiny(name)
    which, targets = torch.tensor([0, 0, 1, 4, 6, 6, 6]), torch.tensor([1, 5, 6, 9, 2, 3, 96])
    with torch.no_grad():
        logits = torch.log_softmax(model(IDS).logits.reshape(14, 97)[POSITIONS], dim=-1)
    found = scored_log_likelihoods(model, POSITIONS, which, targets, input_ids=IDS)
    torch.testing.assert_close(found, logits[which, targets], rtol=0, atol=1e-11)


@pytest.mark.usefixtures("chunks")
@torch.no_grad()
def test_what_is_made_of_logits_in_bfloat16_is_in_float32() -> None:
    model = tiny("tied").bfloat16()
    expected = torch.log_softmax(model(IDS).logits.reshape(14, 97)[POSITIONS].float(), dim=-1)
    wanted = expected.gather(1, TARGETS[:, None]).squeeze(1)
    found = scored_log_likelihoods(model, POSITIONS, torch.arange(7), TARGETS, input_ids=IDS)
    _, nll = scored_losses(model, POSITIONS, TARGETS, WEIGHTS.float(), input_ids=IDS)
    # The product of the head with fewer rows may round otherwise: to 8 bits, of logits below 1.
    assert heads._HEADS[model].is_known and found.dtype == nll.dtype == torch.float32
    torch.testing.assert_close(found, -nll, rtol=0, atol=1e-6)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-2)


def test_a_head_that_does_something_else_is_left_to_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """An architecture that changes its logits in a way that its configuration does not tell."""
    model = tiny("tied")
    forward = model.forward

    def squared(**inputs: object) -> object:
        output = forward(**inputs)
        output.logits = output.logits.square()
        return output

    monkeypatch.setattr(model, "forward", squared)
    logits = squared(input_ids=IDS).logits.reshape(14, 97)[POSITIONS]
    expected = functional.cross_entropy(logits, TARGETS, reduction="none")
    loss, nll = scored_losses(model, POSITIONS, TARGETS, WEIGHTS, input_ids=IDS)
    assert not heads._HEADS[model].is_known
    torch.testing.assert_close(nll, expected.detach(), rtol=0, atol=1e-11)
    torch.testing.assert_close(loss, (expected * WEIGHTS).sum(), rtol=0, atol=1e-11)


def test_no_tensor_of_length_by_vocabulary_is_made() -> None:
    """Vocabulary 150,000, 1,024 scored positions: all logits would be 586 MiB, three times that with their gradient.

    In a process of its own, since the most memory that a process has held never falls.
    """
    script = """
        import resource, torch
        from transformers import LlamaConfig, LlamaForCausalLM
        from rankscope.models.heads import scored_losses
        torch.set_num_threads(1)
        shape = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=150_000, tie_word_embeddings=True, **shape))
        ids = torch.arange(1024)[None]
        positions, weights = torch.arange(1023), torch.full((1023,), 1 / 1023)
        scored_losses(model, positions[:8], ids[0, 1:9], weights[:8], input_ids=ids)[0].backward()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        scored_losses(model, positions, ids[0, 1:], weights, input_ids=ids)[0].backward()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True)
    grown = int(printed.stdout) * (1 if sys.platform == "darwin" else 1024)  # kibibytes on Linux, bytes on a Mac
    # Three tensors of a chunk (64 MiB each), and the gradient of the table (9 MiB) a few times.
    assert grown < 300 * 2**20
