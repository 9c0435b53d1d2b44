"""The one schema of a study file: every key, type, default, unit and limit.

A study file is YAML and nothing else than what these classes say. Keys have Hugging Face's and PEFT's names; the
documented short spellings (`rank` for `r`, `num_epochs` for `num_train_epochs`, `lr_scheduler` for
`lr_scheduler_type`) mean the same. Reading a file, with the lines of its mistakes, is `study_file.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, StrictBool, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from rankscope.methods.checks import method_refusal, refusal, unknown_keys
from rankscope.methods.table import FLOAT32_ONLY
from rankscope.quantization import QuantizationConfig
from rankscope.section import Section

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
# Names become folder names, so they are checked as such: no separators, no leading dot.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", max_length=80)]

Scheduler = Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"]
Optim = Literal["adamw_torch", "adamw_8bit"]
Scoring = Literal["multiple_choice", "generate", "loss"]
Kind = Literal["recall", "reasoning", "text"]
Part = Literal["train", "validation", "test"]


def _listed(value: Any) -> Any:
    """Accept `learning_rate: 1e-4` for `learning_rate: [1e-4]`."""
    return value if isinstance(value, (list, tuple)) else [value]


class ModelSource(Section):
    """A base model: a hub id, a folder, a `.gguf` file, or the package's `smallworld:base` or `smallworld:plain`."""

    source: str = Field(min_length=1, description="hub id, folder, .gguf file, smallworld:base or smallworld:plain")
    revision: str | None = Field(None, description="a hub revision: branch, tag or commit")
    trust_remote_code: bool = Field(
        False, description="whether Python files of the model's folder may be run, with all the rights that you have"
    )
    quantization_config: QuantizationConfig | None = Field(
        None,
        description="hold the base in 4 or 8 bits: {load_in_4bit: true, bnb_4bit_quant_type: nf4}; needs bitsandbytes",
    )


class Data(Section):
    """Where rows come from: shared by training sets and tasks."""

    source: str = Field(min_length=1, description="a file, a folder, a preset, or a hub id")
    subset: str | None = Field(None, description="the hub data set's configuration name; of a folder, one inside it")
    revision: str | None = Field(None, description="a hub revision: branch, tag or commit")
    split: str | None = Field(None, description="the split to read, where the source has several")
    part: Part | None = Field(None, description="of rows without splits: cut by what is asked, about 80% / 10% / 10%")
    preset: str | None = Field(
        None, description="how rows are read: a preset, or a .yaml file of your own; by the source's name if left out"
    )
    max_examples: Positive | None = Field(
        None, description="take the first so many rows; of rows sorted by category, the first of each in turn"
    )
    columns: dict[str, str | tuple[str, ...]] | None = Field(
        None, description="what a column is, where it is not found: {question: q, choices: [a, b, c], answer: gold}"
    )
    system_prompt: str | None = Field(
        None, min_length=1, description="said before every conversation that has no system turn of its own"
    )


class Validation(Section):
    """The rows on which learning rates are chosen: a seeded part of the training set, or a source of their own."""

    source: str | None = Field(None, description="a source of its own, for example other wordings of what was taught")
    subset: str | None = Field(None, description="the hub data set's configuration name")
    revision: str | None = Field(None, description="a hub revision: branch, tag or commit")
    split: str | None = Field(None, description="the split to read")
    part: Part | None = Field(None, description="of rows without splits: cut by what is asked, about 80% / 10% / 10%")
    preset: str | None = Field(None, description="how rows are read; from the source's name where not stated")
    columns: dict[str, str | tuple[str, ...]] | None = Field(
        None, description="what a column is, where the source is another one and it is not found"
    )
    fraction: Fraction = Field(0.1, description="about so much of the training set is held out if no source is given")
    max_examples: Positive = Field(200, description="at most so many rows")
    scoring: Scoring | None = Field(None, description="how they are scored; from the form where not stated")
    max_new_tokens: Positive = Field(256, description="the longest answer that is generated, in tokens")


