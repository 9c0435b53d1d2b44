"""The cluster files of examples/: run with stand-ins for Slurm, held against Ray's own schema."""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

from rankscope.arguments import make_parser
from rankscope.cli import SOME_FAILED, UNDECIDED, USER_ERROR

FILES = Path(__file__).resolve().parent.parent / "examples" / "cluster"


@pytest.fixture
def stand_ins(tmp_path: Path) -> Path:
    """Commands that write down how they were called; srun runs what it is given, as Slurm would on a node."""
    folder = tmp_path / "bin"
    folder.mkdir()
    log = tmp_path / "calls"
    note = f'echo "$(basename $0) $*" >> {log}\n'
    commands = {
        "srun": note + 'while [[ ${1-} == --* ]]; do shift; done\nexec "$@"\n',
        "scontrol": 'printf "n1\\nn2\\nn3\\n"\n',
        "ray": note + '[[ " $* " == *" --block "* ]] || exit 0\nexec sleep 60\n',
        "rankscope": note + 'sleep 2\nexit "${ENDS_WITH:-0}"\n',
    }
    for name, text in commands.items():
        path = folder / name
        path.write_text("#!/usr/bin/env bash\n" + text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return folder


def run(script: str, stand_ins: Path, **environment: str) -> list[str]:
    surroundings = {**os.environ, "PATH": f"{stand_ins}:{os.environ['PATH']}", **environment}
    command = ["bash", str(FILES / script), "study.yaml", "/shared/out"]
    subprocess.run(command, env=surroundings, check=True, timeout=60, capture_output=True)
    return (stand_ins.parent / "calls").read_text().splitlines()


def test_a_slurm_array_shares_a_study(stand_ins: Path) -> None:
    first, second = run("slurm_array.sbatch", stand_ins, SLURM_CPUS_PER_TASK="8")
    assert first.startswith("srun --ntasks=1 rankscope run")
    options = make_parser().parse_args(shlex.split(second)[1:])
    assert options.share and options.out == Path("/shared/out")
    assert options.set == ["execute.num_workers=1", "execute.threads_per_worker=8"]


def test_a_slurm_allocation_becomes_a_ray_cluster(stand_ins: Path) -> None:
    calls = run("slurm_ray.sbatch", stand_ins, SLURM_JOB_NODELIST="n[1-3]", SLURM_CPUS_PER_TASK="4")
    starts = [call for call in calls if call.startswith("ray start")]
    assert len(starts) == 3 and sum("--head" in call for call in starts) == 1
    assert sum("--address n1:6379" in call for call in starts) == 2
    head = next(place for place, call in enumerate(calls) if "--head" in call)
    assert all(place > head for place, call in enumerate(calls) if call.startswith("ray start --address"))
    options = make_parser().parse_args(shlex.split(next(call for call in calls if call.startswith("rankscope")))[1:])
    assert options.set == ["execute.backend=ray", "execute.address=n1:6379"]


@pytest.mark.parametrize("script", ["slurm_array.sbatch", "slurm_ray.sbatch"])
@pytest.mark.parametrize(("status", "found"), [(UNDECIDED, 0), (SOME_FAILED, SOME_FAILED), (USER_ERROR, USER_ERROR)])
def test_a_study_that_is_done_and_undecided_is_no_failed_job(
    stand_ins: Path, script: str, status: int, found: int
) -> None:
    environment = {"ENDS_WITH": str(status), "SLURM_JOB_NODELIST": "n[1-3]"}
    if found == 0:
        run(script, stand_ins, **environment)
        return
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run(script, stand_ins, **environment)
    assert caught.value.returncode == found


def test_scripts_without_their_arguments_say_how_they_are_used(stand_ins: Path) -> None:
    for name in ("slurm_array.sbatch", "slurm_ray.sbatch"):
        done = subprocess.run(["bash", str(FILES / name)], capture_output=True, text=True)
        assert done.returncode != 0 and "usage: sbatch" in done.stderr


def test_ray_up_takes_the_cluster_file() -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed (pip install 'rankscope[ray]')")
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    config = YAML(typ="safe").load(FILES / "ray_up.yaml")
    jsonschema.validate(config, schema)
    assert config["max_workers"] == len(config["provider"]["worker_ips"])
    # What is installed is what is sent: the wheel of this version, with its extra, and the versions it was tested with.
    root = FILES.parent.parent
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    wheel = f"rankscope-{version}-py3-none-any.whl"
    assert config["file_mounts"] == {f"~/{wheel}": f"dist/{wheel}", "~/constraints.txt": "constraints.txt"}
    assert (root / "constraints.txt").is_file()
    (install,) = config["setup_commands"]
    words = shlex.split(install)
    assert words[-1] == f"$HOME/{wheel}[ray]" and words[words.index("-c") + 1] == "~/constraints.txt"


@pytest.mark.slow
def test_ray_up_sends_installs_and_starts_what_the_file_says(tmp_path: Path) -> None:
    """Ray's own launcher goes through all of its steps; only the connections to the machines are stand-ins."""
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'rankscope[ray]')")
    (tmp_path / "bin").mkdir()
    for name in ("ssh", "rsync"):
        path = tmp_path / "bin" / name
        path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> {tmp_path}/calls\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    config = YAML(typ="safe").load(FILES / "ray_up.yaml")
    for place in (*config["file_mounts"].values(), "home/.ssh/id_ed25519"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    command = [sys.executable, "-m", "ray.scripts.scripts", "up", "-y", "--no-config-cache", FILES / "ray_up.yaml"]
    name = f"rankscope-{os.getpid()}"  # Ray remembers a cluster by its name
    surroundings = {**os.environ, "HOME": str(tmp_path / "home"), "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    try:
        done = subprocess.run(
            [*command, "--cluster-name", name],
            env=surroundings,
            cwd=tmp_path,
            timeout=300,
            capture_output=True,
            text=True,
        )
    finally:
        for left in (Path(tempfile.gettempdir()) / "ray").glob(f"cluster-{name}.*"):
            left.unlink()
    assert done.returncode == 0, done.stdout + done.stderr
    calls = (tmp_path / "calls").read_text()
    sent = [call for call in calls.splitlines() if call.startswith("rsync")]
    for there, here in config["file_mounts"].items():
        assert any(call.endswith(f"{here} me@10.0.0.1:{there}") for call in sent), there
    steps = [config["setup_commands"][0], *config["head_start_ray_commands"]]
    places = [calls.find(step.removeprefix("ulimit -n 65536; ")) for step in steps]
    assert -1 < places[0] < places[1] < places[2]


def test_the_kubernetes_manifest_runs_a_command_that_exists() -> None:
    job = YAML(typ="safe").load(FILES / "kuberay.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    options = make_parser().parse_args(job["spec"]["entrypoint"].split()[1:])
    assert options.set == ["execute.backend=ray"]
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        spec = group["template"]["spec"]
        claims = {volume["name"] for volume in spec["volumes"]}
        for container in spec["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == claims
            # The study and its results lie on the volume that all of them see.
            assert all(str(options.out).startswith(mount["mountPath"]) for mount in container["volumeMounts"])
    assert groups[1]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
