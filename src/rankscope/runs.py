"""A run, its base, data, arm and tasks with their settings resolved, and the hashes by which work is known again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from rankscope.methods.table import Capabilities, capabilities, method_named
from rankscope.quantization import QuantizationConfig
from rankscope.spec import Kind, ModelSource, Optimization, Scoring

# A change of what a stage computes for the same settings must change its number, so that old work is not taken for new.
TRAINING_VERSION = 2
SCORING_VERSION = 2
ANALYSIS_VERSION = 3
DERIVE_VERSION = 1
# The names of a base and of a training set, and an arm's label.
ArmKey = tuple[str, str, str]
# Analyses of weights alone: they ask for no probe texts, and there is none of a base itself.
OF_WEIGHTS = ("spectra", "subspaces")


class Resolved(BaseModel):
    """Frozen settings with no defaults left to look up; the base of what is written to run.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Opening(Resolved):
    """What a study says of how a base's folder is opened.

    Attributes:
        trust_remote_code: The folder's own Python code may be run.
        quantization_config: Its matrices are held in 4 or 8 bits; None: as they are.
    """

    trust_remote_code: bool = False
    quantization_config: QuantizationConfig | None = None

    @property
    def is_batch_dependent(self) -> bool:
        """Whether a row's numbers depend on the others of its batch: LLM.int8 looks for large inputs over all rows."""
        return self.quantization_config is not None and self.quantization_config.load_in_8bit


def opening_of(source: ModelSource) -> Opening:
    """What a study says of how one of its bases is opened."""
    return Opening(trust_remote_code=source.trust_remote_code, quantization_config=source.quantization_config)


class BaseSettings(Resolved):
    """A base model, pinned.

    Attributes:
        revision: As the study file names it.
        fingerprint: Changes when the model's files do.
        commit: The hub's commit that the files are of; None for a folder.
        opening: How its folder is opened.
    """

    name: str
    source: str
    revision: str | None
    fingerprint: str
    commit: str | None = None
    opening: Opening = Opening()

    @property
    def model_hash(self) -> str:
        """What the base's numbers depend on: its files, and how many bits of them are taken."""
        if self.opening.quantization_config is None:
            return self.fingerprint
        return settings_hash([self.fingerprint, self.opening.quantization_config.model_dump(mode="json")])


class DataOrigin(Resolved):
    """Which version of a data set was read.

    Attributes:
        source: As the study file names it, or the hub id of its preset.
        revision: As the study file names it.
        commit: The hub's commit of the data set; None for local data, or where the library does not say it.
        sha256: A hash of the content of local files; None for the hub's.
    """

    source: str
    subset: str | None = None
    split: str | None = None
    revision: str | None = None
    commit: str | None = None
    sha256: str | None = None


class TrainingData(Resolved):
    """The tokenised examples of one base and training set, pinned by hashes of their tokens.

    Attributes:
        fingerprint: Of what is trained on.
        validation_fingerprint: Of the validation rows, whose losses are taken during training.
        data: Which version of the data set it was.
    """

    name: str
    fingerprint: str
    validation_fingerprint: str
    num_examples: int
    data: DataOrigin | None = None


class ScorerSettings(Resolved):
    """A user's own function that judges generated answers, pinned by a hash of its file."""

    path: str
    function: str
    sha256: str


class HarnessSettings(Resolved):
    """A task of lm-evaluation-harness, as it is loaded.

    Attributes:
        task: Its name: of a task, a group or a tag.
        include_path: A folder with task files of the user's.
        sha256: A hash of the files in that folder.
        num_fewshot: Worked examples; None: as the task's file says.
        limit: The first so many items of each task.
        version: lm_eval's own version.
    """

    task: str
    include_path: str | None
    sha256: str | None
    num_fewshot: int | None
    apply_chat_template: bool
    limit: int | None
    version: str


class TaskSettings(Resolved):
    """How one task's items are scored for one base, resolved.

    Attributes:
        answer: What a right generated answer is: the same `number` (strict: after ####; flexible: the last number),
            the same option `letter`, or the same `text` (case, blanks and a final stop aside).
        stop: Texts that end a generation, beside the end token.
        fingerprint: A hash of the items as scored (prompts, options, targets).
        scorer: The user's function that judges generated answers instead of `answer`.
        harness: The task of lm-evaluation-harness whose items these are, and whose own code judges them.
        data: Which version of the data set it was.
    """

    name: str
    scoring: Scoring
    kind: Kind | None
    answer: Literal["number", "letter", "text"]
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    fingerprint: str
    num_items: int
    scorer: ScorerSettings | None = None
    harness: HarnessSettings | None = None
    data: DataOrigin | None = None

    @property
    def is_generated(self) -> bool:
        """Answers are written by our own decoding, in which several adapters of a base can take part."""
        return self.scoring == "generate" and self.harness is None


