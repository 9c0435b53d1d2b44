"""What an executor tells the pipeline of the work it was given."""

from __future__ import annotations

from dataclasses import dataclass

from rankscope.plan import Pack
from rankscope.records import Failure


@dataclass(frozen=True)
class Progress:
    """A run has come some way in a stage; `loss` in nats per token while it trains."""

    pack: Pack
    run_id: str
    done: int
    total: int
    loss: float | None


@dataclass(frozen=True)
class Finished:
    """A pack's records are written: complete, diverged or interrupted."""

    pack: Pack


@dataclass(frozen=True)
class Failed:
    """A pack's stage raised, or its process died; the cause is in the record of what failed.

    Attributes:
        failure: Not recorded yet: of several processes only their parent sees whether another was the cause.
    """

    pack: Pack
    cause: str
    failure: Failure | None = None


@dataclass(frozen=True)
class Halted:
    """A pack could not go on for a reason that lies in the machine, not in the work: nothing is recorded as failed."""

    pack: Pack
    cause: str


Event = Progress | Finished | Failed | Halted
