"""Greedy generation equals transformers', token by token, whatever the batch."""

from functools import partial

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from rankscope.models.methods.making import make_trainable
from rankscope.scoring import generation
from rankscope.scoring.generation import Limits, generate, generate_together
from rankscope.scoring.rows import context_length
from tiny import lora_run

PROMPTS = [
    "Question: Which drug lowers the fever?\nAnswer:",
    "Anna",
    "The court held that the statute of limitations had run before the claim",
    "",
    "Once upon a time there was ",
    "6 * 4 =",
    "Berlin",
]


def prompt_ids(tokenizer, prompt):
    return tokenizer.encode(prompt) if prompt else [0]


def reference(model, ids, max_new_tokens):
    output = model.generate(
        torch.tensor([ids]), do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=1, pad_token_id=1
    )
    return output[0, len(ids) :].tolist()


def eager_to_end(model, factor):
    """Raise the end token's share, so that items end at different steps."""
    with torch.no_grad():
        model.get_output_embeddings().weight[1] *= factor
    return model


@pytest.mark.parametrize("max_tokens", [1, 100, 10**6])
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_tokens_equal_transformers_generate(make_llama, tokenizer, max_tokens, factor):
    model = eager_to_end(make_llama(), factor)
    results = generate(model, tokenizer, PROMPTS, 20, (), max_tokens)
    for prompt, result in zip(PROMPTS, results, strict=True):
        assert list(result.ids) == reference(model, prompt_ids(tokenizer, prompt), 20)
        assert not result.is_truncated
    ends = {len(result.ids) for result in results}
    assert (len(ends) > 2) == (factor == 3.0), "the test should see items that end at different steps"
    for result in results:
        assert result.is_unfinished == (result.ids[-1] != 1)
        kept = result.ids[:-1] if result.ids[-1] == 1 else result.ids
        assert result.text == tokenizer.decode(kept)


_SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3,
}  # fmt: skip


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("qwen2", {**_SHAPE, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
        ("mistral", {**_SHAPE, "sliding_window": 6}),
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.3}),
        ("opt", {**_SHAPE, "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3}),
        ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}),
    ],
)
def test_other_architectures_too(model_type, options, tokenizer):
    special = {"vocab_size": tokenizer.vocab_size, "bos_token_id": 0, "eos_token_id": 1}
    config = AutoConfig.for_model(model_type, **special, **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    if model_type != "bloom":  # eager only, whose float32 softmax makes NaN of padding in float64
        model = model.double()
    for prompt, result in zip(PROMPTS, generate(model, tokenizer, PROMPTS, 12, (), 10**6), strict=True):
        assert list(result.ids) == reference(model, prompt_ids(tokenizer, prompt), 12)


@pytest.mark.filterwarnings("ignore")  # of kernels that are not there
@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "initializer_range": 0.3}),
        ("rwkv", {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "context_length": 128}),
        ("openai-gpt", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.3}),
        ("recurrent_gemma", {**_SHAPE, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 6}),
        ("minimax", {**_SHAPE, "layer_types": ["linear_attention", "full_attention"], "num_local_experts": 2}),
        ("lfm2", {**_SHAPE, "layer_types": ["conv", "full_attention"]}),
        ("jamba", {**_SHAPE, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1, "mamba_d_state": 4}),
    ],
)
def test_models_that_keep_a_state_write_what_each_prompt_alone_would(model_type, options, tokenizer):
    special = {"vocab_size": tokenizer.vocab_size, "bos_token_id": 0, "eos_token_id": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **special, **options)).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    eager_to_end(model, 6.0)
    prompts = [*PROMPTS, PROMPTS[0].replace("fever", "sugar"), ""]
    results = generate(model, tokenizer, prompts, 12, (), 10**6)
    assert len({len(result.ids) for result in results}) > 1, "some should end before others"
    for prompt, result in zip(prompts, results, strict=True):
        ids = list(prompt_ids(tokenizer, prompt))
        for expected in result.ids:
            with torch.no_grad():
                assert model(torch.tensor([ids])).logits[0, -1].argmax() == expected
            ids.append(expected)


