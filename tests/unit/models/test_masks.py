"""Option trees against separate rows, on a tiny random model of every architecture that is listed as known."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from architectures import tiny_model
from rankscope.data.architectures import IN_TREES
from rankscope.models.masks import attention_window, option_tree_refusal, tree_mask
from rankscope.models.text_trees import TextTree
from rankscope.scoring import rows as rows_module
from rankscope.scoring.likelihoods import Choice, OptionTrees, checked_option_trees, option_log_likelihoods

_SHAPE = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0,
}  # fmt: skip
_GPT2 = {
    "vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3,
}  # fmt: skip
_FALCON = {**_SHAPE, "alibi": False, "new_decoder_architecture": False, "multi_query": True}

ARCHITECTURES = {
    "llama": ("llama", _SHAPE),
    "qwen2": ("qwen2", _SHAPE),
    "qwen3": ("qwen3", {**_SHAPE, "head_dim": 8}),
    "mistral": ("mistral", {**_SHAPE, "sliding_window": None}),
    "mixtral": ("mixtral", {**_SHAPE, "num_local_experts": 4, "sliding_window": None}),
    "phi3": ("phi3", {**_SHAPE, "sliding_window": None}),
    "gpt2": ("gpt2", _GPT2),
    "gpt_neox": ("gpt_neox", _SHAPE),
    "opt": ("opt", {**_SHAPE, "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3}),
    "falcon": ("falcon", _FALCON),
    "mistral, window": ("mistral", {**_SHAPE, "sliding_window": 12}),
    "mixtral, window": ("mixtral", {**_SHAPE, "num_local_experts": 4, "sliding_window": 12}),
    "phi3, window": ("phi3", {**_SHAPE, "sliding_window": 12}),
    "qwen2, window": (
        "qwen2", {**_SHAPE, "use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1},
    ),
    "qwen3, window": (
        "qwen3", {**_SHAPE, "head_dim": 8, "use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1},
    ),
}  # fmt: skip


def tiny(name, implementation="sdpa"):
    model_type, options = ARCHITECTURES[name]
    config = AutoConfig.for_model(model_type, **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    return model.float().eval()


def choices(vocab=97):
    generator = torch.Generator().manual_seed(0)

    def ids(length):
        return tuple(torch.randint(2, vocab, (length,), generator=generator).tolist())

    lengths = [(4, 3, 2, 5), (9, 1, 4, 2), (2, 6, 6, 6), (5, 5, 9, 3), (20, 2, 8, 4), (11, 7, 1, 7)]
    return [Choice(ids(prompt), tuple(ids(length) for length in options)) for prompt, *options in lengths]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_trees_are_right_on_every_known_architecture(monkeypatch, name, implementation):
    monkeypatch.setattr(rows_module, "can_join", lambda _: False)  # joined rows keep branches apart without this mask
    model = tiny(name, implementation)
    assert option_tree_refusal(model) is None
    items = choices()
    assert checked_option_trees(model, items, 64, 4096) == OptionTrees(None)
    trees = option_log_likelihoods(model, items, OptionTrees(None), 64, 4096)
    rows = option_log_likelihoods(model, items, OptionTrees("for the test"), 64, 4096)
    assert trees.scored_by == "option_tree"
    for item, a, b in zip(items, trees.log_likelihoods, rows.log_likelihoods, strict=True):
        for option, one, other in zip(item.option_ids, a, b, strict=True):
            assert one == pytest.approx(other, abs=1e-5 * max(1, len(option)))


def test_every_known_architecture_is_tried():
    assert {model_type for model_type, _ in ARCHITECTURES.values()} == IN_TREES


def test_windows_are_seen():
    for name in ARCHITECTURES:
        assert attention_window(tiny(name)) == (12 if "window" in name else None)


def test_what_was_not_tried_is_refused():
    options = {"vocab_size": 97, "hidden_size": 32, "n_layer": 1, "n_head": 4}
    bloom = AutoModelForCausalLM.from_config(AutoConfig.for_model("bloom", **options))
    assert option_tree_refusal(bloom) == "option trees were not tried with bloom"
    assert checked_option_trees(bloom, choices(), 64, 4096) == OptionTrees("option trees were not tried with bloom")
    falcon = AutoModelForCausalLM.from_config(AutoConfig.for_model("falcon", **{**_FALCON, "alibi": True}))
    assert "ALiBi" in option_tree_refusal(falcon)


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "falcon, ALiBi"])
def test_what_was_not_tried_is_scored_as_each_text_alone(name):
    model, items = tiny_model(name), choices(vocab=61)  # Gemma's with a window of 6
    trees = checked_option_trees(model, items, 64, 4096)
    assert trees.refusal
    scores = option_log_likelihoods(model, items, trees, 64, 100)  # so that rows of several lengths are padded
    assert scores.scored_by == "separate_rows"
    for item, found in zip(items, scores.log_likelihoods, strict=True):
        for option, value in zip(item.option_ids, found, strict=True):
            ids, begin = torch.tensor([[*item.prompt_ids, *option]]), len(item.prompt_ids)
            with torch.no_grad():
                log_p = model(ids).logits[0].log_softmax(-1)
            expected = log_p[begin - 1 : -1].gather(1, ids[0, begin:, None]).sum().item()
            assert value == pytest.approx(expected, abs=1e-4)


def test_the_mask_by_hand():
    # Prompt of two, a branch of two, a branch of one, one of padding.
    tree = TextTree(2, (TextTree(2), TextTree(1)))
    ends = torch.tensor([[*tree.ends(), 6]])
    seen = tree_mask(ends, torch.float32)[0, 0] == 0
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert seen.int().tolist() == expected
    mask = tree_mask(ends, torch.bfloat16)
    assert mask.dtype == torch.bfloat16
    assert torch.isfinite(mask).all()


def test_items_behind_what_they_share_by_hand():
    # One position that two items share: an item of one with options of one and none, and an item of two.
    tree = TextTree(1, (TextTree(1, (TextTree(1),)), TextTree(2)))
    assert tree.positions() == [0, 1, 2, 1, 2]
    seen = tree_mask(torch.tensor([tree.ends()]), torch.float32)[0, 0] == 0
    expected = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [1, 0, 0, 1, 1],
    ]
    assert seen.int().tolist() == expected
