"""What each stage writes: typed, versioned, last of all its files, and honest about failure."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from rankscope.measures import declared
from rankscope.runs import ArmKey, DataOrigin, DerivedPoint, RunSettings

FORMAT_VERSION = 1

Analysis = Literal["spectra", "subspaces", "attention", "representations", "neurons"]
# `paused`: trained as far as the search has asked, scored there, and gone on with from its checkpoint if it is kept.
Status = Literal["complete", "failed", "interrupted", "diverged", "paused"]
# Of a run that may go on, and whose files may change by that.
UNFINISHED = ("interrupted", "paused")
# What ended a run that diverged: a number that is no longer finite, or a loss beyond `train.loop.diverged_above`.
Divergence = Literal["loss_not_finite", "gradient_not_finite", "loss_too_high"]
# What is estimated of an arm: what it learned and forgot, in accuracy and in nats.
ArmMeasure = Literal["gain", "gain_nats", "forgetting", "forgetting_nats"]
ARM_MEASURES: tuple[ArmMeasure, ...] = get_args(ArmMeasure)

# How the one note of an analysis begins that can say nothing of a method; the record has no numbers and no files.
NOT_AVAILABLE = "not available: "


def _only_declared(values: dict[str, Any]) -> dict[str, Any]:
    for key in values:
        declared(key)
    return values


# A number that does not apply is absent; a number that is not finite is kept as such.
Values = Annotated[dict[str, float], AfterValidator(_only_declared)]


class Frozen(BaseModel):
    """A frozen value that survives a write and a read, non-finite numbers included."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Failure(Frozen):
    """Why a stage failed."""

    type: str
    message: str
    traceback: str


class Record(Frozen):
    """What happened in one stage for one subject.

    Attributes:
        settings_hash: Of everything that the result depends on; another hash means the work is to be redone.
        provenance: Code revision, packages, device (see provenance.py).
        files: SHA-256 of every file the stage wrote, by name relative to the record's folder.
        seal: SHA-256 of the record itself, in its file only; None in records from before there were seals.
    """

    format_version: int = FORMAT_VERSION
    kind: str
    status: Status
    error: Failure | None = None
    settings_hash: str
    provenance: dict[str, Any]
    started_at: str
    seconds: float
    peak_memory_bytes: int | None = None
    files: dict[str, str] = Field(default_factory=dict)
    seal: str | None = None

    @model_validator(mode="after")
    def _says_why(self) -> Self:
        if (self.status == "failed") != (self.error is not None):
            raise ValueError("a failed record says why, and no other does")
        return self


class ValidationPoint(Frozen):
    """The loss on validation examples after some steps of a run."""

    step: int
    loss_nats_per_token: float


class MemoryShortage(Frozen):
    """Memory ran out in a step, and the work was done again with fewer positions in one forward; the batch stayed."""

    step: int
    max_tokens_per_batch: int


class TrainRecord(Record):
    """What a training run did; the losses of every step are in steps.jsonl beside it.

    Attributes:
        pack: The runs that shared its forward passes, itself among them; empty where it was trained alone.
        memory_shortages: Where memory ran out on the way, and with how many positions in one forward it went on.
    """

    kind: Literal["train"] = "train"
    run: RunSettings
    pack: tuple[str, ...] = ()
    num_trainable: int | None = None
    num_parameters: int | None = None
    num_steps: int = 0
    num_tokens: int = 0
    num_scored_tokens: int = 0
    final_loss_nats_per_token: float | None = None
    validations: tuple[ValidationPoint, ...] = ()
    diverged_at_step: int | None = None
    divergence: Divergence | None = None
    memory_shortages: tuple[MemoryShortage, ...] = ()
    weights_deleted: bool = False


class Subject(Frozen):
    """Which model a record is about: a base, or the run that was trained from it."""

    base: str
    training_set: str | None = None
    arm: str | None = None
    learning_rate: float | None = None
    seed: int | None = None
    run_id: str | None = None


