"""What happens while training waits for data: stops are heard, dead and hanging loaders end the run with its state."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.data import Dataset

import mira
from mira.cli import main
from mira.data import workers
from mira.data.workers import BatchLoader
from mira.errors import WorkerDied
from mira.signals import STOP_SIGNALS, stop_requests
from mira.training import start
from mira.training.checkpoint import newest_checkpoint
from mira.training.ended import read_ended


@pytest.fixture(autouse=True)
def usual_handlers() -> Iterator[None]:
    before = {number: signal.signal(number, signal.default_int_handler) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Slow(Dataset[int]):
    """Numbers; some of them end or stop the process that is to give them."""

    def __init__(self, fate: dict[int, str]) -> None:
        self.fate = fate

    def __getitem__(self, request: int) -> int:
        match self.fate.get(request):
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "crashes":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
        return request


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_LOOK", 0.1)


@pytest.mark.parametrize("fate", ["killed", "crashes"])
def test_a_dead_worker_is_noticed_where_its_batch_is_waited_for_and_nowhere_else(fate: str) -> None:
    steps = whole_steps = 0

    def train() -> None:
        nonlocal steps, whole_steps
        for _ in BatchLoader(Slow({3: fate}), range(8), workers=2):
            steps += 1
            deadline = time.monotonic() + 0.3
            while time.monotonic() < deadline:  # PyTorch's handler would raise its error here
                sum(range(1000))
            whole_steps += 1

    with pytest.raises(WorkerDied, match="a loader process died"):
        train()
    assert 1 <= steps == whole_steps <= 3


def test_a_hanging_worker_has_a_time_limit_and_is_ended() -> None:
    loader = BatchLoader(Slow({2: "stopped"}), range(8), workers=1, patience=0.5)
    began, children = time.monotonic(), []

    def train() -> None:
        for _ in loader:
            children.extend(torch.multiprocessing.active_children())

    with pytest.raises(WorkerDied, match=r"no batch came for 0\.5 seconds.*raise data\.worker_timeout"):
        train()
    assert time.monotonic() - began < 20
    assert all(not child.is_alive() for child in children)


@pytest.mark.parametrize("handler", [signal.SIG_DFL, lambda *_: None])
def test_the_handler_of_the_program_is_put_back(handler: object) -> None:
    before = signal.signal(signal.SIGCHLD, handler)
    try:
        assert list(BatchLoader(Slow({}), range(2), workers=1)) == [0, 1]
        after = signal.getsignal(signal.SIGCHLD)
        assert after == handler or after.__module__ == "torch.utils.data._utils.signal_handling"
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_stop_breaks_off_waiting_and_nothing_else() -> None:
    with stop_requests() as stop:
        assert stop.unless_asked(lambda: 7) == 7
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        began = time.monotonic()
        assert stop.unless_asked(lambda: time.sleep(60)) is None
        assert time.monotonic() - began < 30
        assert stop.unless_asked(lambda: pytest.fail("waited again")) is None
        signal.raise_signal(signal.SIGUSR1)  # between two waits it is only noted
    with stop_requests() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop.is_set()


class Fateful:
    """A source that does what may happen in bad times, when one of its pictures is read for the second time."""

    def __init__(self, source, index: int, fate: str) -> None:
        self._source, self._index, self._fate, self._main, self._seen = source, index, fate, os.getpid(), 0

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._source, name)

    def __len__(self) -> int:
        return len(self._source)

    def read(self, index: int):
        self._seen += index == self._index
        if index == self._index and self._seen == 2:
            if self._fate == "stalls":
                threading.Timer(0.3, os.kill, (self._main, signal.SIGTERM)).start()
                time.sleep(3600)
            os.kill(os.getpid(), signal.SIGKILL if self._fate == "killed" else signal.SIGSTOP)
        return self._source.read(index)


@pytest.mark.parametrize(
    ("fate", "count", "code", "how"),
    [
        ("stalls", 0, 75, "interrupted"),
        ("stalls", 1, 75, "interrupted"),
        ("killed", 1, 71, "failed"),
        ("stopped", 1, 71, "failed"),
    ],
)
def test_the_run_ends_with_its_state_and_goes_on_with_the_same_bits(
    fate: str,
    count: int,
    code: int,
    how: str,
    picture_folder: Path,
    tiny_recipe: dict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny_recipe["monitor"]["checkpoint_every"] = 1000
    tiny_recipe["training"]["workers"] = count
    tiny_recipe["data"] = {"worker_timeout": 1.0 if fate == "stopped" else 1000.0}
    recipe, run, whole = tmp_path / "tiny.yaml", tmp_path / "run", tmp_path / "whole"
    recipe.write_text(yaml.safe_dump(tiny_recipe))
    mira.pretrain(picture_folder, out=whole, recipe=recipe, quiet=True)
    with monkeypatch.context() as patch:
        usual = start._cached
        patch.setattr(start, "_cached", lambda source, settings: Fateful(usual(source, settings), 30, fate))
        assert main(["pretrain", str(picture_folder), "--recipe", str(recipe), "--out", str(run), "--quiet"]) == code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    checkpoint = newest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.step >= 4
    ended = read_ended(run / "ended.json")
    assert ended is not None
    assert (ended.how, ended.step) == (how, checkpoint.step)
    assert main(["pretrain", "--resume", str(run), "--quiet"]) == 0
    one, other = newest_checkpoint(run / "checkpoints"), newest_checkpoint(whole / "checkpoints")
    assert one is not None
    assert other is not None
    assert all(torch.equal(value, other.model[name]) for name, value in one.model.items())
    ended = read_ended(run / "ended.json")
    assert ended is not None
    assert ended.how == "finished"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems leave workers for some seconds")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGQUIT])
def test_no_loader_outlives_its_process(number: signal.Signals, tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, time\n"
        "from mira.data.workers import BatchLoader\n"
        "from mira.signals import end_on_signals\n"
        "class Data:\n"
        "    def __getitem__(self, request):\n"
        "        if request: time.sleep(3600)\n"
        "        return os.getpid()\n"
        "end_on_signals()\n"
        "for worker in BatchLoader(Data(), range(3), workers=1):\n"
        "    print(worker, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 1)
    deadline = time.monotonic() + 10
    while _alive(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _alive(worker)


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_to_a_process_that_was_just_forked_is_not_its_affair(number: signal.Signals) -> None:
    with stop_requests() as stop:
        child = os.fork()
        if child == 0:
            try:
                stop.unless_asked(lambda: signal.raise_signal(number))
            except BaseException:
                os._exit(1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert not stop.is_set()
