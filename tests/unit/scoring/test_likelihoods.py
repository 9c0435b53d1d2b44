"""Option log-likelihoods: trees, rows, batches, truncation and lm-eval's numbers."""

import pytest
import torch

from rankscope.models.methods.making import load_tuned, make_trainable
from rankscope.models.text_trees import TextTree
from rankscope.scoring import likelihoods, rows
from rankscope.scoring.likelihoods import Choice, OptionTrees, checked_option_trees, option_log_likelihoods
from rankscope.scoring.losses import completion_losses
from tiny import lora_run

TREES, ROWS = OptionTrees(None), OptionTrees("for the test")


def by_hand(model, choice, context):
    """lm-eval's definition, one unpadded forward pass an option."""
    values = []
    for option in choice.option_ids:
        read = (list(choice.prompt_ids) + list(option))[-(context + 1) :][:-1]
        with torch.no_grad():
            logits = model(torch.tensor([read])).logits[0]
        log_probabilities = torch.log_softmax(logits[-len(option) :], dim=-1)
        values.append(log_probabilities.gather(1, torch.tensor(option)[:, None]).sum().item())
    return values


def random_choices(vocab, number=12, longest_prompt=30, longest_option=9, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def ids(low, high):
        length = int(torch.randint(low, high + 1, (1,), generator=generator))
        return tuple(torch.randint(2, vocab, (length,), generator=generator).tolist())

    return [Choice(ids(1, longest_prompt), tuple(ids(1, longest_option) for _ in range(4))) for _ in range(number)]


@pytest.mark.parametrize("trees", [TREES, ROWS, None])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_options_equal_a_forward_pass_each(make_llama, trees, implementation):
    model = make_llama(attn_implementation=implementation)
    choices = random_choices(model.config.vocab_size)
    scores = option_log_likelihoods(model, choices, trees, 128, 4096)
    for choice, values in zip(choices, scores.log_likelihoods, strict=True):
        # transformers' eager attention takes its softmax in float32, whatever the model's precision.
        tolerance = 1e-5 if implementation == "eager" else 1e-10
        assert values == pytest.approx(by_hand(model, choice, 128), abs=tolerance)
    assert scores.num_truncated == 0


@pytest.mark.parametrize("is_joined", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_scores_do_not_depend_on_the_batch(make_llama, monkeypatch, dtype, tolerance, is_joined):
    """One row at a time against 64 items at once, per scored token."""
    model = make_llama(dtype)
    monkeypatch.setattr(rows, "can_join", lambda _: is_joined)
    monkeypatch.setattr(rows, "_MAX_TOKENS_CPU", 10**9)
    sizes = []
    tokens = rows._token_log_likelihoods
    monkeypatch.setattr(rows, "_token_log_likelihoods", lambda m, b, j: sizes.append(len(b)) or tokens(m, b, j))
    choices = random_choices(model.config.vocab_size, number=64)
    for trees, most in ((TREES, 64), (ROWS, 256)):
        alone = option_log_likelihoods(model, choices, trees, 128, 1)
        assert max(sizes) == 1
        together = option_log_likelihoods(model, choices, trees, 128, 10**9)
        assert sizes[-1] == most
        sizes.clear()
        for choice, one, other in zip(choices, alone.log_likelihoods, together.log_likelihoods, strict=True):
            for option, a, b in zip(choice.option_ids, one, other, strict=True):
                assert a == pytest.approx(b, abs=tolerance * len(option))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_losses_do_not_depend_on_the_batch(make_llama, monkeypatch, dtype, tolerance):
    model = make_llama(dtype)
    monkeypatch.setattr(rows, "_MAX_TOKENS_CPU", 10**9)
    pairs = [(list(choice.prompt_ids), list(choice.option_ids[0])) for choice in random_choices(300, number=64)]
    alone = [completion_losses(model, [pair], 128, 10**9)[0] for pair in pairs]
    together = completion_losses(model, pairs, 128, 10**9)
    for a, b in zip(alone, together, strict=True):
        assert a.nll_nats == pytest.approx(b.nll_nats, abs=tolerance * a.num_scored_tokens)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_scores_do_not_depend_on_the_pack(make_llama, dtype, tolerance, tmp_path):
    """An adapter beside others over one base, and alone with its update in the base's weights."""
    runs = [lora_run(4, 1e-3, seed=0, num_steps=1), lora_run(16, 1e-3, seed=1, num_steps=1, use_rslora=True)]
    model = make_llama(dtype)
    choices = random_choices(model.config.vocab_size)
    pack = make_trainable(model, runs)
    generator = torch.Generator().manual_seed(3)
    for index in (0, 1):
        with torch.no_grad():
            for name, tensor in pack.state(index).items():
                if "lora_B" in name:
                    tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator, dtype=dtype))
        pack.save(index, tmp_path / str(index))
    together = []
    for index in (0, 1):
        pack.route((index,), (1,), is_training=False)
        together.append(option_log_likelihoods(model, choices, TREES, 128, 4096).log_likelihoods)
    assert together[0] != together[1]
    pack.close()
    for index, run in enumerate(runs):
        alone = load_tuned(model, [run], [tmp_path / str(index)])
        scores = option_log_likelihoods(model, choices, TREES, 128, 4096).log_likelihoods
        alone.close()
        for choice, one, other in zip(choices, scores, together[index], strict=True):
            for option, a, b in zip(choice.option_ids, one, other, strict=True):
                assert a == pytest.approx(b, abs=tolerance * len(option))


