"""The protocols of `mira evaluate`. Adding one is a file of its own, a function below, and a line in `PROTOCOLS`."""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pydantic import ValidationError

    from mira.evaluation.results import Result
    from mira.evaluation.subject import Score
    from mira.settings import Settings


class Loaded(NamedTuple):
    """A protocol, imported.

    Attributes:
        settings: its values, with the published ones as defaults.
        evaluate: `(subject, *pictures, settings, *, seed, compute) -> scores`.
        open: `(data, test, labels, channels) -> pictures`, what it is measured on from what a person names.
        resumable: it also takes `folder`, where it keeps the state of a training that was stopped.
        pixels: raw pixels can stand in the place of features.
        parts: `settings -> settings` of calls of their own, where the results of each are kept when it is done.
        whole: what the scores of all parts together give.
        depends: `(settings, *pictures) -> texts`, what else than these its results depend on, such as files.
    """

    settings: type["Settings"]
    evaluate: "Callable[..., list[Score]]"
    open: Callable[..., tuple[Any, ...]]
    resumable: bool = False
    pixels: bool = True
    parts: Callable[[Any], Sequence[Any]] = lambda settings: [settings]
    whole: "Callable[[Sequence[Score | Result]], Score] | None" = None
    depends: Callable[..., Iterable[str]] = lambda *_: ()


@dataclass(frozen=True)
class Protocol:
    """One protocol.

    Attributes:
        name: on the command line and in results.
        title: in tables.
        help: one line for a person who chooses.
        load: imports it; only then are its libraries loaded.
    """

    name: str
    title: str
    help: str
    load: Callable[[], Loaded]


def _knn() -> Loaded:
    from mira.evaluation.knn import KnnSettings, evaluate_knn
    from mira.evaluation.pictures import open_pictures

    return Loaded(KnnSettings, evaluate_knn, open_pictures)


def _linear() -> Loaded:
    from mira.evaluation.linear import LinearSettings, evaluate_linear
    from mira.evaluation.pictures import open_pictures

    return Loaded(LinearSettings, evaluate_linear, open_pictures, resumable=True)


def _linear_fast() -> Loaded:
    from mira.evaluation.linear_fast import LinearFastSettings, evaluate_linear_fast
    from mira.evaluation.pictures import open_pictures

    return Loaded(LinearFastSettings, evaluate_linear_fast, open_pictures)


def _logistic() -> Loaded:
    from mira.evaluation.logistic import LogisticSettings, evaluate_logistic
    from mira.evaluation.pictures import open_pictures

    return Loaded(LogisticSettings, evaluate_logistic, open_pictures)


def _semi_supervised() -> Loaded:
    from mira.evaluation.pictures import open_pictures
    from mira.evaluation.semi_supervised import SemiSupervisedSettings, evaluate_semi_supervised, list_contents

    return Loaded(
        SemiSupervisedSettings, evaluate_semi_supervised, open_pictures, resumable=True, depends=list_contents
    )


def _transfer() -> Loaded:
    from mira.evaluation.pictures import open_data_folder
    from mira.evaluation.transfer import TransferSettings, evaluate_set, mean_of_sets, one_set_each, set_files

    return Loaded(
        TransferSettings, evaluate_set, open_data_folder, parts=one_set_each, whole=mean_of_sets, depends=set_files
    )


def _detection() -> Loaded:
    from mira.evaluation.detection.protocol import evaluate_detection
    from mira.evaluation.detection.settings import DetectionSettings
    from mira.evaluation.pictures import open_boxes

    return Loaded(DetectionSettings, evaluate_detection, open_boxes, resumable=True, pixels=False)


def _segmentation() -> Loaded:
    from mira.evaluation.detection.protocol import evaluate_segmentation
    from mira.evaluation.detection.settings import SegmentationSettings
    from mira.evaluation.pictures import open_masks

    return Loaded(SegmentationSettings, evaluate_segmentation, open_masks, resumable=True, pixels=False)


