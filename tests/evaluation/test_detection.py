"""Detection transfer as a whole: what it starts from, that it repeats and resumes."""

from pathlib import Path

import pytest
import torch
from drawn_objects import write_coco
from torch import nn

import mira._torchvision  # noqa: F401  isort: skip
import timm  # isort: skip

from mira.evaluation.detection import open_detection, read_coco
from mira.evaluation.detection.model import build_detector
from mira.evaluation.detection.protocol import evaluate_detection, evaluate_segmentation
from mira.evaluation.detection.settings import DetectionSettings, SegmentationSettings
from mira.evaluation.detection.training import Examples, learning_rate, train_detector
from mira.evaluation.protocols import find_protocols
from mira.evaluation.results import Result
from mira.evaluation.runner import run_protocols
from mira.evaluation.saved_state import SavedState
from mira.evaluation.subject import Compute, Subject
from mira.model.preprocessing import Preprocessing, normalise

PREPROCESSING = Preprocessing(64, 64, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TINY = {
    "iterations": 4,
    "batch_size": 2,
    "warmup": 2,
    "train_sizes": (64, 80),
    "test_size": 64,
    "longest": 96,
    "precise_batches": 2,
    "anchors": (12, 18, 24, 32, 40),
    "pyramid_width": 8,
    "head_width": 16,
    "boxes_per_picture": 16,
}


def tiny_backbone(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("resnet18", num_classes=0, layers=[1, 1, 1, 1], channels=[8, 16, 32, 32])


def bits(module: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in module.state_dict().items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("shapes")
    write_coco(folder, "train", 8, side=64, seed=1)
    write_coco(folder, "val", 3, side=64, seed=2)
    return open_detection(folder, channels=3, masks=True)


def test_the_detector_starts_from_the_backbone_and_leaves_it_alone(data) -> None:
    backbone = tiny_backbone()
    before = bits(backbone)
    modes = {name: module.training for name, module in backbone.named_modules()}
    subject = Subject("tiny", backbone, PREPROCESSING)
    scores = evaluate_segmentation(subject, *data, SegmentationSettings(**TINY), seed=0, compute=Compute())
    assert [score.metric for score in scores] == [
        f"{kind} {metric}" for kind in ("box", "mask") for metric in ("AP", "AP50", "AP75")
    ]
    for score in scores:
        assert score.settings.items() >= SegmentationSettings(**TINY).model_dump(mode="json").items()
        assert (score.settings["detector"], score.train_size, score.test_size) == ("Mask R-CNN, FPN", 8, 3)
    assert bits(backbone) == before
    assert {name: module.training for name, module in backbone.named_modules()} == modes
    model = build_detector(
        backbone, PREPROCESSING, 3, DetectionSettings(**TINY), masks=False, dtype=torch.float32, seed=0
    )
    assert bits(model.backbone.body) == before
    pictures = torch.rand(1, 3, 64, 64)
    maps = model.eval().backbone(pictures)
    own = backbone.eval().forward_intermediates(pictures, intermediates_only=True)
    assert [tuple(one.shape[-2:]) for one in maps.values()][:4] == [tuple(one.shape[-2:]) for one in own[1:]]


def test_a_picture_is_normalised_as_the_backbone_expects(data) -> None:
    model = build_detector(
        tiny_backbone(), PREPROCESSING, 3, DetectionSettings(**TINY), masks=False, dtype=torch.float32, seed=0
    )
    model.eval().transform.min_size = (64,)
    picture = torch.from_numpy(data[0].read(0)).permute(2, 0, 1)
    inputs = model.transform([picture.float() / 255])[0].tensors[0]
    torch.testing.assert_close(inputs, normalise(picture, PREPROCESSING.mean, PREPROCESSING.std), atol=1e-5, rtol=0)


@pytest.mark.parametrize("normalisation", ["batch", "frozen"])
def test_an_interrupted_training_ends_in_the_same_bits(data, tmp_path: Path, normalisation: str) -> None:
    subject = Subject("tiny", tiny_backbone(), PREPROCESSING)
    settings = DetectionSettings(**TINY, normalisation=normalisation)

    class Stop(Exception):
        pass

    steps: list[int] = []

    def run(folder: Path | None, stop: tuple[str, int] = ("", 0), workers: int = 0, **changes: object):
        def listen(what: str, done: int, total: int) -> None:
            if what.endswith("training"):
                steps.append(done)
            if (what.rpartition(", ")[2], done) == stop:
                raise Stop

        asked = settings.model_copy(update=changes)
        compute = Compute(progress=listen, workers=workers)
        return evaluate_detection(subject, *data, asked, seed=1, compute=compute, folder=folder, save_every=2)

    def state(folder: Path) -> dict:
        (path,) = folder.iterdir()
        return torch.load(path)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with pytest.raises(Stop):
        run(whole, (data[1].name, 1))  # trained, and about to be scored
    with pytest.raises(Stop):
        run(cut, ("training", 3), workers=1)
    assert state(cut)["step"] == 2
    steps.clear()
    with pytest.raises(Stop):
        run(cut, (data[1].name, 1))
    assert steps == [3, 4]
    states = [state(folder)["model"] for folder in (whole, cut)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    moved = [name for name in states[0] if "body" in name and "running_mean" in name]
    start = tiny_backbone().state_dict()
    same = [torch.equal(states[0][name], start[name.removeprefix("backbone.body.")]) for name in moved]
    assert all(same) if normalisation == "frozen" else not any(same)
    steps.clear()
    run(cut, learning_rate=0.01)
    assert steps == [1, 2, 3, 4]  # another training starts anew, and leaves this one's state alone
    steps.clear()
    scores = run(cut)
    assert steps == []  # only scored
    assert scores == run(None)


def test_a_finished_training_is_only_measured_until_its_results_are_kept(data, tmp_path: Path) -> None:
    """As `mira evaluate detection --floors --resume` does it: nothing is trained twice, and nothing stays behind."""
    subject = Subject("tiny", tiny_backbone(), PREPROCESSING, untrained=lambda: tiny_backbone(seed=1))
    (protocol,) = find_protocols("detection")
    kept: list[Result] = []
    steps: list[str] = []

    class Killed(Exception):
        pass

    def keep_all_but_its_own(results) -> None:
        if results[0].features == subject.name:
            raise Killed
        kept.extend(results)

    def run(**more) -> list[Result]:
        compute = Compute(progress=lambda what, done, total: steps.append(what))
        settings = {protocol: DetectionSettings(**TINY)}
        return run_protocols(subject, data, settings, floors=True, compute=compute, **more)

    state = tmp_path / "state"
    with pytest.warns(UserWarning, match="no raw pixels beside tiny: a detector"), pytest.raises(Killed):
        run(keep=keep_all_but_its_own, state=state)
    assert {"random backbone, training", "tiny, training"} < set(steps)
    assert {result.features for result in kept} == {"random backbone"}
    assert len(list(state.iterdir())) == 1
    steps.clear()
    with pytest.warns(UserWarning, match="no raw pixels"):
        results = run(state=state, finished={kept[0].task: kept})
    assert set(steps) == {f"tiny, {data[1].name}"}
    assert not state.exists()
    assert results[:3] == kept
    assert {result.data for result in results} == {data[1].name}
    own = [(result.metric, result.value) for result in results[3:]]
    alone = evaluate_detection(subject, *data, DetectionSettings(**TINY), seed=0, compute=Compute())
    assert own == [(score.metric, score.value) for score in alone]


def test_an_unreadable_picture_ends_a_training_and_is_left_out_of_a_test(tmp_path: Path) -> None:
    for part, count in (("train", 2), ("val", 3)):
        write_coco(tmp_path, part, count, side=64)
    subject = Subject("tiny", tiny_backbone(), PREPROCESSING)
    (tmp_path / "val" / "001.png").write_bytes(b"cut")
    data, compute = open_detection(tmp_path, channels=3), Compute()
    scores = evaluate_detection(subject, *data, DetectionSettings(**TINY), seed=0, compute=compute)
    assert compute.unreadable == {(f"{tmp_path.name} val", "001.png")}
    assert {(score.train_size, score.test_size) for score in scores} == {(2, 2)}
    (tmp_path / "train" / "001.png").write_bytes(b"cut")
    with pytest.raises(
        ValueError,
        match=r"a picture of '.*instances_train.json' cannot be read \(001.png: .*mend it or take it out",
    ):
        evaluate_detection(subject, *data, DetectionSettings(**TINY), seed=0, compute=compute)


def test_the_global_generator_is_left_alone(data) -> None:
    subject = Subject("tiny", tiny_backbone(), PREPROCESSING)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    evaluate_detection(subject, *data, DetectionSettings(**TINY), seed=0, compute=Compute())
    assert torch.equal(torch.rand(3), expected)


def test_statistics_at_the_end_are_those_of_many_batches(data) -> None:
    """Of the first normalisation, whose inputs no later layer changes: the average over the batches' own."""
    settings = DetectionSettings(**TINY | {"learning_rate": 1e-30, "precise_batches": 3, "train_sizes": (64,)})
    model = build_detector(tiny_backbone(), PREPROCESSING, 3, settings, masks=False, dtype=torch.float32, seed=0)
    examples = Examples(data[0], batch_size=2, seed=0, masks=False)
    state = SavedState(None, "detection", settings, Subject("tiny", tiny_backbone(), PREPROCESSING), data[0], 0)
    train_detector(model, examples, settings, seed=0, device=torch.device("cpu"), state=state, save_every=100)
    means, variances = [], []
    for step in (4, 5, 6):
        batch = torch.stack([picture for picture, _ in examples[step]])
        inputs = (batch - torch.tensor(PREPROCESSING.mean)[:, None, None]) / torch.tensor(PREPROCESSING.std)[
            :, None, None
        ]
        out = model.backbone.body.conv1(inputs).detach()
        means.append(out.mean(dim=(0, 2, 3)))
        variances.append(out.var(dim=(0, 2, 3)))
    first = model.backbone.body.bn1
    torch.testing.assert_close(first.running_mean, torch.stack(means).mean(dim=0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(first.running_var, torch.stack(variances).mean(dim=0), atol=1e-5, rtol=1e-4)
    assert not model.training
    assert model.transform.min_size == (64,)


def test_published_schedules() -> None:
    voc, coco = DetectionSettings(), SegmentationSettings()
    rates = {step: learning_rate(step, voc) for step in (0, 50, 100, 17_999, 18_000, 22_000, 23_999)}
    assert rates == pytest.approx(
        {0: 2e-5, 50: 0.02 * 0.5005, 100: 0.02, 17_999: 0.02, 18_000: 0.002, 22_000: 2e-4, 23_999: 2e-4}
    )
    rates = {step: learning_rate(step, coco) for step in (1_000, 59_999, 60_000, 79_999, 80_000)}
    assert rates == pytest.approx({1_000: 0.02, 59_999: 0.02, 60_000: 0.002, 79_999: 0.002, 80_000: 2e-4})
    assert voc.train_sizes == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    assert coco.train_sizes == (640, 672, 704, 736, 768, 800)


def test_what_cannot_work_is_refused(data, tmp_path: Path) -> None:
    subject = Subject("tiny", tiny_backbone(), PREPROCESSING)

    def run(precision: str = "float32", **changes: object) -> None:
        compute = Compute(precision=precision)
        evaluate_detection(subject, *data, DetectionSettings(**TINY | changes), seed=0, compute=compute)

    with pytest.raises(ValueError, match="batch_size is 9 but there are 8 pictures"):
        run(batch_size=9)
    with pytest.raises(ValueError, match="cannot be trained in float16"):
        run("float16")
    with pytest.raises(ValueError, match="the loss is .* after . steps: lower the learning rate"):
        run(learning_rate=1e12, warmup=0)
    write_coco(tmp_path, "val", 1, side=64)
    file = tmp_path / "annotations" / "instances_val.json"
    file.write_text(file.read_text().replace("disc", "ring"))
    other = read_coco(tmp_path / "val", file)
    with pytest.raises(ValueError, match="'.*instances_train.json' and '.*' have different categories"):
        evaluate_detection(subject, data[0], other, DetectionSettings(**TINY), seed=0, compute=Compute())
