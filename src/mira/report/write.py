"""From a run's folder to its page."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mira.assignment.information import max_information
from mira.data import PictureSource, UnreadablePicture
from mira.data.folder import left_out
from mira.data.sources import absolute_spec
from mira.data.subset import PictureSubset
from mira.evaluation.features import Features, extract_features
from mira.evaluation.results import read_results
from mira.files import write_text
from mira.report.contents import Picture, ReportData, Strip
from mira.report.curves import curves
from mira.report.facts import facts, settings, subtitle
from mira.report.gallery import PrototypeUse, largest_prototypes, prototype_use, random_neighbourhoods
from mira.report.page import render
from mira.report.thumbnails import thumbnail
from mira.report.verdict import judge
from mira.training.metrics import read_metrics
from mira.training.reading import load_recipe
from mira.training.recipe import Recipe
from mira.training.run_folder import LoadedRun, RunFolder, load_run, open_data
from mira.training.skipped import read_skipped
from mira.wording import command


@dataclass(frozen=True)
class Written:
    """A page, and why it lacks the images that it should show; empty if it has them, or the run has no checkpoint."""

    path: Path
    complaint: str = ""


def write_report(
    run_folder: str | Path,
    out: str | Path | None = None,
    *,
    data: str | Path | None = None,
    source: PictureSource | None = None,
    pictures: int = 4000,
    seed: int = 0,
    device: str | torch.device = "cpu",
    batch_size: int = 256,
    workers: int = 0,
) -> Path:
    """Write one self-contained HTML page on a run, finished or not.

    What the folder lacks (a checkpoint, metrics, evaluations, the images) is left out, and the page says so; a warning
    does where images cannot be read.

    Args:
        out: the page; `report.html` in the run's folder by default.
        data: images to show, such as the folder that the run's own were moved to; those it was trained on by default.
        source: the same, opened already.
        pictures: at most so many of them, drawn at random by `seed`, take part in prototypes and neighbours.

    Returns:
        The path of the page.

    Raises:
        ValueError: the folder is no run.
    """
    written = write(
        run_folder,
        out,
        data=data,
        source=source,
        pictures=pictures,
        seed=seed,
        device=device,
        batch_size=batch_size,
        workers=workers,
    )
    if written.complaint:
        warnings.warn(written.complaint, stacklevel=2)
    return written.path


def write(
    run_folder: str | Path,
    out: str | Path | None = None,
    *,
    data: str | Path | None = None,
    source: PictureSource | None = None,
    pictures: int = 4000,
    seed: int = 0,
    device: str | torch.device = "cpu",
    batch_size: int = 256,
    workers: int = 0,
) -> Written:
    """`write_report`, with what it warns of as a value."""
    folder = RunFolder(Path(run_folder))
    if not folder.recipe.is_file():
        raise ValueError(
            f"'{run_folder}' is no run of mira pretrain (it has no recipe.yaml): name the folder given to --out."
        )
    missing: list[str] = []
    metrics = read_metrics(folder.metrics)
    if not metrics:
        missing.append("Curves: metrics.jsonl has no line yet; the first comes after a few steps of training.")
    results = read_results(folder.results)
    if not results:
        evaluate = command("evaluate", "knn", run_folder, "--floors")
        missing.append(f"Evaluation: run `{evaluate}` and write the report again.")
    skipped = tuple(read_skipped(folder.skipped))
    run = _open(folder, missing)
    recipe = load_recipe(folder.recipe) if run is None else run.recipe  # the file may have been edited since
    gallery = _Gallery()
    if run is not None:
        gallery = _gallery(
            run,
            source,
            data,
            missing,
            pictures=pictures,
            seed=seed,
            device=device,
            batch_size=batch_size,
            workers=workers,
        )
    prototypes, batch = recipe.model.prototypes.count, recipe.training.batch_size
    content = ReportData(
        title=folder.path.resolve().name,
        subtitle=subtitle(recipe),
        verdict=judge(
            metrics,
            results,
            reachable=max_information(prototypes, batch),
            learned=recipe.assignment.title,
            use=gallery.use,
            run=run_folder,
            remedies=recipe.assignment.remedies(),
        ),
        notice=gallery.complaint and f"{gallery.complaint[0].upper()}{gallery.complaint[1:]}",
        facts=facts(recipe, metrics, None if run is None else run.checkpoint, len(skipped)),
        charts=curves(metrics, prototypes=prototypes, batch_size=batch),
        results=tuple(results),
        prototypes=gallery.prototypes,
        neighbours=gallery.neighbours,
        sampled=gallery.sampled,
        skipped=skipped,
        missing=tuple(missing),
        settings=settings(recipe),
    )
    path = folder.report if out is None else Path(out)
    write_text(path, render(content))
    return Written(path, gallery.complaint)


def _open(folder: RunFolder, missing: list[str]) -> LoadedRun | None:
    try:
        return load_run(folder.path)
    except (ValueError, OSError) as error:
        missing.append(f"Prototypes and neighbours: {error}.")
        return None


@dataclass(frozen=True)
class _Gallery:
    prototypes: tuple[Strip, ...] = ()
    neighbours: tuple[Strip, ...] = ()
    sampled: str = ""
    use: PrototypeUse | None = None
    complaint: str = ""


def _gallery(
    run: LoadedRun,
    source: PictureSource | None,
    data: str | Path | None,
    missing: list[str],
    *,
    pictures: int,
    seed: int,
    device: str | torch.device,
    batch_size: int,
    workers: int,
) -> _Gallery:
    """Prototypes and neighbours among a random sample of the pictures."""
    try:
        if source is None:
            source = open_data(run.recipe if data is None else _with_images(run.recipe, data))
        missing += [sentence] if (sentence := left_out(source)) else []
        chosen = np.sort(np.random.default_rng(seed).permutation(len(source))[:pictures])
        sample = PictureSubset(source, chosen)
        features = extract_features(
            run.backbone,
            sample,
            preprocessing=run.preprocessing,
            device=device,
            batch_size=batch_size,
            workers=workers,
        )
    except (ValueError, OSError) as error:
        missing.append(f"Prototypes and neighbours: {error}")
        here = command("report", run.folder.path if run.folder else "RUN", "DATA")
        return _Gallery(
            complaint=f"the page shows no images, because they cannot be read: {error}. If they have moved: {here}"
        )
    probs = torch.cat([run.prototype_logits(part).softmax(dim=1) for part in torch.split(features.features, 1024)])
    show = _Show(sample, features)
    several = f"{len(features):,} of {len(source):,}" if len(features) < len(source) else f"all {len(source):,}"
    return _Gallery(
        prototypes=tuple(
            Strip(
                f"Prototype {group.prototype}",
                f"{100 * group.share:.1f} % of the pictures"
                + ("" if group.purity is None else f" · {show.class_name(group.top_class)} {100 * group.purity:.0f} %"),
                show.pictures(group.members),
            )
            for group in largest_prototypes(probs, features.labels)
        ),
        neighbours=tuple(
            Strip(
                show.caption(one.query),
                f"similarity {one.similarities[0]:.2f} to {one.similarities[-1]:.2f}",
                show.pictures(one.neighbours),
                query=show.picture(one.query),
            )
            for one in random_neighbourhoods(features.features, seed=seed)
        ),
        sampled=f"Chosen among {several} pictures of {source.name}." + _origin_of(run.recipe, features),
        use=prototype_use(probs),
    )


def _with_images(recipe: Recipe, data: str | Path) -> Recipe:
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"source": absolute_spec(data)})})


def _origin_of(recipe: Recipe, features: Features) -> str:
    """Where the classes in captions come from, if there are any."""
    return " Classes are the names of folders." if features.classes and recipe.data.labels == "folder" else ""


@dataclass(frozen=True)
class _Show:
    """Rows of features as pictures with a caption."""

    source: PictureSource
    features: Features

    def class_name(self, label: int | None) -> str:
        return "" if label is None else self.source.classes[label]

    def caption(self, row: int) -> str:
        key, labels = self.features.keys[row], self.features.labels
        return key if labels is None else f"{key}: {self.class_name(int(labels[row]))}"

    def picture(self, row: int) -> Picture:
        try:
            picture = self.source.read(int(self.features.indices[row]))
        except UnreadablePicture:  # the file went away since its features were made
            picture = np.full((1, 1, 1), 128, np.uint8)
        return Picture(thumbnail(picture), self.caption(row))

    def pictures(self, rows: tuple[int, ...]) -> tuple[Picture, ...]:
        return tuple(self.picture(row) for row in rows)
