"""Attention measures on patterns with known answers."""

import math

import pytest
import torch

from rankscope.internals import attention


def causal(num_pos, batch=1):
    return torch.ones(num_pos, num_pos, dtype=torch.bool).tril().expand(batch, -1, -1)


def windowed(num_pos, window):
    return causal(num_pos) & ~torch.ones(num_pos, num_pos, dtype=torch.bool).tril(-window)


def uniform(visible, heads=1):
    row = visible.double() / visible.sum(-1, keepdim=True).clamp_min(1)
    return row.unsqueeze(1).expand(-1, heads, -1, -1)


def one_hot(keys, num_pos):
    """Each head's rows all on one key: keys[head][query]."""
    return torch.nn.functional.one_hot(torch.tensor(keys), num_pos).double().unsqueeze(0)


def random_pattern(visible, heads, seed=0):
    scores = torch.randn(visible.shape[0], heads, *visible.shape[1:], generator=torch.Generator().manual_seed(seed))
    scores = scores.double().masked_fill(~visible.unsqueeze(1), -torch.inf)
    return scores.softmax(-1).nan_to_num(0.0)


class TestEntropy:
    @pytest.mark.parametrize("visible", [causal(6), windowed(6, 3)], ids=["causal", "window"])
    def test_uniform_is_one_over_the_keys_it_may_see(self, visible):
        sums = attention.attention_entropy(uniform(visible), visible)
        assert sums.num_rows == 5  # the first row has one key
        assert sums.mean().tolist() == pytest.approx([1.0])

    def test_one_hot_is_zero(self):
        pattern = one_hot([[0, 0, 1, 3]], 4)
        assert attention.attention_entropy(pattern, causal(4)).mean().tolist() == [0.0]

    def test_a_row_between(self):
        # Row 1: (1/4, 3/4) of 2 keys; row 2: (1/2, 1/2, 0) of 3 keys.
        pattern = torch.tensor([[[[1.0, 0, 0], [0.25, 0.75, 0], [0.5, 0.5, 0]]]])
        first = (0.25 * math.log(4) + 0.75 * math.log(4 / 3)) / math.log(2)
        second = math.log(2) / math.log(3)
        mean = attention.attention_entropy(pattern, causal(3)).mean()
        assert mean.tolist() == pytest.approx([(first + second) / 2])

    def test_nothing_but_rows_with_one_key(self):
        assert attention.attention_entropy(one_hot([[0]], 1), causal(1)).mean() is None


class TestDivergence:
    def test_equal_is_exactly_zero(self):
        pattern = random_pattern(causal(9), 3).float()
        assert attention.attention_divergence(pattern, pattern.clone(), causal(9)).total.tolist() == [0.0, 0.0, 0.0]
        # The same numbers in another order in memory.
        strided = pattern.transpose(1, 3).contiguous().transpose(1, 3)
        assert attention.attention_divergence(pattern, strided, causal(9)).total.tolist() == [0.0, 0.0, 0.0]

    def test_disjoint_is_ln_2(self):
        base, tuned = one_hot([[0, 0, 0]], 3), one_hot([[0, 1, 2]], 3)
        sums = attention.attention_divergence(base, tuned, causal(3))
        assert sums.total.tolist() == pytest.approx([2 * math.log(2)])
        assert sums.mean().tolist() == pytest.approx([2 * math.log(2) / 3])

    def test_a_row_between(self):
        base = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]])
        tuned = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
        # The mean of the two rows is three quarters and one quarter.
        kl_base = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
        kl_tuned = math.log(1 / 0.75)
        sums = attention.attention_divergence(base, tuned, causal(2))
        assert sums.total.tolist() == pytest.approx([(kl_base + kl_tuned) / 2])

    def test_symmetric_and_by_head(self):
        base, tuned = random_pattern(causal(7), 4, 1), random_pattern(causal(7), 4, 2)
        one = attention.attention_divergence(base, tuned, causal(7)).mean()
        other = attention.attention_divergence(tuned, base, causal(7)).mean()
        torch.testing.assert_close(one, other)
        alone = attention.attention_divergence(base[:, 2:3], tuned[:, 2:3], causal(7)).mean()
        torch.testing.assert_close(one[2:3], alone)

    def test_small_changes_keep_their_digits(self):
        # To second order the divergence is sum of delta^2 / (8 p).
        base = uniform(causal(4))[:, :, 3:, :]
        delta = 1e-5 * torch.tensor([1.0, -1.0, 2.0, -2.0], dtype=torch.float64)
        sums = attention.attention_divergence(base, base + delta, causal(4)[:, 3:])
        assert sums.total.tolist() == pytest.approx([float((delta**2).sum()) / (8 * 0.25)], rel=1e-3)


