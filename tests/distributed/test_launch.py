"""`mira pretrain --processes`: signals, deaths and random kills of any process, from outside."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from processes import on_ranks

import mira
from mira.distributed import Ranks
from mira.signals import ECHO
from mira.training.checkpoint import checkpoint_paths, newest_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the processes in Linux' /proc"),
]

INTERVAL = 4
"""Steps between checkpoints."""
KILLS = int(os.environ.get("MIRA_KILLS", "2"))
"""Random kills; `MIRA_KILLS=50` is the long form of the test."""


def children(pid: int) -> list[int]:
    """Processes that a process has started, as far as they still run."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (OSError, ProcessLookupError):
        return []


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def steps(run: Path) -> int:
    """The last step of which there is a line of metrics."""
    try:
        lines = (run / "metrics.jsonl").read_text().rpartition("\n")[0].splitlines()
    except OSError:
        return 0
    return json.loads(lines[-1])["step"] if lines else 0


class Launched:
    """A run in two processes, and all processes that belong to it."""

    def __init__(self, *arguments: str, quiet: bool = True) -> None:
        command = [sys.executable, "-m", "mira.cli", "pretrain", "--processes", "2", *arguments]
        command += ["--quiet"] if quiet else []
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        self._seen: set[int] = set()

    @property
    def ranks(self) -> list[int]:
        return children(self.process.pid)

    def everyone(self) -> list[int]:
        found = [self.process.pid, *self.ranks, *(worker for rank in self.ranks for worker in children(rank))]
        self._seen.update(found)
        return found

    def end(self, seconds: float = 90.0) -> tuple[int, str]:
        """Exit code and what was said, once every process that was seen has ended."""
        _, said = self.process.communicate(timeout=seconds)
        wait_until(lambda: not any(map(running, self._seen)), seconds)
        return self.process.returncode, said


@pytest.fixture
def launched() -> Iterator[Callable[..., Launched]]:
    started: list[Launched] = []

    def launch(*arguments: str, quiet: bool = True) -> Launched:
        started.append(Launched(*arguments, quiet=quiet))
        return started[-1]

    yield launch
    for run in started:
        for pid in run.everyone():
            if running(pid):
                os.kill(pid, signal.SIGKILL)
        run.process.wait()


@pytest.fixture
def long_recipe(tmp_path: Path, tiny_recipe: dict) -> Path:
    tiny_recipe["training"] |= {"epochs": 1000}
    tiny_recipe["monitor"]["checkpoint_every"] = 1000
    path = tmp_path / "long.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe))
    return path


