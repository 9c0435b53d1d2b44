"""What carries out packs: processes of this machine, or a cluster's."""

from __future__ import annotations

from typing import Protocol

from rankscope.execute.events import Event
from rankscope.plan import Pack


class Executor(Protocol):
    """Takes packs and says what becomes of them; results are in the study directory by then."""

    @property
    def num_idle(self) -> int:
        """How many packs could be taken now."""

    @property
    def in_flight(self) -> list[Pack]:
        """The packs that are being carried out."""

    def submit(self, pack: Pack) -> None:
        """Take a pack."""

    def wait(self, seconds: float) -> list[Event]:
        """What has happened, after waiting at most so long for something to."""

    def stop(self) -> None:
        """Ask for checkpoints, wait for the packs that train, and end everything."""

    def close(self) -> None:
        """End everything."""
