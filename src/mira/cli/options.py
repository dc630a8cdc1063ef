"""Options that several commands share, and the bar that shows how far they are."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mira.escaping import escaped

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

Reporter = Callable[[str, int, int], None]
_BETWEEN_LINES = 10.0
SOURCES = "a folder, shards.tar, images.parquet, hf:NAME, torchvision:NAME or builtin:fashion"
FEATURES = "`features` in $MIRA_CACHE, else in ~/.cache/mira"
TRACEBACK = "show where in the code an error arose"


def add_common(parser: argparse.ArgumentParser) -> None:
    """What every command that looks at pictures takes."""
    parser.add_argument(
        "--labels",
        choices=["auto", "folder", "none"],
        default="auto",
        help="auto: the set's own, else the first level of folders; folder: that level; none",
    )
    parser.add_argument(
        "--which", choices=["teacher", "student"], default="teacher", help="of the two networks (default: teacher)"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    parser.add_argument(
        "--workers",
        type=whole_number(0),
        default=min(4, (os.cpu_count() or 2) // 2),
        help="processes that read images (default: %(default)s)",
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def whole_number(least: int) -> Callable[[str], int]:
    """What reads an option that must be a whole number, and no smaller than this one."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"must be a whole number, {least} or more, not '{text}'")
        return number

    return read


def add_opening(parser: argparse.ArgumentParser) -> None:
    """How weights are opened that this project did not make."""
    group = parser.add_argument_group("other people's weights")
    group.add_argument("--architecture", help="a name of timm or torchvision (default: told by the file)")
    group.add_argument("--layout", default="auto", help="whose names the file has (default: told by the file)")
    group.add_argument("--size", type=int, metavar="PIXELS", help="side of the input")
    group.add_argument("--resize", type=int, metavar="PIXELS", help="short side before the centre crop")
    group.add_argument("--mean", type=float, nargs="+", metavar="M", help="per channel, on the 0-1 scale")
    group.add_argument("--std", type=float, nargs="+", metavar="S", help="likewise")
    group.add_argument("--interpolation", choices=["bicubic", "bilinear"], help="of the resizing")


def opening(options: argparse.Namespace) -> dict[str, Any]:
    """What `add_opening` has read, as arguments of `mira.opening.open_subject`."""
    names = ("architecture", "layout", "size", "resize", "mean", "std", "interpolation")
    return {name: getattr(options, name) for name in names}


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Reporter]:
    """A bar per pass over pictures in a terminal; in a file or a pipe, a line now and then."""
    if quiet:
        yield lambda what, done, total: None
        return
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress, TaskID

    bar = Progress(console=Console(stderr=True), transient=True)
    tasks: dict[str, TaskID] = {}

    def report(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(escape(escaped(what)), total=total)
        bar.update(tasks[what], completed=done)

    with bar:
        yield report


def _lines() -> Reporter:
    """A line at most every ten seconds: who reads a log wants to know that it goes on, and no more."""
    last = time.monotonic()

    def report(what: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _BETWEEN_LINES:
            last = time.monotonic()
            print(f"{escaped(what)}: {done:,} of {total:,}", file=sys.stderr, flush=True)

    return report