class TrainingSet(Data):
    """A data set that runs are trained on."""

    assistant_turns: Literal["last", "all"] = Field(
        "last", description="which answers of a conversation are learned; all: each with the turns before it"
    )
    validation: Validation = Field(default_factory=Validation, description="where learning rates are chosen")
    arms: Annotated[tuple[str, ...], BeforeValidator(_listed)] | None = Field(
        None, min_length=1, description="only these arms, by the names that `plan` shows; all where not given"
    )


class FewShot(Section):
    """Worked examples that stand before every item of a task; never rows of the task itself."""

    number: Positive = Field(description="how many; `few_shot: 5` is short for `few_shot: {number: 5}`")
    source: str | None = Field(None, description="a source of their own; the task's where not stated")
    subset: str | None = Field(None, description="the hub data set's configuration name")
    split: str | None = Field(None, description="the split that they come from; the preset's where not stated")
    part: Part | None = Field(None, description="of rows without splits: cut by what is asked, about 80% / 10% / 10%")
    preset: str | None = Field(None, description="how rows of a source of their own are read")


def _numbered(value: Any) -> Any:
    """Accept `few_shot: 5` for `few_shot: {number: 5}`, and 0 for none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return {"number": value} if value else None
    return value


class Task(Data):
    """Data, prompt and scoring by which a model is judged."""

    source: str | None = Field(None, min_length=1, description="a file, a folder, a preset, or a hub id")
    in_domain_for: tuple[str, ...] = Field((), description="the training sets whose domain this is")
    role: Literal["retention"] | None = Field(None, description="retention: what the base could do before")
    few_shot: Annotated[FewShot | None, BeforeValidator(_numbered)] = Field(
        None, description="worked examples before every item: how many, and from where"
    )
    scoring: Scoring | None = Field(None, description="how items are scored; from preset or form where not stated")
    kind: Kind | None = Field(None, description="what the task asks for; from the preset where not stated")
    max_new_tokens: Positive = Field(256, description="the longest answer that is generated, in tokens")
    scorer: str | None = Field(
        None,
        pattern=r"^.+\.py:[A-Za-z_]\w*$",
        description="a function of your own that judges generated answers: file.py:function; needs allow_code",
    )
    lm_eval: str | None = Field(None, min_length=1, description="a task of lm-evaluation-harness, instead of a source")
    include_path: str | None = Field(
        None, min_length=1, description="a folder with lm_eval task files of your own; needs allow_code"
    )
    apply_chat_template: bool | None = Field(
        None, description="of an lm_eval task: put its prompts through the chat template; lm_eval's default is false"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.source is None) == (self.lm_eval is None):
            text = "a task needs `source` or `lm_eval`, {what}"
            what = "and has neither" if self.source is None else "and not both"
            key = "source" if self.source is None else "lm_eval"
            raise PydanticCustomError("no_source", text, {"key": key, "what": what})
        if self.lm_eval is None:
            strange = [key for key in ("include_path", "apply_chat_template") if getattr(self, key) is not None]
            text = "'{key}' belongs to tasks of lm_eval"
        else:
            keys = ("subset", "revision", "split", "part", "preset", "columns", "system_prompt", "scoring", "scorer")
            strange = [key for key in keys if getattr(self, key) is not None]
            text = "'{key}' cannot be set for a task of lm_eval, whose own file says it"
        if strange:
            raise PydanticCustomError("wrong_origin", text, {"key": strange[0]})
        if self.scorer is not None and self.scoring not in (None, "generate"):
            raise PydanticCustomError(
                "scorer", "a scorer judges generated answers; set `scoring: generate`", {"key": "scoring"}
            )
        return self


class OptimizationFields(Section):
    """How runs are optimised, with TrainingArguments' names where those have the setting; what an arm may override.

    `max_length` is not in it: all runs of a seed see the same examples.
    """

    num_epochs: float | None = Field(
        None, gt=0.0, allow_inf_nan=False, alias="num_train_epochs", description="passes over the training set"
    )
    max_steps: Positive | None = Field(None, description="optimizer steps; outranks num_train_epochs")
    batch_size: Positive | None = Field(None, description="examples in an optimizer step, over all accumulation")
    lr_scheduler: Scheduler | None = Field(None, alias="lr_scheduler_type", description="transformers' schedule names")
    warmup_ratio: Fraction | None = Field(None, description="share of the steps with rising rate")
    weight_decay: NotNegative | None = Field(None, description="AdamW's decoupled decay")
    max_grad_norm: NotNegative | None = Field(None, description="gradients are clipped to this norm; 0: not clipped")
    adam_beta1: Decay | None = Field(None, description="AdamW's first decay")
    adam_beta2: Decay | None = Field(None, description="AdamW's second decay")
    adam_epsilon: NotNegative | None = Field(None, description="AdamW's epsilon")
    optim: Optim | None = Field(None, description="AdamW's two states in float32, or in 8 bits: a quarter as large")


class Optimization(OptimizationFields):
    """The settings shared by all arms, complete."""

    num_epochs: float = Field(
        1.0, gt=0.0, allow_inf_nan=False, alias="num_train_epochs", description="passes over the training set"
    )
    batch_size: Positive = Field(16, description="examples in an optimizer step, over all accumulation")
    max_length: Positive = Field(1024, description="longest example, in tokens; longer ones are cut and counted")
    lr_scheduler: Scheduler = Field("cosine", alias="lr_scheduler_type", description="transformers' schedule names")
    warmup_ratio: Fraction = Field(0.03, description="share of the steps with rising rate")
    weight_decay: NotNegative = Field(0.0, description="AdamW's decoupled decay")
    max_grad_norm: NotNegative = Field(1.0, description="gradients are clipped to this norm; 0: not clipped")
    adam_beta1: Decay = Field(0.9, description="AdamW's first decay")
    adam_beta2: Decay = Field(0.999, description="AdamW's second decay")
    adam_epsilon: NotNegative = Field(1e-8, description="AdamW's epsilon")
    optim: Optim = Field("adamw_torch", description="AdamW's two states in float32, or in 8 bits: a quarter as large")
    dtype: Literal["float32", "float64"] = Field("float32", description="of weights and arithmetic")
    bf16: bool | Literal["auto"] = Field(
        "auto", description="products of training in bfloat16, weights in float32; auto: where the GPU has it"
    )
    num_validations: int = Field(4, ge=1, description="validation losses in a run, the last after the last step")


class Arm(OptimizationFields):
    """One setting compared with others: a method with its options; lists of `r` make one arm each.

    The fields are what people set most. Every other option of the method, by PEFT's name, is a key too, checked
    against what PEFT's configuration class has.
    """

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)

    method: str = Field(description="how the model is made trainable: full, lora or another of docs/methods.md")
    name: Name | None = Field(None, description="the arm's name; made of method and rank where not given")
    learning_rate: Annotated[
        tuple[Annotated[float, Field(gt=0.0, allow_inf_nan=False)], ...], BeforeValidator(_listed)
    ] = Field(min_length=1, description="the rates to try, each a candidate")
    rank: Annotated[tuple[Positive, ...], BeforeValidator(_listed)] | None = Field(
        None, alias="r", description="the rank; a list makes one arm of each"
    )
    lora_alpha: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | str | None = Field(
        None, description="LoRA's alpha: a number, or `2r` for twice the rank"
    )
    lora_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = Field(None, description="dropout before A")
    use_rslora: bool | None = Field(None, description="scale by alpha/sqrt(r) instead of alpha/r")
    use_dora: bool | None = Field(None, description="DoRA: train the length of each row of the matrix apart")
    loraplus_lr_ratio: float | None = Field(None, description="LoRA+: B's learning rate over A's, 1 or more")
    target_modules: str | tuple[str, ...] | None = Field(
        None, description="module names, a regular expression, attention, mlp, or all-linear"
    )
    layers_to_transform: int | tuple[int, ...] | None = Field(None, description="adapt these layers only, from 0")
    rank_pattern: dict[str, int] | None = Field(None, description="other ranks, by module name or expression")
    alpha_pattern: dict[str, float] | None = Field(None, description="other alphas, by module name or expression")
    init_lora_weights: bool | str | None = Field(
        None, description="how A and B start: gaussian, orthogonal, pissa, olora, eva, lora_ga, corda or loftq"
    )
    layers: tuple[int, ...] | None = Field(None, description="full: train these layers only, from 0; -1 is the last")
    freeze_embeddings: bool | None = Field(None, description="full: leave embeddings and output head as they are")

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        """Which keys there are beside the fields depends on the method."""
        if not isinstance(data, dict):
            return data
        fields = {*cls.model_fields, *(field.alias for field in cls.model_fields.values() if field.alias)}
        errors = [
            PydanticCustomError("unknown_key", "unknown key '{key}'; {mend}", {"key": key, "mend": mend})
            for key, mend in unknown_keys(data, fields).items()
        ]
        if errors:
            raise ValidationError.from_exception_data(cls.__name__, [{"type": each, "input": data} for each in errors])
        return data

    @property
    def options(self) -> dict[str, Any]:
        """What the arm says of its method, by PEFT's names, without the rank."""
        common = {*OptimizationFields.model_fields, "method", "name", "learning_rate", "rank"}
        return self.model_dump(exclude_none=True, exclude=common)

    @model_validator(mode="after")
    def _method_fits(self) -> Self:
        if self.name == "base":  # what verdicts and tables call the untuned model
            text = "the arm name 'base' is taken by the model before training; choose another"
            raise PydanticCustomError("taken", text, {"key": "name"})
        if why := method_refusal(self.method):
            raise PydanticCustomError("no_method", "{why}", {"key": "method", "why": why})
        if found := refusal(self.method, self.rank or (), self.options):
            raise PydanticCustomError("bad_option", "{why}", {"key": found[0], "why": found[1]})
        for key in ("learning_rate", "rank"):
            values = getattr(self, key) or ()
            if len(set(values)) < len(values):
                raise PydanticCustomError("repeated", "'{key}' names a value twice", {"key": key})
        return self


