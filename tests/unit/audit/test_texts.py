"""Both models on texts: losses against transformers' own, attention against the patterns that the models show."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from model_folders import write_tokenizer
from planted import CONFIG, Quiet, plant
from rankscope.audit.stage import Request, run
from rankscope.audit.texts import as_texts
from rankscope.data.readers import Row
from rankscope.data.sources import Rows
from rankscope.data.tokens import Tokenizer
from rankscope.errors import UserError

pytestmark = [pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")]
TEXTS = ["The quick brown fox jumps.", "What does the farmer sell?", "Paris."]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base with a tokenizer, and an adapter of it."""
    root = tmp_path_factory.mktemp("texts")
    write_tokenizer(root / "base")
    config = type(CONFIG)(**{**CONFIG.to_dict(), "vocab_size": 400, "max_position_embeddings": 64})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(root / "base")
    plant(root / "base", root / "adapter", target_modules=["q_proj", "down_proj"])
    (root / "texts.txt").write_text("\n\n".join(TEXTS))
    return root


def audit(folders, tuned, out, texts="texts.txt"):
    request = Request(str(folders / "base"), str(tuned), out, layers=None, texts=folders / texts)
    return run(request, Quiet())


def own_loss(model, pair):
    """Mean negative log-likelihood of the completion, from the logits of all positions."""
    prompt, completion = pair
    ids = torch.tensor([[*prompt, *completion]])
    with torch.no_grad():
        logits = model(ids).logits[0].log_softmax(-1)
    places = range(len(prompt), len(prompt) + len(completion))
    return -sum(float(logits[place - 1, ids[0, place]]) for place in places) / len(completion)


def test_nothing_is_looked_at_beyond_the_positions_that_the_model_has(folders, tmp_path):
    (folders / "long.txt").write_text(" ".join(TEXTS * 20))
    outcome = audit(folders, folders / "adapter", tmp_path / "out", texts="long.txt").audit
    positions = outcome.on_texts.layers["num_positions"].unique().to_list()
    assert positions == [64], "which is what the model has"
    (note,) = outcome.on_texts.notes
    assert note == "heads, layers and neurons saw the first 1 text, up to 64 tokens of each"
    assert note in outcome.all_notes
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert note in page, "and a reader of the page is told"


def test_while_many_texts_are_scored_a_person_sees_how_far_it_is(folders, tmp_path, monkeypatch):
    few = audit(folders, folders / "adapter", tmp_path / "few").audit.on_texts.losses
    monkeypatch.setattr("rankscope.audit.texts._TEXTS_AT_ONCE", 2)
    watcher = Quiet()
    request = Request(str(folders / "base"), str(folders / "adapter"), tmp_path / "out", texts=folders / "texts.txt")
    found = run(request, watcher).audit.on_texts.losses
    counts = [count for count in watcher.counts if "losses" in count[0]]
    assert counts == [(f"losses of the {model}: text", done, 3) for model in ("base", "tuned model") for done in (0, 2)]
    assert found["loss_nats_per_token"].to_list() == pytest.approx(few["loss_nats_per_token"].to_list(), abs=1e-6)


def test_losses_are_those_of_transformers(folders, tmp_path):
    found = audit(folders, folders / "adapter", tmp_path / "out").audit.on_texts
    base = AutoModelForCausalLM.from_pretrained(folders / "base").eval()
    pairs = Tokenizer.from_folder(folders / "base").encode_pairs([("", text) for text in TEXTS])
    expected = [own_loss(base, pair) for pair in pairs]
    tuned = PeftModel.from_pretrained(base, folders / "adapter").eval()
    after = [own_loss(tuned, pair) for pair in pairs]
    assert found.losses["loss_nats_per_token_base"].to_list() == pytest.approx(expected, abs=1e-5)
    assert found.losses["loss_nats_per_token"].to_list() == pytest.approx(after, abs=1e-5)
    sizes = [len(completion) for _, completion in pairs]
    assert found.losses["num_scored_tokens"].to_list() == sizes
    change = sum(size * (b - a) for size, a, b in zip(sizes, expected, after, strict=True)) / sum(sizes)
    assert found.summary["loss_change_nats"] == pytest.approx(change, abs=1e-5)
    assert abs(change) > 1e-4


