"""The trackers, each behind the same four calls; a tracker's package is imported when it is begun with, not before."""

from __future__ import annotations

import contextvars
import os
import re
import secrets
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from rankscope.errors import UserError

Scalar = str | float | int | bool | None


class Tracker(Protocol):
    """What a study needs of a tracker; a `name` is that of a run, of a base, or `verdicts`."""

    def begin(self, name: str, config: Mapping[str, Scalar], known: str | None) -> str:
        """Begin with a name, or go on with it; returns what the tracker knows it by, to be given as `known` later."""

    def numbers(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step; steps of a name may come in any order."""

    def text(self, name: str, key: str, text: str) -> None:
        """A text, such as a verdict."""

    def end(self, name: str) -> None:
        """Nothing more comes of a name for now."""


def check_installed(kind: str) -> None:
    """Refuse a tracker whose package is not installed, before anything is started.

    Raises:
        UserError: With what to install.
    """
    if kind != "none" and find_spec(kind) is None:
        mend = f"pip install 'rankscope[{kind}]', or set report_to: none"
        raise UserError(f"the package {kind} is not installed", where="report_to", mend=mend)


def make_tracker(kind: str, study: str, root: Path) -> Tracker:
    """The tracker of that kind.

    Args:
        kind: As `report_to` names it.
        study: The study's name: the project or experiment, where the tracker's own settings name none.
        root: The study directory; what a tracker keeps on this machine goes there, unless it has a place of its own.
    """
    makers = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow, "trackio": Trackio}
    return makers[kind](study, root)


class TensorBoard:
    """Event files in `tensorboard/`, a folder a name; written without torch and without TensorFlow."""

    def __init__(self, study: str, root: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._folder = root / "tensorboard"
        self._event, self._summary, self._metadata = Event, Summary, SummaryMetadata
        self._tensor, self._string, self._writer = TensorProto, DT_STRING, EventFileWriter
        self._writers: dict[str, Any] = {}

    def begin(self, name: str, config: Mapping[str, Scalar], known: str | None) -> str:
        """Begin with a name, or go on with it."""
        self._writers[name] = self._writer(str(self._folder / name))
        if known is None and config:
            rows = "\n".join(f"| {key} | {value} |" for key, value in config.items())
            self.text(name, "settings", f"| setting | value |\n|---|---|\n{rows}")
        return name

    def numbers(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step."""
        items = [self._summary.Value(tag=key, simple_value=value) for key, value in values.items()]
        self._add(name, step, items)

    def text(self, name: str, key: str, text: str) -> None:
        """A text."""
        plugin = self._metadata.PluginData(plugin_name="text")
        tensor = self._tensor(dtype=self._string, string_val=[text.encode()])
        value = self._summary.Value(tag=key, tensor=tensor, metadata=self._metadata(plugin_data=plugin))
        self._add(name, 0, [value])

    def _add(self, name: str, step: int, items: list[Any]) -> None:
        event = self._event(wall_time=time.time(), step=step, summary=self._summary(value=items))
        self._writers[name].add_event(event)
        self._writers[name].flush()

    def end(self, name: str) -> None:
        """Close what is open for a name."""
        self._writers.pop(name).close()


class WandB:
    """Runs of a project, grouped by study; `WANDB_MODE=offline`, `WANDB_PROJECT` and its other variables are obeyed."""

    def __init__(self, study: str, root: Path) -> None:
        import wandb

        self._wandb, self._study, self._root = wandb, study, root
        self._runs: dict[str, Any] = {}

    def begin(self, name: str, config: Mapping[str, Scalar], known: str | None) -> str:
        """Begin with a name, or go on with it."""
        identity = known or secrets.token_hex(8)
        run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT") or self._study,
            group=self._study,
            name=name,
            id=identity,
            config=dict(config),
            dir=os.environ.get("WANDB_DIR") or self._root,
            resume="allow",
            reinit="create_new",  # several runs are open side by side
            settings=self._wandb.Settings(console="off", disable_git=True, save_code=False, silent=True),
        )
        # Scores come after the last step; without this they would be refused as belonging to the past.
        run.define_metric("*", step_metric="step")
        self._runs[name] = run
        return identity

    def numbers(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step."""
        self._runs[name].log({**values, "step": step})

    def text(self, name: str, key: str, text: str) -> None:
        """A text."""
        self._runs[name].summary[key] = text

    def end(self, name: str) -> None:
        """Close what is open for a name."""
        self._runs.pop(name).finish()


class MLflow:
    """Runs of an experiment, in `mlflow/` of the study directory or where `MLFLOW_TRACKING_URI` says."""

    def __init__(self, study: str, root: Path) -> None:
        from mlflow import MlflowClient

        folder = (root / "mlflow").resolve()
        own = os.environ.get("MLFLOW_TRACKING_URI")
        if not own:
            folder.mkdir(parents=True, exist_ok=True)
        # MLflow keeps its file store for old projects only, so it is a database file.
        self._client = MlflowClient(tracking_uri=own or f"sqlite:///{folder / 'mlflow.db'}")
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or study
        found = self._client.get_experiment_by_name(name)
        if found is None:
            where = None if own else (folder / "artifacts").as_uri()
            self._experiment = self._client.create_experiment(name, artifact_location=where)
        else:
            self._experiment = found.experiment_id
        self._runs: dict[str, str] = {}

    def begin(self, name: str, config: Mapping[str, Scalar], known: str | None) -> str:
        """Begin with a name, or go on with it."""
        if known is None:
            known = self._client.create_run(self._experiment, run_name=name).info.run_id
            for key, value in config.items():
                self._client.log_param(known, key, value)
        else:
            self._client.update_run(known, status="RUNNING")
        self._runs[name] = known
        return known

    def numbers(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step."""
        for key, value in values.items():
            # Names of tasks may hold a plus, and MLflow's names may not.
            self._client.log_metric(self._runs[name], re.sub(r"[^\w./ -]", "_", key), value, step=step)

    def text(self, name: str, key: str, text: str) -> None:
        """A text."""
        self._client.log_text(self._runs[name], text, f"{key}.txt")

    def end(self, name: str) -> None:
        """Close what is open for a name."""
        self._client.set_terminated(self._runs.pop(name))


class Trackio:
    """Runs of a local Trackio project, or of a Space where `TRACKIO_SPACE_ID` names one."""

    def __init__(self, study: str, root: Path) -> None:
        import trackio

        self._trackio, self._study = trackio, study
        self._runs: dict[str, Any] = {}

    def begin(self, name: str, config: Mapping[str, Scalar], known: str | None) -> str:
        """Begin with a name, or go on with it."""
        # Trackio ends the run of its context when another begins, so each gets a context of its own.
        self._runs[name] = contextvars.Context().run(
            self._trackio.init,
            project=self._study,
            name=name,
            group=self._study,
            config=dict(config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return name

    def numbers(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step."""
        self._runs[name].log(dict(values), step=step)

    def text(self, name: str, key: str, text: str) -> None:
        """A text."""
        self._runs[name].log({key: self._trackio.Markdown(text)})

    def end(self, name: str) -> None:
        """Close what is open for a name."""
        self._runs.pop(name).finish()
