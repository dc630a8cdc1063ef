"""Metrics on boards that people follow runs on: TensorBoard, Weights & Biases, MLflow. All optional."""

import importlib.util
import json
import os
import socket
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from mira.files import write_text

BoardName = Literal["tensorboard", "wandb", "mlflow"]

IDENTITIES = "boards.json"
"""In the run's folder: under which identity each board knows the run, so that a resumed one goes on there."""


@runtime_checkable
class Board(Protocol):
    """Somewhere to send numbers to."""

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Send the numbers of a step; steps only grow."""
        ...

    def close(self) -> None:
        """Send what is left."""
        ...


def check_boards(names: Literal["auto"] | Sequence[BoardName]) -> None:
    """Say now, not when training begins, that a board that was asked for is not there. Raises: ValueError."""
    for name in () if names == "auto" else names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(
                f"monitor.boards names {name}, which is not installed: pip install {name}, or leave it out"
            )


def open_boards(
    names: Literal["auto"] | Sequence[BoardName], folder: Path, *, settings: Mapping[str, Any], step: int
) -> list[Board]:
    """Open the boards of a run.

    Args:
        names: "auto" is TensorBoard where it is installed.
        folder: of the run; its name is the run's name on the boards.
        settings: the resolved recipe, shown beside the curves.
        step: steps the run has taken so far; a resumed run goes on where it was.
    """
    chosen: Sequence[BoardName]
    if names == "auto":
        chosen = ("tensorboard",) if importlib.util.find_spec("tensorboard") is not None else ()
    else:
        chosen = names
    openers: dict[BoardName, Callable[[Path, Mapping[str, Any], int], Board]] = {
        "tensorboard": _TensorBoard,
        "wandb": _WeightsAndBiases,
        "mlflow": _MLflow,
    }
    boards: list[Board] = []
    for name in chosen:
        try:
            boards.append(openers[name](folder, settings, step))
        except Exception as error:  # whatever a board's server or library says: what only watches must not stop a run
            warnings.warn(f"{name} cannot be written to and is left out: {error}", stacklevel=2)
    return boards


class _TensorBoard:
    """Writes TensorBoard's files without its own writer, whose thread cannot tell anyone that a disk is full."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        (folder / "tensorboard").mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / "tensorboard" / name).open("xb", buffering=0)
        self._records = RecordWriter(self._file)
        self._add(file_version="brain.Event:2")
        # TensorBoard forgets what an earlier process wrote of this and later steps.
        self._add(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, values: Mapping[str, float], step: int) -> None:
        scalars = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(step=step, summary=self._summary(value=scalars))

    def close(self) -> None:
        self._file.close()

    def _add(self, **content: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())


class _WeightsAndBiases:
    def __init__(self, folder: Path, settings: Mapping[str, Any], step: int) -> None:
        import wandb

        identity = _identity(folder, "wandb") or uuid.uuid4().hex[:12]
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "mira"),
            name=folder.name,
            id=identity,
            resume="allow",
            dir=str(folder),
            config=dict(settings),
        )
        # Steps are MIRA's own: a run that was killed and resumed repeats some.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        _remember(folder, "wandb", identity)

    def write(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """Where to: $MLFLOW_TRACKING_URI, as everywhere in MLflow; the experiment is $MLFLOW_EXPERIMENT_NAME or "mira"."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], step: int) -> None:
        import mlflow

        self._client: Any = mlflow.MlflowClient()
        identity = _identity(folder, "mlflow")
        if identity is None:
            experiment = mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "mira"))
            identity = self._client.create_run(experiment.experiment_id, run_name=folder.name).info.run_id
            for name, value in _flat(settings):
                self._client.log_param(identity, name, str(value)[:500])
            _remember(folder, "mlflow", identity)
        self._identity = identity

    def write(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._identity, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._identity)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in settings.items():
        pairs += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(prefix + name, value)]
    return pairs


def _identity(folder: Path, board: str) -> str | None:
    path = folder / IDENTITIES
    identity = json.loads(path.read_text("utf-8")).get(board) if path.is_file() else None
    return identity if isinstance(identity, str) else None


def _remember(folder: Path, board: str, identity: str) -> None:
    path = folder / IDENTITIES
    known = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    write_text(path, json.dumps({**known, board: identity}) + "\n")