def test_an_untrained_adapter_changes_exactly_nothing(folders, tmp_path):
    model = plant(folders / "base", tmp_path / "adapter", target_modules=["q_proj"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    model.save_pretrained(tmp_path / "adapter")
    outcome = audit(folders, tmp_path / "adapter", tmp_path / "out")
    assert outcome.audit.on_texts.summary["loss_change_nats"] == 0.0
    assert outcome.audit.on_texts.summary["attention_divergence"] == 0.0
    layers = outcome.audit.on_texts.layers
    assert layers["neuron_shift"].to_list() == [0.0] * layers.height
    assert layers["neurons_newly_dead"].sum() == layers["neurons_newly_active"].sum() == 0
    for key in ("cka", "residual_cosine"):
        assert layers[key].to_list() == pytest.approx([1.0] * layers.height, abs=1e-9)
    assert layers["procrustes_residual"].to_list() == pytest.approx([0.0] * layers.height, abs=1e-6)
    assert outcome.audit.on_texts.neurons.is_empty(), "none has changed"
    assert any("the loss stayed the same" in text for text in outcome.findings)


def test_streams_and_neurons_are_those_of_transformers(folders, tmp_path):
    outcome = audit(folders, folders / "adapter", tmp_path / "out")
    found = outcome.audit.on_texts
    base = AutoModelForCausalLM.from_pretrained(folders / "base").eval()
    pairs = Tokenizer.from_folder(folders / "base").encode_pairs([("", text) for text in TEXTS])
    before = flows(base, pairs)
    after = flows(PeftModel.from_pretrained(base, folders / "adapter").eval(), pairs)
    for layer, row in enumerate(found.layers.iter_rows(named=True)):
        X, Y = (centred(one[0][layer]) for one in (before, after))
        assert row["num_positions"] == len(X)
        plain = (X.T @ Y).square().sum() / ((X.T @ X).norm() * (Y.T @ Y).norm())  # linear CKA, Kornblith et al. 2019
        assert row["cka"] == pytest.approx(float(plain), rel=1e-4)
        one, other = before[1][layer], after[1][layer]
        shift = ((other.mean(0) - one.mean(0)) / one.std(0)).abs()
        assert row["neuron_shift"] == pytest.approx(float(shift.mean()), rel=1e-4)
    assert found.neurons["neuron_shift"].abs().max() > 0
    assert set(found.neurons["text"]) <= {0, 1, 2}
    strongest = found.neurons.filter(model="tuned").row(0, named=True)
    values = after[1][strongest["layer"]][:, strongest["neuron"]]
    assert abs(strongest["activation"]) == pytest.approx(float(values.abs().max()), rel=1e-4)
    assert {"How far the representations drifted", "What became of the neurons"} <= {
        figure for figure in TITLES if figure in outcome.page.read_text()
    }
    assert any("fell silent on these texts" in text for text in outcome.findings)


TITLES = ("How far the representations drifted", "What became of the neurons")


def centred(values):
    values = values.double()
    return values - values.mean(0)


def flows(model, pairs):
    """By layer, what its decoder layer gives and what goes into its down_proj, over all tokens of all texts."""
    streams, neurons = {}, {}
    layers = (model.get_base_model() if isinstance(model, PeftModel) else model).model.layers
    for index, layer in enumerate(layers):
        layer.register_forward_hook(
            lambda _m, _a, out, index=index: streams.setdefault(index, []).append(
                (out[0] if isinstance(out, tuple) else out).reshape(-1, out.shape[-1])
            )
        )
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda _m, args, index=index: neurons.setdefault(index, []).append(args[0].reshape(-1, args[0].shape[-1]))
        )
    with torch.no_grad():
        for prompt, completion in pairs:
            model(torch.tensor([[*prompt, *completion]]))
    for layer in layers:
        layer._forward_hooks.clear()
        layer.mlp.down_proj._forward_pre_hooks.clear()
    return [{index: torch.cat(parts).double() for index, parts in kept.items()} for kept in (streams, neurons)]


def test_a_whole_model_and_the_page(folders, tmp_path):
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folders / "base"), folders / "adapter")
    tuned.merge_and_unload().save_pretrained(tmp_path / "merged")
    one = audit(folders, folders / "adapter", tmp_path / "one")
    outcome = audit(folders, tmp_path / "merged", tmp_path / "out")
    found, expected = outcome.audit.on_texts, one.audit.on_texts
    for key, value in expected.summary.items():
        assert found.summary[key] == pytest.approx(value, abs=1e-5)
    assert found.heads.height == 3 * 4 and found.heads["attention_divergence"].min() > 0
    assert "Where heads look now" in outcome.page.read_text()
    document = json.loads(outcome.document)
    assert len(document["texts"]["losses"]) == 3 and len(document["texts"]["heads"]) == 12
    assert (tmp_path / "out" / "tables" / "heads.csv").is_file()


