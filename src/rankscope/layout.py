"""Where a study's work runs on this machine: which device, how many processes, how many threads; without torch."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import re
from pathlib import Path

from rankscope.errors import UserError
from rankscope.plan import Layout
from rankscope.spec import Execute, Study

_SMALL_MODEL_PARAMETERS = 20_000_000
_PACK_SIZES = (1, 2, 4, 8, 16)
_NVIDIA = Path("/proc/driver/nvidia/gpus")
# What there is where torch may find a GPU that it calls cuda: NVIDIA's, Tegra's, AMD's, and Windows' under WSL.
_GPU_FILES = ("nvidia0", "nvidiactl", "nvmap", "kfd", "dxg")
# The last three are there without a GPU that torch can use, too: which of them count, by what torch is built for.
_FILES_BY_BUILD = {"cuda": ("nvmap", "dxg"), "hip": ("kfd", "dxg")}
# What hides GPUs from torch where it is empty or -1; torch for AMD's asks all of them, torch for NVIDIA's the first.
_HIDING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
# As torch's version.py says it: `cuda: Optional[str] = '12.8'`, or None.
_BUILT_FOR = re.compile(r"^(cuda|hip)\b[^=\n]*=\s*['\"]", re.MULTILINE)
_CUDA_DRIVER = "libcuda.so.1"
# GPUs before Ampere (compute capability below 8.0); a worker asks torch again.
_WITHOUT_BFLOAT16 = re.compile(r"\b([KMPVT]\d+\b|[KMPV]\d+-|GTX|TITAN|RTX 20[678]0|Quadro)", re.IGNORECASE)


def choose_layout(study: Study, num_parameters: int) -> Layout:
    """One process for each GPU; on a processor, small models gain from processes and large ones from threads.

    Args:
        study: The study.
        num_parameters: Of its largest base.

    Raises:
        UserError: The device cannot do what the study asks for, or is not there as often.
    """
    execute = study.execute
    device = find_device() if execute.device == "auto" else execute.device
    if device == "mps" and execute.is_sharded:
        what = "mps is one device, and its memory is the host's"
        raise UserError(what, where="execute.shard", mend="leave shard and cpu_offload out")
    if device == "mps" and study.optimization.dtype == "float64":
        raise UserError("mps has no float64", where="optimization.dtype", mend="set execute.device to cpu, or float32")
    gpus = visible_gpus() if device == "cuda" else []
    cores, workers = num_cores(), execute.num_workers
    if gpus and execute.shard > len(gpus):
        what = f"{execute.shard} devices are asked for, and there are {len(gpus)} GPUs ({', '.join(gpus)})"
        mend = f"set it to {len(gpus)} or less, with cpu_offload: true if the model does not fit then"
        raise UserError(what, where="execute.shard", mend=mend)
    if workers == "auto":
        by_processor = cores if num_parameters < _SMALL_MODEL_PARAMETERS else 1
        workers = max(1, (by_processor if device == "cpu" else len(gpus)) // execute.shard)
    elif gpus and workers * execute.shard > len(gpus) and execute.shard > 1:
        what = f"{workers} processes with {execute.shard} GPUs each are asked for, and there are {len(gpus)} GPUs"
        mend = f"set it to {len(gpus) // execute.shard} or less, or to auto"
        raise UserError(what, where="execute.num_workers", mend=mend)
    elif gpus and workers > len(gpus):
        what = f"{workers} processes are asked for, and there are {len(gpus)} GPUs ({', '.join(gpus)})"
        raise UserError(what, where="execute.num_workers", mend=f"set it to {len(gpus)} or less, or to auto")
    threads = execute.threads_per_worker
    if threads == "auto":
        threads = max(1, cores // (workers * execute.shard))
    # Where nothing is measured: on a processor packs make no short study faster, and what fits a GPU is not known.
    pack_size = 1 if execute.pack_size == "auto" or execute.backend != "local" else execute.pack_size
    gpu = gpus[0] if gpus else None
    return Layout(
        device=device,
        num_workers=workers,
        threads_per_worker=threads,
        pack_size=pack_size,
        gpu=gpu,
        shard=execute.shard,
        cpu_offload=execute.cpu_offload,
    )


def likely_layout(study: Study) -> Layout | None:
    """How workers of this machine's processor will most likely be laid out, before anything is known of the bases.

    None where they are of another machine, or have a device of their own.
    """
    execute = study.execute
    device = find_device() if execute.device == "auto" else execute.device
    return choose_layout(study, num_parameters=0) if execute.backend == "local" and device == "cpu" else None


def layouts_to_try(study: Study, layout: Layout) -> list[Layout]:
    """The ways of dividing the machine that may be faster than the first, which is the one chosen without measuring.

    Only what the study leaves open is varied; packs grow from one run, so that a measurement can stop at the first that
    does not pay.
    """
    execute = study.execute
    cores = layout.num_workers * layout.threads_per_worker
    divisions = [(layout.num_workers, layout.threads_per_worker)]
    is_open = execute.num_workers == "auto" and execute.threads_per_worker == "auto"
    if is_open and layout.device == "cpu" and cores > 1:
        divisions += [pair for pair in ((cores, 1), (1, cores)) if pair not in divisions]
    sizes = _PACK_SIZES if execute.pack_size == "auto" else (execute.pack_size,)
    return [
        layout.model_copy(update={"num_workers": workers, "threads_per_worker": threads, "pack_size": size})
        for workers, threads in divisions
        for size in sizes
    ]


def with_precision(study: Study, layout: Layout) -> Study:
    """The study with `optimization.bf16` resolved for the device that its runs are trained on.

    Raises:
        UserError: The GPU has no bfloat16.
    """
    wanted = study.optimization.bf16
    is_old = layout.gpu is not None and _WITHOUT_BFLOAT16.search(layout.gpu) is not None
    if wanted is True and is_old:
        what = f"{layout.gpu} has no bfloat16"
        raise UserError(what, where="optimization.bf16", mend="leave it out, or set it to false")
    is_there = layout.device == "cuda" and layout.gpu is not None and not is_old
    is_on = is_there and study.optimization.dtype == "float32" if wanted == "auto" else wanted
    return study.model_copy(update={"optimization": study.optimization.model_copy(update={"bf16": is_on})})


def find_device(folder: Path = Path("/dev")) -> str:
    """The device of this machine, found without importing torch; where torch cannot use it after all, a worker refuses.

    A GPU that was guessed stops a study, and a processor only takes longer. So files that many machines without such a
    GPU have (of AMD's driver, and of Windows under WSL) count only with a torch that is built for it.
    """
    if _hidden_by("cuda"):
        return "cpu"
    there = {name for name in _GPU_FILES if (folder / name).exists()}
    if not there.isdisjoint({"nvidia0", "nvidiactl"}):
        return "cuda"
    if there and any(not there.isdisjoint(_FILES_BY_BUILD[build]) and _is_usable(build) for build in torch_builds()):
        return "cuda"
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return "mps"
    return "cpu"


def torch_builds() -> set[str]:
    """For which GPUs the installed torch is built (`cuda`, `hip`), as its version.py says; torch is not imported."""
    found = importlib.util.find_spec("torch")
    files = [Path(folder) / "version.py" for folder in (found and found.submodule_search_locations) or ()]
    return {name for path in files if path.is_file() for name in _BUILT_FOR.findall(path.read_text(encoding="utf-8"))}


def _hidden_by(build: str) -> str | None:
    """Which environment variable tells a torch built for `cuda` or `hip` to see no GPU."""
    asked = _HIDING if build == "hip" else _HIDING[:1]
    return next((name for name in asked if os.environ.get(name) in {"", "-1"}), None)


def _is_usable(build: str) -> bool:
    """Whether a torch built for `cuda` or `hip` will find a GPU, as far as can be told without it.

    NVIDIA's driver is asked for: torch for cuda is what Linux gets by default, and under WSL there are files of any
    GPU. Torch for AMD's GPUs is installed by those who have one, and is only asked whether it was told to see none.
    """
    if build != "cuda":
        return _hidden_by(build) is None
    try:
        ctypes.CDLL(_CUDA_DRIVER)
    except OSError:
        return False
    return True


def num_cores() -> int:
    """The processor's cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # Linux only


def check_machine(execute: Execute, folder: Path = Path("/dev")) -> None:
    """Whether this machine has what a study names, as far as that can be told without torch.

    Raises:
        UserError: It does not have the device, or not so many cores as processes are asked for.
    """
    device, system = execute.device, platform.system()
    what = None
    if device == "cuda" and (hidden_by := _hidden_by("hip" if torch_builds() == {"hip"} else "cuda")):
        what = f"cuda is asked for, and {hidden_by} hides every GPU"
    elif device == "cuda" and system == "Linux" and not any((folder / name).exists() for name in _GPU_FILES):
        what = "cuda is asked for, and this machine shows no GPU"
    elif device == ("cuda" if system == "Darwin" else "mps"):
        what = f"{device} is asked for, and this machine is {'a' if system == 'Darwin' else 'no'} Mac"
    if what is not None:
        raise UserError(what, where="execute.device", mend="set it to auto or cpu, or run the study where there is one")
    if device == "cpu" or (device == "auto" and find_device(folder) == "cpu"):
        _check_cores(execute, num_cores())


def _check_cores(execute: Execute, cores: int) -> None:
    """More processes than cores would each hold a model, and none would be faster for it."""
    if execute.shard > cores:
        what = f"{execute.shard} processes are to hold a model in parts, and this machine has cores for {cores}"
        raise UserError(what, where="execute.shard", mend=f"set it to {cores} or less, or run the study on GPUs")
    workers = 1 if execute.num_workers == "auto" else execute.num_workers
    if workers * execute.shard > cores:
        each = f" with {execute.shard} parts of a model each" if execute.shard > 1 else ""
        what = f"{workers} processes{each} are asked for, and this machine has cores for {cores}"
        mend = f"set it to {cores // execute.shard} or less, or to auto"
        raise UserError(what, where="execute.num_workers", mend=mend)


def visible_gpus(folder: Path = _NVIDIA) -> list[str]:
    """The models of the GPUs that this process may use, as their driver names them; empty where it says nothing."""
    names = []
    for path in sorted(folder.glob("*/information")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        names += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    # Whatever they are called (numbers, UUIDs, parts of one), so many of them may be used.
    return names if visible is None else names[: len([part for part in visible.split(",") if part.strip()])]
