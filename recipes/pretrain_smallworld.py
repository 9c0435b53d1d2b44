"""Pretrains a base model on the small world: `python recipes/pretrain_smallworld.py --seed 0 --out FOLDER`.

With `--plain` the model reads the same world as text only, and never meets a fact as a question with its answer.
Everything follows from the seed: what is drawn from the world, the order of the documents and the initial weights. The
world itself is the shipped one for every seed. The result is a Hugging Face folder whose `card.json` says how it was
made; `evaluate_smallworld.py` adds what it knows.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rankscope.data.smallworld.corpus import pretraining_documents
from rankscope.data.smallworld.world import build_world

END, PAD = "<|end|>", "<|pad|>"
_IGNORED_LABEL = -100
_NUM_OPEN_ROWS = 32


@dataclass(frozen=True)
class Recipe:
    """The settings of pretraining.

    Attributes:
        vocab_size: Number of tokens.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the MLP.
        num_layers: Number of layers.
        num_heads: Number of attention heads.
        context: Longest sequence that the model is configured for, in tokens.
        row_length: Tokens in one packed training row.
        batch_rows: Rows in one step.
        learning_rate: Peak rate; it rises over `warmup_steps` and falls to zero along a cosine.
        warmup_steps: Steps until the peak.
        weight_decay: AdamW's, on matrices only.
        max_grad_norm: Gradients are clipped to this norm.
    """

    vocab_size: int = 1536
    hidden_size: int = 192
    intermediate_size: int = 384
    num_layers: int = 3
    num_heads: int = 6
    context: int = 256
    row_length: int = 128
    batch_rows: int = 8
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0


def train_tokenizer(documents: Sequence[str], recipe: Recipe) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer in which every number below 100 is one token after a space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Each document counts once: otherwise the names of often shown facts become single tokens, and new names stay in
    # pieces. Numbers are repeated until each has earned its merge.
    numbers = ["".join(f" {number}" for number in range(100))] * 5000
    tokenizer.train_from_iterator(sorted(set(documents)) + numbers, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=PAD, model_max_length=recipe.context
    )


def pack(documents: Sequence[str], tokenizer: PreTrainedTokenizerFast, row_length: int) -> torch.Tensor:
    """Return rows of token ids that hold whole documents, each followed by the end token, and padding.

    Every row begins with a document, as every prompt does later.
    """
    end = tokenizer.eos_token_id
    full, open_rows = [], [[] for _ in range(_NUM_OPEN_ROWS)]
    for ids in tokenizer(list(documents))["input_ids"]:
        fitting = [row for row in open_rows if len(row) + len(ids) < row_length]
        if not fitting:
            fullest = max(open_rows, key=len)
            open_rows.remove(fullest)
            full.append(fullest)
            fitting = [[]]
            open_rows += fitting
        max(fitting, key=len).extend([*ids, end])
    full += [row for row in open_rows if row]
    padded = [row + [tokenizer.pad_token_id] * (row_length - len(row)) for row in full]
    return torch.tensor(padded)


def initial_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe, generator: torch.Generator) -> LlamaForCausalLM:
    """Return an untrained model whose weights come from the generator alone."""
    config = LlamaConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    # What a layer adds to the residual stream starts smaller the more layers there are, as in GPT-2.
    residual_scale = 1 / math.sqrt(2 * recipe.num_layers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                continue
            is_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            parameter.normal_(0.0, 0.02 * (residual_scale if is_residual else 1.0), generator=generator)
    return model


def rate_factor(step: int, num_steps: int, warmup_steps: int) -> float:
    """Return the share of the peak rate at a step: a linear rise, then a cosine down to zero."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, num_steps - warmup_steps)))


def train(model: LlamaForCausalLM, rows: torch.Tensor, recipe: Recipe) -> Iterator[tuple[int, int, float]]:
    """Train the model in place, in one pass over the rows; yield step, number of steps and loss in nats per token."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)
    batches = rows.split(recipe.batch_rows)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate_factor(step, len(batches), recipe.warmup_steps)
    )
    model.train()
    for step, input_ids in enumerate(batches):
        labels = input_ids.masked_fill(input_ids == model.config.pad_token_id, _IGNORED_LABEL)
        loss = model(input_ids=input_ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield step, len(batches), loss.item()
    model.eval()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write model and tokenizer as a Hugging Face folder that generates greedily by default."""
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def pretrain(seed: int, folder: Path, recipe: Recipe, *, is_plain: bool, max_steps: int | None = None) -> None:
    """Pretrain a base from a seed, with questions and answers or on plain text only, and write it to a folder."""
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    documents = pretraining_documents(build_world(), seed, is_plain=is_plain)
    # The tokenizer is the same for all seeds and both kinds, so that their losses per token can be compared.
    tokenizer = train_tokenizer(pretraining_documents(build_world(), 0), recipe)
    rows = pack(documents, tokenizer, recipe.row_length)
    rows = rows if max_steps is None else rows[: max_steps * recipe.batch_rows]
    model = initial_model(tokenizer, recipe, generator)
    for step, num_steps, loss in train(model, rows, recipe):
        if step % 100 == 0 or step == num_steps - 1:
            print(f"step {step}/{num_steps}  {loss:.3f} nats/token  {time.perf_counter() - start:.0f} s", flush=True)
    save(model, tokenizer, folder)
    pretraining = {
        "seed": seed,
        "is_plain": is_plain,
        **asdict(recipe),
        "num_parameters": model.num_parameters(),
        "num_embedding_parameters": model.get_input_embeddings().weight.numel(),
        "num_tokens": int((rows != tokenizer.pad_token_id).sum()),
        "num_steps": num_steps,
        "processor_seconds": round(time.process_time()),
        "torch": torch.__version__,
    }
    (folder / "card.json").write_text(json.dumps({"pretraining": pretraining}, indent=2) + "\n")


def main() -> None:
    """Read the command line and pretrain."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--plain", action="store_true", help="text only: no questions with answers")
    parser.add_argument("--threads", type=int, default=1, help="processor threads; the result depends on them slightly")
    parser.add_argument("--max-steps", type=int, help="stop so early, for a trial; a whole pass where not given")
    arguments = parser.parse_args()
    if arguments.max_steps is not None and arguments.max_steps < 1:
        parser.error("--max-steps: 1 or more")
    torch.set_num_threads(arguments.threads)
    pretrain(arguments.seed, arguments.out, Recipe(), is_plain=arguments.plain, max_steps=arguments.max_steps)


if __name__ == "__main__":
    main()