def test_prompts_are_not_scored(folders, tmp_path):
    rows = [{"prompt": "What does the farmer sell?", "completion": " eggs"}]
    (folders / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = audit(folders, folders / "adapter", tmp_path / "out", "rows.jsonl").audit.on_texts
    (pair,) = Tokenizer.from_folder(folders / "base").encode_pairs([(rows[0]["prompt"], rows[0]["completion"])])
    base = AutoModelForCausalLM.from_pretrained(folders / "base").eval()
    assert found.losses["loss_nats_per_token_base"].item() == pytest.approx(own_loss(base, pair), abs=1e-5)


USER, ASSISTANT = {"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "a box"}
FORMS = [
    ({"text": "The fox."}, "", "The fox."),
    ({"messages": [USER, ASSISTANT]}, "[user]What is it?[assistant]", "a box"),
    ({"conversations": [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "a box"}]},
     "[user]What is it?[assistant]", "a box"),
    ({"prompt": [USER], "completion": [ASSISTANT]}, "[user]What is it?[assistant]", "a box"),
    ({"instruction": "What is it?", "output": "a box"}, "[user]What is it?[assistant]", "a box"),
    ({"question": "What is it?", "choices": ["a fox", "a box"], "answer": 1}, "[user]What is it?[assistant]", "a box"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "prompt", "scored"), FORMS, ids=[next(iter(row)) for row, _, _ in FORMS])
def test_texts_are_what_training_takes_put_through_the_chat_template(tmp_path, row, prompt, scored):
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    template += "{% if add_generation_prompt %}[assistant]{% endif %}"
    tokenizer = Tokenizer.from_folder(write_tokenizer(tmp_path, chat=template))
    (pair,) = as_texts(Rows([Row(row, "texts.jsonl", 1)], "files"), tokenizer).pairs
    assert pair == tokenizer.encode_pair(prompt, scored)


def test_chats_are_audited(folders, tmp_path):
    (folders / "chats.jsonl").write_text("\n".join([json.dumps({"messages": [USER, ASSISTANT]})] * 2))
    found = audit(folders, folders / "adapter", tmp_path / "out", "chats.jsonl").audit.on_texts
    # This base has no chat template.
    pair = Tokenizer.from_folder(folders / "base").encode_pair("Question: What is it?\nAnswer:", " a box")
    base = AutoModelForCausalLM.from_pretrained(folders / "base").eval()
    assert found.losses["loss_nats_per_token_base"].to_list() == pytest.approx([own_loss(base, pair)] * 2, abs=1e-5)


class TestRefused:
    @pytest.mark.parametrize(
        ("content", "match"),
        [('{"question": "x"}', "no form that is known"), ('{"text": ""}', "'text' is empty"), (" ", "no rows")],
    )
    def test_rows_without_text(self, folders, tmp_path, content, match):
        (folders / "bad.jsonl").write_text(content)
        with pytest.raises(UserError, match=match):
            audit(folders, folders / "adapter", tmp_path / "out", "bad.jsonl")

    def test_the_mend_names_no_key_of_a_study(self, folders, tmp_path):
        (folders / "bad.jsonl").write_text('{"question": "x"}')
        with pytest.raises(UserError) as caught:
            audit(folders, folders / "adapter", tmp_path / "out", "bad.jsonl")
        assert caught.value.mend.startswith("write them as messages, ") and "columns" not in caught.value.mend

    def test_no_such_file(self, folders, tmp_path):
        with pytest.raises(UserError, match="no such file"):
            audit(folders, folders / "adapter", tmp_path / "out", "none.txt")

    def test_an_adapter_whose_names_peft_does_not_find(self, folders, tmp_path):
        """Its weights can be read here, but PEFT would run the model without them."""
        plant(folders / "base", tmp_path / "adapter", target_modules=["q_proj"])
        path = tmp_path / "adapter" / "adapter_model.safetensors"
        save_file({key.removeprefix("base_model.model."): value for key, value in load_file(path).items()}, path)
        with pytest.raises(UserError, match="PEFT cannot load it") as caught:
            audit(folders, tmp_path / "adapter", tmp_path / "out")
        assert "save_pretrained" in caught.value.mend