class EvaluateRecord(Record):
    """A model's scores on one task; one row an item is in items.parquet beside it.

    Attributes:
        scored_by: `option_tree` or `separate_rows`, with the reason for a fallback in `note`.
        num_truncated: Items whose prompt was cut from the left to fit the model's context.
        num_unfinished: Generated answers that neither an end token nor a stop text ended; None where none are
            generated, and in records from before they were counted.
        lm_eval: What lm_eval itself reports of a task of its own, by its names.
        data: Which version of the task's data was scored; of a run's training set it stands in `run.training_set.data`.
    """

    kind: Literal["evaluate"] = "evaluate"
    subject: Subject
    task: str
    data: DataOrigin | None = None
    scoring: Literal["multiple_choice", "generate", "loss"]
    num_items: int = 0
    num_truncated: int = 0
    num_unfinished: int | None = None
    scored_by: str | None = None
    note: str | None = None
    values: Values = Field(default_factory=dict)
    lm_eval: dict[str, float] = Field(default_factory=dict)


class AnalyseRecord(Record):
    """What was seen inside one model; arrays are in a .safetensors or .parquet file beside it."""

    kind: Literal["analyse"] = "analyse"
    subject: Subject
    analysis: Analysis
    summary: Values = Field(default_factory=dict)
    notes: tuple[str, ...] = ()


class ForecastRecord(Record):
    """What the gradients of the untrained base and the number of tokens let one expect; one for each training set.

    Attributes:
        num_examples: Of the sample whose gradients were taken, in two halves.
        loss_nats_per_token: Of the untrained base on the sample.
        bits_to_store: Of all completions, as surprising as the sample is to the base; repetitions count each time.
        bits_per_rank: What the parameters of one rank on all linear layers hold.
        capacity_rank: The least rank that holds `bits_to_store`.
        signal_rank_median: Directions of the gradient above its own noise, in the median matrix.
        signal_rank_high: In the matrix that has more of them than nine in ten.
        energy_rank_90_median: Directions that hold 90% of the gradient's energy, in the median matrix.
        ranks_to_try: Powers of two between what these ask for.
    """

    kind: Literal["forecast"] = "forecast"
    base: str
    training_set: str
    num_examples: int
    num_scored_tokens: int
    loss_nats_per_token: float
    bits_to_store: float
    bits_per_rank: float
    capacity_rank: int
    signal_rank_median: int
    signal_rank_high: int
    energy_rank_90_median: int
    ranks_to_try: tuple[int, ...]


class Round(Frozen):
    """One round of a search by halving: how the rates stood after some steps, and which went on.

    Attributes:
        losses: By rate (as text), validation loss in nats per token, mean over the search seeds; None where the rate
            diverged or failed.
        kept: The rates that went on.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")  # rounds were scored once

    step: int
    losses: dict[str, float | None]
    kept: tuple[float, ...]


class OfArm(Frozen):
    """What is said of one arm on one base and training set."""

    base: str
    training_set: str
    arm: str

    @property
    def arm_key(self) -> ArmKey:
        """As of the arm's runs."""
        return self.base, self.training_set, self.arm


class Asked(Frozen):
    """To which step a search has asked for a rate to be trained."""

    learning_rate: float
    step: int


class Search(OfArm):
    """How far the search of one arm has come, where it goes from round to round or beyond its grid.

    Attributes:
        asked: The rates in the search so far; others of the plan wait until a round or an edge asks for them.
        run_ids: The runs of the plan that the search may come to; with others it begins anew.
    """

    asked: tuple[Asked, ...]
    rounds: tuple[Round, ...] = ()
    run_ids: tuple[str, ...] = ()


class DeriveRecord(Record):
    """What a model that was made of a trained one scored; its items lie beside it, a folder for each task.

    Attributes:
        point: How it was made.
        scores: By task, its measures.
        rank: Of the derived adapter; None for a whole model, which is not kept.
        added_rank: By how much that is more than the run's own, as mending intruders needs.
        num_intruders: Intruder dimensions that were scaled, over all matrices.
    """

    kind: Literal["derive"] = "derive"
    subject: Subject
    point: DerivedPoint
    scores: dict[str, Values] = Field(default_factory=dict)
    summary: Values = Field(default_factory=dict)
    rank: int | None = None
    added_rank: int | None = None
    num_intruders: int | None = None
    notes: tuple[str, ...] = ()