def test_trees_equal_separate_rows(make_llama):
    model = make_llama()
    choices = random_choices(model.config.vocab_size)
    trees = option_log_likelihoods(model, choices, TREES, 128, 512)
    separate = option_log_likelihoods(model, choices, ROWS, 128, 512)
    assert (trees.scored_by, separate.scored_by) == ("option_tree", "separate_rows")
    for a, b in zip(trees.log_likelihoods, separate.log_likelihoods, strict=True):
        assert a == pytest.approx(b, abs=1e-10)


def test_options_with_the_same_tokens_share_one_likelihood(make_llama):
    model = make_llama(torch.float32)
    choice = Choice((5, 6, 7), ((8, 9), (10,), (8, 9), (8, 9, 11)))
    for trees in (TREES, ROWS):
        (values,) = option_log_likelihoods(model, [choice], trees, 128, 512).log_likelihoods
        assert values[0] == values[2]
        assert len(set(values)) == 3


def test_one_token_options_cost_one_row_and_one_row_of_logits(make_llama, monkeypatch):
    model = make_llama()
    seen = []
    log_likelihoods_of = rows.scored_log_likelihoods

    def spy(model, positions, *targets, **inputs):
        seen.append((tuple(inputs["input_ids"].shape), len(positions), "attention_mask" in inputs))
        return log_likelihoods_of(model, positions, *targets, **inputs)

    monkeypatch.setattr(rows, "scored_log_likelihoods", spy)
    choice = Choice((5, 6, 7), ((8,), (9,), (10,)))
    scores = option_log_likelihoods(model, [choice], None, 128, 512)
    assert seen == [((1, 3), 1, False)]
    assert scores.scored_by == "option_tree"
    assert scores.log_likelihoods[0] == pytest.approx(by_hand(model, choice, 128), abs=1e-10)


def test_the_budget_counts_padded_positions():
    lengths = [3, 9, 4, 1, 9, 2]
    groups = list(rows.token_batches(lengths, 20))
    assert sorted(index for group in groups for index in group) == list(range(6))
    for group in groups:
        assert len(group) * max(lengths[index] for index in group) <= 20
    assert list(rows.token_batches([50, 50], 20)) == [[0], [1]]  # a longer row still goes through
    assert list(rows.token_batches([], 20)) == []


def test_joined_rows_count_no_padding():
    lengths = [3, 9, 4, 1, 9, 2]
    assert list(rows.joined_batches(lengths, 20)) == [[1, 4], [2, 0, 5, 3]]
    assert list(rows.joined_batches([50, 50], 20)) == [[0], [1]]
    assert list(rows.joined_batches([], 20)) == []


def few_shot_choices(vocab, number=12, beginning=70, seed=5):
    """Items behind the same tokens, some of them with options of one token, and two that begin otherwise."""
    generator = torch.Generator().manual_seed(seed)
    shots = tuple(torch.randint(2, vocab, (beginning,), generator=generator).tolist())
    items = random_choices(vocab, number, seed=seed)
    letters = [Choice((*item.prompt_ids, 3), ((7,), (8,), (9,))) for item in random_choices(vocab, 4, seed=seed + 1)]
    others = random_choices(vocab, 2, seed=seed + 2)
    return [*(Choice((*shots, *item.prompt_ids), item.option_ids) for item in (*items, *letters)), *others]


