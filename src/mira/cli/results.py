"""`mira results` and `mira cache`: what evaluations have left behind."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mira.cli.options import FEATURES
from mira.wording import counted

if TYPE_CHECKING:
    from mira.cli.options import Commands


def add_to(commands: "Commands") -> None:
    """Add the commands that show and remove."""
    results = commands.add_parser(
        "results",
        help="one table of the results of many runs",
        description="One table of the results of many runs and checkpoints; mean ± standard deviation over seeds.",
    )
    results.add_argument(
        "paths", nargs="*", help="runs, folders of runs, files of results (default: runs, and results.jsonl here)"
    )
    results.add_argument("--protocol", help="only of this protocol, or of several: knn,health")
    results.add_argument("--format", choices=["text", "markdown", "csv"], default="text")
    results.set_defaults(run=_results)

    cache = commands.add_parser("cache", help="show or clear the features kept on disk")
    cache.add_argument("action", nargs="?", choices=["show", "clear"], default="show")
    cache.add_argument("--cache", metavar="DIR", help=f"(default: {FEATURES})")
    cache.set_defaults(run=_cache)


def _results(options: argparse.Namespace) -> None:
    from mira.evaluation.protocols import find_protocols
    from mira.evaluation.summary import RESULTS, as_csv, as_markdown, find_results, print_summary, summarise

    usual = [name for name in ("runs", RESULTS) if Path(name).exists()] or ["runs"]
    found = find_results(options.paths or usual)
    if options.protocol is not None:
        names = {protocol.name for protocol in find_protocols(options.protocol)}
        there = dict.fromkeys(result.protocol for result in found)
        found = [result for result in found if result.protocol in names]
        if not found:
            raise ValueError(f"there are no results of {', '.join(names)}; there are of {', '.join(there)}.")
    summary = summarise(found)
    match options.format:
        case "markdown":
            print(as_markdown(summary), end="")
        case "csv":
            print(as_csv(summary), end="")
        case _:
            print_summary(summary)


def _cache(options: argparse.Namespace) -> None:
    from mira.evaluation.cache import FeatureCache
    from mira.files import cache_folder

    cache = FeatureCache(Path(options.cache) if options.cache else cache_folder("features"))
    if options.action == "clear":
        print(f"{cache.folder}: {cache.clear() / 2**30:.2f} GiB freed")
        return
    files = counted(len(cache.files()), "file")
    print(f"{cache.folder}: {cache.size() / 2**30:.2f} GiB of {cache.limit / 2**30:.0f} in {files}")
