import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankscope.data.order import batches


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 40), st.integers(0, 2**32))
def test_every_epoch_shows_every_example_once(num_examples, batch_size, num_steps, seed):
    steps = batches(num_examples, batch_size, num_steps, seed)
    assert len(steps) == num_steps
    per_epoch = -(-num_examples // batch_size)
    for start in range(0, num_steps - per_epoch + 1, per_epoch):
        epoch = steps[start : start + per_epoch]
        assert sorted(index for batch in epoch for index in batch) == list(range(num_examples))
        assert all(len(batch) == batch_size for batch in epoch[:-1])


def test_a_longer_run_begins_as_a_shorter_one_and_seeds_differ():
    assert batches(10, 3, 20, seed=5)[:7] == batches(10, 3, 7, seed=5)
    assert batches(10, 3, 4, seed=5) != batches(10, 3, 4, seed=6)
    assert batches(10, 10, 2, seed=5)[0] != batches(10, 10, 2, seed=5)[1]


def test_no_batches_of_nothing():
    with pytest.raises(ValueError, match="no batches"):
        batches(0, 3, 1, seed=0)
