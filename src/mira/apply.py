"""Using what a run has learned: load, embed, export, evaluate. One function per intent."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, cast

from jaxtyping import Float
from torch import Tensor, nn

from mira.data.remarks import remarks
from mira.evaluation.cache import FeatureCache
from mira.evaluation.embed import write_embeddings
from mira.evaluation.export import write_backbone
from mira.evaluation.features import Features, Precision, every, extract_features
from mira.evaluation.pictures import open_labelled, open_pictures
from mira.evaluation.protocols import find_protocols, read_settings
from mira.evaluation.results import Result, ResultsNotKept, append_results, read_results
from mira.evaluation.runner import run_protocols
from mira.evaluation.subject import Compute, Progress
from mira.files import cache_folder, refuse_unwritable
from mira.model.exported import backbone_metadata
from mira.model.preprocessing import Preprocessing
from mira.opening import open_subject
from mira.training.recipe import DataSettings
from mira.training.resolve import resolve_device
from mira.training.run_folder import RunFolder, load_run

Labels = Literal["auto", "folder", "none"]
Which = Literal["teacher", "student"]

if TYPE_CHECKING:

    class Backbone(nn.Module):
        """What `load_backbone` gives: at run time a plain module (of timm or torchvision) with these attributes."""

        num_features: int
        preprocessing: Preprocessing

        def __call__(self, images: Float[Tensor, "B C S S"]) -> Float[Tensor, "B D"]:
            """Features of normalized images."""
            ...
else:
    Backbone = nn.Module


def load_backbone(path: str | Path, *, which: Which = "teacher", **opening: Any) -> Backbone:
    """A trained backbone, in evaluation mode on the CPU.

    Args:
        path: a run's folder, one of its checkpoints, a file written by `export`, or other people's weights: what
            `mira.opening.open_subject` takes.
        which: "teacher" or "student", where the file has both.
        opening: further arguments of `open_subject`, such as `architecture`.

    Returns:
        A module from normalized images `[B, C, S, S]` to features `[B, D]`, with two more attributes: `num_features`
        (D) and `preprocessing`, which turns an image into the input: `backbone(backbone.preprocessing(image)[None])`.

    Raises:
        ValueError: nothing there that can be read.
    """
    subject = open_subject(path, which=which, **opening)
    backbone = cast(Backbone, subject.backbone)
    backbone.preprocessing = subject.preprocessing
    return backbone


def embed(
    checkpoint: str | Path,
    data: str | Path,
    *,
    out: str | Path | None = None,
    split: str = "all",
    labels: Labels = "auto",
    which: Which = "teacher",
    device: str = "auto",
    batch_size: int = 256,
    workers: int = 0,
    precision: Precision = "float32",
    progress: Callable[[int, int], None] | None = None,
    **opening: Any,
) -> Features:
    """Features of every readable picture.

    Args:
        checkpoint: as `load_backbone` takes it.
        data: what `mira.open_source` takes: a folder, tar or Parquet files, "hf:NAME", "torchvision:NAME", ...
        out: also write them there, `.npz` or `.parquet`.
        split: "train", "test" or "all".
        labels: "folder" takes the first folder level as the class; "auto" the set's own labels, else the folders.
        which: "teacher" or "student".
        device: "auto" is a GPU where there is one; all GPUs, where "auto" or "cuda" finds several, share the pass.
        batch_size: pictures at a time.
        workers: processes that read pictures.
        precision: of the backbone; "bfloat16" and "float16" are autocast.
        progress: called with (pictures done, pictures in all).
        opening: further arguments of `mira.opening.open_subject`, such as `architecture`.

    Raises:
        ValueError: checkpoint, pictures or output name cannot be used.
    """
    if out is not None:
        if Path(out).suffix not in {".npz", ".parquet"}:
            raise ValueError(f"'{out}': embeddings are written as .npz or .parquet")
        refuse_unwritable(Path(out))
    subject = open_subject(checkpoint, which=which, **opening)
    source = open_labelled(str(data), split=split, labels=labels, channels=_channels(subject.preprocessing))
    for remark in remarks(source):
        warnings.warn(remark, stacklevel=2)
    features = extract_features(
        subject.backbone,
        source,
        preprocessing=subject.preprocessing,
        device=every(resolve_device(device)),
        batch_size=batch_size,
        workers=workers,
        precision=precision,
        progress=progress,
    )
    if out is not None:
        write_embeddings(features, out)
    return features


def export(checkpoint: str | Path, out: str | Path, *, which: Which = "teacher") -> Path:
    """Write the backbone alone, under timm's names, as safetensors.

    Raises:
        ValueError: no checkpoint there, or `out` does not end in .safetensors.
    """
    run = load_run(checkpoint, which=which)
    metadata = backbone_metadata(
        run.recipe.model.backbone,
        run.preprocessing,
        crop_size=run.recipe.crops.global_crops.size,
        weights=run.backbone.state_dict(),
    )
    return write_backbone(run.backbone, out, metadata)


def evaluate(
    checkpoint: str | Path,
    protocols: str = "knn",
    data: str | Path | None = None,
    *,
    test: str | Path | None = None,
    labels: Labels = "auto",
    seeds: int | Sequence[int] = (0,),
    floors: bool = False,
    which: Which = "teacher",
    opening: Mapping[str, Any] = MappingProxyType({}),
    results: str | Path | None = None,
    resume: bool = False,
    cache: bool | str | Path = True,
    device: str = "auto",
    precision: Precision = "float32",
    inference_batch_size: int = 256,
    workers: int = 0,
    progress: Progress | None = None,
    **settings: Any,
) -> list[Result]:
    """Measure a backbone by one protocol or several, and keep every result as soon as it is there.

    Args:
        checkpoint: as `load_backbone` takes it.
        protocols: one or several of `mira.evaluation.protocols.PROTOCOLS`, such as "knn" or "knn,clusters,health";
            they share one pass over the pictures.
        data: labelled pictures: the train part to learn from, the test part to measure on; None for the run's own.
        test: pictures of their own to measure on, instead of the test part of `data`.
        labels: "folder" takes the first folder level as the class; "auto" the set's own labels, else the folders.
        seeds: repeat everything that is drawn (label subsets, starts, the random backbone) for each of them.
        floors: evaluate raw pixels and an untrained backbone too.
        which: "teacher" or "student", where the file has both.
        opening: further arguments of `mira.opening.open_subject`, such as `{"architecture": "resnet50"}`.
        results: a file of JSON lines to add the results to; None for `results.jsonl` of a run's folder, and for no
            file where the checkpoint is not one.
        resume: take over what that file already has for the same protocol, settings, weights, pictures and seed.
        cache: keep features for later calls in the usual folder (`mira.files.cache_folder`), in one of
            your own, or, with False, only until this call ends.
        device: "auto" is a GPU where there is one; where "auto" or "cuda" finds several, they share each pass.
        precision: of the backbone; "bfloat16" and "float16" are autocast.
        inference_batch_size: pictures at a time where nothing is trained.
        workers: processes that read pictures.
        progress: called with (what is done, how much of it is done, how much there is).
        settings: of the protocols, such as `k=20` or `k=[10, 20]`; each goes to all that have a setting of this name.

    Raises:
        ValueError: nothing to evaluate there, pictures that the protocol cannot use, or a value out of range.
        OSError: the results cannot be written, said before anything is computed. Where it only turns out later, as
            on a disk that fills up, it is a `ResultsNotKept`, which holds them.
    """
    chosen = find_protocols(protocols)
    values = read_settings(chosen, settings)
    seeds = [seeds] if isinstance(seeds, int) else seeds
    if len(seeds) == 0 or min(seeds) < 0:
        raise ValueError(f"seeds must be at least one number, and none below 0, as seeds=[0]; not {list(seeds)}.")
    subject = open_subject(checkpoint, which=which, **opening)
    openers = {protocol.load().open for protocol in chosen}
    if len(openers) > 1:
        raise ValueError(f"{protocols}: not all of them are measured on the same pictures; name them one by one.")
    if data is None:
        if open_pictures not in openers:
            raise ValueError(f"{protocols}: name the folder of its data sets; the pictures of a run do not serve it.")
        own = _own_data(checkpoint)
        data, labels = own.source, own.labels if labels == "auto" else labels
    pictures = openers.pop()(str(data), None if test is None else str(test), labels, _channels(subject.preprocessing))
    folder = RunFolder(Path(checkpoint))
    chosen_file = folder.results if results is None and folder.checkpoints.is_dir() else results
    file = None if chosen_file is None else _KeptResults(Path(chosen_file))
    earlier: dict[str, list[Result]] = {}
    for result in read_results(file.path) if resume and file is not None else ():
        same = earlier.setdefault(result.task, [])
        if same and same[-1].time != result.time:  # made again: the last call counts
            same.clear()
        same.append(result)
    with ExitStack() as stack:
        if cache is False:
            cache = stack.enter_context(TemporaryDirectory(prefix="mira-features-"))
        found = run_protocols(
            subject,
            pictures,
            {protocol: values[protocol.name] for protocol in chosen},
            seeds=seeds,
            floors=floors,
            compute=Compute(
                device=resolve_device(device),
                precision=precision,
                batch_size=inference_batch_size,
                workers=workers,
                progress=progress,
                cache=FeatureCache(cache_folder("features") if cache is True else Path(cache)),
            ),
            keep=lambda new: None if file is None else file.keep(new),
            finished=earlier,
            state=None if file is None else file.state,
        )
    if file is not None and file.error is not None:
        raise ResultsNotKept(
            f"{file.error}. Not all of these results are kept: name another file with --results", found
        )
    return found


class _KeptResults:
    """A file that results are added to. One that cannot be written is refused at once; one that fails later is
    remembered, for what was measured in hours is worth more than the place where it is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.error: OSError | None = None
        try:
            refuse_unwritable(path)
        except OSError as error:
            raise OSError(f"results cannot be kept: {error}. Name another file with --results") from error

    @property
    def state(self) -> Path | None:
        """Where long protocols keep how far they are; nowhere beside what is no file, such as /dev/stdout."""
        return self.path.with_suffix(".state") if not self.path.exists() or self.path.is_file() else None

    def keep(self, new: Sequence[Result]) -> None:
        try:
            append_results(self.path, new)
        except OSError as error:
            self.error = error
            warnings.warn(f"{error}; the results are shown at the end", stacklevel=2)


def _own_data(checkpoint: str | Path) -> DataSettings:
    """The pictures of a run."""
    try:
        return load_run(checkpoint).recipe.data
    except ValueError as error:
        raise ValueError(f"{checkpoint} has no pictures of its own: name some") from error


def _channels(preprocessing: Preprocessing) -> Literal[1, 3]:
    return 1 if preprocessing.channels == 1 else 3
