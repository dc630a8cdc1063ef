"""Networks of libraries: published weights of timm and torchvision, and untrained ones."""

from collections.abc import Callable

from mira.evaluation.floors import random_backbone
from mira.evaluation.subject import Subject
from mira.model.foreign.architectures import timm_architecture, timm_data_config
from mira.model.foreign.torchvision_models import create_torchvision_backbone, find_weights
from mira.model.preprocessing import Preprocessing
from mira.offline import fetching
from mira.opening.opened import Opened


def _open_timm(name: str) -> Opened:
    network = timm_architecture(name, pretrained=True)
    spec = f"timm:{name}"
    backbone = network.build()
    untrained = timm_architecture(name).build
    return Opened(Subject(spec, backbone, _timm_preprocessing(name), spec, untrained=untrained), "timm", "", name)


def _open_torchvision(spec: str) -> Opened:
    name, _, version = spec.partition("@")
    weights = find_weights(name, version or "DEFAULT")
    otherwise = "name a file of weights that you have in place of them"
    with fetching(f"the weights of 'torchvision:{spec}'", otherwise, hub=False):
        backbone, classifier = create_torchvision_backbone(name, weights)
    expected = weights.transforms()
    preprocessing = Preprocessing(
        size=expected.crop_size[0],
        resize=expected.resize_size[0],
        channels=3,
        mean=tuple(expected.mean),
        std=tuple(expected.std),
        interpolation="bilinear" if expected.interpolation.value == "bilinear" else "bicubic",
    )
    subject = Subject(
        name=f"torchvision:{spec}",
        backbone=backbone,
        preprocessing=preprocessing,
        checkpoint=f"torchvision:{name}@{weights.name}",
        untrained=lambda: create_torchvision_backbone(name)[0],
    )
    return Opened(subject, "torchvision", "", name, (classifier,))


def _open_random(spec: str) -> Opened:
    name, _, seed = spec.partition("@")
    if seed and not seed.isdigit():
        raise ValueError(
            f"'random:{spec}': write random:NAME or random:NAME@SEED with a whole number, as in random:{name}@0"
        )
    build = timm_architecture(name).build
    subject = Subject(
        name=f"random:{spec}",
        backbone=random_backbone(build, seed=int(seed or 0)),
        preprocessing=_timm_preprocessing(name),
        checkpoint=f"random:{name}@{int(seed or 0)}",
        untrained=build,
    )
    return Opened(subject, "random", "", name)


LIBRARIES: dict[str, Callable[[str], Opened]] = {
    "timm": _open_timm,
    "torchvision": _open_torchvision,
    "random": _open_random,
}


def _timm_preprocessing(name: str) -> Preprocessing:
    config = timm_data_config(name)
    channels, _, size = config["input_size"]
    # Rounded as timm's own evaluation does.
    resize = int(size / config["crop_pct"])
    return Preprocessing(
        size,
        resize,
        channels,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
    )
