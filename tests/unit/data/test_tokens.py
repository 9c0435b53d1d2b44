import json
import os
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from model_folders import CHATML, write_llama_tokenizer, write_tokenizer
from rankscope.data.tokens import Tokenizer
from rankscope.errors import UserError

TEXTS = ["", " ", "a", "What is the capital?", "  two  blanks ", "café ünïcode 漢字 🙂", "<s>opened", "x</s>y", "\n\n"]
MESSAGES = [
    {"role": "system", "content": "Be brief & <kind>."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
]
KINDS = {
    "plain": {},
    "bos": {"bos": True},
    "no_bos_token": {"bos_token": None},
    "ignored_flag": {"add_bos_token": True, "add_eos_token": True},
    "new_special_token": {"mask_token": "<mask>", "bos": True},
}


@pytest.fixture(scope="module", params=list(KINDS))
def pair(request, tmp_path_factory):
    folder = write_tokenizer(tmp_path_factory.mktemp(request.param), **KINDS[request.param])
    return Tokenizer.from_folder(folder), transformers.AutoTokenizer.from_pretrained(folder)


def lm_eval_model(reference):
    """lm-evaluation-harness's own code with our tokenizer in it and no model."""
    from lm_eval.models.huggingface import HFLM

    model = HFLM.__new__(HFLM)
    model.tokenizer, model.backend, model.add_bos_token = reference, "causal", None
    model.custom_prefix_token_id, model.enable_thinking = None, None
    return model


def lm_eval_pair(reference, prompt, completion):
    """The two parts as lm-eval's `loglikelihood` tokenises them."""
    from lm_eval.api.instance import Instance

    model = lm_eval_model(reference)
    caught = []
    model._loglikelihood_tokens = lambda requests, disable_tqdm=False: caught.extend(requests)
    instance = Instance(request_type="loglikelihood", doc={}, arguments=(prompt, completion), idx=0)
    model.loglikelihood([instance], disable_tqdm=True)
    return caught[0][1], caught[0][2]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_transformers(pair, text):
    ours, reference = pair
    assert ours.encode(text) == reference(text).input_ids
    assert ours.encode_batch([text, "b"]) == [reference(text).input_ids, reference("b").input_ids]


def test_ids_of_special_tokens_are_those_of_transformers(pair):
    ours, reference = pair
    assert ours.bos_token_id == reference.bos_token_id
    assert ours.eos_token_id == reference.eos_token_id
    assert ours.vocab_size == len(reference)
    assert ours.model_max_length == reference.model_max_length == 128
    assert ours.context_length == 256


@pytest.fixture(scope="module")
def with_bos(tmp_path_factory):
    folder = write_tokenizer(tmp_path_factory.mktemp("any"), bos=True)
    return Tokenizer.from_folder(folder), transformers.AutoTokenizer.from_pretrained(folder)


@given(st.text(max_size=40), st.text(min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_pairs_are_those_of_lm_eval_for_any_text(with_bos, prompt, completion):
    ours, reference = with_bos
    assert ours.encode_pair(prompt, completion) == lm_eval_pair(reference, prompt, completion)


PAIRS = [
    ("Question: What does the farmer sell?\nAnswer:", " eggs"),
    ("Question: What does the farmer sell?\nAnswer: ", "eggs"),
    ("user\n", "Paris."),
    ("<s>Question:", " eggs"),
    ("", "The quick brown fox"),
    ("", "<s>The quick brown fox"),
]


@pytest.mark.parametrize(("prompt", "completion"), PAIRS)
def test_pairs_are_those_of_lm_eval(pair, prompt, completion):
    ours, reference = pair
    assert ours.encode_pair(prompt, completion) == lm_eval_pair(reference, prompt, completion)


def test_many_pairs_equal_one_by_one(pair):
    ours, _ = pair
    assert ours.encode_pairs(PAIRS) == [ours.encode_pair(*texts) for texts in PAIRS]


def test_end_token_that_the_tokenizer_sets_behind_a_text_is_left_out(tmp_path):
    folder = write_tokenizer(tmp_path, bos=True, eos=True)
    ours, reference = Tokenizer.from_folder(folder), transformers.AutoTokenizer.from_pretrained(folder)
    ids = reference("eggs and milk").input_ids
    assert ids[-1] == reference.eos_token_id
    assert ours.encode("eggs and milk") == ids[:-1]
    prompt, completion = ours.encode_pair("eggs", " and milk")
    assert prompt + completion == ids[:-1]


def test_decoding_is_that_of_transformers(pair):
    ours, reference = pair
    ids = reference("The <|im_end|> café 漢字 .").input_ids
    assert ours.decode(ids) == reference.decode(ids, skip_special_tokens=True)
    assert ours.decode(ids, skip_special_tokens=False) == reference.decode(ids)


def test_generation_config_may_name_several_end_tokens(tmp_path):
    folder = write_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.eos_token_ids == (tokenizer.eos_token_id,)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [4, 1]}))
    assert Tokenizer.from_folder(folder).eos_token_ids == (1, 4)


