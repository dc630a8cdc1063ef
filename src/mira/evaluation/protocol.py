"""The k-NN protocol, with its floors: one call from a backbone and two sources to results."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mira.data import PictureSource
from mira.evaluation import clusters as agreement
from mira.evaluation.features import Features, Precision, extract_features
from mira.evaluation.floors import ShiftedSource, random_backbone, raw_pixels
from mira.evaluation.kmeans import kmeans
from mira.evaluation.knn import knn_accuracy
from mira.evaluation.results import LEARNED, PIXELS, RANDOM, Result
from mira.evaluation.subsets import labelled_subset
from mira.model.preprocessing import Preprocessing

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Kind:
    """One kind of features: of the training pictures, and of the test pictures by how far they were moved."""

    name: str
    bank: Features
    tests: dict[int, Features]


def evaluate_knn(
    backbone: nn.Module,
    train: PictureSource,
    test: PictureSource,
    *,
    preprocessing: Preprocessing,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    fractions: Sequence[float] = (1.0, 0.1, 0.01),
    seed: int = 0,
    floors: bool = False,
    untrained: Callable[[], nn.Module] | None = None,
    shift: int = 0,
    clusters: bool = False,
    prototype_logits: Callable[[Tensor], Tensor] | None = None,
    checkpoint: str = "",
    device: str | torch.device = "cpu",
    batch_size: int = 256,
    workers: int = 0,
    precision: Precision = "float32",
    progress: Progress | None = None,
) -> list[Result]:
    """Weighted k-NN of the test pictures among the training pictures, on frozen features.

    Args:
        ks: numbers of neighbours. One that exceeds the labelled pictures is skipped, and its result says so.
        fractions: shares of the labels, drawn evenly from the classes by `seed`.
        floors: evaluate raw pixels under the same protocol as well, and a random backbone where `untrained`
            is given.
        untrained: builds a backbone of the same architecture with random weights.
        shift: also evaluate test pictures moved by up to so many pixels (see `ShiftedSource`).
        clusters: also compare k-means clusters of the test features, as many as there are classes, with the
            labels; and those of the prototypes where `prototype_logits` is given.
        prototype_logits: [B, D] features to [B, K] logits; a picture's cluster is the highest one.
        checkpoint: where the backbone came from; kept in the results.
        progress: called with (what is being read, pictures done, pictures in all).

    Raises:
        ValueError: a source without labels or with only one class, sources with different classes, or a
            setting out of range.
    """
    _check_sources(train, test)
    if not ks or not fractions:
        raise ValueError("ks and fractions must each name at least one value.")

    def extract(model: nn.Module, source: PictureSource, what: str) -> Features:
        return extract_features(
            model,
            source,
            preprocessing=preprocessing,
            device=device,
            batch_size=batch_size,
            workers=workers,
            precision=precision,
            progress=None if progress is None else lambda done, total: progress(what, done, total),
        )

    tests: dict[int, PictureSource] = {0: test}
    if shift:
        tests[shift] = ShiftedSource(test, shift, seed)

    def every_kind() -> Iterator[_Kind]:
        # One kind at a time, so that only one set of features is in memory.
        if floors:
            bank, *moved = raw_pixels(
                train, *tests.values(), preprocessing=preprocessing, batch_size=batch_size, workers=workers
            )
            yield _Kind(PIXELS, bank, dict(zip(tests, moved, strict=True)))
        models = [(LEARNED, backbone)]
        if floors and untrained is not None:
            models.insert(0, (RANDOM, random_backbone(untrained, seed=seed)))
        for name, model in models:
            bank = extract(model, train, f"{name}, training pictures")
            yield _Kind(
                name,
                bank,
                {moved: extract(model, source, f"{name}, test pictures") for moved, source in tests.items()},
            )

    results = []
    for kind in every_kind():
        for moved, queries in kind.tests.items():
            common = Result(
                protocol="k-NN",
                features=kind.name,
                metric="top-1",
                value=None,
                k=0,
                temperature=None,
                fraction=1.0,
                shift=moved,
                seed=seed,
                data=test.name,
                bank_size=len(kind.bank),
                query_size=len(queries),
                unreadable=len(kind.bank.unreadable) + len(queries.unreadable),
                checkpoint=checkpoint,
            )
            for fraction in fractions:
                settings = replace(common, fraction=fraction)
                results += _knn(kind.bank, queries, ks, temperature, settings, device)
            if clusters:
                logits = prototype_logits if kind.name == LEARNED else None
                results += _clusters(queries, logits, replace(common, bank_size=0), device)
    return results


def _knn(
    bank: Features,
    queries: Features,
    ks: Sequence[int],
    temperature: float,
    common: Result,
    device: str | torch.device,
) -> list[Result]:
    """k-NN at one fraction of the labels."""
    assert bank.labels is not None  # see _check_sources
    kept = labelled_subset(bank.labels, common.fraction, seed=common.seed)
    common = replace(common, bank_size=len(kept), temperature=temperature)
    possible = [k for k in ks if k <= len(kept)]
    accuracies: dict[int, float] = {}
    if possible:
        few = bank.rows(kept).to(device)
        asked = queries.to(device)
        accuracies = knn_accuracy(
            few.features, few.labels, asked.features, asked.labels, k=possible, temperature=temperature
        )
    skipped = ", ".join(str(k) for k in ks if k not in accuracies)
    note = f"k {skipped}: left out with {100 * common.fraction:g} % of the labels, which are {len(kept)} pictures."
    return [replace(common, k=k, value=accuracies.get(k), note="" if k in accuracies else note) for k in ks]


def _clusters(
    features: Features,
    prototype_logits: Callable[[Tensor], Tensor] | None,
    common: Result,
    device: str | torch.device,
) -> list[Result]:
    """Agreement of k-means clusters with the labels, and of prototypes where there are any."""
    assert features.labels is not None
    classes = len(set(features.labels.tolist()))
    found = kmeans(features.features.to(device), classes, seed=common.seed)
    table = agreement.contingency(features.labels, found.assignments.cpu())
    common = replace(common, protocol="k-means", k=classes)
    results = [
        replace(common, metric="NMI", value=100 * agreement.normalised_mutual_information(table)),
        replace(common, metric="ARI", value=100 * agreement.adjusted_rand_index(table)),
        replace(common, metric="Hungarian accuracy", value=100 * agreement.hungarian_accuracy(table)),
    ]
    if prototype_logits is not None:
        assignments, count = prototype_assignments(features.features, prototype_logits)
        table = agreement.contingency(features.labels, assignments)
        common = replace(common, protocol="prototypes", k=count)
        results += [
            replace(common, metric="NMI", value=100 * agreement.normalised_mutual_information(table)),
            replace(common, metric="purity", value=100 * agreement.majority_accuracy(table)),
        ]
    return results


@torch.inference_mode()
def prototype_assignments(
    features: Float[Tensor, "N D"],
    prototype_logits: Callable[[Tensor], Tensor],
    *,
    batch_size: int = 1024,
) -> tuple[Int64[Tensor, " N"], int]:
    """The most probable prototype of every picture, and how many prototypes there are."""
    parts = [prototype_logits(part) for part in torch.split(features, batch_size)]
    return torch.cat([logits.argmax(dim=1) for logits in parts]), parts[0].shape[1]


def _check_sources(train: PictureSource, test: PictureSource) -> None:
    for role, source in (("training", train), ("test", test)):
        if source.labels is None:
            raise ValueError(
                f"k-NN needs labels and the {role} pictures of {source.name} have none: if the first folder "
                "level is the class, open them with labels='folder'."
            )
    if tuple(train.classes) != tuple(test.classes):
        raise ValueError(
            f"training and test pictures have different classes ({_few(train.classes)} and "
            f"{_few(test.classes)}): use two parts of one data set."
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f", ... {len(names)} in all" if len(names) > 3 else "")