class TestWhereItLooks:
    def test_first_token(self):
        pattern = torch.tensor([[[[1.0, 0, 0], [0.25, 0.75, 0], [0.1, 0.2, 0.7]]]])
        assert attention.attention_first_token(pattern, causal(3)).mean().tolist() == pytest.approx([1.35 / 3])

    def test_distance(self):
        previous = one_hot([[0, 0, 1, 2], [0, 1, 2, 3], [0, 0, 0, 0]], 4)
        mean = attention.attention_distance(previous, causal(4)).mean()
        assert mean.tolist() == pytest.approx([3 / 4, 0.0, (1 + 2 + 3) / 4])

    def test_distance_of_uniform_is_half_of_what_is_before(self):
        assert attention.attention_distance(uniform(causal(5)), causal(5)).mean().tolist() == pytest.approx([1.0])


class TestHeadSimilarity:
    def test_alike_and_disjoint(self):
        alike = uniform(causal(4), heads=3)
        assert attention.head_similarity(alike, causal(4)).mean().tolist() == pytest.approx([1.0] * 3)
        # Row 0 has one key, so all agree there; elsewhere head 2 is alone.
        heads = one_hot([[0, 0, 0], [0, 0, 0], [0, 1, 2]], 3)
        mean = attention.head_similarity(heads, causal(3)).mean()
        assert mean.tolist() == pytest.approx([(1 + 0.5 + 0.5) / 3, (1 + 0.5 + 0.5) / 3, 1 / 3])

    def test_mean_over_heads_is_the_mean_over_pairs(self):
        pattern = random_pattern(causal(6), 4)
        pairs = []
        for one in range(4):
            for other in range(one):
                cosines = torch.nn.functional.cosine_similarity(pattern[0, one], pattern[0, other], dim=-1)
                pairs.append(float(cosines.mean()))
        mean = float(attention.head_similarity(pattern, causal(6)).mean().mean())
        assert mean == pytest.approx(sum(pairs) / len(pairs))

    def test_one_head_has_none(self):
        assert attention.head_similarity(uniform(causal(4)), causal(4)) is None
        assert "head_similarity" not in attention.pattern_measures(uniform(causal(4)), causal(4))


def test_padding_counts_nowhere_and_batches_add_up():
    """Two texts in one padded batch, whatever stands in the padding, equal the two alone."""
    long, short = random_pattern(causal(6), 3, 1), random_pattern(causal(4), 3, 2)
    batch = torch.full((2, 3, 6, 6), 1 / 6, dtype=torch.float64)
    batch[0], batch[1, :, :4] = long, 0.0
    batch[1, :, :4, :4] = short
    visible = causal(6, batch=2).clone()
    visible[1, 4:] = False
    together = attention.pattern_measures(batch, visible)
    one, other = attention.pattern_measures(long, causal(6)), attention.pattern_measures(short, causal(4))
    assert len(together) == 4
    for key, sums in together.items():
        apart = one[key] + other[key]
        assert sums.num_rows == apart.num_rows
        torch.testing.assert_close(sums.total, apart.total)
    moved = random_pattern(causal(6), 3, 3)
    padded = batch.clone()
    padded[0] = moved
    padded[1, :, 4:] = 0.0
    sums = attention.attention_divergence(batch, padded, visible)
    assert sums.num_rows == 10
    torch.testing.assert_close(sums.total, attention.attention_divergence(long, moved, causal(6)).total)