def test_older_layout_keeps_special_tokens_in_a_file_of_their_own(tmp_path):
    folder = write_tokenizer(tmp_path, bos_token=None, eos_token=None)
    bos = {"content": "<s>", "lstrip": False, "rstrip": False, "normalized": False}
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": bos, "eos_token": "</s>"}))
    ours, reference = Tokenizer.from_folder(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert (ours.bos_token_id, ours.eos_token_id) == (reference.bos_token_id, reference.eos_token_id) == (0, 1)


TEMPLATES = {
    "chatml": CHATML,
    "bos": "{{ bos_token }}" + CHATML,
    "json": "{{ messages | tojson }}{% if add_generation_prompt %}>{% endif %}",
    "blocks": "{%- for m in messages %}\n    {%- if m.role == 'system' %}\n        {% continue %}\n    {%- endif %}\n"
    "  {% generation %}{{ m.content | trim }}{% endgeneration %}\n{% endfor %}",
    "names": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ m.content }}"
    "{% endfor %}{{ strftime_now('%Y') }}{% if tools %}tools{% endif %}",
}


@pytest.mark.parametrize("name", list(TEMPLATES))
@pytest.mark.parametrize("generate", [True, False])
def test_chat_is_rendered_as_by_transformers(tmp_path, name, generate):
    folder = write_tokenizer(tmp_path, chat=TEMPLATES[name])
    ours, reference = Tokenizer.from_folder(folder), transformers.AutoTokenizer.from_pretrained(folder)
    expected = reference.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=generate)
    assert ours.render_chat(MESSAGES, add_generation_prompt=generate) == expected


def test_chat_template_in_a_file_of_its_own_outranks_the_configuration(tmp_path):
    folder = write_tokenizer(tmp_path, chat="old")
    (folder / "chat_template.jinja").write_text(CHATML)
    assert Tokenizer.from_folder(folder).chat_template == CHATML


def test_chat_template_among_several_is_the_default_one(tmp_path):
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]
    assert Tokenizer.from_folder(write_tokenizer(tmp_path, chat=named)).chat_template == CHATML


def test_chat_template_that_refuses_is_the_users_error(tmp_path):
    folder = write_tokenizer(tmp_path, chat="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UserError, match="roles must alternate"):
        Tokenizer.from_folder(folder).render_chat(MESSAGES, add_generation_prompt=True)


@pytest.mark.parametrize(
    "template", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{% for %}", "{{ messages[99].content }}"]
)
def test_chat_template_cannot_leave_its_sandbox(tmp_path, template):
    tokenizer = Tokenizer.from_folder(write_tokenizer(tmp_path, chat=template))
    with pytest.raises(UserError):
        tokenizer.render_chat(MESSAGES, add_generation_prompt=True)


def test_completion_ends_with_what_closes_a_turn(tmp_path):
    folder = write_tokenizer(tmp_path / "chat", chat=CHATML)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 4]}))
    assert Tokenizer.from_folder(folder).completion_end_id == 4  # <|im_end|>
    assert Tokenizer.from_folder(folder).unheeded_turn_end is None
    unheeded = Tokenizer.from_folder(write_tokenizer(tmp_path / "other", chat=CHATML))
    assert (unheeded.completion_end_id, unheeded.unheeded_turn_end) == (1, "<|im_end|>")
    assert Tokenizer.from_folder(write_tokenizer(tmp_path / "plain")).completion_end_id == 1


def test_plain_model_renders_no_chat(tmp_path):
    with pytest.raises(UserError, match="no chat template"):
        Tokenizer.from_folder(write_tokenizer(tmp_path)).render_chat(MESSAGES, add_generation_prompt=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "no tokenizer.json"),
        ("tokenizer.json", "{}", "cannot be read"),
        ("tokenizer_config.json", "{", "not valid JSON"),
        ("generation_config.json", "[]", "not a JSON object"),
    ],
)
def test_broken_tokenizer_folders_are_refused(tmp_path, name, content, message):
    folder = write_tokenizer(tmp_path)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        Tokenizer.from_folder(folder)
    assert caught.value.mend


@pytest.mark.parametrize("config", [{}, {"legacy": True}, {"legacy": False}, {"add_prefix_space": False}])
def test_llama_tokenizers_treat_blanks_as_in_transformers(tmp_path, config):
    folder = write_llama_tokenizer(tmp_path, **config)
    ours, reference = Tokenizer.from_folder(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert type(reference).__name__ == "LlamaTokenizer"
    for text in (*TEXTS, "user </s> What is</s>the"):
        assert ours.encode(text) == reference(text).input_ids
    for prompt, completion in PAIRS:
        assert ours.encode_pair(prompt, completion) == lm_eval_pair(reference, prompt, completion)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["stories3M", "stories260K"])
def test_shared_models_are_tokenised_as_by_transformers_and_lm_eval(name):
    shared = Path(os.environ.get("RANKSCOPE_SHARED", Path(__file__).parents[4] / "shared"))
    folder = shared / "data" / "models" / name
    if not folder.is_dir():
        pytest.skip(f"the shared models are not at {folder}")
    ours, reference = Tokenizer.from_folder(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert ours.encode(text) == reference(text).input_ids
    for prompt, completion in PAIRS:
        assert ours.encode_pair(prompt, completion) == lm_eval_pair(reference, prompt, completion)
    assert ours.eos_token_ids == (2,)
    assert ours.context_length == 512
