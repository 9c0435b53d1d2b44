"""The one branch on the method: how a model is made trainable, what is saved, and how it is read back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as PeftLoraLinear
from peft.tuners.lora import LoraLayer
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rankscope.errors import DamagedFile, UserError
from rankscope.models.packed import PackedLoraLinear, Routing, install, remove
from rankscope.models.seeding import seeded
from rankscope.runs import RunSettings

ADAPTER = "adapter"  # a PEFT folder
MODEL = "model"  # a Hugging Face folder
_PEFT_PREFIX = "base_model.model."


@runtime_checkable  # the tests check types at run time
class TrainablePack(Protocol):
    """Runs that train together on one copy of the base; the loop knows no more of a method than this.

    Attributes:
        model: The model whose forward serves all rows.
        runs: What is trained; a run is named by its index here.
        alters_base: The base's own weights were trained, so the base has to be read again.
    """

    model: PreTrainedModel
    runs: tuple[RunSettings, ...]
    alters_base: bool

    def route(self, members: Sequence[int], num_rows: Sequence[int], *, is_training: bool) -> None:
        """Say which rows of the next forward belong to which run: sorted by run, `num_rows` of each of `members`."""

    def parameter_groups(self, index: int) -> list[dict[str, Any]]:
        """The run's trainable parameters as AdamW takes them, weight decay resolved."""

    def state(self, index: int) -> dict[str, Tensor]:
        """The run's trainable tensors, by names that `load_state` knows; not copies."""

    def load_state(self, index: int, state: dict[str, Tensor]) -> None:
        """Put saved tensors back."""

    def generator(self, index: int) -> torch.Generator:
        """What the run's dropout draws from."""

    def save(self, index: int, folder: Path) -> list[str]:
        """Write the trained run for its own library to read; returns the files' names relative to `folder`."""

    def close(self) -> None:
        """Give the model back as it was given, unless `alters_base`."""


def make_trainable(model: PreTrainedModel, runs: Sequence[RunSettings]) -> TrainablePack:
    """Make a base trainable for runs of one method.

    Args:
        model: The base, frozen.
        runs: One run for full fine-tuning; one or several for LoRA.
    """
    if runs[0].arm.method == "full":
        return FullPack(model, tuple(runs))
    return LoraPack(model, tuple(runs), [_initial_adapter(model, run) for run in runs])


def load_tuned(model: PreTrainedModel, runs: Sequence[RunSettings], folders: Sequence[Path]) -> TrainablePack:
    """A base with trained weights in it.

    Args:
        model: The base, as it was pretrained.
        runs: As for `make_trainable`.
        folders: Each run's training folder, with what `save` wrote.
    """
    if runs[0].arm.method == "full":
        pack = FullPack(model, tuple(runs))
        pack.load_folder(folders[0])
        return pack
    adapters = [_saved_adapter(folder / ADAPTER) for folder in folders]
    return LoraPack(model, tuple(runs), adapters)


