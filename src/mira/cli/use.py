"""`mira embed`, `mira export`, `mira report` and `mira watch`: what one does with a run."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import mira
from mira.cli.options import SOURCES, add_common, add_opening, opening, progress_bar, whole_number
from mira.wording import counted, few

if TYPE_CHECKING:
    from mira.cli.options import Commands


_AFTER_MIRA = " (in this environment after `import mira`: its torchvision does not fit its PyTorch, and timm needs it)"


def add_to(commands: "Commands") -> None:
    """Add the commands that use a backbone."""
    embed = commands.add_parser("embed", help="write the features of pictures")
    embed.add_argument("checkpoint", help="a run's folder, checkpoint, or exported weights")
    embed.add_argument("data", help=SOURCES)
    embed.add_argument("--out", required=True, help="features.npz or features.parquet")
    embed.add_argument("--split", choices=["train", "test", "all"], default="all", help="part of the data")
    embed.add_argument("--batch-size", type=whole_number(1), default=256, metavar="N", help="images at a time")
    embed.add_argument(
        "--precision",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="of the backbone (default: float32)",
    )
    add_common(embed)
    add_opening(embed)
    embed.set_defaults(run=_embed)

    export = commands.add_parser(
        "export",
        help="write the backbone alone, in timm's names",
        description="Write the backbone alone. mira.load_backbone loads the file, and so does timm.create_model by the "
        "call that is printed, except where a ResNet has MIRA's small stem: timm and torchvision know only their own. "
        "It has one with model.backbone.stem=small and, unless another is asked for, with crops under 64 pixels; train "
        "with model.backbone.stem=standard for weights that load anywhere.",
    )
    export.add_argument("checkpoint", help="a run's folder or checkpoint")
    export.add_argument("--out", required=True, help="weights.safetensors")
    export.add_argument("--which", choices=["teacher", "student"], default="teacher")
    export.set_defaults(run=_export)

    report = commands.add_parser("report", help="write a page that shows what a run has learned")
    report.add_argument("run_folder", metavar="RUN", help="a run's folder")
    report.add_argument("data", metavar="DATA", nargs="?", help="its images, if they lie elsewhere now")
    report.add_argument("--out", help="the page (default: RUN/report.html)")
    report.set_defaults(run=_report)

    watch = commands.add_parser("watch", help="show in the terminal how a run is doing")
    watch.add_argument("run_folder", metavar="RUN", help="a run's folder")
    watch.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="between two looks (default: 2)")
    watch.add_argument("--once", action="store_true", help="look once")
    watch.set_defaults(run=_watch)


def _embed(options: argparse.Namespace) -> None:
    with progress_bar(options.quiet) as progress:
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
            precision=options.precision,
            progress=lambda done, total: progress("embedding", done, total),
            **opening(options),
        )
    rows, width = features.features.shape
    print(f"{options.out}: {counted(rows, 'picture')}, {counted(width, 'number')} each")
    if features.classes and options.labels == "auto" and Path(options.data).is_dir():
        print(
            f"the first level of folders is taken for classes: {few(features.classes)}. If it is something else, such "
            "as dates, say --labels none",
            file=sys.stderr,
        )
    if features.unreadable:
        print(f"left out, because they cannot be read ({len(features.unreadable)}):", file=sys.stderr)
        for key, reason in features.unreadable:
            print(f"  {key}: {reason}", file=sys.stderr)


def _export(options: argparse.Namespace) -> None:
    from mira import _torchvision
    from mira.model.exported import timm_call

    path = mira.export(options.checkpoint, options.out, which=options.which)
    print(f"{path}. Load it with mira.load_backbone({str(path)!r})")
    call = timm_call(path)
    print(
        f"or with {call}{_AFTER_MIRA if _torchvision.MENDED else ''}"
        if call
        else "its small stem is MIRA's own: timm and torchvision alone cannot load it (training with "
        "model.backbone.stem=standard keeps theirs)"
    )


def _report(options: argparse.Namespace) -> None:
    from mira.report.write import write

    written = write(options.run_folder, options.out, data=options.data)
    print(f"the report is {written.path}")
    if written.complaint:
        raise ValueError(written.complaint)


def _watch(options: argparse.Namespace) -> None:
    from mira.report.watch import watch

    watch(options.run_folder, every=options.every, once=options.once)
