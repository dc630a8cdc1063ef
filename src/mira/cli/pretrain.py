"""`mira pretrain` and `mira recipes`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import mira
from mira.cli.options import SOURCES
from mira.rank import rank_from_environment, started_by
from mira.wording import command

if TYPE_CHECKING:
    from mira.cli.options import Commands


def add_to(commands: "Commands") -> None:
    """Add the commands that train."""
    pretrain = commands.add_parser(
        "pretrain",
        help="learn a backbone from pictures",
        description="Learn a backbone from unlabelled pictures.",
        epilog="example: mira pretrain my_pictures --out runs/mine training.epochs=100. Ctrl-C (SIGINT), SIGTERM, "
        "SIGHUP (a closed terminal) and SIGUSR1 finish the step, save and exit with 75; a second Ctrl-C or SIGTERM, a "
        "second or more later, ends at once. Global crops under 64 pixels give a ResNet MIRA's small stem, whose "
        "export timm alone cannot load: model.backbone.stem=standard keeps timm's. The line of an epoch: label "
        "information is how many nats the pseudo-labels say about images, of the most there can be, and near 0 after a "
        "collapse; evenness is how evenly prototypes are used; wait is the share of the time without data.",
    )
    pretrain.add_argument(
        "words",
        nargs="*",
        metavar="DATA | key=value",
        help=f"{SOURCES}; and settings such as training.epochs=20",
    )
    pretrain.add_argument("--recipe", help="a built-in recipe (see `mira recipes`) or a YAML file")
    pretrain.add_argument("--out", help="folder of the run (default: runs/NAME)")
    pretrain.add_argument(
        "--budget",
        metavar="TIME",
        help="how long the run may take, such as 5m or 2h, where no recipe is named (default on a CPU: 20m)",
    )
    pretrain.add_argument("--resume", metavar="RUN", help="continue the run in this folder")
    pretrain.add_argument("--overwrite", action="store_true", help="begin anew in a folder that holds a run")
    pretrain.add_argument(
        "--or-resume", action="store_true", help="continue the run that --out already holds, with its own recipe"
    )
    pretrain.add_argument(
        "--processes",
        "--gpus",
        type=int,
        metavar="N",
        help="train in N processes on this machine: one per GPU, or, on a CPU, with a share of the cores each",
    )
    pretrain.add_argument("--quiet", action="store_true", help="show no progress")
    pretrain.set_defaults(run=_pretrain, refusal=_refusal)

    recipes = commands.add_parser("recipes", help="list the built-in recipes, or show one")
    recipes.add_argument("name", nargs="?", help="show this one, with every setting")
    recipes.set_defaults(run=_recipes)


def _refusal(rest: Sequence[str]) -> str:
    """What to write in place of options that there are not: `--epochs 3` means the setting training.epochs=3."""
    from mira.training.mistakes import nearest_key

    sentences = []
    for word, following in zip(rest, [*rest[1:], "-"], strict=True):
        if not word.startswith("-"):
            continue
        name, _, value = word.partition("=")
        key = nearest_key(name.strip("-").replace("-", "_"))
        value = value or ("VALUE" if following.startswith("-") else following)
        sentences.append(f"there is no option {name}" + (f": write {key}={value}" if key else ""))
    return "; ".join(sentences)


def _refuse_bare_settings(words: Sequence[str]) -> None:
    """`training.epochs` without a value is no folder of pictures."""
    dotted = [word for word in words if "." in word and not Path(word).exists()]
    if dotted:
        from mira.training.mistakes import is_key

        for word in filter(is_key, dotted):
            raise ValueError(f"'{word}' is a setting and needs a value: {word}=VALUE")


def _pretrain(options: argparse.Namespace) -> None:
    if options.processes is not None and started_by() is None:
        from mira.distributed.launch import launch

        sys.exit(launch(options.arguments, options.processes))
    data = [word for word in options.words if "=" not in word or Path(word).exists()]
    overrides = [word for word in options.words if word not in data]
    _refuse_bare_settings(data)
    if len(data) > 1:
        raise ValueError(f"name one source of pictures, not {len(data)}: {', '.join(data)}")
    if options.resume is not None:
        if data or options.recipe or options.out or options.budget:
            raise ValueError("--resume takes the run's folder alone; images, recipe and time are those it began with")
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
            budget=options.budget,
            overwrite=options.overwrite,
            or_resume=options.or_resume,
            quiet=options.quiet,
        )
    if rank_from_environment() == 0:  # one process speaks for all
        from mira.training.skipped import read_skipped

        skipped = folder / "skipped.txt"
        count = len(read_skipped(skipped))
        if count and not options.quiet:
            print(f"pictures that could not be read: {count}; {skipped} names them")
        print(f"the run is in {folder}; look at it with: {command('report', folder)}")


def _recipes(options: argparse.Namespace) -> None:
    if options.name is not None:
        from mira.training.reading import load_recipe, recipe_to_yaml

        print(recipe_to_yaml(load_recipe(options.name)), end="")
        return
    from mira.recipes import builtin_recipes

    for name, description in builtin_recipes().items():
        print(f"{name}\n    {description}")
