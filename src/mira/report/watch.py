"""A run in a terminal, as it goes: read from its files, so it can be watched from anywhere that sees them."""

import itertools
import math
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mira.assignment.information import max_information
from mira.escaping import escaped
from mira.report.curves import Metrics, latest
from mira.report.verdict import judge
from mira.run_lock import holder, is_dead
from mira.training.checkpoint import checkpoint_paths
from mira.training.ended import read_ended
from mira.training.metrics import read_metrics
from mira.training.reading import load_recipe
from mira.training.recipe import Recipe
from mira.training.run_folder import RunFolder
from mira.training.skipped import read_skipped
from mira.wording import command, duration

_CURVES = (
    ("loss", "loss", "nats"),
    ("label_mi", "label information", "nats"),
    ("feature_rank", "feature rank", ""),
    ("knn", "k-NN", "%"),
    ("grad_norm", "gradient norm", ""),
)
_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 32
_BAR = 72
_SILENT = 6.0  # a run is called silent after so many times its usual pause between two lines


def watch(path: str | Path, *, every: float = 2.0, once: bool = False, console: Console | None = None) -> None:
    """Show how a run is doing until it ends or the person stops watching; the run does not notice.

    Args:
        path: the run's folder.
        every: seconds between two looks.
        once: look once and return, for scripts and terminals that cannot redraw.
        console: where to draw.

    Raises:
        ValueError: there is no run in the folder.
    """
    folder = RunFolder(Path(path))
    if not folder.recipe.is_file():
        raise ValueError(f"there is no run in '{folder.path}' to watch: name the folder given to --out")
    console = console or Console()
    recipe = load_recipe(folder.recipe)
    if once or not console.is_terminal:
        console.print(frame(folder, recipe))
        return
    with Live(frame(folder, recipe), console=console, screen=False, auto_refresh=False) as live:
        while True:
            live.update(frame(folder, recipe), refresh=True)
            if _end(folder, _share(read_metrics(folder.metrics), recipe)):
                return
            time.sleep(every)


def frame(folder: RunFolder, recipe: Recipe) -> Group:
    """One picture of the run: how far, how fast, the curves, and what the numbers say."""
    metrics = read_metrics(folder.metrics)
    lines: list[Text | Table] = [Text(escaped(f"{folder.path}  {recipe.name}"), style="bold")]
    share = _share(metrics, recipe)
    end = _end(folder, share)
    if not metrics:
        lines.append(Text(end or "no step has been logged yet"))
        return Group(*lines)
    done = int(_BAR * share)
    pace = _pace(metrics, recipe, going_on=not end)
    lines += [Text("━" * done + "─" * (_BAR - done), style="green"), Text(pace)]
    if end:
        lines.append(Text(end, style="bold"))
    reachable = max_information(recipe.model.prototypes.count, recipe.training.batch_size)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for key, name, unit in _CURVES:
        values = [float(line[key]) for line in metrics if key in line]
        if values:
            most = f" of {_short(reachable)}" if key == "label_mi" else ""
            numbers = f"{_short(values[0])} → {_short(values[-1])}{most} {unit}"
            table.add_row(name, sparkline(values), numbers.rstrip())
    lines.append(table)
    skipped = len(read_skipped(folder.skipped))
    kept = checkpoint_paths(folder.checkpoints)
    saved = f"last checkpoint at step {int(kept[-1].stem.rpartition('-')[2]):,}" if kept else "no checkpoint yet"
    lines.append(Text(f"{saved}; pictures skipped: {skipped:,}", style="dim"))
    verdict = judge(metrics, [], reachable=reachable, remedies=recipe.assignment.remedies())
    if verdict.mark == "bad":
        lines.append(Text(verdict.sentence, style="red"))
    return Group(*lines)


def sparkline(values: Sequence[float], width: int = _WIDTH) -> str:
    """Values as a line of bars; of more values than bars, the mean of each share of them."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    count = min(width, len(finite))
    edges = [round(place * len(finite) / count) for place in range(count + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


def _share(metrics: Metrics, recipe: Recipe) -> float:
    return min(max(float(latest(metrics, "epoch") or 0.0), 0.0) / recipe.training.epochs, 1.0)


def _end(folder: RunFolder, share: float) -> str:
    """How the run ended, in words; empty while it goes on or where nothing is known."""
    again = command("pretrain", "--resume", folder.path)
    ended = read_ended(folder.ended)
    if (ended is None and share >= 1) or (ended is not None and ended.how == "finished"):
        return "finished"
    if ended is None:
        holding = holder(folder.path)
        if holding is not None and is_dead(*holding):
            return f"ended without a word: process {holding[0]} was killed. It goes on with: {again}"
        return ""
    ago = duration(max(time.time() - ended.time, 0.0))
    how = {"interrupted": "interrupted", "stopped": "stopped by itself", "failed": "ended by an error"}[ended.how]
    said = "" if ended.how == "interrupted" else f": {ended.message}"
    goes_on = f"; it goes on with: {again}" if ended.how != "stopped" else ""
    return f"{how} at step {ended.step:,}, {ago} ago{said}{goes_on}"


def _pace(metrics: Metrics, recipe: Recipe, *, going_on: bool) -> str:
    epoch, step = latest(metrics, "epoch"), latest(metrics, "step")
    parts = [f"epoch {epoch or 0:.1f} of {recipe.training.epochs}, step {step or 0:,.0f}"]
    speed, wait = latest(metrics, "pictures_per_second"), latest(metrics, "data_wait")
    if speed:
        parts.append(f"{speed:,.0f} pictures/s" + (f", {wait:.0%} of the time waiting for data" if wait else ""))
    memory = latest(metrics, "gpu_memory")
    if memory:
        parts.append(f"{memory:.1f} GiB of GPU memory at most")
    timed = [(float(line["time"]), float(line["epoch"])) for line in metrics if "time" in line and "epoch" in line]
    pauses = sorted(later - earlier for (earlier, _), (later, _) in itertools.pairwise(timed))
    if going_on and pauses and epoch:
        # The latest lines speak for the time that is left: a resumed run's earlier ones were made some other day.
        (since, before), (until, now) = timed[-min(len(timed), 20)], timed[-1]
        if now > before:
            parts.append(f"about {duration((until - since) / (now - before) * (recipe.training.epochs - epoch))} left")
        silence = time.time() - until
        if silence > max(_SILENT * pauses[len(pauses) // 2], 60):
            parts.append(f"nothing written for {duration(silence)}: stopped?")
    return "; ".join(parts)


def _short(value: float) -> str:
    return f"{value:.4g}"
