"""GPUs by name, and what a device makes of some work."""

from __future__ import annotations

import subprocess

import pytest

from rankscope.cost.core_rates import core_rates
from rankscope.cost.devices import Device, gpu_name, known_devices, named_device, this_processor
from rankscope.cost.passes import Work
from rankscope.errors import UserError


def test_time_is_arithmetic_and_bytes_and_starts() -> None:
    device = Device("d", arithmetic=10.0, moved=5.0, operation_seconds=0.5)
    assert device.seconds(Work(20.0, 10.0, 4.0)) == 2.0 + 2.0 + 2.0


def test_every_gpu_has_its_source_and_is_slower_than_its_data_sheet() -> None:
    assert len(known_devices()) > 15
    for name, entry in known_devices().items():
        device = named_device(name)
        assert entry.source and name.endswith("gb")
        assert 0.0 < device.arithmetic < entry.float32 * 1e12
        assert named_device(name, "bfloat16").arithmetic > device.arithmetic > named_device(name, "float64").arithmetic


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA H100 PCIe", "h100-pcie-80gb"),
        ("NVIDIA GeForce RTX 4090", "rtx4090-24gb"),
        ("Tesla T4", "t4-16gb"),
        ("NVIDIA L40S", "l40s-48gb"),
        ("Somebody's X1", "a100-40gb"),
    ],
)
def test_a_gpu_is_known_by_what_its_driver_calls_it(model: str, name: str) -> None:
    assert gpu_name(model) == name


def test_a_misspelt_gpu_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match="a100-80g") as caught:
        named_device("a100-80g")
    assert "did you mean a100-80gb?" in str(caught.value)


def test_this_processor_is_measured_and_faster_with_more_threads() -> None:
    one, two = this_processor(1), this_processor(2)
    assert one.is_measured and one.memory_bytes is None
    assert 1e9 < one.arithmetic < two.arithmetic < 2 * one.arithmetic
    assert this_processor(1, "float64").arithmetic == one.arithmetic / 2


def test_a_core_is_measured_where_libraries_have_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that wait for each other count as work: beside other work a core looked half as fast."""
    seen = []

    def run(command: list[str], env: dict[str, str], **_: object) -> subprocess.CompletedProcess[str]:
        seen.append(env)
        return subprocess.CompletedProcess(command, 0, "[3.0, 4.0]")

    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setattr(subprocess, "run", run)
    assert core_rates.__wrapped__() == (3.0, 4.0)
    assert {seen[0][name] for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")} == {"1"}