@pytest.mark.parametrize("max_tokens", [1, 10**6])
def test_a_stop_text_ends_an_item_where_it_is_complete(make_llama, tokenizer, max_tokens):
    model = make_llama()
    free = generate(model, tokenizer, PROMPTS, 30, (), max_tokens)
    # A stop text from the middle of what each would write: two characters that may span tokens.
    for number, long in enumerate(free):
        stop = long.text[11:13]
        (result,) = generate(model, tokenizer, [PROMPTS[number]], 30, (stop, "never written"), max_tokens)
        cut = long.text.index(stop)
        assert (long.is_unfinished, result.is_unfinished) == (True, False)
        assert result.text == long.text[:cut]
        assert list(result.ids) == list(long.ids[: len(result.ids)])
        assert stop in tokenizer.decode(result.ids)
        assert stop not in tokenizer.decode(result.ids[:-1])
    stops = tuple(long.text[11:13] for long in free)
    together = generate(model, tokenizer, PROMPTS, 30, stops, max_tokens)
    alone = [generate(model, tokenizer, [prompt], 30, stops, max_tokens)[0] for prompt in PROMPTS]
    assert together == alone


def test_of_stop_texts_that_end_together_the_one_that_begins_first_cuts(make_llama, tokenizer):
    model = make_llama()
    for number, long in enumerate(generate(model, tokenizer, PROMPTS, 30, (), 10**6)):
        stops = (long.text[12:14], long.text[11:14])
        (result,) = generate(model, tokenizer, [PROMPTS[number]], 30, stops, 10**6)
        assert result.text == long.text[: min(long.text.index(stop) for stop in stops)]


def test_an_end_token_that_is_not_special_is_no_part_of_the_text(tokenizer):
    word, end = tokenizer.encode("Anna")[-1], tokenizer.encode("Berlin")[-1]
    assert tokenizer.decode([word, end]) != tokenizer.decode([word])
    assert generation._Ends((end,), (), tokenizer.decode).text([word, end]) == tokenizer.decode([word])


def test_ended_items_cost_no_more_steps(make_llama, tokenizer, monkeypatch):
    model = make_llama()
    widths = []
    advance = generation._Batch.advance
    monkeypatch.setattr(generation._Batch, "advance", lambda self: widths.append(len(self.items)) or advance(self))
    first = generate(model, tokenizer, PROMPTS, 30, (), 10**6)
    assert widths == [len(PROMPTS)] * 30
    widths.clear()
    # All but one hold their stop text by step 8; looked for every 8 steps.
    stops = tuple(result.text[:2] for result in first[1:])
    generate(model, tokenizer, PROMPTS, 30, stops, 10**6)
    assert widths[:8] == [len(PROMPTS)] * 8
    assert len(widths) == 8 or widths[8] < len(PROMPTS)


def test_a_row_that_has_ended_stays_as_it_is_while_others_go_on(make_llama, tokenizer):
    """Every token that the first prompt is followed by, as the end token: rows end one by one, and few of them."""
    model, ids = make_llama(), [prompt_ids(tokenizer, prompt) for prompt in PROMPTS]
    free = [list(result.ids) for result in generate(model, tokenizer, PROMPTS, 20, (), 10**6)]
    for token in dict.fromkeys(free[0]):
        batch = generation._Batch(model, ids, 20, 128)
        batch.share([0] * len(ids), lambda *_: None)
        with torch.no_grad(), generation._last_logits_only(model):
            found = generation._generate_batch(batch, generation._Ends((token,), (), tokenizer.decode))
        assert found == [row[: row.index(token) + 1] if token in row else row for row in free]


def test_a_row_at_the_contexts_end_does_not_run_out_of_learned_positions(tokenizer):
    special = {"vocab_size": tokenizer.vocab_size, "bos_token_id": 0, "eos_token_id": 1, "n_positions": 24}
    config = AutoConfig.for_model("gpt2", n_embd=32, n_layer=2, n_head=4, initializer_range=0.3, **special)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval().double()
    prompts = [PROMPTS[2] * 3, *["Anna", "Berlin"] * 4]  # one of nine: it stays in the batch
    for prompt, result in zip(prompts, generate(model, tokenizer, prompts, 20, (), 10**6), strict=True):
        ids = tokenizer.encode(prompt)[-12:]
        assert list(result.ids) == reference(model, ids, min(20, 25 - len(ids)))


