"""What an adapter of any method changed, added to the base, gives the tuned model's logits; the rest is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rankscope.errors import UserError
from rankscope.models.base_tensors import BaseTensors
from rankscope.models.merged import CannotMerge
from rankscope.models.weights import iter_updates, read_tuned
from solo import IDS, logits, trained
from tiny import method_run, save_tiny, tiny_llama

pytestmark = [
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*rank_pattern keys did not match:RuntimeWarning"),
]


PARTS = ("w1_a", "w1_b", "w2_a", "w2_b")  # of LoHa


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base"))


def saved(folder: Path, method: str, **said: object) -> tuple[Path, torch.Tensor]:
    pack, _ = trained(tiny_llama(torch.float32), [method_run(method, 1e-2, 0, 4, **said)])
    pack.save(0, folder)
    return folder / "adapter", logits(pack)


@pytest.mark.parametrize(
    ("method", "said", "number"),
    [
        ("adalora", {"rank": 2, "init_r": 4}, 14),
        ("ia3", {}, 6),
        ("vera", {"rank": 8}, 14),
        ("oft", {"oft_block_size": 8}, 14),
        ("ln_tuning", {}, 5),
        ("loha", {"rank": 4}, 14),
        ("loha", {"rank": 4, "modules_to_save": ["norm"]}, 15),
        ("lora", {"rank": 4, "use_dora": True}, 14),
        ("lora", {"rank": 4, "init_lora_weights": "pissa"}, 14),
        ("lora", {"rank": 4, "modules_to_save": ["norm"]}, 15),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_base_with_its_updates_is_the_tuned_model(
    base: Path, tmp_path: Path, method: str, said: dict, number: int
) -> None:
    folder, mine = saved(tmp_path, method, **said)
    model = tiny_llama(torch.float64)
    parameters = dict(model.named_parameters())
    updates = list(iter_updates(base, folder))
    assert len(updates) >= number
    assert [update.layer for update in updates if update.layer is not None] == sorted(
        update.layer for update in updates if update.layer is not None
    )
    with torch.no_grad():
        for update in updates:
            (rows,) = update.iter_rows()
            assert rows.abs().sum() > 0
            parameters[f"{update.name}.weight"].add_(rows)
        torch.testing.assert_close(model(IDS).logits, mine.double(), rtol=0, atol=2e-6)


def test_an_update_has_the_digits_of_float64(base: Path, tmp_path: Path) -> None:
    """Against LoHa's own product: in float32 the difference of two weights has few of an update's digits."""
    folder, _ = saved(tmp_path, "loha", rank=4, alpha=8)
    tensors = load_file(folder / "adapter_model.safetensors")
    for update in iter_updates(base, folder):
        pairs = [tensors[f"base_model.model.{update.name}.hada_{part}"].double() for part in PARTS]
        expected = 2.0 * (pairs[0] @ pairs[1]) * (pairs[2] @ pairs[3])
        torch.testing.assert_close(update.delta_W, expected, rtol=1e-9, atol=1e-14)


def test_an_update_can_be_read_twice(base: Path, tmp_path: Path) -> None:
    folder, _ = saved(tmp_path, "ia3")
    update = next(iter_updates(base, folder))
    assert torch.equal(update.delta_W, update.delta_W)
    assert "merged by PEFT" in read_tuned(base, folder).notes[0]
    W0 = BaseTensors(base).read(BaseTensors(base).source(f"{update.name}.weight"))
    assert torch.equal(update.read_W0(), W0)


@pytest.mark.parametrize(
    ("method", "said", "why"),
    [
        ("prefix_tuning", {"num_virtual_tokens": 3}, "virtual tokens before texts"),
        ("bottleneck", {}, "functions beside the base"),
        ("lily", {"rank": 4}, "PEFT cannot merge lily"),
    ],
)
def test_what_is_no_change_of_weights_says_so(base: Path, tmp_path: Path, method: str, said: dict, why: str) -> None:
    folder, _ = saved(tmp_path, method, **said)
    with pytest.raises(CannotMerge, match=why):
        list(iter_updates(base, folder))


def test_an_error_within_a_merge_that_is_no_word_on_the_method_is_not_named_as_one(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = saved(tmp_path, "ia3")

    def merge(layer: object) -> None:
        raise RuntimeError("expected m1 and m2 to have the same dtype")

    monkeypatch.setattr("peft.tuners.ia3.Linear.merge", merge)
    with pytest.raises(RuntimeError, match="same dtype"):
        list(iter_updates(base, folder))


def test_a_file_cut_short_is_named(base: Path, tmp_path: Path) -> None:
    folder, _ = saved(tmp_path, "ia3")
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="PEFT cannot load it") as caught:
        read_tuned(base, folder)
    assert caught.value.where == str(folder)
