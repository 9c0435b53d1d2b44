"""What a model showed is kept whole or not at all, whoever else makes it at the same time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rankscope.models.layer_cache import LayerCache


def made(cache: LayerCache, value: float) -> None:
    with cache.anew() as write:
        write(0, 1, torch.full((2, 3), value))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_kept_is_read_back(tmp_path: Path) -> None:
    cache = LayerCache(tmp_path / "streams", "settings")
    assert not cache.is_whole()
    made(cache, 2.5)
    assert cache.is_whole() and torch.equal(cache.read(0, 1), torch.full((2, 3), 2.5))
    assert not LayerCache(tmp_path / "streams", "other settings").is_whole()
    cache.remove()
    assert not cache.is_whole() and names(tmp_path) == []


def test_two_who_make_it_at_once_leave_one_whole_one(tmp_path: Path) -> None:
    """Two runs found nothing after a change of the study and both took the base's streams: one failed, before."""
    first, second = (LayerCache(tmp_path / "streams", "settings") for _ in range(2))
    with first.anew() as write_first:
        write_first(0, 0, torch.zeros(3))
        with second.anew() as write_second:
            write_second(0, 0, torch.zeros(3))
            write_second(0, 1, torch.ones(3))
        assert second.is_whole()
        write_first(0, 1, torch.ones(3))
    assert first.is_whole() and torch.equal(first.read(0, 1), torch.ones(3))
    assert names(tmp_path) == ["streams"]


def test_what_is_damaged_or_of_other_settings_is_replaced(tmp_path: Path) -> None:
    cache = LayerCache(tmp_path / "streams", "settings")
    made(cache, 1.0)
    file = next((tmp_path / "streams").glob("batch*"))
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    assert not cache.is_whole()
    made(cache, 2.0)
    assert cache.is_whole() and float(cache.read(0, 1)[0, 0]) == 2.0
    other = LayerCache(tmp_path / "streams", "other settings")
    made(other, 3.0)
    assert other.is_whole() and not cache.is_whole()


def test_half_of_it_is_never_put_in_place(tmp_path: Path) -> None:
    cache = LayerCache(tmp_path / "streams", "settings")
    with pytest.raises(RuntimeError, match="in the middle"), cache.anew() as write:
        write(0, 0, torch.zeros(3))
        raise RuntimeError("in the middle")
    assert names(tmp_path) == []