class RateChoice(OfArm):
    """The learning rate chosen for one arm on one base and training set.

    Attributes:
        scores: By rate (as text), the mean validation score on the search seeds; None where the rate diverged.
        losses: By rate, the mean validation loss, the first tie-break; None where it diverged.
        learning_rate: None where every rate diverged or failed; `reason` says so.
        at_edge: The best rate is the lowest or highest of two or more.
        chosen_at: When, so that no test score can have come before.
        run_ids: The runs that were compared; with others the choice is made anew.
        steps: By rate, the step after which its score was taken, where halving stopped it early.
        added: Rates that were tried beyond the study file's grid, because the best lay at its edge.
    """

    learning_rate: float | None
    scores: dict[str, float | None]
    losses: dict[str, float | None]
    score_key: str
    at_edge: Literal["lowest", "highest"] | None
    reason: str
    chosen_at: str
    run_ids: tuple[str, ...] = ()
    steps: dict[str, int] = Field(default_factory=dict)
    added: tuple[float, ...] = ()


class Rates(Frozen):
    """decide/rates.json: every choice made so far, and how far searches have come that go on in rounds."""

    format_version: int = FORMAT_VERSION
    choices: tuple[RateChoice, ...] = ()
    searches: tuple[Search, ...] = ()


class Interval(Frozen):
    """An estimate with its interval over items and seeds; `low` and `high` are None where none can be given."""

    value: float
    low: float | None
    high: float | None
    confidence: float
    num_items: int
    num_seeds: int


class TaskComparison(OfArm):
    """One arm against the base on one task, at the chosen rate, over seeds.

    Attributes:
        category: None for the whole task.
        difference: Tuned less base (accuracy), or base less tuned (nats): higher is always better.
        p_value: McNemar's exact test on items (first seed), None for losses; `p_holm` corrected over a family.
    """

    learning_rate: float
    task: str
    category: str | None = None
    relation: Literal["in_domain", "out_of_domain", "retention"]
    unit: Literal["accuracy", "nats"]
    base_value: float
    tuned_value: float
    difference: Interval
    num_lost: int | None = None
    num_gained: int | None = None
    p_value: float | None = None
    p_holm: float | None = None


class ArmResult(Frozen):
    """One arm's standing in a verdict; the base itself is one, with `arm` = `base`.

    Attributes:
        num_trainable: None where no run of the arm got as far as counting them.
        behind_best: Score of the best surely eligible arm less this one's: how far it is behind; None for the best.
        lost_seeds: Seeds that gave no number at the chosen rate: the arm's numbers are those of its other seeds.
        reason: What the standing rests on, or why there is none.
    """

    arm: str
    method: str
    rank: int | None
    learning_rate: float | None
    num_trainable: int | None
    gain: Interval | None
    gain_nats: Interval | None
    forgetting: Interval | None
    forgetting_nats: Interval | None
    eligible: Literal["yes", "no", "unknown"]
    behind_best: Interval | None = None
    lost_seeds: tuple[str, ...] = ()
    reason: str = ""


class ArmPair(Frozen):
    """One arm less another, paired by item and by seed; what is measured is named as in `ArmResult`.

    Attributes:
        difference: Of gains, above zero is to the credit of `arm`; of forgetting, below zero is.
    """

    arm: str
    rival: str
    measure: ArmMeasure
    difference: Interval


class Verdict(Frozen):
    """The decision for one base and training set, with the rule in words and its numbers filled in.

    Attributes:
        needed: While undecided, what would decide.
        safe_arm: While undecided, the best of the arms that surely keep within the budgets and surely gain; `base`
            where none does.
        because: Where no arm is recommended, with numbers: of the safe arm, and what stands against it; or what keeps
            all arms from being better than the base.
        pairs: Every arm less every other one, in every measure.
        defaults: Files beside the record that hold the recommended arm as other programs read it.
    """

    base: str
    training_set: str
    decision: Literal["recommended", "undecided"]
    arm: str | None
    learning_rate: float | None
    gain: Interval | None
    forgetting: Interval | None
    gain_nats: Interval | None = None
    forgetting_nats: Interval | None = None
    rule: str
    runner_up: str | None
    needed: str | None
    safe_arm: str | None = None
    because: str | None = None
    warnings: tuple[str, ...] = ()
    arms: tuple[ArmResult, ...] = ()
    pairs: tuple[ArmPair, ...] = ()
    defaults: tuple[str, ...] = ()


class DecideRecord(Record):
    """decide/record.json: one verdict per base and training set, and the comparisons they rest on."""

    kind: Literal["decide"] = "decide"
    verdicts: tuple[Verdict, ...] = ()
    comparisons: tuple[TaskComparison, ...] = ()
