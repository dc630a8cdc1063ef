"""What holds for every protocol of the list: it can be called with small settings, and it leaves the backbone alone."""

import copy
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_objects import write_coco
from drawn_sets import write_dtd
from tiny import write_pictures

from mira.cli.evaluate import protocol_parser
from mira.evaluation.protocols import PROTOCOLS, find_protocols, read_settings
from mira.evaluation.results import PIXELS, RANDOM
from mira.evaluation.runner import run_protocols, task_digest
from mira.evaluation.subject import Compute, Subject
from mira.model import BackboneSettings, Preprocessing, create_backbone
from mira.model.head import PrototypeLogits

DETECTOR = {
    "iterations": 1,
    "batch_size": 2,
    "warmup": 1,
    "train_sizes": (64,),
    "test_size": 64,
    "longest": 96,
    "precise_batches": 1,
    "anchors": (12, 18, 24, 32, 40),
    "pyramid_width": 8,
    "head_width": 16,
    "boxes_per_picture": 16,
}
SMALL = {
    "knn": {"k": (1, 3), "fractions": (1.0, 0.5)},
    "linear": {"epochs": 1, "batch_size": 8},
    "linear-fast": {"epochs": 2, "batch_size": 8},
    "logistic": {"penalties": 2},
    "semi-supervised": {"epochs": 1, "fractions": (0.5,), "learning_rates": (0.01,), "head_learning_rates": (0.1,)},
    "transfer": {"sets": ("dtd",), "penalties": 2, "max_iterations": 20},
    "detection": DETECTOR,
    "segmentation": DETECTOR,
    "clusters": {},
    "health": {},
}


def labelled(folder: Path) -> Path:
    write_pictures(folder / "train", 24, side=32)
    return write_pictures(folder / "val", 12, side=32, seed=1).parent


def objects(folder: Path) -> Path:
    write_coco(folder, "train", 4, side=64, seed=1)
    write_coco(folder, "val", 2, side=64, seed=2)
    return folder


def sets(folder: Path) -> Path:
    write_dtd(folder, np.random.default_rng(0))
    return folder


DATA: dict[str, Callable[[Path], Path]] = {"transfer": sets, "detection": objects, "segmentation": objects}


@pytest.fixture
def subject() -> Subject:
    torch.manual_seed(0)
    options = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
    backbone = create_backbone(BackboneSettings(name="resnet18", stem="standard", options=options), crop_size=64)
    preprocessing = Preprocessing(64, 64, 3, (0.5,) * 3, (0.25,) * 3)
    # As `open_subject` gives it.
    backbone.eval().requires_grad_(False)
    head = PrototypeLogits(torch.nn.Identity(), torch.randn(5, 8), temperature=0.1)
    return Subject("tiny", backbone, preprocessing, "here", head)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
def test_leaves_the_backbone_bit_for_bit_and_in_evaluation_mode(protocol, subject: Subject, tmp_path: Path) -> None:
    loaded = protocol.load()
    data = DATA.get(protocol.name, labelled)(tmp_path / "data")
    pictures = loaded.open(str(data), None, "folder" if data.name == "data" else "auto", 3)
    settings = read_settings([protocol], SMALL[protocol.name])
    names = list(subject.backbone.state_dict())
    before = [value.clone() for value in subject.backbone.state_dict().values()]
    results = run_protocols(
        subject, pictures, {protocol: settings[protocol.name]}, compute=Compute(), state=tmp_path / "state"
    )
    assert list(subject.backbone.state_dict()) == names
    for value, old in zip(subject.backbone.state_dict().values(), before, strict=True):
        assert value.dtype == old.dtype
        assert value.numpy().tobytes() == old.numpy().tobytes()
    assert not any(module.training for module in subject.backbone.modules())
    assert not any(one.requires_grad or one.grad is not None for one in subject.backbone.parameters())
    assert results
    assert not (tmp_path / "state").exists()
    for one in results:
        assert json.loads(json.dumps(one.settings)) == one.settings
        assert (one.preprocessing["size"], one.preprocessing["interpolation"], one.precision) == (
            64,
            "bicubic",
            "float32",
        )
        assert one.value is not None or one.note


