"""Carrying out a pack in this process: the only place that catches everything, and records it."""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rankscope.errors import MachineError, UnusableBase
from rankscope.execute.events import Event, Failed, Finished, Halted, Progress
from rankscope.execute.failures import disk_full, failure_of, is_disk_full, record_failure
from rankscope.plan import Pack, Place, Plan
from rankscope.store import Store

LOG = "log.txt"


class Bench:
    """The stages with the models they share, and whom to tell how far they are.

    Args:
        store: The study directory.
        plan: The study's plan.
        tell: Told of progress.
        stop: Set when training is to checkpoint and return.
        place: Of this process among those that train models in parts.
    """

    def __init__(
        self,
        store: Store,
        plan: Plan,
        tell: Callable[[Event], None],
        stop: threading.Event,
        place: Place | None = None,
    ) -> None:
        import torch

        from rankscope.models.loading import Models

        torch.set_num_threads(plan.layout.threads_per_worker)
        self.store = store
        self.plan = plan
        self.models = Models(store, plan.dtype, plan.layout.device, place, offload=plan.layout.cpu_offload)
        self._tell = tell
        self._stop = stop

    def finish(self, pack: Pack) -> Event:
        """Carry out a pack and say how it ended: the boundary where a failure is recorded and the rest goes on."""
        try:
            self._carry_out(pack)
        except Exception as error:
            logging.getLogger(__name__).exception("%s failed", pack)
            cause = f"{type(error).__name__}: {error}"
            # Of a study's only base it is said once, and not of every piece of work.
            is_all = isinstance(error, UnusableBase) and len(self.plan.bases) == 1
            if isinstance(error, MachineError) or is_all:
                return Halted(pack, str(error))
            if is_disk_full(self.store.root, error):
                return Halted(pack, disk_full(cause))
            if self.plan.is_in_parts(pack):
                return Failed(pack, cause, failure_of(error))
            record_failure(self.store, self.plan, pack, failure_of(error))
            return Failed(pack, cause)
        return Finished(pack)

    def close(self) -> None:
        """Say goodbye to processes that models were trained with."""
        from rankscope.models.group import leave

        leave()

    def _carry_out(self, pack: Pack) -> None:
        """Hand the pack to its stage; what it prints goes to a log in the run's folder."""
        folder = self.store.run(pack.run_ids[0]) if pack.run_ids else self.store.base(pack.base)
        redirect_output(folder / LOG)
        from rankscope.analyse import stage as analyse
        from rankscope.derive import stage as derive
        from rankscope.evaluate import stage as evaluate
        from rankscope.train import stage as train

        _check_device(self.plan.layout.device, needs_bfloat16=self.plan.is_mixed)
        self.models.check_base(self.plan.bases[pack.base])
        watcher = _Watcher(pack, self._tell, self._stop)
        # Said at once: how long a piece of work takes is counted from here.
        watcher.progress((*pack.run_ids, pack.base)[0], 0, max(1, len(pack.names)), None)
        stage = {"train": train, "evaluate": evaluate, "analyse": analyse, "derive": derive}[pack.stage]
        stage.run(pack, self.plan, self.store, self.models, watcher)


def _check_device(device: str, *, needs_bfloat16: bool) -> None:
    """Whether torch can use the device that the plan names; the plan is made without torch."""
    import torch

    is_there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not is_there[device]:
        what = f"the plan's device is {device}, and the torch installed here ({torch.__version__}) cannot use it"
        raise MachineError(f"{what}\n  mend: set execute.device to cpu, or install torch for this device")
    if needs_bfloat16 and device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        what = f"the plan trains in bfloat16, which {torch.cuda.get_device_name()} does not have"
        raise MachineError(f"{what}\n  mend: set optimization.bf16 to false")


@dataclass
class _Watcher:
    """Passes progress on, at most a few times a second for each run of a pack, and the wish to stop back."""

    pack: Pack
    tell: Callable[[Event], None]
    stop: threading.Event
    sent: dict[str, float] = field(default_factory=dict)

    def progress(self, run_id: str, done: int, total: int, loss: float | None) -> None:
        now = time.monotonic()
        if now - self.sent.get(run_id, -math.inf) > 0.25 or done == total:
            self.tell(Progress(self.pack, run_id, done, total, loss))
            self.sent[run_id] = now

    def wants_stop(self) -> bool:
        return self.stop.is_set()


def redirect_output(log_file: Path) -> None:
    """Send what this process prints, its logging and warnings among it, to a log."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # what was printed so far belongs to the log before
    descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    logging.captureWarnings(True)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    warnings.simplefilter("default")
