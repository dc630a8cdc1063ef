"""The command line: parse, call one function, print."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import mira

EXIT_OK = 0
EXIT_UNUSABLE = 2
"""Something given cannot be used; the message says what."""
EXIT_STOPPED = 3
"""The training stopped itself: non-finite loss, collapse, or too many unreadable pictures."""
EXIT_INTERRUPTED = 75
"""Asked to stop; the state is on disk, and `mira pretrain --resume` continues (EX_TEMPFAIL of sysexits.h)."""

Reporter = Callable[[str, int, int], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest:  # argparse takes no second group of words after an option, people do
        if not hasattr(options, "words") or any(word.startswith("-") for word in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        options.words += rest
    # A warning is a sentence for the person too: no file name, no line of code.
    warnings.showwarning = lambda message, *_args, **_kwargs: print(f"mira: {message}", file=sys.stderr)
    from mira.data import TooManyUnreadable
    from mira.training.health import TrainingStopped
    from mira.training.loop import Interrupted

    try:
        options.run(options)
    except (TrainingStopped, TooManyUnreadable) as error:
        return _fail(error, EXIT_STOPPED, options.traceback)
    except Interrupted as error:
        print(f"mira: {error}", file=sys.stderr)
        print(f"continue with: mira pretrain --resume {options.out or options.resume}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (ValueError, OSError) as error:
        return _fail(error, EXIT_UNUSABLE, options.traceback)
    except KeyboardInterrupt:
        return 130
    return EXIT_OK


def _fail(error: Exception, code: int, traceback: bool) -> int:
    if traceback:
        raise error
    print(f"mira: {error}", file=sys.stderr)
    return code


def _pretrain(options: argparse.Namespace) -> None:
    data = [word for word in options.words if "=" not in word or Path(word).exists()]
    overrides = [word for word in options.words if word not in data]
    if len(data) > 1:
        raise ValueError(f"name one source of pictures, not {len(data)}: {', '.join(data)}")
    if options.resume is not None:
        if data or options.recipe or options.out:
            raise ValueError("--resume takes the run's folder alone; pictures and recipe are those it began with")
        folder = mira.resume(options.resume, overrides=overrides, quiet=options.quiet)
    else:
        source = data[0] if data else None
        if source is None and options.recipe is None:
            raise ValueError("name a folder of pictures, or a recipe that has pictures, such as --recipe demo")
        name = options.recipe if source is None else Path(source.partition(":")[2] or source).resolve().name
        options.out = options.out or str(Path("runs") / Path(name).stem)
        folder = mira.pretrain(
            source,
            out=options.out,
            recipe=options.recipe,
            overrides=overrides,
            overwrite=options.overwrite,
            quiet=options.quiet,
        )
    print(f"the run is in {folder}; look at it with: mira report {folder}")


def _evaluate(options: argparse.Namespace) -> None:
    from mira.evaluation.table import print_results

    with _progress(options.quiet) as progress:
        results = mira.evaluate(
            options.checkpoint,
            options.data,
            test=options.test,
            labels=options.labels,
            ks=options.k,
            temperature=options.temperature,
            fractions=options.fractions,
            seed=options.seed,
            floors=options.floors,
            shift=options.shift,
            clusters=options.clusters,
            which=options.which,
            device=options.device,
            workers=options.workers,
            progress=progress,
        )
    print_results(results)


def _embed(options: argparse.Namespace) -> None:
    with _progress(options.quiet) as progress:
        features = mira.embed(
            options.checkpoint,
            options.data,
            out=options.out,
            split=options.split,
            labels=options.labels,
            which=options.which,
            device=options.device,
            batch_size=options.batch_size,
            workers=options.workers,
            progress=lambda done, total: progress("embedding", done, total),
        )
    rows, width = features.features.shape
    print(f"{options.out}: {rows} pictures, {width} numbers each")
    if features.unreadable:
        print(f"left out, because they cannot be read ({len(features.unreadable)}):", file=sys.stderr)
        for key, reason in features.unreadable:
            print(f"  {key}: {reason}", file=sys.stderr)


def _export(options: argparse.Namespace) -> None:
    from mira.model.exported import timm_call

    path = mira.export(options.checkpoint, options.out, which=options.which)
    print(f"{path}. Load it with mira.load_backbone('{path}')")
    call = timm_call(path)
    print(f"or with {call}" if call else "its small stem is MIRA's own: timm.create_model alone cannot load it")


def _report(options: argparse.Namespace) -> None:
    print(f"the report is {mira.write_report(options.run_folder, options.out)}")


def _recipes(options: argparse.Namespace) -> None:
    from mira.training.reading import builtin_recipes, load_recipe, recipe_to_yaml

    if options.name is not None:
        print(recipe_to_yaml(load_recipe(options.name)), end="")
        return
    for name, description in builtin_recipes().items():
        print(f"{name}\n    {description}")


@contextmanager
def _progress(quiet: bool) -> Iterator[Reporter]:
    """A bar per pass over pictures, in a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress, TaskID

    bar = Progress(console=Console(stderr=True), transient=True)
    tasks: dict[str, TaskID] = {}

    def report(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total)
        bar.update(tasks[what], completed=done)

    with bar:
        yield report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mira",
        description="Learn visual features from unlabelled pictures (MIRA, NeurIPS 2022), and use them.",
        epilog="exit codes: 0 done; 2 something given cannot be used; 3 the training stopped itself; "
        "75 interrupted, state saved",
    )
    parser.add_argument("--version", action="version", version=f"mira {mira.__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    pretrain = commands.add_parser(
        "pretrain",
        help="learn a backbone from pictures",
        description="Learn a backbone from unlabelled pictures.",
        epilog="example: mira pretrain my_pictures --out runs/mine training.epochs=100",
    )
    pretrain.add_argument(
        "words",
        nargs="*",
        metavar="DATA | key=value",
        help="a folder, builtin:fashion or torchvision:NAME; and settings such as training.epochs=20",
    )
    pretrain.add_argument("--recipe", help="a built-in recipe (see `mira recipes`) or a YAML file")
    pretrain.add_argument("--out", help="folder of the run (default: runs/NAME)")
    pretrain.add_argument("--resume", metavar="RUN", help="continue the run in this folder")
    pretrain.add_argument("--overwrite", action="store_true", help="begin anew in a folder that holds a run")
    pretrain.add_argument("--quiet", action="store_true", help="show no progress")
    pretrain.set_defaults(run=_pretrain)

    evaluate = commands.add_parser("evaluate", help="measure a backbone on labelled pictures")
    protocols = evaluate.add_subparsers(required=True, metavar="PROTOCOL")
    knn = protocols.add_parser(
        "knn", help="weighted k nearest neighbours", description="Weighted k-NN on frozen features (DINO)."
    )
    knn.add_argument("checkpoint", help="a run's folder or checkpoint")
    knn.add_argument("data", nargs="?", help="labelled pictures (default: the run's own)")
    knn.add_argument("--test", help="test pictures of their own (default: the test part of DATA)")
    knn.add_argument("--k", type=int, nargs="+", default=[10, 20, 100, 200], help="neighbours")
    knn.add_argument("--temperature", type=float, default=0.07, help="of the votes")
    knn.add_argument("--fractions", type=float, nargs="+", default=[1.0, 0.1, 0.01], help="shares of labels")
    knn.add_argument("--seed", type=int, default=0, help="of label subsets and the random backbone")
    knn.add_argument("--floors", action="store_true", help="raw pixels and an untrained backbone beside it")
    knn.add_argument("--shift", type=int, default=0, help="also move test pictures by up to so many pixels")
    knn.add_argument("--clusters", action="store_true", help="also k-means and prototypes as clusters")
    _common(knn)
    knn.set_defaults(run=_evaluate)

    embed = commands.add_parser("embed", help="write the features of pictures")
    embed.add_argument("checkpoint", help="a run's folder, checkpoint, or exported weights")
    embed.add_argument("data", help="a folder, builtin:fashion or torchvision:NAME")
    embed.add_argument("--out", required=True, help="features.npz or features.parquet")
    embed.add_argument("--split", choices=["train", "test", "all"], default="all", help="part of the data")
    embed.add_argument("--batch-size", type=int, default=256, help="pictures at a time")
    _common(embed)
    embed.set_defaults(run=_embed)

    export = commands.add_parser("export", help="write the backbone alone, in timm's names")
    export.add_argument("checkpoint", help="a run's folder or checkpoint")
    export.add_argument("--out", required=True, help="weights.safetensors")
    export.add_argument("--which", choices=["teacher", "student"], default="teacher")
    export.set_defaults(run=_export)

    report = commands.add_parser("report", help="write a page that shows what a run has learned")
    report.add_argument("run_folder", metavar="RUN", help="a run's folder")
    report.add_argument("--out", help="the page (default: RUN/report.html)")
    report.set_defaults(run=_report)

    recipes = commands.add_parser("recipes", help="list the built-in recipes, or show one")
    recipes.add_argument("name", nargs="?", help="show this one, with every setting")
    recipes.set_defaults(run=_recipes)
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--labels", choices=["auto", "folder", "none"], default="auto", help="where labels are")
    parser.add_argument("--which", choices=["teacher", "student"], default="teacher")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=min(4, (os.cpu_count() or 2) // 2))
    parser.add_argument("--quiet", action="store_true", help="show no progress")


if __name__ == "__main__":
    sys.exit(main())