@pytest.mark.parametrize("name", ["transfer", "detection"])
def test_floors_beside_protocols_with_pictures_of_their_own(name: str, subject: Subject, tmp_path: Path) -> None:
    [protocol] = find_protocols(name)
    data = DATA[name](tmp_path / "data")
    settings = read_settings([protocol], SMALL[name])[name]
    network = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
    known = replace(
        subject,
        untrained=lambda: create_backbone(
            BackboneSettings(name="resnet18", stem="standard", options=network), crop_size=64
        ),
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        results = run_protocols(
            known,
            protocol.load().open(str(data), None, "auto", 3),
            {protocol: settings},
            floors=True,
            compute=Compute(),
        )
    without_pixels = [str(one.message) for one in said if "raw pixels" in str(one.message)]
    assert {one.features for one in results} == {RANDOM, "tiny", *([] if without_pixels else [PIXELS])}
    assert bool(without_pixels) == (name == "detection")


class TestTask:
    """What a call is called decides what `--resume` takes over."""

    def digest(self, subject: Subject, pictures, name: str = "transfer", precision: str = "float32") -> str:
        [protocol] = find_protocols(name)
        return task_digest(protocol, read_settings([protocol], SMALL[name])[name], subject, pictures, 0, precision)

    def test_a_data_set_that_was_not_there_before(self, subject: Subject, tmp_path: Path) -> None:
        before = self.digest(subject, (tmp_path,))
        assert self.digest(subject, (tmp_path,)) == before
        write_dtd(tmp_path, np.random.default_rng(0))
        assert self.digest(subject, (tmp_path,)) != before

    def test_a_download_that_is_allowed_is_the_same_call(self, subject: Subject, tmp_path: Path) -> None:
        [protocol] = find_protocols("transfer")
        plain, allowed = (
            read_settings([protocol], SMALL["transfer"] | {"download": allowed})["transfer"]
            for allowed in (False, True)
        )
        assert task_digest(protocol, plain, subject, (tmp_path,), 0, "float32") == task_digest(
            protocol, allowed, subject, (tmp_path,), 0, "float32"
        )

    def test_other_prototypes_and_another_precision(self, subject: Subject, tmp_path: Path) -> None:
        other = replace(subject, prototype_logits=PrototypeLogits(torch.nn.Identity(), torch.eye(8), temperature=0.1))
        sharper = replace(subject, prototype_logits=copy.deepcopy(subject.prototype_logits))
        sharper.prototype_logits.temperature = 0.07
        names = {self.digest(one, (tmp_path,)) for one in (subject, other, sharper)}
        assert len(names | {self.digest(subject, (tmp_path,), precision="bfloat16")}) == 4


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
def test_every_setting_is_an_option_with_a_description(protocol) -> None:
    parser = protocol_parser([protocol])
    text = " ".join(parser.format_help().split())
    for name, field in protocol.load().settings.model_fields.items():
        assert field.description, name
        assert f"--{name.replace('_', '-')}" in text
    given = parser.parse_args(["somewhere"])
    assert read_settings([protocol], {}) == {protocol.name: protocol.load().settings()}
    assert all(getattr(given, name) is None for name in protocol.load().settings.model_fields)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
def test_options_say_what_python_says(protocol) -> None:
    values = SMALL[protocol.name]
    words: list[str] = []
    for name, value in values.items():
        words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
    given = vars(protocol_parser([protocol]).parse_args(["somewhere", *words]))
    assert read_settings([protocol], {name: given[name] for name in values}) == read_settings([protocol], values)


def test_all_together_have_one_parser() -> None:
    everything = ",".join(protocol.name for protocol in PROTOCOLS)
    assert protocol_parser(find_protocols(everything)).parse_args(["somewhere"]).checkpoint == "somewhere"
    assert set(SMALL) == {protocol.name for protocol in PROTOCOLS}


def test_a_list_that_has_changed_is_another_call(subject: Subject, tmp_path: Path) -> None:
    names = tmp_path / "some.txt"
    [protocol] = find_protocols("semi-supervised")
    values = {"lists": (str(names),), "learning_rates": (0.1,), "head_learning_rates": (0.1,)}
    settings = read_settings([protocol], values)[protocol.name]
    digests = set()
    for content in ("a.jpg\n", "a.jpg\nb.jpg\n"):
        names.write_text(content)
        digests.add(task_digest(protocol, settings, subject, (tmp_path / "pictures",), 0, "float32"))
    assert len(digests) == 2