class ArmSettings(Resolved):
    """One arm with its options resolved; `options` are PEFT's names and values (empty for full fine-tuning)."""

    label: str
    method: str
    options: dict[str, Any]

    @property
    def rank(self) -> int | None:
        """The rank of its updates, or None for a method without one."""
        return self.options.get(method_named(self.method).rank_option or "")

    @cached_property
    def capabilities(self) -> Capabilities:
        """What the method with these options can do."""
        return capabilities(self.method, self.options)


class DerivedPoint(Resolved):
    """One way to make a model of a trained one.

    Attributes:
        kind: `rewind`: the update times `amount`; `truncate`: the update of rank `amount` that is closest; `intruders`:
            the tuned matrices' intruder dimensions times `amount`.
    """

    kind: Literal["rewind", "truncate", "intruders"]
    amount: float

    @property
    def name(self) -> str:
        """Its folder within a run's `derive`: `rewind/0.5`, `truncate/16`."""
        return f"{self.kind}/{self.amount:g}"


class RunSettings(Resolved):
    """One training run, fully resolved: what run.json holds and everything downstream reads."""

    training_version: int = TRAINING_VERSION
    base: BaseSettings
    training_set: TrainingData
    arm: ArmSettings
    learning_rate: float
    seed: int
    num_steps: int
    optimization: Optimization

    @property
    def settings_hash(self) -> str:
        """A hash of everything that changes the run's numbers; two runs with one hash are one run."""
        # A later commit with the same files, for example of a model card, is no other run; nor are the same examples
        # read from elsewhere. Without bfloat16 and 8 bits it is what it was before there was a choice.
        exclude: dict[str, set[str]] = {"base": {"commit"}, "training_set": {"data"}}
        if self.base.opening == Opening():  # nor is one of before there was a choice
            exclude["base"] |= {"opening"}
        unsaid = {"bf16"} if self.optimization.bf16 is not True else set()
        unsaid |= {"optim"} if self.optimization.optim == "adamw_torch" else set()
        exclude |= {"optimization": unsaid} if unsaid else {}
        return settings_hash(self.model_dump(mode="json", exclude=exclude))

    @property
    def packs(self) -> bool:
        """Whether it may share a base and a forward pass with others."""
        return self.arm.capabilities.packs and not self.base.opening.is_batch_dependent

    @property
    def arm_key(self) -> ArmKey:
        """The base, training set and label of its arm."""
        return self.base.name, self.training_set.name, self.arm.label

    @property
    def run_id(self) -> str:
        """The run's folder name, unique in a study: base, training set, arm, rate, seed, hash."""
        return "-".join((*self.arm_key, f"lr{self.learning_rate:g}", f"seed{self.seed}", self.settings_hash[:6]))

    @property
    def candidate(self) -> Candidate:
        """The run without its seed."""
        return Candidate(*self.arm_key, self.learning_rate)


@dataclass(frozen=True, order=True)
class Candidate:
    """An arm at one learning rate, on one base and training set."""

    base: str
    training_set: str
    arm: str
    learning_rate: float


def settings_hash(settings: Any) -> str:
    """A SHA-256 over JSON with sorted keys, in hexadecimal."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def evaluation_hash(task: TaskSettings, model_hash: str) -> str:
    """What a model's scores on a task depend on.

    Args:
        task: The task, its items pinned by their fingerprint.
        model_hash: The run's settings hash, or the base's fingerprint.
    """
    return settings_hash([SCORING_VERSION, _scored_by(task), model_hash])


def _scored_by(task: TaskSettings) -> dict[str, Any]:
    """What of a task's settings changes its numbers: neither where its data lie nor where files of code do."""
    return task.model_dump(mode="json", exclude={"data": True, "scorer": {"path"}, "harness": {"include_path"}})


def analysis_hash(analysis: str, probes_fingerprint: str, model_hash: str) -> str:
    """What an analysis of a model depends on; the probe texts count for those that run the model on them."""
    return settings_hash([ANALYSIS_VERSION, analysis, "" if analysis in OF_WEIGHTS else probes_fingerprint, model_hash])


def derive_hash(point: DerivedPoint, run_hash: str, tasks: list[str]) -> str:
    """What a derived model's scores depend on.

    Args:
        point: How it is made.
        run_hash: The run's settings hash.
        tasks: The hashes of the run's own scores on the same tasks.
    """
    return settings_hash([DERIVE_VERSION, point.model_dump(mode="json"), run_hash, tasks])