@pytest.mark.parametrize("is_joined", [True, False])
@pytest.mark.parametrize("max_tokens", [200, 4096])
def test_items_behind_the_same_examples_are_scored_behind_them_once(make_llama, monkeypatch, is_joined, max_tokens):
    model = make_llama()
    monkeypatch.setattr(rows, "can_join", lambda _: is_joined)
    choices = few_shot_choices(model.config.vocab_size)
    read = []
    scored = rows.scored_log_likelihoods
    monkeypatch.setattr(
        rows,
        "scored_log_likelihoods",
        lambda m, *a, **inputs: read.append(inputs["input_ids"].numel()) or scored(m, *a, **inputs),
    )
    scores = option_log_likelihoods(model, choices, TREES, 128, max_tokens)
    for choice, values in zip(choices, scores.log_likelihoods, strict=True):
        assert values == pytest.approx(by_hand(model, choice, 128), abs=1e-10)
    assert scores.scored_by == "option_tree"
    whole = sum(len(choice.prompt_ids) for choice in choices)
    assert is_joined is False or sum(read) < (0.6 if max_tokens == 4096 else 0.9) * whole


def test_what_items_share_is_part_of_the_comparison(make_llama, monkeypatch):
    """Items without branches of their own, as where letters are compared."""
    model = make_llama(torch.float32)
    choices = [choice for choice in few_shot_choices(model.config.vocab_size) if not choice.has_branches]
    assert checked_option_trees(model, choices, 128, 4096) == TREES
    monkeypatch.setattr(TextTree, "positions", lambda tree, first=0: [*range(tree.total)])  # of a row, not of texts
    assert checked_option_trees(make_llama(torch.float32), choices, 128, 4096).refusal is not None


def test_a_refusal_shows_where_only_some_options_need_rows_of_their_own(make_llama):
    choices = [Choice((5, 6), ((8,), (9,))), Choice((5, 6), ((8, 9), (10, 11)))]
    assert option_log_likelihoods(make_llama(), choices, ROWS, 128, 512).scored_by == "separate_rows"
    assert option_log_likelihoods(make_llama(), choices, TREES, 128, 512).scored_by == "option_tree"


@pytest.mark.parametrize("trees", [TREES, ROWS])
def test_prompts_are_cut_from_the_left_as_in_lm_eval(make_llama, trees):
    context = 24
    model = make_llama(context=context)
    generator = torch.Generator().manual_seed(1)
    ids = tuple(torch.randint(2, 300, (60,), generator=generator).tolist())
    choices = [
        Choice(ids[:40], (ids[40:43], ids[43:50])),  # both options cut
        Choice(ids[:20], (ids[40:43], ids[43:49])),  # one option cut
        Choice(ids[:20], (ids[40:45], ids[45:50])),  # fits exactly: the last token is never read
        Choice(ids[:20], (ids[36:60], ids[43:46])),  # an option that fills the context
    ]
    scores = option_log_likelihoods(model, choices, trees, context, 512)
    for choice, values in zip(choices, scores.log_likelihoods, strict=True):
        assert values == pytest.approx(by_hand(model, choice, context), abs=1e-10)
    assert scores.num_truncated == 3


def test_an_option_longer_than_the_context_is_scored_in_windows(make_llama):
    model = make_llama(context=8)
    ids = list(range(10, 31))
    (row_values,) = option_log_likelihoods(model, [Choice((5,), (tuple(ids),))], ROWS, 8, 512).log_likelihoods
    expected = 0.0
    tokens = [5, *ids]
    for begin, end, first in ((1, 9, 0), (9, 17, 8), (17, 22, 13)):
        with torch.no_grad():
            logits = torch.log_softmax(model(torch.tensor([tokens[first : end - 1]])).logits[0], dim=-1)
        expected += sum(logits[at - 1 - first, tokens[at]].item() for at in range(begin, end))
    assert row_values[0] == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("is_joined", [True, False])