@pytest.mark.parametrize(
    ("to", "number"),
    [("the launcher", signal.SIGTERM), ("the launcher", signal.SIGUSR1), ("one rank", signal.SIGTERM)],
)
def test_a_signal_to_anyone_stops_all_with_a_checkpoint(
    to: str, number: int, launched: Callable[..., Launched], picture_folder: Path, long_recipe: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = launched(str(picture_folder), "--recipe", str(long_recipe), "--out", str(run), quiet=False)
    wait_until(lambda: steps(run) >= 2)
    ranks = job.everyone()[1:3]
    os.kill(job.process.pid if to == "the launcher" else ranks[1], number)
    code, said = job.end()
    assert code == 75
    assert said.count("training in 2 processes over gloo, on cpu, 1 thread each") == 1
    assert said.count("continue with: mira pretrain --resume") == 1
    assert "failed" not in said
    checkpoint = newest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.step == steps(run) >= 2


def test_a_second_sigterm_ends_all_at_once_and_leaves_the_checkpoints(
    launched: Callable[..., Launched], picture_folder: Path, long_recipe: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    every = "monitor.checkpoint_every=0.25"
    job = launched(str(picture_folder), "--recipe", str(long_recipe), "--out", str(run), every, "training.workers=1")
    wait_until(lambda: len(checkpoint_paths(run / "checkpoints")) > 1)
    os.kill(job.everyone()[1], signal.SIGSTOP)  # no step will end any more
    job.process.send_signal(signal.SIGTERM)
    time.sleep(ECHO / 2)
    job.process.send_signal(signal.SIGTERM)  # the echo of the first
    time.sleep(ECHO)
    assert job.process.poll() is None
    job.process.send_signal(signal.SIGTERM)
    code, said = job.end()
    assert code == 128 + signal.SIGTERM
    assert said == "mira: stopped at once by SIGTERM; what was saved before is intact\n"
    with warnings.catch_warnings(action="error"):
        assert newest_checkpoint(run / "checkpoints") is not None


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_the_others_and_is_named(
    rank: int, launched: Callable[..., Launched], picture_folder: Path, long_recipe: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = launched(str(picture_folder), "--recipe", str(long_recipe), "--out", str(run), "training.workers=1")
    wait_until(lambda: steps(run) >= 1)
    job.everyone()
    began = time.monotonic()
    os.kill(job.ranks[rank], signal.SIGKILL)
    code, said = job.end()
    assert time.monotonic() - began < 30
    assert code == 128 + signal.SIGKILL
    assert f"rank {rank} of 2 was ended by SIGKILL" in said
    assert f"rank {1 - rank} of 2" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize(("rank", "fate"), [(0, "killed"), (1, "killed"), (1, "stopped")])
def test_a_loader_that_dies_or_hangs_ends_all_with_a_checkpoint(
    rank: int, fate: str, launched: Callable[..., Launched], picture_folder: Path, long_recipe: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = launched(str(picture_folder), "--recipe", str(long_recipe), "--out", str(run), "training.workers=1")
    wait_until(lambda: steps(run) >= 2)
    job.everyone()
    (loader,) = children(job.ranks[rank])
    os.kill(loader, signal.SIGKILL if fate == "killed" else signal.SIGSTOP)
    if fate == "stopped":
        time.sleep(0.5)
        job.process.send_signal(signal.SIGTERM)
    code, said = job.end()
    assert code == (71 if fate == "killed" else 75)
    assert "Traceback" not in said
    assert fate == "stopped" or "a loader process died" in said
    checkpoint = newest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.step == steps(run) >= 2


def test_an_error_is_said_once_and_ends_all(
    launched: Callable[..., Launched], picture_folder: Path, long_recipe: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "run")
    job = launched(str(picture_folder), "--recipe", str(long_recipe), "--out", out, "training.batch_size=100")
    code, said = job.end()
    assert code == 2
    assert said.count("a batch has 100 pictures but there are only 64") == 1
    assert "Traceback" not in said


def test_when_the_launcher_is_killed_its_ranks_end_too(
    launched: Callable[..., Launched], picture_folder: Path, long_recipe: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = launched(str(picture_folder), "--recipe", str(long_recipe), "--out", str(run), "training.workers=1")
    wait_until(lambda: steps(run) >= 1)
    assert len(job.everyone()) == 5
    job.process.kill()
    assert job.end()[0] == -signal.SIGKILL


def start(ranks: Ranks, data: Path, out: Path, recipe: Path) -> None:
    mira.pretrain(data, out=out, recipe=recipe, quiet=True)


def test_kill_9_of_any_process_at_any_moment_loses_at_most_the_interval(
    launched: Callable[..., Launched], picture_folder: Path, tiny_recipe: dict, tmp_path: Path
) -> None:
    tiny_recipe["training"] |= {"epochs": 3 * KILLS + 3, "workers": 1}
    tiny_recipe["monitor"]["checkpoint_every"] = INTERVAL / 4
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe))
    new = (str(picture_folder), "--recipe", str(recipe), "--or-resume", "--out")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    on_ranks(2, start, picture_folder, whole, recipe)

    choose = random.Random(int(os.environ.get("MIRA_KILL_SEED", "0")))
    worst = 0
    for kill in range(KILLS):
        job = launched(*new, str(broken))
        if choose.random() < 0.8:  # else somewhere in the start
            before = steps(broken)
            wait_until(lambda job=job, before=before: steps(broken) > before or job.process.poll() is not None)
        time.sleep(choose.random() * 1.5)
        victims = [pid for pid in job.everyone() if running(pid)]
        if job.process.poll() is None and victims:
            os.kill(choose.choice(victims), signal.SIGKILL)
        code, said = job.end()
        newest = checkpoint_paths(broken / "checkpoints")
        saved = int(newest[-1].stem.removeprefix("step-")) if newest else 0
        worst = max(worst, steps(broken) - saved)
        assert steps(broken) - saved <= INTERVAL, f"kill {kill}: {said}"
        if code == 0:
            break
    code, said = launched(*new, str(broken)).end(600)
    assert code == 0, said
    print(f"{KILLS} kills, at most {worst} steps lost of an interval of {INTERVAL}")
    ours, theirs = (newest_checkpoint(run / "checkpoints") for run in (broken, whole))
    assert ours is not None
    assert theirs is not None
    assert ours.step == theirs.step
    for name, value in theirs.model.items():
        assert torch.equal(ours.model[name], value), name
