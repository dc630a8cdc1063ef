"""What a process does when it is asked to stop, once and again."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from mira import signals
from mira.cli import main
from mira.errors import StoppedAtOnce
from mira.signals import STOP_SIGNALS, stop_requests
from mira.training import loop
from mira.training.checkpoint import newest_checkpoint


@pytest.fixture(autouse=True)
def usual_handlers() -> Iterator[None]:
    """Whatever started the tests may have left some ignored."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_signal_asks_and_its_echo_asks_for_no_more(number: signal.Signals) -> None:
    with stop_requests() as stop:
        assert not stop.is_set()
        for _ in range(3):
            signal.raise_signal(number)
        assert stop.is_set()
    assert signal.getsignal(number) is signal.default_int_handler


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        (signal.SIGINT, signal.SIGINT, 130),
        (signal.SIGTERM, signal.SIGTERM, 143),
        (signal.SIGINT, signal.SIGTERM, 143),
    ],
)
def test_a_second_one_later_ends_at_once(
    first: signal.Signals, second: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "ECHO", 0.0)
    with stop_requests() as stop:
        signal.raise_signal(first)
        assert stop.is_set()
        with pytest.raises(StoppedAtOnce, match=f"by {second.name}") as stopped:
            signal.raise_signal(second)
    assert stopped.value.exit_code == code
    assert signal.getsignal(second) is signal.default_int_handler


def test_what_a_scheduler_sends_in_advance_is_not_the_first_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "ECHO", 0.0)
    with stop_requests() as stop:
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """As SIGINT is in the background jobs of a script, and SIGHUP's relatives under nohup."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_requests() as stop:
        signal.raise_signal(signal.SIGINT)
        assert not stop.is_set()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_run_stopped_at_once_keeps_its_checkpoints_and_can_go_on(
    picture_folder: Path, tiny_recipe: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From outside: two SIGTERM in one long step."""
    monkeypatch.setattr(signals, "ECHO", 0.0)
    tiny_recipe["monitor"]["checkpoint_every"] = 0.25
    recipe, run = tmp_path / "tiny.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(tiny_recipe))
    usual = loop.values_at

    def twice_in_the_sixth_step(step: int, *others: object) -> object:
        if step == 5:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
        return usual(step, *others)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "values_at", twice_in_the_sixth_step)
        command = ["pretrain", str(picture_folder), "--recipe", str(recipe), "--out", str(run), "--quiet"]
        assert main(command) == 143
    newest = newest_checkpoint(run / "checkpoints")
    assert newest is not None
    assert newest.step == 5
    assert main(["pretrain", "--resume", str(run), "--quiet"]) == 0
