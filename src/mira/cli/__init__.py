"""The command line: parse, call one function, print. One file for each group of commands."""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper
from typing import NoReturn

import mira
from mira.cli import evaluate, pretrain, results, use
from mira.cli.options import TRACEBACK
from mira.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_RANK_LOST,
    EXIT_SIGINT,
    EXIT_STOPPED,
    EXIT_UNUSABLE,
    EXIT_WORKER_DIED,
    FirstRankFailed,
    Interrupted,
    RankLost,
    StoppedAtOnce,
    TooManyUnreadable,
    TrainingStopped,
    WorkerDied,
    beyond_memory,
)
from mira.escaping import escaped
from mira.rank import rank_from_environment
from mira.signals import end_on_signals
from mira.wording import command as command_line


def command() -> NoReturn:
    """What `mira` calls: `main`, and the end of the process."""
    end_on_signals()
    code = main()
    if code == EXIT_INTERRUPTED or (code and _in_group()):
        # All is saved. Another signal on the way to the interpreter's end would give its own exit code in place of
        # the one that tells a scheduler to go on; and threads of a process group now and then abort it there.
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _in_group() -> bool:
    if "torch" not in sys.modules:
        return False
    from mira.distributed import in_group

    return in_group()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        return _main(arguments)
    except KeyboardInterrupt as error:  # what was begun is saved as far as it can be
        print(f"mira: stopped{f'; {error}' if str(error) else ''}", file=sys.stderr)
        return error.exit_code if isinstance(error, StoppedAtOnce) else EXIT_SIGINT


def _main(arguments: Sequence[str] | None) -> int:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = _parser()
    if not arguments:
        parser.print_help()
        return EXIT_OK
    options, rest = parser.parse_known_args(arguments)
    if rest:  # argparse takes no second group of words after an option, people do
        if not hasattr(options, "words") or any(word.startswith("-") for word in rest):
            options.parser.error(options.refusal(rest))
        options.words += rest
    # A warning is a sentence for the person too: no file name, no line of code.
    warnings.showwarning = lambda message, *_args, **_kwargs: print(f"mira: {_printable(message)}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # paths need not be Unicode
            stream.reconfigure(errors="backslashreplace")
    options.arguments = arguments
    try:
        options.run(options)
    except (TrainingStopped, TooManyUnreadable) as error:
        return _fail(error, EXIT_STOPPED, options.traceback)
    except WorkerDied as error:
        return _fail(error, EXIT_WORKER_DIED, options.traceback)
    except Interrupted as error:
        return _interrupted(error, options)
    except KeyboardInterrupt as error:
        if (saved := _on_the_way_out(error)) is not None:
            return _interrupted(saved, options)
        if not isinstance(error, StoppedAtOnce):
            raise
        print(f"mira: {error}; what was saved before is intact", file=sys.stderr)
        return error.exit_code
    except RankLost as error:
        return _fail(error, EXIT_RANK_LOST, options.traceback)
    except FirstRankFailed:  # rank 0 says it
        return EXIT_RANK_LOST
    except (ValueError, OSError) as error:
        return _fail(error, EXIT_UNUSABLE, options.traceback)
    except (MemoryError, RuntimeError) as error:
        if options.traceback or not beyond_memory(error):
            raise
        return _fail(ValueError(_little_memory(error)), EXIT_UNUSABLE, options.traceback)
    return EXIT_OK


def _interrupted(error: Interrupted, options: argparse.Namespace) -> int:
    if rank_from_environment() == 0:
        again = command_line("pretrain", "--resume", options.out or options.resume)
        print(f"mira: {error}\ncontinue with: {again}", file=sys.stderr)
    return EXIT_INTERRUPTED


def _on_the_way_out(error: BaseException) -> Interrupted | None:
    """What a signal came in the way of: a run that had saved its state and was ending."""
    before = error.__context__
    while before is not None and not isinstance(before, Interrupted):
        before = before.__context__
    return before


def _fail(error: Exception, code: int, traceback: bool) -> int:
    if traceback:
        raise error
    rank = rank_from_environment()
    print(f"mira: {f'rank {rank}: ' if rank else ''}{_printable(error)}", file=sys.stderr)
    return code


def _little_memory(error: Exception) -> str:
    said = str(error).strip().splitlines()
    if isinstance(error, MemoryError) and said:
        return said[0]
    advice = "use fewer --workers, a smaller batch or a smaller model"
    return f"the memory of this machine is too small{f' ({said[0][:300]})' if said else ''}: {advice}"


def _printable(said: object) -> str:
    """A sentence without what a terminal would obey: it may hold the name of a file, and that anything.

    The system's own errors ("[Errno 13] ...") begin with the file and have no number.
    """
    if isinstance(said, OSError) and said.filename is not None and said.strerror:
        return escaped(f"'{said.filename}' cannot be used: {said.strerror[0].lower()}{said.strerror[1:]}")
    return "\n".join(map(escaped, str(said).split("\n")))


def _unknown(rest: Sequence[str]) -> str:
    return f"unrecognized arguments: {' '.join(rest)}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mira",
        description="Learn visual features from unlabelled pictures (MIRA, NeurIPS 2022), and use them.",
        epilog="exit codes: 0 done; 2 something given cannot be used; 3 the training stopped itself; "
        "70 another process of the training ended; 71 a loader process died or hangs, state saved; 75 interrupted, "
        "state saved; 130 and 143 stopped at once by a second SIGINT (Ctrl-C) or SIGTERM, without saving",
    )
    parser.add_argument("--version", action="version", version=f"mira {mira.__version__}")
    parser.add_argument("--traceback", action="store_true", help=TRACEBACK)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for group in (pretrain, evaluate, results, use):
        group.add_to(commands)
    for command in commands.choices.values():  # after the command too; what stood before it is kept
        command.add_argument("--traceback", action="store_true", default=argparse.SUPPRESS, help=TRACEBACK)
        command.set_defaults(parser=command)
        command.set_defaults(refusal=command.get_default("refusal") or _unknown)
    return parser
