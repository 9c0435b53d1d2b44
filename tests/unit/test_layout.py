"""Where work runs, found without torch: GPUs as their driver lists them, processors by the model's size."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from paper import paper
from rankscope import layout
from rankscope.cli import DONE, USER_ERROR, main
from rankscope.errors import UserError
from rankscope.layout import check_machine, choose_layout, find_device, torch_builds, visible_gpus, with_precision
from rankscope.plan import Estimate, Layout, Trial
from rankscope.spec import Execute
from studies import write_study


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for number in range(2):
        folder = tmp_path / f"0000:0{number}:00.0"
        folder.mkdir()
        (folder / "information").write_text("Model: \t\t NVIDIA A100-SXM4-80GB\nIRQ:   \t\t 16\n")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(layout, "visible_gpus", lambda: visible_gpus(tmp_path))
    return tmp_path


def test_every_gpu_has_a_process(two_gpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = choose_layout(paper(execute={"device": "cuda"}), 8_000_000_000)
    assert (found.device, found.num_workers, found.gpu) == ("cuda", 2, "NVIDIA A100-SXM4-80GB")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert choose_layout(paper(execute={"device": "cuda"}), 8_000_000_000).num_workers == 1


def test_more_gpus_than_there_are_are_refused(two_gpus: Path) -> None:
    with pytest.raises(UserError, match="3 processes are asked for, and there are 2 GPUs") as caught:
        choose_layout(paper(execute={"device": "cuda", "num_workers": 3}), 8_000_000_000)
    assert "set it to 2 or less" in caught.value.mend


def test_a_model_in_parts_takes_several_gpus_a_worker(two_gpus: Path) -> None:
    found = choose_layout(paper(execute={"device": "cuda", "shard": 2}), 8_000_000_000)
    assert (found.num_workers, found.shard, found.is_sharded) == (1, 2, True)
    alone = choose_layout(paper(execute={"device": "cuda", "cpu_offload": True}), 8_000_000_000)
    assert (alone.num_workers, alone.shard, alone.is_sharded) == (2, 1, True)


@pytest.mark.parametrize(
    ("execute", "what", "mend"),
    [
        ({"shard": 4}, "4 devices are asked for, and there are 2 GPUs", "set it to 2 or less"),
        ({"shard": 2, "num_workers": 2}, "2 processes with 2 GPUs each are asked for", "set it to 1 or less"),
        ({"shard": 2, "device": "mps"}, "mps is one device", "leave shard and cpu_offload out"),
    ],
)
def test_more_devices_for_a_model_than_there_are_are_refused(
    two_gpus: Path, execute: dict, what: str, mend: str
) -> None:
    with pytest.raises(UserError, match=what) as caught:
        choose_layout(paper(execute={"device": "cuda", **execute}), 8_000_000_000)
    assert mend in caught.value.mend


@pytest.mark.parametrize(
    ("execute", "words"), [({"backend": "ray"}, "devices of one machine"), ({"measure": True}, "models in one piece")]
)
def test_what_does_not_go_with_a_model_in_parts_is_refused_in_the_file(execute: dict, words: str) -> None:
    for shard in ({"shard": 2}, {"cpu_offload": True}):
        with pytest.raises(ValueError, match=words):
            paper(execute={**shard, **execute})


def test_on_a_processor_small_models_get_processes_and_large_ones_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)), raising=False)
    study = paper(execute={"device": "cpu"})
    small, large = choose_layout(study, 1_000_000), choose_layout(study, 8_000_000_000)
    assert (small.num_workers, small.threads_per_worker) == (6, 1)
    assert (large.num_workers, large.threads_per_worker) == (1, 6)


@pytest.mark.parametrize(
    ("gpu", "has_bfloat16"),
    [
        ("NVIDIA A100-SXM4-80GB", True),
        ("NVIDIA H100 80GB HBM3", True),
        ("NVIDIA L4", True),
        ("NVIDIA GeForce RTX 3090", True),
        ("NVIDIA GeForce RTX 5090", True),
        ("NVIDIA RTX A6000", True),
        ("NVIDIA RTX 2000 Ada Generation", True),
        ("Tesla T4", False),
        ("Tesla V100-SXM2-16GB", False),
        ("Tesla P100-PCIE-16GB", False),
        ("Tesla K80", False),
        ("NVIDIA GeForce GTX 1080 Ti", False),
        ("NVIDIA GeForce RTX 2080 Ti", False),
        ("Quadro RTX 6000", False),
    ],
)
def test_training_is_mixed_where_the_gpu_has_bfloat16(gpu: str, has_bfloat16: bool) -> None:
    found = Layout(device="cuda", num_workers=1, threads_per_worker=1, gpu=gpu)
    assert with_precision(paper(), found).optimization.bf16 is has_bfloat16
    wanted = paper(optimization={"bf16": True})
    if has_bfloat16:
        assert with_precision(wanted, found).optimization.bf16 is True
    else:
        with pytest.raises(UserError, match="has no bfloat16"):
            with_precision(wanted, found)


def test_elsewhere_training_is_mixed_only_where_a_study_says_so() -> None:
    for device, gpu in (("cpu", None), ("mps", None), ("cuda", None)):
        found = Layout(device=device, num_workers=1, threads_per_worker=1, gpu=gpu)
        assert with_precision(paper(), found).optimization.bf16 is False
        assert with_precision(paper(optimization={"bf16": True}), found).optimization.bf16 is True
    double = paper(optimization={"dtype": "float64"})
    a100 = Layout(device="cuda", num_workers=1, threads_per_worker=1, gpu="NVIDIA A100-SXM4-80GB")
    assert with_precision(double, a100).optimization.bf16 is False


def test_a_forecast_moves_with_the_layout_that_was_found_faster() -> None:
    """One process with two threads made 0.5 steps a second, two with one thread 0.8 together: each of them 0.4."""
    trials = tuple(
        Trial(num_workers=workers, threads_per_worker=threads, pack_size=1, steps_per_second=speed)
        for workers, threads, speed in ((1, 2, 0.5), (2, 1, 0.8))
    )
    before = Layout(device="cpu", num_workers=1, threads_per_worker=2)
    after = Layout(device="cpu", num_workers=2, threads_per_worker=1, trials=trials)
    estimate = Estimate(
        trained_tokens=1, scored_tokens=1, arithmetic=1.0, seconds=1020.0, memory_bytes=None, disk_bytes=0,
        seconds_by_stage={"train": 800.0, "evaluate": 200.0, "report": 20.0}, seconds_by_piece={"train/b/t/a/": 100.0},
    )  # fmt: skip
    found = estimate.in_layout(before, after)
    assert found.seconds == pytest.approx(20.0 + 1000.0 * 0.5 / 0.8)
    assert found.seconds_by_piece == pytest.approx({"train/b/t/a/": 125.0})
    assert found.seconds_by_stage == pytest.approx({"train": 1000.0, "evaluate": 250.0, "report": 20.0})
    # Its workers' pieces, shared among the workers, take what the whole does.
    assert sum((1000.0, 250.0)) / after.num_workers + 20.0 == pytest.approx(found.seconds)
    assert estimate.in_layout(before, before) == estimate, "nothing was tried"


# What torch's version.py has of the builds that people install.
BUILDS = {
    "cuda": "__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n",
    "hip": "__version__ = '2.13.0+rocm7.0'\ncuda: Optional[str] = None\nhip: Optional[str] = '7.0.51831'\n",
    "none": "__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n",
    "old": "__version__ = '2.8.0+cu128'\ncuda = '12.8'\nhip = None\n",
}


@pytest.fixture
def install_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """Put a torch of some build, or none, in the place of the installed one; importing it fails."""

    def install(build: str | None) -> None:
        folder = tmp_path / "packages"
        folder.mkdir()
        if build is not None:
            (folder / "torch").mkdir()
            (folder / "torch" / "__init__.py").write_text("raise AssertionError('torch is imported')\n")
            (folder / "torch" / "version.py").write_text(BUILDS[build])
        monkeypatch.setattr(sys, "path", [str(folder)])
        monkeypatch.delitem(sys.modules, "torch", raising=False)

    return install


@pytest.mark.parametrize(
    ("build", "found"), [("cuda", {"cuda"}), ("old", {"cuda"}), ("hip", {"hip"}), ("none", set()), (None, set())]
)
def test_what_torch_is_built_for_is_read_and_torch_not_imported(
    install_torch: Callable[[str | None], None], build: str | None, found: set[str]
) -> None:
    install_torch(build)
    assert torch_builds() == found


@pytest.mark.parametrize(
    ("files", "build", "has_driver", "device"),
    [
        ([], "cuda", True, "cpu"),
        (["nvidia0"], "cuda", True, "cuda"),
        (["nvidiactl"], "none", False, "cuda"),  # the worker says what is amiss
        (["kfd"], "hip", False, "cuda"),
        (["kfd"], "none", False, "cpu"),  # of a processor that has graphics, most often
        (["kfd"], "cuda", True, "cpu"),
        (["kfd"], None, False, "cpu"),
        (["dxg"], "cuda", True, "cuda"),
        (["dxg"], "cuda", False, "cpu"),  # Windows with another GPU, and the torch that Linux gets by default
        (["dxg"], "hip", False, "cuda"),
        (["dxg"], "none", True, "cpu"),
        (["nvmap"], "cuda", True, "cuda"),
        (["nvmap"], "hip", True, "cpu"),
    ],
)
def test_the_device_is_a_gpu_where_torch_is_built_for_one_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install_torch: Callable[[str | None], None],
    files: list[str], build: str | None, has_driver: bool, device: str,
) -> None:  # fmt: skip
    def load(name: str) -> None:
        assert name == "libcuda.so.1"
        if not has_driver:
            raise OSError(name)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr(ctypes, "CDLL", load)
    install_torch(build)
    for name in files:
        (tmp_path / name).touch()
    assert find_device(tmp_path) == device
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert find_device(tmp_path) == "cpu"


@pytest.mark.parametrize(("build", "device"), [("hip", "cpu"), ("cuda", "cuda")])
@pytest.mark.parametrize(("name", "value"), [("HIP_VISIBLE_DEVICES", "-1"), ("ROCR_VISIBLE_DEVICES", "")])
def test_what_hides_amds_gpus_hides_no_others(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    install_torch: Callable[[str], None],
    name: str,
    value: str,
    build: str,
    device: str,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: None)
    monkeypatch.setenv(name, value)
    install_torch(build)
    for file in ("kfd", "dxg"):
        (tmp_path / file).touch()
    assert find_device(tmp_path) == device
    if device == "cpu":
        with pytest.raises(UserError, match=f"{name} hides every GPU"):
            check_machine(Execute(device="cuda"), tmp_path)


@pytest.mark.parametrize(("machine", "device"), [("arm64", "mps"), ("x86_64", "cpu")])
def test_a_mac_has_mps_where_its_processor_is_apples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, device: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert find_device(tmp_path) == device


@pytest.mark.parametrize(
    ("device", "system", "files", "said"),
    [
        ("cuda", "Linux", [], "this machine shows no GPU"),
        ("cuda", "Linux", ["kfd"], None),  # AMD's, which torch calls cuda too
        ("cuda", "Linux", ["nvidiactl"], None),
        ("cuda", "Darwin", [], "this machine is a Mac"),
        ("cuda", "Windows", [], None),  # only torch can tell
        ("mps", "Linux", [], "this machine is no Mac"),
        ("mps", "Darwin", [], None),
        ("cpu", "Linux", [], None),
        ("auto", "Linux", [], None),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, system: str, files: list[str], said: str | None
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("platform.system", lambda: system)
    for name in files:
        (tmp_path / name).touch()
    execute = Execute(device=device)
    if said is None:
        check_machine(execute, tmp_path)
        return
    with pytest.raises(UserError, match=said) as caught:
        check_machine(execute, tmp_path)
    assert caught.value.where == "execute.device" and "set it to auto or cpu" in caught.value.mend


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_a_model_is_not_divided_among_more_processes_than_there_are_cores(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("platform.system", lambda: "Linux")
    check_machine(Execute(device=device, shard=layout.num_cores()))
    with pytest.raises(UserError, match="this machine has cores for") as caught:
        check_machine(Execute(device=device, shard=layout.num_cores() + 1))
    assert caught.value.where == "execute.shard" and f"set it to {layout.num_cores()} or less" in caught.value.mend


@pytest.mark.parametrize(
    ("execute", "said", "mend"),
    [
        ({"num_workers": 5}, "5 processes are asked for, and this machine has cores for 4", "set it to 4 or less"),
        ({"num_workers": 3, "shard": 2}, "3 processes with 2 parts of a model each", "set it to 2 or less"),
    ],
)
def test_more_processes_than_cores_are_refused(
    monkeypatch: pytest.MonkeyPatch, execute: dict, said: str, mend: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(layout, "num_cores", lambda: 4)
    check_machine(Execute(num_workers=4))
    check_machine(Execute(num_workers=2, shard=2))
    with pytest.raises(UserError, match=said) as caught:
        check_machine(Execute(**execute))
    assert caught.value.where == "execute.num_workers" and mend in caught.value.mend


def test_a_study_for_a_gpu_is_not_begun_without_one_and_planned_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    arguments = [str(write_study(tmp_path)), "--set", "execute.device=cuda"]
    assert main(["run", *arguments, "--out", str(tmp_path / "out")]) == USER_ERROR
    assert "execute.device: cuda is asked for, and CUDA_VISIBLE_DEVICES hides every GPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["plan", *arguments]) == DONE
