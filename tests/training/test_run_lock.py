"""Two processes never train into one folder, and a lock never outlives its process."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import mira
from mira.cli import main
from mira.run_lock import LOCK, holder, is_dead, only_one

HOLD = """
import sys, time
from pathlib import Path
from mira.run_lock import only_one
with only_one(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holding(tmp_path: Path):
    """Start a process that holds the folder `run`."""
    started = []

    def start() -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path / "run")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_the_holder_is_named_and_everything_that_trains_is_refused(
    holding, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    process = holding()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    recipe = str(finished_run / "recipe.yaml")
    for words in (
        ["--resume", str(run)],
        ["--recipe", recipe, "--out", str(run)],
        ["--recipe", recipe, "--out", str(run), "--overwrite"],
        ["--recipe", recipe, "--out", str(run), "--or-resume"],
    ):
        assert main(["pretrain", *words, "--quiet"]) == 2
        said = capsys.readouterr().err
        assert f"process {process.pid} on {socket.gethostname()}" in said
        assert said.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before
    # Others may look meanwhile.
    assert main(["evaluate", "health", str(run), "--quiet", "--no-cache"]) == 0
    assert mira.write_report(run).is_file()


def test_it_ends_with_its_process_whatever_ends_that(holding, tmp_path: Path) -> None:
    process = holding()
    with pytest.raises(ValueError, match="only one process at a time trains"), only_one(tmp_path / "run", patience=0.0):
        pass
    process.kill()  # -9
    process.wait()
    assert holder(tmp_path / "run") == (process.pid, socket.gethostname())
    assert is_dead(process.pid, socket.gethostname())
    assert not is_dead(process.pid, "elsewhere")
    with only_one(tmp_path / "run"):
        assert holder(tmp_path / "run") == (os.getpid(), socket.gethostname())
        assert not is_dead(*holder(tmp_path / "run"))
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_fork_that_outlives_its_process_does_not_hold_it(tmp_path: Path) -> None:
    """As a loader process does for a moment."""
    program = (
        "import os, sys, time\nfrom pathlib import Path\nfrom mira.run_lock import only_one\n"
        "with only_one(Path(sys.argv[1])):\n"
        "    if not os.fork():\n        sys.stdin.read(); os._exit(0)\n"
        "    print('held', flush=True)\n    os.kill(os.getpid(), 9)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    assert process.wait() == -signal.SIGKILL
    with only_one(tmp_path / "run", patience=0.0):
        pass
    process.communicate()


def test_threads_of_one_process_are_kept_apart_too(tmp_path: Path) -> None:
    said: list[str] = []

    def try_it() -> None:
        try:
            with only_one(tmp_path / "run"):
                said.append("held twice")
        except ValueError as error:
            said.append(str(error))

    with only_one(tmp_path / "run"):
        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join()
    assert "this process already does" in said[0]


def test_it_waits_for_one_that_is_just_ending(holding, tmp_path: Path) -> None:
    process = holding()
    assert process.stdin is not None
    threading.Timer(0.2, process.stdin.close).start()
    with only_one(tmp_path / "run", patience=30.0):
        pass


def test_a_refused_run_leaves_no_folder(tmp_path: Path) -> None:
    assert main(["pretrain", str(tmp_path / "nothing"), "--out", str(tmp_path / "a/b"), "--quiet"]) == 2
    assert not (tmp_path / "a").exists()


def test_a_file_system_without_locks_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("mira.run_lock.fcntl.lockf", refuse)
    with pytest.warns(UserWarning, match="knows no locks"), only_one(tmp_path / "run"):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="to root nothing is read-only")
def test_a_folder_that_cannot_be_written_is_a_sentence(finished_run: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="the run's folder .* cannot be written to"):
        mira.resume(tmp_path)


def test_a_folder_below_a_file_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["pretrain", "builtin:fashion", "--out", str(tmp_path / "file/run"), "--quiet"]) == 2
    assert "cannot be written to (Not a directory)" in capsys.readouterr().err
    assert main(["pretrain", "builtin:fashion", "--out", str(tmp_path / "file"), "--quiet"]) == 2
    assert "is a file: name a folder" in capsys.readouterr().err


def test_printed_commands_can_be_pasted(
    picture_folder: Path, tiny_recipe: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    recipe, run = tmp_path / "tiny.yaml", tmp_path / "with blanks & more"
    tiny_recipe["training"]["epochs"] = 1
    recipe.write_text(yaml.safe_dump(tiny_recipe))
    command = ["pretrain", str(picture_folder), "--recipe", str(recipe), "--out", str(run), "--quiet"]
    assert main(command) == 0
    printed = capsys.readouterr().out.partition("look at it with: ")[2]
    assert shlex.split(printed) == ["mira", "report", str(run)]
    assert main(command) == 2
    printed = capsys.readouterr().err.partition("Continue it with `")[2].partition("`")[0]
    assert shlex.split(printed) == ["mira", "pretrain", "--resume", str(run)]


def test_time_is_not_wasted_on_a_lock_file_of_the_dead(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("1 elsewhere\n")
    began = time.monotonic()
    with only_one(tmp_path):
        pass
    assert time.monotonic() - began < 0.5