def test_long_prompts_are_cut_and_items_end_with_the_context(make_llama, tokenizer):
    context = 24
    model = make_llama(context=context)
    assert context_length(model, 999) == context
    prompt = PROMPTS[2] * 3
    ids = tokenizer.encode(prompt)
    assert len(ids) > context
    cut, whole = generate(model, tokenizer, [prompt, "Anna"], 8, (), 10**6)
    assert (cut.is_truncated, whole.is_truncated) == (True, False)
    assert cut.is_unfinished and whole.is_unfinished
    assert list(cut.ids) == reference(model, ids[-16:], 8)
    full = next(prompt[:end] for end in range(len(prompt)) if len(tokenizer.encode(prompt[:end])) == 16)
    (fitting,) = generate(model, tokenizer, [full], 8, (), 10**6)
    assert not fitting.is_truncated and len(fitting.ids) == 8
    # More new tokens than the context leaves: half of it is the prompt's, and the last token is never read.
    short = tokenizer.encode("Anna buys")
    longer, other = generate(model, tokenizer, [prompt, "Anna buys"], 100, (), 10**6)
    assert len(longer.ids) == context + 1 - context // 2
    assert list(longer.ids) == reference(model, ids[-12:], context + 1 - 12)
    assert len(other.ids) == context + 1 - len(short)
    assert list(other.ids) == reference(model, short, context + 1 - len(short))


def test_no_prompts_no_generations(make_llama, tokenizer):
    assert generate(make_llama(), tokenizer, [], 5, (), 100) == []


def random_pack(model, runs):
    """LoRA runs as training might have left them: PEFT's start, with a `B` that does something."""
    pack = make_trainable(model, runs)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for index in range(len(runs)):
            for name, tensor in pack.state(index).items():
                if "lora_B" in name:
                    tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))
    return pack


@pytest.mark.parametrize("max_tokens", [1, 150, 10**6])
def test_adapters_that_decode_together_write_what_each_writes_alone(make_llama, tokenizer, tmp_path, max_tokens):
    """Token by token what transformers' `generate` gives for each adapter in PEFT's own model."""
    runs = [
        lora_run(1, 1e-3, seed=0, num_steps=1),
        lora_run(4, 1e-3, seed=1, num_steps=1, use_rslora=True),
        lora_run(16, 1e-3, seed=2, num_steps=1, use_dora=True),
    ]
    pack = random_pack(eager_to_end(make_llama(), 3.0), runs)
    limits = Limits(20, (), max_tokens)
    route = partial(pack.route, is_training=False)
    together = generate_together(pack.model, tokenizer, PROMPTS, limits, (0, 1, 2), route)
    some = generate_together(pack.model, tokenizer, PROMPTS, limits, (0, 2), route)
    assert some == [together[0], together[2]]
    for index in range(len(runs)):
        pack.save(index, tmp_path / str(index))
        base = eager_to_end(make_llama(), 3.0)
        peft = PeftModel.from_pretrained(base, tmp_path / str(index) / "adapter").eval()
        for prompt, result in zip(PROMPTS, together[index], strict=True):
            expected = peft.generate(
                input_ids=torch.tensor([prompt_ids(tokenizer, prompt)]), do_sample=False, max_new_tokens=20,
                eos_token_id=1, pad_token_id=1,
            )  # fmt: skip
            assert list(result.ids) == expected[0, len(prompt_ids(tokenizer, prompt)) :].tolist()
    assert len({tuple(result.ids for result in written) for written in together}) == 3
    assert len({len(result.ids) for written in together for result in written}) > 2


def test_stop_texts_end_each_adapters_items_by_themselves(make_llama, tokenizer):
    runs = [lora_run(rank, 1e-3, seed=rank, num_steps=1) for rank in (2, 8)]
    pack = random_pack(make_llama(), runs)
    route = partial(pack.route, is_training=False)
    free = generate_together(pack.model, tokenizer, PROMPTS, Limits(30, (), 10**6), (0, 1), route)
    stops = tuple(long.text[9:11] for written in free for long in written if len(long.text) > 11)
    together = generate_together(pack.model, tokenizer, PROMPTS, Limits(30, stops, 10**6), (0, 1), route)
    for index in (0, 1):
        alone = generate_together(pack.model, tokenizer, PROMPTS, Limits(30, stops, 10**6), (index,), route)
        assert together[index] == alone[0]
    assert together != free


def test_only_last_positions_reach_the_head(make_llama, tokenizer):
    model = make_llama()
    seen = []
    model.lm_head.register_forward_hook(lambda _module, _inputs, output: seen.append(tuple(output.shape[:2])))
    generate(model, tokenizer, PROMPTS, 6, (), 10**6)
    assert seen == [(len(PROMPTS), 1)] * 6