class Analyse(Section):
    """What is looked at inside the tuned models."""

    spectra: bool = Field(True, description="norms and ranks of every update")
    subspaces: bool = Field(True, description="singular vectors against the base's; decomposes each matrix once")
    attention: bool = Field(True, description="entropy per head, and divergence from the base")
    representations: bool = Field(True, description="each layer's residual stream against the base's")
    neurons: bool = Field(True, description="activity and selectivity of MLP neurons, and which changed most")
    num_probe_texts: Positive = Field(32, description="texts on which attention is measured, drawn from all tasks")


class Derive(Section):
    """Models made of trained ones without training, each scored in domain and on retention; LoRA and full only."""

    rewind: StrictBool | Annotated[tuple[NotNegative, ...], BeforeValidator(_listed)] = Field(
        False, description="the update times 0.25, 0.5, 0.75 and 1.25, or times the numbers of a list"
    )
    truncate: StrictBool | Annotated[tuple[Positive, ...], BeforeValidator(_listed)] = Field(
        False, description="the update cut to every lower rank of the study's arms, or to the ranks of a list"
    )
    intruders: StrictBool | Annotated[tuple[Fraction, ...], BeforeValidator(_listed)] = Field(
        False, description="intruder dimensions scaled by 0, 0.25, 0.5 and 0.75, or by the numbers of a list"
    )
    arms: Annotated[tuple[str, ...], BeforeValidator(_listed)] | None = Field(
        None, description="only of these arms, by the names that `plan` shows; of all where not given"
    )


