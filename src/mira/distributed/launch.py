"""`mira pretrain --processes N`: several training processes on this machine, started and ended together."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from mira.distributed.meeting import host_store
from mira.errors import EXIT_INTERRUPTED, EXIT_RANK_LOST, StoppedAtOnce
from mira.signals import on_stop_signals

GRACE = 10.0
"""Seconds that the other processes have to end by themselves when one has failed."""
_LAUNCHED = "MIRA_LAUNCHED"
_PROGRAM = "from mira.cli import command; command()"


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run `mira` with these arguments in several processes, and return their exit code.

    Signals that ask to stop are passed on to each of them. When one fails, the others are ended, and a sentence on
    standard error names it. When this process is killed, they end too.

    Args:
        arguments: of the command line, without `--processes`.
        processes: how many.

    Returns:
        0 when all succeeded, else the exit code of the one that failed first; 128 + the signal's number where a
        signal ended it, as shells have it.

    Raises:
        ValueError: fewer than one process.
        StoppedAtOnce: asked to stop a second time; the processes have been killed.
    """
    if processes < 1:
        raise ValueError(f"--processes is {processes}: at least one process has to train")
    store, address = host_store()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = {"OMP_NUM_THREADS": str(max(cores // processes, 1)), **os.environ}
    children: list[subprocess.Popen[bytes]] = []

    def end(number: int) -> None:
        raise StoppedAtOnce(number)

    try:
        with on_stop_signals(lambda number: _pass_on(children, number), end):
            for rank in range(processes):
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
                environment = {**threads, **address, **{k: str(v) for k, v in place.items()}, _LAUNCHED: "1"}
                # A session of their own: Ctrl-C in a terminal comes here alone and is passed on once. What they read
                # from is a pipe that nobody writes to: it closes when this process ends, however it ends.
                child = subprocess.Popen(
                    [sys.executable, "-c", _PROGRAM, *arguments],
                    env=environment,
                    stdin=subprocess.PIPE,
                    start_new_session=True,
                )
                children.append(child)
            return _watch(children)
    finally:
        for child in children:
            child.kill()
            child.wait()
            assert child.stdin is not None
            child.stdin.close()
        del store


def end_with_launcher() -> None:
    """In a process that `launch` has started: end when the launcher does, even if it was killed."""
    if os.environ.pop(_LAUNCHED, None) is None:
        return

    def wait() -> None:
        os.read(0, 1)
        print("mira: the process that started this one has ended", file=sys.stderr, flush=True)
        os._exit(EXIT_RANK_LOST)

    threading.Thread(target=wait, daemon=True, name="launcher").start()


def _pass_on(children: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)


def _watch(children: Sequence[subprocess.Popen[bytes]]) -> int:
    failed: tuple[int, int] | None = None
    ended: set[int] = set()
    codes: list[int] = []
    deadline = float("inf")
    while len(ended) < len(children):
        for rank, child in enumerate(children):
            code = child.poll()
            if rank in ended or code is None:
                continue
            ended.add(rank)
            codes.append(code)
            # One that ended because of another is not the one to name.
            if code not in (0, EXIT_INTERRUPTED, EXIT_RANK_LOST) and failed is None:
                failed = rank, code
                print(_sentence(rank, code, len(children)), file=sys.stderr, flush=True)
                _pass_on(children, signal.SIGTERM)
            # The one that is to be named may still be on its way out: it is not hurried.
            if code not in (0, EXIT_INTERRUPTED):
                deadline = min(deadline, time.monotonic() + GRACE)
        if time.monotonic() > deadline:
            for child in children:
                child.kill()
        time.sleep(0.05)
    code = failed[1] if failed is not None else max(codes)
    return 128 - code if code < 0 else code


def _sentence(rank: int, code: int, processes: int) -> str:
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
    hint = ""
    if code == -signal.SIGKILL:
        hint = " (if nobody killed it, the machine had no memory left: use fewer training.workers or processes)"
    return f"mira: rank {rank} of {processes} {how}{hint}{'' if processes == 1 else '; ending the others'}"
