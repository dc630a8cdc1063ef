"""Using what a run has learned: load, embed, export, evaluate. One function per intent."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch import nn

from mira.data import PictureSource, open_source
from mira.evaluation.embed import write_embeddings
from mira.evaluation.export import write_backbone
from mira.evaluation.features import Features, extract_features
from mira.evaluation.protocol import Progress, evaluate_knn
from mira.evaluation.results import LEARNED, STUDENT, Result, append_results
from mira.model import create_backbone
from mira.model.exported import backbone_metadata, read_backbone
from mira.model.preprocessing import Preprocessing
from mira.training.resolve import resolve_device
from mira.training.run_folder import LoadedRun, load_run

Labels = Literal["auto", "folder", "none"]


def load_backbone(path: str | Path, *, which: str = "teacher") -> nn.Module:
    """A trained backbone, in evaluation mode on the CPU.

    Args:
        path: a run's folder, one of its checkpoints, or a file written by `export`.
        which: "teacher" or "student", where the file has both.

    Returns:
        A module from normalised pictures `[B, C, S, S]` to features `[B, D]`, with two more attributes:
        `num_features` (D) and `preprocessing` (a `Preprocessing`: what the pictures must look like).

    Raises:
        ValueError: nothing there that can be read.
    """
    backbone, preprocessing = _load(path, which)
    backbone.preprocessing = preprocessing  # type: ignore[assignment]
    return backbone


def embed(
    checkpoint: str | Path,
    data: str | Path,
    *,
    out: str | Path | None = None,
    split: str = "all",
    labels: Labels = "auto",
    which: str = "teacher",
    device: str = "auto",
    batch_size: int = 256,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Features:
    """Features of every readable picture.

    Args:
        checkpoint: as `load_backbone` takes it.
        data: a folder, "builtin:fashion" or "torchvision:NAME".
        out: also write them there, `.npz` or `.parquet`.
        split: "train", "test" or "all".
        labels: "folder" takes the first folder level as the class.
        which: "teacher" or "student".
        device: "auto" is a GPU where there is one.
        batch_size: pictures at a time.
        workers: processes that read pictures.
        progress: called with (pictures done, pictures in all).

    Raises:
        ValueError: checkpoint, pictures or output name cannot be used.
    """
    if out is not None and Path(out).suffix not in {".npz", ".parquet"}:
        raise ValueError(f"'{out}': embeddings are written as .npz or .parquet")
    backbone, preprocessing = _load(checkpoint, which)
    features = extract_features(
        backbone,
        open_source(str(data), split=split, labels=labels, channels=_channels(preprocessing)),
        preprocessing=preprocessing,
        device=resolve_device(device),
        batch_size=batch_size,
        workers=workers,
        progress=progress,
    )
    if out is not None:
        write_embeddings(features, out)
    return features


def export(checkpoint: str | Path, out: str | Path, *, which: str = "teacher") -> Path:
    """Write the backbone alone, under timm's names, as safetensors.

    Raises:
        ValueError: no checkpoint there, or `out` does not end in .safetensors.
    """
    run = load_run(checkpoint, which=which)
    metadata = backbone_metadata(
        run.recipe.model.backbone, run.preprocessing, crop_size=run.recipe.crops.global_crops.size
    )
    return write_backbone(run.backbone, out, metadata)


def evaluate(
    checkpoint: str | Path,
    data: str | Path | None = None,
    *,
    test: str | Path | None = None,
    labels: Labels = "auto",
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    fractions: Sequence[float] = (1.0, 0.1, 0.01),
    seed: int = 0,
    floors: bool = False,
    shift: int = 0,
    clusters: bool = False,
    which: str = "teacher",
    device: str = "auto",
    workers: int = 0,
    progress: Progress | None = None,
) -> list[Result]:
    """Weighted k-NN of a run's backbone, by the protocol of DINO (Caron et al. 2021).

    Args:
        checkpoint: a run's folder or checkpoint; results of a folder are added to its `results.jsonl`.
        data: labelled pictures whose train part is the bank; None for the run's own.
        test: a source of queries of its own; None for the test part of `data`.
        labels: "folder" takes the first folder level as the class.
        ks: numbers of neighbours.
        temperature: of the votes.
        fractions: shares of the labels used.
        seed: of the label subsets and the random backbone.
        floors: evaluate raw pixels and an untrained backbone too.
        shift: also with test pictures moved by up to so many pixels.
        clusters: also k-means and prototypes as clusters.
        which: "teacher" or "student".
        device: "auto" is a GPU where there is one.
        workers: processes that read pictures.
        progress: called with (what is read, pictures done, pictures in all).

    Raises:
        ValueError: no run there, pictures without labels, or a value out of range.
    """
    run = load_run(checkpoint, which=which)
    train_pictures, test_pictures = _parts(run, data, test, labels)
    settings = run.recipe.model.backbone.model_copy(update={"pretrained": False})
    results = evaluate_knn(
        run.backbone,
        train_pictures,
        test_pictures,
        preprocessing=run.preprocessing,
        ks=ks,
        temperature=temperature,
        fractions=fractions,
        seed=seed,
        floors=floors,
        untrained=lambda: create_backbone(settings, crop_size=run.recipe.crops.global_crops.size),
        shift=shift,
        clusters=clusters,
        prototype_logits=run.prototype_logits,
        checkpoint=f"{Path(checkpoint).resolve()} at step {run.step}",
        device=resolve_device(device),
        workers=workers,
        progress=progress,
    )
    if which == "student":
        results = [replace(r, features=STUDENT) if r.features == LEARNED else r for r in results]
    if run.folder is not None:
        append_results(run.folder.results, results)
    return results


def _parts(
    run: LoadedRun, data: str | Path | None, test: str | Path | None, labels: Labels
) -> tuple[PictureSource, PictureSource]:
    own = run.recipe.data
    source = own.source if data is None else str(data)
    labels = own.labels if data is None and labels == "auto" else labels
    channels = run.recipe.model.backbone.channels
    if test is None:
        return (
            open_source(source, split="train", labels=labels, channels=channels),
            open_source(source, split="test", labels=labels, channels=channels),
        )
    return (
        open_source(source, split="all", labels=labels, channels=channels),
        open_source(str(test), split="all", labels=labels, channels=channels),
    )


def _load(path: str | Path, which: str) -> tuple[nn.Module, Preprocessing]:
    if Path(path).suffix == ".safetensors":
        return read_backbone(path)
    run = load_run(path, which=which)
    return run.backbone, run.preprocessing


def _channels(preprocessing: Preprocessing) -> Literal[1, 3]:
    return 1 if preprocessing.channels == 1 else 3
