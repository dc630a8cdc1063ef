"""The command line: parse, call one function, print. One file for each group of commands."""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
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
    FirstRankFailed,
    Interrupted,
    RankLost,
    StoppedAtOnce,
    TooManyUnreadable,
    TrainingStopped,
    WorkerDied,
)
from mira.wording import command as command_line


def command() -> NoReturn:
    """What `mira` calls: `main`, and the end of the process."""
    code = main()
    if code and "torch" in sys.modules:
        from mira.distributed import in_group

        if in_group():
            # Threads of the process group would run into the interpreter's end, and now and then abort it there:
            # then the exit code would be that of SIGABRT.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        return _main(arguments)
    except KeyboardInterrupt as error:  # what was begun is saved as far as it can be
        print(f"mira: stopped{f'; {error}' if str(error) else ''}", file=sys.stderr)
        return EXIT_SIGINT


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
    warnings.showwarning = lambda message, *_args, **_kwargs: print(f"mira: {message}", file=sys.stderr)
    options.arguments = arguments
    try:
        options.run(options)
    except (TrainingStopped, TooManyUnreadable, WorkerDied) as error:
        return _fail(error, EXIT_STOPPED, options.traceback)
    except Interrupted as error:
        from mira.distributed import ranks_from_environment

        if ranks_from_environment().first:
            print(f"mira: {error}", file=sys.stderr)
            print(
                f"continue with: {command_line('pretrain', '--resume', options.out or options.resume)}", file=sys.stderr
            )
        return EXIT_INTERRUPTED
    except StoppedAtOnce as error:
        print(f"mira: {error}; what was saved before is intact", file=sys.stderr)
        return error.exit_code
    except RankLost as error:
        return _fail(error, EXIT_RANK_LOST, options.traceback)
    except FirstRankFailed:  # rank 0 says it
        return EXIT_RANK_LOST
    except (ValueError, OSError) as error:
        return _fail(error, EXIT_UNUSABLE, options.traceback)
    return EXIT_OK


def _fail(error: Exception, code: int, traceback: bool) -> int:
    if traceback:
        raise error
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"
    print(f"mira: {'' if rank == '0' else f'rank {rank}: '}{_sentence(error)}", file=sys.stderr)
    return code


def _sentence(error: Exception) -> str:
    """What an error says; the system's own errors ("[Errno 13] ...") with the file first and no number."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"'{error.filename}' cannot be used: {error.strerror[0].lower()}{error.strerror[1:]}"
    return str(error)


def _unknown(rest: Sequence[str]) -> str:
    return f"unrecognized arguments: {' '.join(rest)}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mira",
        description="Learn visual features from unlabelled pictures (MIRA, NeurIPS 2022), and use them.",
        epilog="exit codes: 0 done; 2 something given cannot be used; 3 the training stopped itself; "
        "70 another process of the training ended; 75 interrupted, state saved; 130 and 143 stopped at once by a "
        "second SIGINT (Ctrl-C) or SIGTERM, without saving",
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
