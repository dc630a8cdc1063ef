"""What campaigns against runs use: commands with limits, and what counts as a failure."""

import os
import random
import resource
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from campaign import announced_seed


def generator(campaign: str) -> random.Random:
    """Random numbers of a campaign."""
    return random.Random(f"{campaign} {announced_seed(campaign)}")


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code (minus the signal's number where one ended it), and what it printed."""

    code: int
    printed: str


class Command:
    """`mira` with these arguments, in a process forked from this one: it has imported everything already.

    Args:
        arguments: of the command line.
        log: what it prints goes there.
        memory: bytes that it may add to what this process has.
        file_size: bytes that a file it writes may have, as on a full disk.
    """

    def __init__(
        self, arguments: Sequence[str], log: Path, *, memory: int = 8 << 30, file_size: int | None = None
    ) -> None:
        self._log = log
        self.process = os.fork()
        if self.process == 0:
            self._be(arguments, memory, file_size)

    def _be(self, arguments: Sequence[str], memory: int, file_size: int | None) -> None:
        code = 1
        try:
            os.setsid()
            for number in (
                signal.SIGINT,
                signal.SIGTERM,
                signal.SIGHUP,
                signal.SIGQUIT,
                signal.SIGUSR1,
                signal.SIGALRM,
            ):
                signal.signal(number, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            descriptor = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for standard in (1, 2):
                os.dup2(descriptor, standard)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
            resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
            if file_size is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
            sys.argv = ["mira", *arguments]
            from mira.cli import command

            command()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            with suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def running(self) -> bool:
        """Whether it goes on."""
        return not hasattr(self, "_code") and not self._poll(os.WNOHANG)

    def send(self, number: signal.Signals, *, group: bool = False) -> None:
        """A signal to it, or to all processes that it has started too."""
        with suppress(ProcessLookupError):
            os.killpg(self.process, number) if group else os.kill(self.process, number)

    def workers(self) -> list[int]:
        """The processes that it has started."""
        with suppress(OSError):
            return [
                int(child) for child in Path(f"/proc/{self.process}/task/{self.process}/children").read_text().split()
            ]
        return []

    def end(self, limit: float = 120.0) -> Outcome:
        """Wait for it; a command that takes longer than `limit` seconds hangs, which is a failure."""
        deadline = time.monotonic() + limit
        while self.running():
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL, group=True)
                self._poll(0)
                raise AssertionError(f"hangs: killed after {limit:g} s. It printed: {self._printed()}")
            time.sleep(0.01)
        outcome = Outcome(self._code, self._printed())
        assert "Traceback (most recent call last)" not in outcome.printed, outcome.printed
        return outcome

    def _poll(self, how: int) -> bool:
        process, status = os.waitpid(self.process, how)
        if process:
            self._code = os.waitstatus_to_exitcode(status)
        return bool(process)

    def _printed(self) -> str:
        return self._log.read_text("utf-8", "replace") if self._log.exists() else ""


def mutated(rng: random.Random, content: bytes) -> bytes:
    """The content with some of its bytes changed, cut out, doubled, or replaced by odd ones."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) + 1)
        end = min(len(data), place + rng.randint(1, 40))
        match rng.randrange(6):
            case 0 if place < len(data):
                data[place] ^= 1 << rng.randrange(8)
            case 1:
                del data[place:end]
            case 2:
                data[place:place] = data[place:end]
            case 3:
                data[place:end] = rng.choice([b"\xff\xfe", b"\0", b"\n", b"\r", b"1e999", b"NaN", b"-1", b'"x"', b"[]"])
            case 4:
                data[place:place] = rng.choice(
                    [b"9" * 400, b"null", b"{}", b"true", b"[" * 3000, "\u2028\udcff".encode("utf-8", "surrogatepass")]
                )
            case _:
                del data[place:]
    return bytes(data)
