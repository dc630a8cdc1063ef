"""How commands end: signals while they end, closed terminals, who speaks for many processes."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from mira.cli import main
from mira.errors import Interrupted, StoppedAtOnce
from mira.rank import rank_from_environment, started_by
from mira.signals import stop_requests
from mira.training.checkpoint import newest_checkpoint
from mira.training.ended import read_ended


@pytest.mark.parametrize(
    ("environment", "starter", "rank"),
    [
        ({}, None, 0),
        ({"RANK": "3", "WORLD_SIZE": "4"}, "torchrun", 3),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"}, "srun", 2),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None, 0),
        ({"SLURM_PROCID": "2"}, None, 0),  # an interactive allocation
        ({"RANK": "3"}, None, 0),
    ],
)
def test_the_rank_is_read_in_one_place(environment: dict[str, str], starter: str | None, rank: int) -> None:
    assert started_by(environment) == starter
    assert rank_from_environment(environment) == rank


def test_under_slurm_rank_0_alone_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("mira.pretrain", lambda *_, out, **__: Path(out))
    for rank in ("0", "1", "5"):
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "6")
        monkeypatch.setenv("SLURM_PROCID", rank)
        assert main(["pretrain", "builtin:fashion", "--out", str(tmp_path), "--quiet"]) == 0
        assert ("the run is in" in capsys.readouterr().out) == (rank == "0")


@pytest.mark.parametrize("second", [KeyboardInterrupt, lambda: StoppedAtOnce(signal.SIGTERM)])
def test_a_signal_on_the_way_out_does_not_change_the_exit_code(
    second, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def pretrain(*_: object, **__: object) -> None:
        try:
            raise Interrupted("stopped at step 3 of 9; the checkpoint is written")
        finally:
            raise second()

    monkeypatch.setattr("mira.pretrain", pretrain)
    assert main(["pretrain", "builtin:fashion", "--out", "a b"]) == 75
    assert "continue with: mira pretrain --resume 'a b'" in capsys.readouterr().err


def test_a_closed_terminal_sends_what_it_sends_as_often_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mira.signals.ECHO", 0.0)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with stop_requests() as stop:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGHUP)
            assert stop.is_set()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
        with stop_requests() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)


def hear_all() -> None:
    """In a process about to become a command: what started these tests may have told them to ignore some (nohup)."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.slow
def test_a_run_whose_terminal_is_closed_saves(picture_folder: Path, tiny_recipe: dict, tmp_path: Path) -> None:
    tiny_recipe["training"]["epochs"] = 500
    tiny_recipe["monitor"]["checkpoint_every"] = 1000
    recipe, run = tmp_path / "tiny.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(tiny_recipe))
    process, terminal = pty.fork()
    if process == 0:
        hear_all()
        arguments = ["pretrain", str(picture_folder), "--recipe", str(recipe), "--out", str(run)]
        os.execv(sys.executable, [sys.executable, "-m", "mira", *arguments])
    while not (run / "metrics.jsonl").exists():
        os.read(terminal, 1 << 16)  # what is not read would fill the terminal
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 75
    checkpoint, ended = newest_checkpoint(run / "checkpoints"), read_ended(run / "ended.json")
    assert checkpoint is not None
    assert ended is not None
    assert (ended.how, ended.step) == ("interrupted", checkpoint.step)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_an_evaluation_that_is_ended_leaves_nothing_in_the_temporary_folder(
    number: signal.Signals, finished_run: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "mira", "evaluate", "linear", str(finished_run), "--no-cache"]
    command += ["--results", str(tmp_path / "r.jsonl"), "--epochs", "100000", "--batch-size", "8"]
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(
        command, env={**os.environ, "TMPDIR": str(tmp_path / "tmp")}, stderr=subprocess.PIPE, preexec_fn=hear_all
    )
    while not list((tmp_path / "tmp").glob("mira-features-*")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert b"Traceback" not in said
    assert not list((tmp_path / "tmp").glob("mira-features-*"))


AT_A_FORK = """
import os, signal, sys, time
from mira.errors import StoppedAtOnce
from mira.signals import end_on_signals

def interrupt(frame, event, argument):
    if frame.f_code.co_name == "_releaseLock":
        sys.settrace(None)
        signal.raise_signal(signal.SIGTERM)

end_on_signals()
sys.settrace(interrupt)
try:
    if os.fork() == 0:
        os._exit(0)
    time.sleep(10)
except StoppedAtOnce as stopped:
    print(stopped)
"""


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="logging has no such function any more")
def test_a_signal_in_the_moment_of_a_fork_is_not_lost() -> None:
    """Python swallows exceptions in the hooks that logging has around a fork."""
    done = subprocess.run([sys.executable, "-c", AT_A_FORK], capture_output=True, text=True, timeout=60)
    assert done.stdout == "stopped at once by SIGTERM\n", done.stderr