class Search(Section):
    """How each arm's learning rate is chosen."""

    seeds: Positive = Field(1, description="rates are chosen on the first so many seeds")
    halving: bool = Field(False, description="of three or more rates the better half goes on, from round to round")
    extend: bool = Field(False, description="a best rate at the edge of the grid adds the next one beyond it")
    evaluate: Literal["chosen", "all"] = Field(
        "chosen", description="all: candidates not chosen are scored and looked into too, after the choice"
    )


class Decide(Section):
    """The rule's numbers; the rule itself is in docs/concepts.md."""

    margin: Fraction = Field(0.02, description="a smaller difference in accuracy does not matter")
    margin_nats: NotNegative = Field(0.01, description="the same for losses, in nats per token")
    forgetting_budget: Fraction = Field(0.02, description="the mean loss of accuracy on retention that is accepted")
    forgetting_budget_nats: NotNegative = Field(0.05, description="the same for text, in nats per token")
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="of every interval")


class Execute(Section):
    """Where and how work runs; what is computed changes by rounding alone."""

    backend: Literal["local", "ray"] = Field("local", description="this machine, or a Ray cluster")
    num_workers: Positive | Literal["auto"] = Field(
        "auto", description="processes, no more than GPUs or cores; auto: one for each"
    )
    threads_per_worker: Positive | Literal["auto"] = Field("auto", description="processor threads in each")
    pack_size: Positive | Literal["auto"] = Field(
        "auto", description="the most LoRA runs in one forward over one base; auto: 1, or what was measured as fastest"
    )
    measure: bool | Literal["auto"] = Field(
        "auto", description="choose what is auto by some seconds of training; auto does so before long studies"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto takes a GPU where there is one")
    max_tokens_per_batch: Positive = Field(
        8192, description="token positions in one forward pass; more are split, a longer row goes alone"
    )
    gradient_checkpointing: bool = Field(
        False, description="training keeps one tensor a layer and computes the rest again: less memory, more time"
    )
    shard: Positive = Field(
        1, description="devices that full fine-tuning divides a model among (FSDP2); each process has so many"
    )
    cpu_offload: bool = Field(
        False, description="full fine-tuning keeps weights and optimizer state in the host's memory: slower"
    )
    checkpoint_seconds: NotNegative = Field(60.0, description="a run is checkpointed about so often")
    address: str = Field("auto", description="the Ray cluster: auto (RAY_ADDRESS, or this machine's), or host:port")
    results: Literal["shared", "fetched"] = Field(
        "shared", description="with Ray: every node sees the study directory, or files are sent and fetched"
    )

    @property
    def is_sharded(self) -> bool:
        """Full fine-tuning takes its model apart."""
        return self.shard > 1 or self.cpu_offload

    @model_validator(mode="after")
    def _shard_fits(self) -> Self:
        key = "shard" if self.shard > 1 else "cpu_offload"
        if self.is_sharded and self.backend == "ray":
            text = "a model is divided among the devices of one machine, and backend ray gives each worker one; "
            text += "leave {key} out, or set `backend: local` (with --share on several machines)"
            raise PydanticCustomError("shard_on_ray", text, {"key": key})
        if self.is_sharded and self.measure is True:
            text = "what is measured are models in one piece; leave out measure or {key}"
            raise PydanticCustomError("measure_shard", text, {"key": key})
        return self


class Study(Section):
    """One question, one file, one directory."""

    study: Name = Field(description="the study's name; results go to results/<study>")
    model: dict[Name, ModelSource] = Field(min_length=1, description="hub id or folder; or a mapping of names to them")
    train: dict[Name, TrainingSet] = Field(min_length=1, description="the training sets")
    arms: tuple[Arm, ...] = Field(min_length=1, description="the settings compared")
    optimization: Optimization = Field(default_factory=Optimization, description="shared by all arms")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0, 1, 2), min_length=1, description="one run each")
    evaluate: dict[Name, Task] = Field(min_length=1, description="the tasks")
    analyse: Analyse = Field(default_factory=Analyse, description="what is looked at inside")
    derive: Derive = Field(default_factory=Derive, description="what becomes of trained models that are changed")
    search: Search = Field(default_factory=Search, description="how rates are chosen")
    decide: Decide = Field(default_factory=Decide, description="the rule's numbers")
    execute: Execute = Field(default_factory=Execute, description="where work runs")
    keep: Literal["chosen", "all", "records"] = Field("chosen", description="whose weights stay on disk")
    report_to: Literal["none", "tensorboard", "wandb", "mlflow", "trackio"] = Field(
        "none", description="an experiment tracker that is told losses, scores and verdicts; see docs/trackers.md"
    )
    allow_code: bool = Field(
        False, description="whether the Python files that the study names (`scorer`, `include_path`) may be run"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_model(cls, data: Any) -> Any:
        """`model: org/name` is short for a mapping with one entry, named by the id's last part."""
        if isinstance(data, dict) and isinstance(data.get("model"), str):
            return {**data, "model": {_model_name(data["model"]): {"source": data["model"]}}}
        if isinstance(data, dict) and _is_model(data.get("model")):
            return {**data, "model": {_model_name(data["model"]["source"]): data["model"]}}
        if isinstance(data, dict) and isinstance(data.get("model"), dict):
            models = {k: {"source": v} if isinstance(v, str) else v for k, v in data["model"].items()}
            return {**data, "model": models}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """Everything at once that does not fit together, though each part is right by itself."""
        errors = [*self._domain_errors(), *self._task_errors(), *self._seed_errors(), *self._precision_errors()]
        if errors:
            name = type(self).__name__
            raise ValidationError.from_exception_data(name, [{"type": error, "input": None} for error in errors])
        return self

    def _domain_errors(self) -> Iterator[PydanticCustomError]:
        known = ", ".join(self.train)
        taught = {training_set for task in self.evaluate.values() for training_set in task.in_domain_for}
        for name, task in self.evaluate.items():
            if unknown := [one for one in task.in_domain_for if one not in self.train]:
                text = "no training set is called {names}; there are {known}"
                names = " or ".join(f"'{one}'" for one in unknown)
                context = {"key": ("evaluate", name, "in_domain_for"), "names": names, "known": known}
                yield PydanticCustomError("no_such_set", text, context)
        if taught <= set(self.train) and (left := [name for name in self.train if name not in taught]):
            text = "no task says `in_domain_for: [{name}]`, so nothing would measure what it taught; add it to one"
            yield PydanticCustomError("no_domain", text, {"key": "evaluate", "name": ", ".join(left)})

    def _seed_errors(self) -> Iterator[PydanticCustomError]:
        if self.search.seeds > len(self.seeds):
            yield PydanticCustomError("search_seeds", "search.seeds is more than there are seeds", {"key": "search"})
        if len(set(self.seeds)) < len(self.seeds):
            yield PydanticCustomError("repeated", "'seeds' names a seed twice", {"key": "seeds"})

    def _precision_errors(self) -> Iterator[PydanticCustomError]:
        """What needs float32."""
        if self.optimization.dtype != "float64":
            return
        for index, arm in enumerate(self.arms):
            if str(arm.init_lora_weights).startswith(FLOAT32_ONLY):
                text = "PEFT's {start} initialisation needs optimization.dtype float32"
                context = {"key": ("arms", index, "init_lora_weights"), "start": arm.init_lora_weights}
                yield PydanticCustomError("float32_only", text, context)
        for name, source in self.model.items():
            if source.quantization_config is not None:
                text = "bitsandbytes knows no optimization.dtype float64"
                yield PydanticCustomError("float64_of_bits", text, {"key": ("model", name, "quantization_config")})
        text = "is for weights in float32, and optimization.dtype is float64"
        for where, name in [(("optimization",), self.optimization.optim)] + [
            (("arms", index), arm.optim) for index, arm in enumerate(self.arms)
        ]:
            if name == "adamw_8bit":
                yield PydanticCustomError("8bit_of_float64", text, {"key": (*where, "optim")})
        if self.optimization.bf16 is True:
            yield PydanticCustomError("bf16_of_float64", text, {"key": ("optimization", "bf16")})

    def _task_errors(self) -> Iterator[PydanticCustomError]:
        for name, task in self.evaluate.items():
            if not self.allow_code and (code := task.scorer or task.include_path):
                text = "names code ({code}), and code runs only with `allow_code: true` at the top of the study"
                key = ("evaluate", name, "scorer" if task.scorer else "include_path")
                yield PydanticCustomError("code", text, {"key": key, "code": code})
            if task.role and task.in_domain_for:
                text = "a task cannot be in domain and retention at once"
                yield PydanticCustomError("two_roles", text, {"key": ("evaluate", name, "role")})
            if name.startswith("validation"):
                text = "task names that start with 'validation' are taken; give it another"
                yield PydanticCustomError("taken", text, {"key": ("evaluate", name)})


def _is_model(value: Any) -> bool:
    """Whether a mapping is one model with its settings, and not several by their names."""
    is_one = isinstance(value, dict) and isinstance(value.get("source"), str)
    return is_one and len(value) > 1 and set(value) <= set(ModelSource.model_fields)


def _model_name(source: str) -> str:
    """A folder-safe name for a model: the last part of its id or path."""
    tail = source.rstrip("/").replace(":", "-").rsplit("/", 1)[-1]
    return re.sub(r"[^A-Za-z0-9_.+-]", "-", tail).lstrip(".-_+") or "base"
