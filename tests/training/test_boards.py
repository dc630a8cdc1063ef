"""Boards of metrics, written for real: a TensorBoard file, an offline Weights & Biases run, a local MLflow store."""

import json

import pytest

from mira.training.boards import IDENTITIES, check_boards, open_boards
from mira.training.metrics import MetricsLog, read_metrics

SETTINGS = {"name": "tiny", "training": {"epochs": 2, "seed": 0}}
LINES = [{"step": 1, "loss": 2.5, "time": "now"}, {"step": 2, "loss": 2.25}]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = tmp_path / "my run"
    folder.mkdir()
    return folder


def log(folder, names, *, step, lines):
    written = MetricsLog(
        folder / "metrics.jsonl", step=step, boards=open_boards(names, folder, settings=SETTINGS, step=step)
    )
    for line in lines:
        written.write(line)
    written.close()


def test_tensorboard_has_the_numbers(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log(folder, "auto", step=0, lines=LINES)
    events = accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2.5), (2, 2.25)]
    assert events.Tags()["scalars"] == ["loss"]


@pytest.mark.slow
def test_mlflow_has_the_numbers_and_goes_on_in_the_same_run(folder):
    mlflow = pytest.importorskip("mlflow")
    log(folder, ["mlflow"], step=0, lines=LINES)
    log(folder, ["mlflow"], step=2, lines=[{"step": 3, "loss": 2.0}])
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("mira").experiment_id])
    assert run.info.run_name == "my run"
    assert run.data.params["training.epochs"] == "2"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 2.5), (2, 2.25), (3, 2.0)]


@pytest.mark.slow
def test_weights_and_biases_keeps_its_run_offline(folder):
    pytest.importorskip("wandb")
    log(folder, ["wandb"], step=0, lines=LINES)
    identity = json.loads((folder / IDENTITIES).read_text())["wandb"]
    log(folder, ["wandb"], step=2, lines=[{"step": 3, "loss": 2.0}])
    assert json.loads((folder / IDENTITIES).read_text())["wandb"] == identity
    assert len(list(folder.glob(f"wandb/offline-run-*{identity}/*.wandb"))) == 2


def test_a_board_that_fails_does_not_stop_the_run(folder):
    class Broken:
        def write(self, values, step):
            raise ConnectionError("the server is away")

        def close(self):
            raise AssertionError("it was dropped before")

    written = MetricsLog(folder / "metrics.jsonl", step=0, boards=[Broken()])
    with pytest.warns(UserWarning, match="left out from now on: the server is away"):
        written.write(LINES[0])
    written.write(LINES[1])
    written.close()
    assert [line["step"] for line in read_metrics(folder / "metrics.jsonl")] == [1, 2]


def test_a_board_that_cannot_be_opened_is_left_out(folder, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    with pytest.warns(UserWarning, match="mlflow cannot be written to and is left out"):
        assert open_boards(["mlflow"], folder, settings=SETTINGS, step=0) == []


def test_a_board_that_is_not_installed_is_refused_before_training(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_boards("auto")
    with pytest.raises(ValueError, match=r"pip install wandb"):
        check_boards(["wandb"])
