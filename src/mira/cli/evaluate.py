"""`mira evaluate`: its options are the settings of the protocols that are named."""

import argparse
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import mira
from mira.cli.options import FEATURES, TRACEBACK, add_common, add_opening, opening, progress_bar, whole_number
from mira.errors import StoppedAtOnce
from mira.evaluation.protocols import PROTOCOLS, Protocol, find_protocols
from mira.wording import counted

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from mira.cli.options import Commands

RESULTS = "results.jsonl"
"""Where results are kept that belong to no run: in the folder one is in."""


def add_to(commands: "Commands") -> None:
    """Add `evaluate`. What follows the protocols is parsed once these are known: see `protocol_parser`."""
    width = max(len(protocol.name) for protocol in PROTOCOLS)
    lines = "\n".join(f"  {protocol.name:{width}}  {protocol.help}" for protocol in PROTOCOLS)
    shared = argparse.ArgumentParser(add_help=False, usage=argparse.SUPPRESS)
    _add_shared(shared)
    evaluate = commands.add_parser(
        "evaluate",
        help="measure a backbone on labelled pictures",
        description="Measure a backbone by one protocol, or by several that share one pass over the pictures.",
        epilog=f"protocols:\n{lines}\n\n{shared.format_help().replace('options:', 'options of every protocol:', 1)}\n"
        "`mira evaluate PROTOCOL --help` shows the settings of one besides.\n"
        "example: mira evaluate knn,clusters runs/mine my_images --labels folder --floors --seeds 0 1 2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="mira evaluate PROTOCOL[,PROTOCOL...] CHECKPOINT [DATA] [options]",
    )
    evaluate.add_argument("protocols", metavar="PROTOCOL[,PROTOCOL...]", help="one or several of those below")
    evaluate.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    evaluate.set_defaults(run=_evaluate)


def protocol_parser(protocols: Iterable[Protocol]) -> argparse.ArgumentParser:
    """The parser of everything after the names of these protocols."""
    protocols = tuple(protocols)
    names = ",".join(protocol.name for protocol in protocols)
    parser = argparse.ArgumentParser(
        prog=f"mira evaluate {names}",
        usage=f"mira evaluate {names} CHECKPOINT [DATA] [options]",
        description="; ".join(f"{protocol.title}: {protocol.help}" for protocol in protocols) + ".",
    )
    parser.add_argument("checkpoint", help="a run's folder, a checkpoint, or weights")
    parser.add_argument("data", nargs="?", help="labelled images (default: the run's own)")
    _add_shared(parser)
    if "knn" in names.split(",") and "clusters" not in names.split(","):
        parser.add_argument("--clusters", action="store_true", help="short for the protocols knn,clusters")
    parser.add_argument("--traceback", action="store_true", help=TRACEBACK)
    for protocol in protocols:
        group = parser.add_argument_group(f"settings of {protocol.title}")
        for name, field in protocol.load().settings.model_fields.items():
            _add_flag(parser, group, name, field, protocol.title)
    return parser


def _add_shared(parser: argparse.ArgumentParser) -> None:
    """The options that every protocol takes."""
    parser.add_argument("--test", metavar="DATA", help="test images of their own (default: the test part of DATA)")
    parser.add_argument(
        "--floors", action="store_true", help="measure raw pixels and an untrained backbone as well, to compare with"
    )
    parser.add_argument(
        "--seeds",
        type=whole_number(0),
        nargs="+",
        default=[0],
        metavar="N",
        help="measure once for each, with other random draws (default: 0)",
    )
    parser.add_argument(
        "--results", metavar="FILE", help=f"add the results to this file (default: RUN/{RESULTS}, else {RESULTS})"
    )
    parser.add_argument(
        "--resume", action="store_true", help="measure only what that file does not hold already with the same settings"
    )
    parser.add_argument("--cache", metavar="DIR", help=f"keep features there (default: {FEATURES})")
    parser.add_argument("--no-cache", action="store_true", help="forget features when this command ends")
    parser.add_argument(
        "--precision",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="of the backbone (default: float32)",
    )
    parser.add_argument(
        "--inference-batch-size",
        type=whole_number(1),
        default=256,
        metavar="N",
        help="images at a time where nothing is trained (default: 256)",
    )
    add_common(parser)
    add_opening(parser)


