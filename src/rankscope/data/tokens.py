"""Text to token ids and back, exactly as transformers and lm-evaluation-harness do it, without loading either."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from rankscope.data.architectures import read_json
from rankscope.data.chat import render_chat
from rankscope.errors import UserError

# The order in which transformers adds tokens that the configuration names and the vocabulary lacks.
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LONGEST = 10**9  # transformers writes 1e30 for "no limit"


class Tokenizer:
    """A model's tokenizer, read from its folder.

    `tokenizer.json` is taken as it is written. As in transformers 5, `add_bos_token` of tokenizer_config.json counts
    for nothing beside it: what goes in front of a text is what the post-processor of tokenizer.json says. The exception
    are SentencePiece tokenizers of Llama models, whose blanks transformers treats in its own way.
    """

    def __init__(self, backend: tokenizers.Tokenizer, config: Mapping[str, Any], today: date | None = None) -> None:
        """Use `Tokenizer.from_folder`.

        Args:
            backend: The tokenizer as its library loads it.
            config: tokenizer_config.json with `chat_template`, `eos_token_ids` and `context_length` resolved.
            today: The date that the chat template writes, if it writes one.
        """
        self._backend = backend
        self._today = today
        self._config = config
        backend.no_truncation()
        backend.no_padding()
        self.special_tokens = {name: text for name in _SPECIAL if (text := _content(config.get(name))) is not None}
        missing = [text for text in self.special_tokens.values() if backend.token_to_id(text) is None]
        backend.add_special_tokens([tokenizers.AddedToken(text, special=True) for text in dict.fromkeys(missing)])

    @classmethod
    def from_folder(cls, folder: str | Path, today: date | None = None) -> Tokenizer:
        """Read the tokenizer of a Hugging Face model folder.

        Args:
            folder: The folder.
            today: The date that the chat template writes, if it writes one; by the local clock where not given.

        Raises:
            UserError: There is no tokenizer.json, or a file is not what it should be.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UserError(
                "the model's folder has no tokenizer.json",
                where=folder,
                mend="save a fast tokenizer into it: AutoTokenizer.from_pretrained(model).save_pretrained(folder)",
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        # The library raises bare Exception for whatever it cannot read.
        except Exception as error:  # noqa: BLE001
            raise UserError(f"the tokenizer cannot be read ({error})", where=path, mend="download it again") from None
        config = _configuration(folder)
        if config["is_llama"] and "ByteLevel" not in path.read_text(encoding="utf-8"):
            _rebuild_as_llama(backend, config)
        return cls(backend, config, today)

    # What the model's files say -----------------------------------------------------------------------------------

    @property
    def bos_token_id(self) -> int | None:
        """The id of the token that opens a text, or None."""
        return self._id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """The id of the token that ends a text, or None."""
        return self._id("eos_token")

    @cached_property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every token that ends a generation: the tokenizer's own and those of generation_config.json."""
        own = () if self.eos_token_id is None else (self.eos_token_id,)
        return tuple(dict.fromkeys((*own, *self._config.get("eos_token_ids", ()))))

    @property
    def model_max_length(self) -> int | None:
        """The longest input the tokenizer's file states, or None."""
        length = self._config.get("model_max_length")
        return int(length) if isinstance(length, (int, float)) and 0 < length < _LONGEST else None

    @property
    def context_length(self) -> int | None:
        """How many positions the model has (config.json), else `model_max_length`, or None."""
        return self._config.get("context_length") or self.model_max_length

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, added ones included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def chat_template(self) -> str | None:
        """The model's chat template, or None for a plain model."""
        return self._config.get("chat_template")

    # Text to ids --------------------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """The ids of a text with the tokenizer's own tokens in front: `AutoTokenizer(...)(text).input_ids`.

        A token that the tokenizer would set behind the text (an end token) is left out: the text goes on.
        """
        return self._trimmed(self._backend.encode(text).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts, several times faster."""
        # The fast variant leaves out offsets, which nothing here reads.
        return [self._trimmed(encoding.ids) for encoding in self._backend.encode_batch_fast(list(texts))]

    def count_bare(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has by itself, without the tokenizer's own in front."""
        return [len(ids) for ids in self._encode_bare(texts)]

    def encode_pair(self, prompt: str, completion: str) -> tuple[list[int], list[int]]:
        """The ids of a prompt and of what follows it, as lm-evaluation-harness splits them for causal models.

        Blanks at the prompt's end go over to the completion, both are encoded as one text, and the completion is what
        is left after as many ids as the prompt alone has. An empty prompt is the token that opens a text (where there
        is none, the token that ends one).
        """
        return self.encode_pairs([(prompt, completion)])[0]

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """`encode_pair` for many pairs, several times faster; a prompt that returns is encoded once."""
        moved = [_move_blanks(prompt, completion) for prompt, completion in pairs]
        prompts = list(dict.fromkeys(prompt for prompt, _ in moved if prompt))
        prompt_ids = dict(zip(prompts, self._encode_texts(prompts), strict=True))
        wholes = self._encode_texts([prompt + completion if prompt else None for prompt, completion in moved])
        bare = self._encode_bare([completion for prompt, completion in moved if not prompt])
        split = []
        for (prompt, _), whole in zip(moved, wholes, strict=True):
            if prompt:
                ids = prompt_ids[prompt]
                split.append((ids, whole[len(ids) :]))
            else:
                split.append(self._after_prefix(next(bare)))
        return split

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    # Conversations ------------------------------------------------------------------------------------------------

    def render_chat(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the model's chat template writes it.

        Raises:
            UserError: The model has no chat template, or it refuses the conversation.
        """
        if self.chat_template is None:
            raise UserError("the model has no chat template", where="model", mend="use a plain prompt")
        return render_chat(self.chat_template, messages, add_generation_prompt, self.special_tokens, self._today)

    @cached_property
    def completion_end_id(self) -> int | None:
        """The token that ends a trained completion: what closes a turn of the chat template, else the end token."""
        return next((token for token in self._closing_ids if token in self.eos_token_ids), self.eos_token_id)

    @property
    def unheeded_turn_end(self) -> str | None:
        """The special token that closes a turn of the chat template, where generation would not stop at it."""
        if any(token in self.eos_token_ids for token in self._closing_ids):
            return None
        added = self._backend.get_added_tokens_decoder()
        return next((added[token].content for token in self._closing_ids if token in added), None)

    @cached_property
    def _closing_ids(self) -> list[int]:
        """What the chat template writes behind an answer; nothing where there is none."""
        if self.chat_template is None:
            return []
        turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "zanswerz"}]
        closing = self.render_chat(turns, add_generation_prompt=False).rpartition("zanswerz")[2]
        return self._backend.encode(closing, add_special_tokens=False).ids

    # Parts --------------------------------------------------------------------------------------------------------

    def _id(self, name: str) -> int | None:
        text = self.special_tokens.get(name)
        return None if text is None else self._backend.token_to_id(text)

    @cached_property
    def _num_behind(self) -> int:
        """How many tokens the post-processor sets behind a text."""
        bare = self._backend.encode("a", add_special_tokens=False).ids
        full = self._backend.encode("a").ids
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return len(full) - len(bare) - start
        return 0

    def _trimmed(self, ids: list[int]) -> list[int]:
        return ids[: len(ids) - self._num_behind] if self._num_behind else ids

    @cached_property
    def prefix_token_id(self) -> int | None:
        """The token that stands for an empty prompt: the opening token, else the end token."""
        return self.eos_token_id if self.bos_token_id is None else self.bos_token_id

    @cached_property
    def _prefix_text(self) -> str | None:
        prefix = self.prefix_token_id
        return None if prefix is None else self._backend.decode([prefix], skip_special_tokens=False)

    def _encode_texts(self, texts: Sequence[str | None]) -> list[list[int]]:
        """lm-eval's `tok_encode`: nothing is set in front of a text that already opens with the opening token."""
        opened = self._prefix_text
        bare = [text for text in texts if text is not None and opened and text.startswith(opened)]
        full = [text for text in texts if text is not None and not (opened and text.startswith(opened))]
        bare_ids, full_ids = self._encode_bare(bare), iter(self.encode_batch(full))
        return [
            [] if text is None else next(bare_ids if opened and text.startswith(opened) else full_ids) for text in texts
        ]

    def _encode_bare(self, texts: Sequence[str]) -> Iterator[list[int]]:
        return (encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False))

    def _after_prefix(self, ids: list[int]) -> tuple[list[int], list[int]]:
        prefix = self.prefix_token_id
        if prefix is None or (ids and ids[0] == prefix):
            return ids[:1], ids[1:]
        return [prefix], ids


def _move_blanks(prompt: str, completion: str) -> tuple[str, str]:
    kept = prompt.rstrip()
    return kept, prompt[len(kept) :] + completion


def _content(token: Any) -> str | None:
    """A special token's text: configurations write it bare or as a mapping."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _rebuild_as_llama(backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """Treat blanks as transformers 5's LlamaTokenizer does, which keeps of tokenizer.json the vocabulary alone.

    It matters at the start of a text and after special tokens, and so in every chat template of Llama 2.
    """
    scheme = "always" if config.get("legacy", False) else "first"
    if config.get("add_prefix_space") is False:
        scheme = "never"
    # The library's type for a tokenizer without a normalizer is an empty sequence.
    backend.normalizer = tokenizers.normalizers.Sequence([])
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)


def _configuration(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json with what the model's other files add to it."""
    config = _read_json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        # An older layout keeps the special tokens in a file of their own, which then outranks the configuration.
        config.update(_read_json(folder / "special_tokens_map.json"))
    config["chat_template"] = _chat_template(folder, config.get("chat_template"))
    model = _read_json(folder / "config.json")
    is_llama_class = str(config.get("tokenizer_class")).removesuffix("Fast") == "LlamaTokenizer"
    config["is_llama"] = is_llama_class and model.get("model_type") == "llama"
    generation = _read_json(folder / "generation_config.json")
    ends = generation.get("eos_token_id", model.get("eos_token_id"))
    listed = ends if isinstance(ends, list) else [ends]
    config["eos_token_ids"] = tuple(end for end in listed if isinstance(end, int))
    text_model = model.get("text_config") or model
    lengths = (text_model.get(key) for key in ("n_positions", "max_position_embeddings", "n_ctx"))
    config["context_length"] = next((length for length in lengths if isinstance(length, int)), None)
    return config


def _chat_template(folder: Path, configured: Any) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    if isinstance(configured, list):  # several named templates
        configured = next((entry["template"] for entry in configured if entry.get("name") == "default"), None)
    return configured if isinstance(configured, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
