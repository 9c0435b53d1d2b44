"""The cache of decompositions: right, found by content, shared by processes, mended where it is damaged."""

import multiprocessing

import pytest
import torch
from safetensors import safe_open

from rankscope.models import decompositions
from rankscope.models.decompositions import Decompositions, content_hash, decompose


def matrix(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def counted(monkeypatch):
    """How often a matrix is decomposed."""
    calls = []
    original = decompositions.decompose
    monkeypatch.setattr(decompositions, "decompose", lambda W0: calls.append(tuple(W0.shape)) or original(W0))
    return calls


@pytest.mark.parametrize("shape", [(20, 20), (30, 12), (12, 30)])
def test_it_is_the_matrix(tmp_path, shape):
    W0 = matrix(*shape)
    found = Decompositions(tmp_path).of(W0)
    assert found.shape == shape and len(found.S) == min(shape)
    torch.testing.assert_close(found.U @ torch.diag(found.S.float()) @ found.Vh, W0)
    torch.testing.assert_close(found.S, torch.linalg.svdvals(W0.double()))
    assert bool((found.S.diff() <= 0).all())


def test_computed_once_whoever_asks(tmp_path, counted):
    W0 = matrix(10, 8)
    first = Decompositions(tmp_path).of(W0)
    again = Decompositions(tmp_path).of(W0.T.contiguous().T)  # other strides, same content
    assert counted == [(10, 8)]
    for one, other in zip(vars(first).values(), vars(again).values(), strict=True):
        assert torch.equal(one, other)


def test_another_matrix_is_another_entry(tmp_path, counted):
    cache = Decompositions(tmp_path)
    W0 = matrix(10, 8)
    changed = W0.clone()
    changed[3, 3] += 1e-3
    for one in (W0, changed, W0.reshape(8, 10), W0.double()):
        cache.of(one)
    assert len(counted) == 4
    assert len({content_hash(one) for one in (W0, changed, W0.reshape(8, 10), W0.double())}) == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights(tmp_path, dtype):
    W0 = matrix(10, 8).to(dtype)
    found = Decompositions(tmp_path).of(W0)
    torch.testing.assert_close(found.S, torch.linalg.svdvals(W0.double()))


@pytest.mark.parametrize("place", [10, -10])
def test_a_damaged_entry_is_computed_again(tmp_path, counted, place):
    cache, W0 = Decompositions(tmp_path), matrix(10, 8)
    good = cache.of(W0)
    [path] = tmp_path.rglob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert torch.equal(cache.of(W0).U, good.U)
    assert len(counted) == 2
    cache.of(W0)
    assert len(counted) == 2


def test_the_format_says_its_version(tmp_path):
    Decompositions(tmp_path).of(matrix(4, 4))
    [path] = tmp_path.rglob("*.safetensors")
    assert path.parent.name == "v1"
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["format_version"] == "1"
        assert sorted(file.keys()) == ["S", "U", "Vh"]


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr(decompositions, "save_file", fail)
    with pytest.raises(OSError, match="No space"):
        Decompositions(tmp_path).of(matrix(4, 4))
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.rglob("*.tmp"))


def _ask(root, seed, results):
    torch.set_num_threads(1)
    calls = []
    decompositions.decompose = lambda W0: calls.append(1) or decompose(W0)
    found = Decompositions(root).of(matrix(200, 150, seed=seed))
    results.put((len(calls), float(found.S[0])))


def test_processes_that_ask_at_once_compute_it_once(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    processes = [context.Process(target=_ask, args=(tmp_path, 5, results)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    found = [results.get() for _ in processes]
    assert sum(calls for calls, _ in found) == 1
    assert len({value for _, value in found}) == 1