def test_trees_are_trusted_only_after_a_comparison(make_llama, monkeypatch, is_joined):
    model = make_llama(torch.float32)
    choices = random_choices(model.config.vocab_size)
    monkeypatch.setattr(rows, "can_join", lambda _: is_joined)
    assert checked_option_trees(model, choices, 128, 512) == TREES
    # A model that lets branches see each other: the mask is lost.
    monkeypatch.setattr(TextTree, "ends", lambda tree, first=0: [10**6] * tree.total)
    refusal = checked_option_trees(make_llama(torch.float32), choices, 128, 512).refusal
    assert refusal.startswith("option trees differed from separate rows by ")
    scores = option_log_likelihoods(model, choices, OptionTrees(refusal), 128, 512)
    assert scores.scored_by == "separate_rows"
    assert scores.log_likelihoods[0] == pytest.approx(by_hand(model, choices[0], 128), abs=1e-4)


def test_nothing_is_decided_on_items_without_branches(make_llama):
    assert checked_option_trees(make_llama(), [Choice((5,), ((6,), (7, 8)))], 128, 512) is None


def test_the_check_sees_numbers_that_are_not_finite(make_llama):
    model = make_llama(torch.float32)
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    assert checked_option_trees(model, random_choices(300), 128, 512).refusal is not None


def test_only_a_few_items_are_compared(make_llama, monkeypatch):
    counts = []
    scored = likelihoods.slot_log_likelihoods
    monkeypatch.setattr(
        likelihoods, "slot_log_likelihoods", lambda m, r, n, t: counts.append(len(r)) or scored(m, r, n, t)
    )
    checked_option_trees(make_llama(), random_choices(300, number=50), 128, 512)
    assert counts == [16, 4]


def test_other_weights_are_not_compared_again_and_other_modules_are(make_llama, monkeypatch):
    counts = []
    scored = likelihoods.slot_log_likelihoods
    monkeypatch.setattr(
        likelihoods, "slot_log_likelihoods", lambda m, r, n, t: counts.append(len(r)) or scored(m, r, n, t)
    )
    model, choices = make_llama(torch.float32), random_choices(300)

    def number_of_passes() -> int:
        counts.clear()
        assert checked_option_trees(model, choices, 128, 512) == TREES
        return len(counts)

    assert number_of_passes() == 2
    with torch.no_grad():
        model.lm_head.weight += 0.1
    assert number_of_passes() == 0
    plain = model.model.layers[0].mlp.up_proj
    model.model.layers[0].mlp.up_proj = torch.nn.Sequential(plain)  # as adapters wrap a layer
    assert number_of_passes() == 2
    assert number_of_passes() == 0
    model.model.layers[0].mlp.up_proj = plain
    assert number_of_passes() == 0
    choices = few_shot_choices(300)  # two forms of tree that were not among the first items
    assert number_of_passes() == 3
    assert number_of_passes() == 0


def test_a_model_that_differed_is_compared_again(make_llama):
    model, choices = make_llama(torch.float32), random_choices(300)
    kept = model.lm_head.weight.detach().clone()
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
        assert checked_option_trees(model, choices, 128, 512).refusal is not None
        model.lm_head.weight.copy_(kept)
    assert checked_option_trees(model, choices, 128, 512) == TREES


@pytest.mark.parametrize("is_joined", [True, False])
def test_rows_are_scored_in_halves_where_memory_runs_out(make_llama, monkeypatch, is_joined):
    model = make_llama()
    monkeypatch.setattr(rows, "can_join", lambda _: is_joined)
    choices = random_choices(model.config.vocab_size)
    expected = option_log_likelihoods(model, choices, TREES, 128, 4096)
    scored, sizes = rows.scored_log_likelihoods, []

    def limited(model, *arguments, **inputs):
        sizes.append(inputs["input_ids"].numel())
        if sizes[-1] > 120:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return scored(model, *arguments, **inputs)

    monkeypatch.setattr(rows, "scored_log_likelihoods", limited)
    found = option_log_likelihoods(model, choices, TREES, 128, 4096)
    assert max(sizes) > 120
    for a, b in zip(found.log_likelihoods, expected.log_likelihoods, strict=True):
        assert a == pytest.approx(b, abs=1e-10)