class FullPack:
    """Full fine-tuning: the base itself is trained, so a pack holds one run."""

    alters_base = True

    def __init__(self, model: PreTrainedModel, runs: tuple[RunSettings, ...]) -> None:
        if len(runs) != 1:
            raise ValueError("full fine-tuning changes the base, so its runs cannot share one")
        self.model = model.requires_grad_(True)
        self.runs = runs
        self._generator = torch.Generator().manual_seed(runs[0].seed)

    def route(self, members: Sequence[int], num_rows: Sequence[int], *, is_training: bool) -> None:
        """Nothing to do: all rows are the one run's."""

    def parameter_groups(self, index: int) -> list[dict[str, Any]]:
        """All parameters; biases and normalisations (vectors) do not decay, as in transformers' Trainer."""
        parameters = list(self.model.parameters())  # a tied one once
        weight_decay = self.runs[0].optimization.weight_decay
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def state(self, index: int) -> dict[str, Tensor]:
        """Every parameter by its name; a tied one once."""
        return dict(self.model.named_parameters())

    def load_state(self, index: int, state: dict[str, Tensor]) -> None:
        """Put saved parameters back."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(state[name])

    def generator(self, index: int) -> torch.Generator:
        """Full fine-tuning draws nothing: the base's own dropout is off for every arm."""
        return self._generator

    def save(self, index: int, folder: Path) -> list[str]:
        """A folder for `from_pretrained`."""
        self.model.save_pretrained(folder / MODEL, safe_serialization=True)
        return [f"{MODEL}/{path.name}" for path in (folder / MODEL).iterdir()]

    def load_folder(self, folder: Path) -> None:
        """Read the weights that `save` wrote into the model in hand."""
        trained, found = AutoModelForCausalLM.from_pretrained(
            folder / MODEL,
            dtype=self.model.dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        if found["missing_keys"] or found["unexpected_keys"]:
            raise DamagedFile(f"{folder / MODEL} does not hold the weights of its base's architecture")
        self.load_state(0, dict(trained.named_parameters()))
        self.model.requires_grad_(False)

    def close(self) -> None:
        """Nothing to take away."""
        self.model.requires_grad_(False)


class LoraPack:
    """LoRA runs over one frozen base, each with its own rows, rank, scaling and dropout.

    Args:
        model: The base, frozen.
        runs: The runs.
        adapters: Each run's configuration and, by module name, its `A` and `B`.
    """

    alters_base = False

    def __init__(
        self,
        model: PreTrainedModel,
        runs: tuple[RunSettings, ...],
        adapters: Sequence[tuple[LoraConfig, dict[str, tuple[Tensor, Tensor]]]],
    ) -> None:
        self.model = model
        self.runs = runs
        self._configs = [config for config, _ in adapters]
        names = list(adapters[0][1])
        if any(list(tensors) != names for _, tensors in adapters):
            raise ValueError("runs with different target modules cannot share a pack")
        generators = [torch.Generator(model.device).manual_seed(run.seed) for run in runs]
        self._routing = Routing(generators=generators)
        self._layers: dict[str, PackedLoraLinear] = install(model, names, self._routing)
        for config, tensors in adapters:
            scaling = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
            for name, (A, B) in tensors.items():
                weight = next(model.get_submodule(name).base_layer.parameters())
                A, B = A.to(weight.device), B.to(weight.device)
                self._layers[name].add(A, B, scaling, config.lora_dropout)

    def route(self, members: Sequence[int], num_rows: Sequence[int], *, is_training: bool) -> None:
        """See `TrainablePack.route`."""
        self._routing.members, self._routing.num_rows = tuple(members), tuple(num_rows)
        self._routing.is_training = is_training

    def parameter_groups(self, index: int) -> list[dict[str, Any]]:
        """All of the run's `A` and `B`."""
        parameters = list(self.state(index).values())
        return [{"params": parameters, "weight_decay": self.runs[index].optimization.weight_decay}]

    def state(self, index: int) -> dict[str, Tensor]:
        """The run's `A` and `B` under the names that PEFT's files use."""
        tensors = {}
        for name, layer in self._layers.items():
            tensors[f"{_PEFT_PREFIX}{name}.lora_A.weight"] = layer.A[index]
            tensors[f"{_PEFT_PREFIX}{name}.lora_B.weight"] = layer.B[index]
        return tensors

    def load_state(self, index: int, state: dict[str, Tensor]) -> None:
        """Put saved `A` and `B` back."""
        with torch.no_grad():
            for name, parameter in self.state(index).items():
                parameter.copy_(state[name])

    def generator(self, index: int) -> torch.Generator:
        """What the run's dropout draws from, on the model's device."""
        return self._routing.generators[index]

    def save(self, index: int, folder: Path) -> list[str]:
        """A folder for `PeftModel.from_pretrained`."""
        target = folder / ADAPTER
        target.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state(index).items()}
        save_file(tensors, target / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        config = self._configs[index]
        config.base_model_name_or_path = self.runs[index].base.source
        config.inference_mode = True
        config.save_pretrained(target)
        return [f"{ADAPTER}/{SAFETENSORS_WEIGHTS_NAME}", f"{ADAPTER}/{CONFIG_NAME}"]

    def close(self) -> None:
        """Take the adapters out of the base."""
        remove(self.model, self._layers)


def _initial_adapter(model: PreTrainedModel, run: RunSettings) -> tuple[LoraConfig, dict[str, tuple[Tensor, Tensor]]]:
    """PEFT's own initialisation under the run's seed, taken out of PEFT's layers again.

    Anyone who calls `torch.manual_seed(seed)` and `get_peft_model(model, config)` starts from the same numbers.
    """
    has_conv1d = any(isinstance(module, Conv1D) for module in model.modules())
    config = LoraConfig(task_type="CAUSAL_LM", bias="none", fan_in_fan_out=has_conv1d, **run.arm.options)
    with seeded(run.seed), _frozen_afterwards(model):
        try:
            wrapped = get_peft_model(model, config)
        except ValueError as error:
            # PEFT says this of target modules that match nothing or cannot be adapted.
            raise UserError(str(error), where=f"arm {run.arm.label}, target_modules") from None
        tensors = {}
        for name, layer in wrapped.named_modules():
            if isinstance(layer, LoraLayer):
                if not isinstance(layer, PeftLoraLinear):
                    kind = type(layer.get_base_layer()).__name__
                    mend = "take it out of target_modules"
                    raise UserError(f"LoRA on {kind} ({name}) is not supported", where=run.arm.label, mend=mend)
                adapter = next(iter(layer.lora_A))
                A, B = layer.lora_A[adapter].weight.detach(), layer.lora_B[adapter].weight.detach()
                tensors[name.removeprefix(_PEFT_PREFIX)] = A, B
        wrapped.unload()
    # PEFT keeps what `all-linear` stood for as a set; files and comparisons want an order.
    if isinstance(config.target_modules, set):
        config.target_modules = sorted(config.target_modules)
    return config, tensors


@contextlib.contextmanager
def _frozen_afterwards(model: nn.Module) -> Iterator[None]:
    """PEFT sets requires_grad of the whole base; afterwards it is frozen again."""
    try:
        yield
    finally:
        model.requires_grad_(False)


def _saved_adapter(folder: Path) -> tuple[LoraConfig, dict[str, tuple[Tensor, Tensor]]]:
    config = LoraConfig.from_pretrained(str(folder))
    tensors = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
    names = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]
    pairs = {
        name.removeprefix(_PEFT_PREFIX): (tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"])
        for name in names
    }
    return config, pairs
