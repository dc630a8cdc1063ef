"""A run watched in a terminal."""

import io
import json
import socket
import time

import pytest
from rich.console import Console

from mira.errors import Interrupted, TrainingStopped
from mira.report.watch import sparkline, watch
from mira.training import load_recipe
from mira.training.ended import write_ended
from mira.training.reading import recipe_to_yaml


def lines(count: int, *, pause: float, until: float) -> list[dict]:
    return [
        {
            "step": 10 * (place + 1),
            "epoch": (place + 1) / 2,
            "loss": 4.0 - 0.1 * place,
            "label_mi": 1.0 + 0.1 * place,
            "label_mi_max": 4.16,
            "marginal_entropy": 4.0,
            "pictures_per_second": 250.0,
            "data_wait": 0.02,
            "time": until - pause * (count - place),
        }
        for place in range(count)
    ]


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(recipe_to_yaml(load_recipe("demo")))

    def write(metrics: list[dict]) -> str:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
        text = io.StringIO()
        watch(folder, once=True, console=Console(file=text, width=100))
        return text.getvalue()

    return write


def test_a_run_under_way(run):
    text = run(lines(16, pause=30.0, until=time.time()))
    assert "epoch 8.0 of 16, step 160; 250 pictures/s, 2% of the time waiting for data" in text
    assert "about 8 min 0 s left" in text
    assert "4 → 2.5 nats" in text
    assert "1 → 2.5 of 4.159 nats" in text  # the most there can be: log 64, of prototypes and of batches alike
    assert "collapsed" not in text
    assert "stopped?" not in text


def test_a_run_whose_labels_collapsed(run):
    collapsed = [{**line, "label_mi": 0.001} for line in lines(4, pause=1.0, until=time.time())]
    assert "The labels have collapsed" in run(collapsed)


def test_a_run_that_stopped_and_one_that_ended(run):
    assert "nothing written for 1 h 0 min: stopped?" in run(lines(16, pause=30.0, until=time.time() - 3570))
    assert "finished" in run(lines(32, pause=30.0, until=time.time() - 3600))


def test_a_run_that_has_written_nothing_yet_and_a_half_written_line(run, tmp_path):
    assert "no step has been logged yet" in run([])
    run(lines(3, pause=1.0, until=time.time()))
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')
    watch(tmp_path / "run", once=True, console=Console(file=io.StringIO()))


def test_no_run_there(tmp_path):
    with pytest.raises(ValueError, match="there is no run in"):
        watch(tmp_path)


def test_sparklines_rise_fall_and_stay():
    assert sparkline([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]) == "▁▂▃▄▅▆▇█"
    assert sparkline([2.0, 1.0]) == "█▁"
    assert sparkline([3.0, 3.0, 3.0]) == "▁▁▁"
    assert sparkline([1.0, float("nan"), 2.0]) == "▁█"
    assert len(sparkline([float(value) for value in range(1000)], width=40)) == 40
    assert sparkline([]) == ""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (None, "finished"),
        (Interrupted("stopped at step 16"), "interrupted at step 160, "),
        (TrainingStopped("labels have collapsed"), "stopped by itself at step 160, 0 s ago: labels have collapsed"),
        (
            OSError("the disk is full"),
            "ended by an error at step 160, 0 s ago: the disk is full; it goes on with: mira",
        ),
    ],
)
def test_how_a_run_ended_is_said(run, tmp_path, error, said):
    run(lines(16, pause=30.0, until=time.time()))
    write_ended(tmp_path / "run/ended.json", step=160, error=error)
    shown = " ".join(run(lines(16, pause=30.0, until=time.time() - 3570)).split())
    assert said in shown
    assert "left" not in shown
    assert "stopped?" not in shown


def test_a_run_whose_process_was_killed_is_told_from_one_that_is_slow(run, tmp_path):
    run(lines(16, pause=30.0, until=time.time()))
    (tmp_path / "run/.lock").write_text(f"{2**22 + 1} {socket.gethostname()}\n")
    assert "was killed. It goes on with: mira pretrain --resume" in run(lines(16, pause=30.0, until=time.time()))
    (tmp_path / "run/.lock").write_text(f"{2**22 + 1} elsewhere\n")
    assert "was killed" not in run(lines(16, pause=30.0, until=time.time()))