def _clusters() -> Loaded:
    from mira.evaluation.clusters import ClusterSettings, evaluate_clusters
    from mira.evaluation.pictures import open_pictures

    return Loaded(ClusterSettings, evaluate_clusters, open_pictures)


def _health() -> Loaded:
    from mira.evaluation.health import HealthSettings, evaluate_health
    from mira.evaluation.pictures import open_pictures

    return Loaded(HealthSettings, evaluate_health, open_pictures)


PROTOCOLS = (
    Protocol("knn", "k-NN", "weighted k nearest neighbours, with all and with few labels", _knn),
    Protocol("linear", "linear probe", "a linear classifier on the frozen backbone, with augmentation (slow)", _linear),
    Protocol(
        "linear-fast", "linear probe, fast", "a grid of linear classifiers on features, in one pass", _linear_fast
    ),
    Protocol("logistic", "logistic regression", "by L-BFGS on features, with a sweep of the penalty", _logistic),
    Protocol(
        "semi-supervised", "fine-tuning", "of a copy of the backbone, with 1 % and 10 % of labels", _semi_supervised
    ),
    Protocol("transfer", "transfer", "logistic regression on the eleven data sets below a folder", _transfer),
    Protocol("detection", "detection", "Faster R-CNN from the backbone, on VOC or data in COCO's format", _detection),
    Protocol("segmentation", "segmentation", "Mask R-CNN from the backbone, on data in COCO's format", _segmentation),
    Protocol("clusters", "clusters", "k-means and prototypes against the labels: NMI, AMI, ARI, accuracy", _clusters),
    Protocol("health", "health", "without labels: RankMe, alpha-ReQ, label information, prototypes in use", _health),
)


def find_protocols(names: str) -> tuple[Protocol, ...]:
    """The protocols that "knn" or "knn,health" names, in that order, each once.

    Raises:
        ValueError: there is none of a name.
    """
    known = {protocol.name: protocol for protocol in PROTOCOLS}
    asked = list(dict.fromkeys(name.strip() for name in names.split(",")))
    for name in asked:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}"
            raise ValueError(f"there is no protocol '{name}': {hint}")
    return tuple(known[name] for name in asked)


def read_settings(protocols: Iterable[Protocol], values: Mapping[str, Any]) -> dict[str, "Settings"]:
    """The settings of each protocol, by its name: each value goes to every protocol that has a setting of its name.

    Raises:
        ValueError: a value that none of the protocols has, or one out of range.
    """
    from pydantic import ValidationError

    classes = {protocol.name: protocol.load().settings for protocol in protocols}
    known = {name for settings in classes.values() for name in settings.model_fields}
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(sorted(known))}"
            raise ValueError(f"there is no setting '{name}' of {' or '.join(classes)}: {hint}")
    found = {}
    for protocol, settings in classes.items():
        own = {name: _listed(value, settings, name) for name, value in values.items() if name in settings.model_fields}
        try:
            found[protocol] = settings.model_validate(own)
        except ValidationError as error:
            raise ValueError(f"{protocol}: {'; '.join(_sentences(error))}") from None
    return found


def _listed(value: Any, settings: type["Settings"], name: str) -> Any:
    """A single value of a setting that takes several stands for a list of one: `k=20`."""
    from mira.settings import plain_types

    single = isinstance(value, int | float | str)
    return [value] if single and plain_types(settings.model_fields[name].annotation) & {tuple, list} else value


def _sentences(error: "ValidationError") -> list[str]:
    """One for each setting that is wrong; complaints about a list whose values are wrong say nothing more."""
    from mira.settings import requirement, shortened

    found: dict[str, str] = {}
    for problem in error.errors():
        key = ".".join(map(str, problem["loc"][:1]))
        if problem["type"] == "value_error":
            text = f"{key}: {problem['msg'].removeprefix('Value error, ')}".removeprefix(": ")
        else:
            text = f"{key.replace('_', '-')} must {requirement(problem)}, not {shortened(problem['input'])}"
        found.setdefault(key, text)
    return list(found.values())