def _evaluate(options: argparse.Namespace) -> None:
    protocols = find_protocols(options.protocols)
    given = protocol_parser(protocols).parse_args(options.rest)
    options.traceback |= given.traceback
    names = {name for protocol in protocols for name in protocol.load().settings.model_fields}
    settings = {name: value for name, value in vars(given).items() if name in names and value is not None}
    from mira.evaluation.table import print_results

    file = given.results
    if file is None and not Path(given.checkpoint).is_dir():
        file = RESULTS
    began = datetime.now(UTC).isoformat(timespec="seconds")
    with _shown_if_not_kept(), _going_on_with_resume(), progress_bar(given.quiet) as progress:
        results = mira.evaluate(
            given.checkpoint,
            options.protocols + (",clusters" if getattr(given, "clusters", False) else ""),
            given.data,
            test=given.test,
            labels=given.labels,
            seeds=given.seeds,
            floors=given.floors,
            which=given.which,
            opening=opening(given),
            results=file,
            resume=given.resume,
            cache=False if given.no_cache else given.cache or True,
            device=given.device,
            precision=given.precision,
            inference_batch_size=given.inference_batch_size,
            workers=given.workers,
            progress=progress,
            **settings,
        )
    print_results(results)
    if taken := sum(result.time < began for result in results):
        print(f"{counted(taken, 'result')} of earlier calls taken over", file=sys.stderr)
    if results and all(result.value is None for result in results):
        raise ValueError("none of the settings could be evaluated; the lines above say why")
    if file is not None:
        print(f"kept in {file}", file=sys.stderr)


@contextmanager
def _shown_if_not_kept() -> Iterator[None]:
    from mira.evaluation.results import ResultsNotKept
    from mira.evaluation.table import print_results

    try:
        yield
    except ResultsNotKept as error:
        print_results(error.results)
        raise


@contextmanager
def _going_on_with_resume() -> Iterator[None]:
    try:
        yield
    except StoppedAtOnce:
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt("results so far are kept, and the same command with --resume goes on") from None


def _add_flag(
    parser: argparse.ArgumentParser, group: "argparse._ArgumentGroup", name: str, field: "FieldInfo", protocol: str
) -> None:
    """A setting as an option. Its text is checked by the setting itself; not given is None."""
    from mira.settings import plain_types

    flag = f"--{name.replace('_', '-')}"
    kinds = plain_types(field.annotation)
    default = field.get_default(call_default_factory=True)
    shown = _shown(default)
    text = f"{field.description or ''}{f' (default: {shown})' if shown else ''}".strip().replace("%", "%%")
    shared = parser._option_string_actions.get(flag)
    if shared is not None:  # two protocols may share a setting
        if shared.help != text:
            shared.help = f"{shared.help}; of {protocol}: {text}"
        return
    if bool in kinds:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        return
    more: dict[str, Any] = {"nargs": "+"} if kinds & {tuple, list} else {}
    choices = [str(one) for kind in kinds if get_origin(kind) is Literal for one in get_args(kind)]
    if choices and len(kinds - {type(None), tuple, list}) == 1:
        more["choices"] = choices
    else:
        more["metavar"] = name.rpartition("_")[2].upper()
    group.add_argument(flag, default=None, help=text, **more)


def _shown(default: Any) -> str:
    """A default as it is typed; empty for none."""
    match default:
        case None:
            return ""
        case bool():
            return "yes" if default else "no"
        case float():
            return f"{default:.6g}"
        case list() | tuple():
            return " ".join(map(_shown, default))
    return str(default)
