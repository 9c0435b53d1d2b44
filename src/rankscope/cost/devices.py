"""What a device can do: common GPUs from a table, this machine's processor by two short measurements."""

from __future__ import annotations

import difflib
import functools
import re
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from ruamel.yaml import YAML

from rankscope.cost.core_rates import core_rates
from rankscope.cost.passes import Work
from rankscope.errors import UserError

_TABLE = Path(__file__).parent / "devices.yaml"
# Of what a large product or a large sum reaches on this processor, the models' own products reach so much, and values
# that stay in caches move so much faster; with the time to start an operation, fitted to the processor time of training
# steps and scoring of Llamas of 2 to 135 million parameters, full and rank 1 to 64 (docs/log.md; within 11%).
_PROCESSOR_ARITHMETIC, _PROCESSOR_MOVED, _PROCESSOR_OPERATION_SECONDS = 0.83, 1.55, 27e-6
# On GPUs nothing was measured: shares of the data sheet that well-known trainers of the sizes of interest report, and
# the time that eager torch takes to start a kernel.
_GPU_ARITHMETIC, _GPU_MOVED, _GPU_OPERATION_SECONDS = 0.45, 0.75, 8e-6
# What a GPU that the table does not have is taken for.
_MIDDLING = "a100-40gb"
# Two threads are not twice as fast as one.
_THREAD_EFFICIENCY = 0.9


@dataclass(frozen=True)
class Device:
    """How fast one device is, as reached by models.

    Attributes:
        arithmetic: Floating-point operations a second.
        moved: Values (float32) read or written a second.
        operation_seconds: To start one operation.
        memory_bytes: Of the device; None where it is the machine's.
        is_measured: On this machine, rather than taken from a data sheet.
        half_arithmetic: The same operations in bfloat16; None where that is no faster.
    """

    name: str
    arithmetic: float
    moved: float
    operation_seconds: float
    memory_bytes: int | None = None
    is_measured: bool = False
    half_arithmetic: float | None = None

    @property
    def in_half(self) -> Device:
        """The device where products are made in bfloat16."""
        return replace(self, arithmetic=self.half_arithmetic or self.arithmetic)

    def seconds(self, work: Work) -> float:
        """How long some work takes."""
        return work.arithmetic / self.arithmetic + work.moved / self.moved + work.operations * self.operation_seconds


class TableEntry(BaseModel):
    """A line of devices.yaml, with the units that stand there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    about: str
    float32: float
    bfloat16: float
    bandwidth: float
    memory: float
    source: str


@functools.cache
def known_devices() -> dict[str, TableEntry]:
    """The table of common GPUs by name."""
    document = YAML(typ="safe").load(_TABLE.read_text(encoding="utf-8"))
    entries = [TableEntry.model_validate(entry) for entry in document["devices"]]
    return {entry.name: entry for entry in entries}


def named_device(name: str, dtype: str = "float32") -> Device:
    """A GPU of the table.

    Args:
        name: For example `a100-80gb`.
        dtype: Of weights and arithmetic.

    Raises:
        UserError: There is no such entry.
    """
    entry = known_devices().get(name.lower())
    if entry is None:
        close = difflib.get_close_matches(name.lower(), known_devices(), n=1, cutoff=0.4)
        mend = (f"did you mean {close[0]}? " if close else "") + f"Known: {', '.join(known_devices())}"
        raise UserError(f"there is no device '{name}' in the table", where="--device", mend=mend)
    peak = {"float64": entry.float32 / 2, "float32": entry.float32}.get(dtype, entry.bfloat16)
    width = {"float64": 8, "float32": 4}.get(dtype, 2)
    return Device(
        name=entry.name,
        arithmetic=_GPU_ARITHMETIC * peak * 1e12,
        moved=_GPU_MOVED * entry.bandwidth * 1e9 / width,
        operation_seconds=_GPU_OPERATION_SECONDS,
        memory_bytes=int(entry.memory * 2**30),
        half_arithmetic=_GPU_ARITHMETIC * entry.bfloat16 * 1e12,
    )


def gpu_name(model: str) -> str:
    """The table's name for a GPU as its driver calls it (`NVIDIA A100-SXM4-80GB`), or a middling one's.

    Of several entries that fit, the one with the most words in common; `PCIe` and the memory are among the words.
    """
    said = set(re.findall(r"[a-z]*\d+[a-z]*|[a-z]+", model.lower()))
    overlaps = {name: len(said & set(re.findall(r"[a-z]*\d+[a-z]*|[a-z]+", name))) for name in known_devices()}
    # `GeForce RTX 4090` has the chip in two words.
    joined = {f"rtx{word}" for word in said} | said
    fitting = [name for name in overlaps if name.split("-")[0] in joined]
    return max(fitting, key=lambda name: (overlaps[name], -len(name)), default=_MIDDLING)


def this_processor(num_threads: int, dtype: str = "float32") -> Device:
    """This machine's processor, as one worker with so many threads uses it."""
    speed = num_threads * (_THREAD_EFFICIENCY if num_threads > 1 else 1.0) / (2.0 if dtype == "float64" else 1.0)
    arithmetic, moved = core_rates()
    return Device(
        name="cpu",
        arithmetic=_PROCESSOR_ARITHMETIC * arithmetic * speed,
        moved=_PROCESSOR_MOVED * moved * speed,
        operation_seconds=_PROCESSOR_OPERATION_SECONDS,
        is_measured=True,
    )
