"""Transfer: the eleven sets in their own layouts, divided as published, each with its metric."""

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_sets import CLASSES, colours_of, save, write_all, write_dtd, write_pets, write_sun397
from torch import nn

from mira.evaluation import transfer
from mira.evaluation.protocols import find_protocols, read_settings
from mira.evaluation.results import Result
from mira.evaluation.runner import run_protocols
from mira.evaluation.subject import Compute, Subject
from mira.evaluation.summary import summarise
from mira.evaluation.transfer import TransferSettings, evaluate_transfer
from mira.evaluation.transfer_pictures import TransferSet
from mira.evaluation.transfer_sets import NAMES, SetUnavailable, open_set
from mira.model.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(size=16, resize=20, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)


class Halves(nn.Module):
    """The mean colours of quarters of a picture, and how many pictures it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        self.seen += len(pictures)
        return nn.functional.adaptive_avg_pool2d(pictures, 2).flatten(1)


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_all(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture
def subject() -> Subject:
    return Subject("halves", Halves(), PREPROCESSING)


def open_one(name: str, root: Path, *, seed: int = 0) -> TransferSet:
    return open_set(name, root, channels=3, download=False, validation_share=0.2, seed=seed)


def sizes(one: TransferSet) -> tuple[int, int, int]:
    return int((~one.validation).sum()), int(one.validation.sum()), len(one.test)


def test_every_set_has_the_published_metric_and_division(sets: Path) -> None:
    found = {name: open_one(name, sets) for name in NAMES}
    assert {name: one.metric for name, one in found.items()} == {
        **dict.fromkeys(("aircraft", "caltech101", "flowers", "pets"), "mean per class"),
        **dict.fromkeys(("cars", "cifar10", "cifar100", "dtd", "food101", "sun397"), "top-1"),
        "voc07": "11-point mAP",
    }
    assert {name: sizes(one) for name, one in found.items()} == {
        "aircraft": (9, 6, 12),
        "caltech101": (72, 18, 3 + 4 + 5),  # 30 a class of 33, 34 and 35, a fifth of them to validate
        "cars": (12, 3, 9),
        "cifar10": (60, 15, 15),
        "cifar100": (12, 3, 15),
        "dtd": (9, 6, 6),
        "flowers": (8, 8, 8),
        "food101": (12, 3, 9),
        "pets": (12, 3, 6),
        "sun397": (9, 3, 9),
        "voc07": (12, 9, 12),
    }


@pytest.mark.parametrize("name", NAMES)
def test_labels_belong_to_their_pictures(sets: Path, name: str) -> None:
    one = open_one(name, sets)
    for part in (one.learn, one.test):
        for index in range(len(part)):
            left, right = colours_of(part.read(index))
            if name != "voc07":
                assert part.targets[index] == left == right
                continue
            number = int(sorted(part._pictures[index][1].images)[part._pictures[index][2]][-10:-4])
            shown = {left} if number % 4 == 3 else {left, right}  # a difficult object does not count
            assert set(np.flatnonzero(part.targets[index])) == shown


@pytest.mark.parametrize("name", NAMES)
def test_no_picture_is_both_learned_from_and_tested_on(sets: Path, name: str) -> None:
    one = open_one(name, sets)
    keys = [part.key(index) for part in (one.learn, one.test) for index in range(len(part))]
    assert len(set(keys)) == len(keys)
    pixels = [part.read(index).tobytes() for part in (one.learn, one.test) for index in range(len(part))]
    assert len(set(pixels)) == len(pixels)  # the grain makes every picture one of its own


def test_what_is_drawn_follows_the_seed_and_no_order_of_files(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(sets / "SUN397")
    write_sun397(sets, np.random.default_rng(3), per_class=53, partition=False)
    for name in ("caltech101", "sun397", "cars"):
        first, again, other = (open_one(name, sets, seed=seed) for seed in (1, 1, 2))

        def chosen(one: TransferSet) -> list[str]:
            return [one.learn.key(row) for row in np.flatnonzero(one.validation).tolist()]

        assert chosen(first) == chosen(again) != chosen(other)
    drawn = open_one("sun397", sets)
    assert "Training_01.txt" in drawn.note
    assert sizes(drawn) == (120, 30, 9)  # 50 a class of 53
    before = [drawn.learn.key(index) for index in range(len(drawn.learn))]
    listed = Path.rglob  # in another order, as another file system has it
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: sorted(listed(self, pattern), reverse=True))
    after = open_one("sun397", sets).learn
    assert [after.key(index) for index in range(len(after))] == before


def test_colours_transfer_to_every_set_in_one_pass(sets: Path, subject: Subject) -> None:
    scores = evaluate_transfer(subject, sets, TransferSettings(penalties=9), seed=0, compute=Compute())
    assert [score.settings["set"] for score in scores] == [
        *("Aircraft", "Caltech-101", "Cars", "CIFAR-10", "CIFAR-100", "DTD", "Flowers", "Food-101", "Pets", "SUN397"),
        *("VOC07", "all"),
    ]
    assert [scores[row].metric for row in (0, 1, 2, 10)] == [
        "Aircraft, mean per class",
        "Caltech-101, mean per class",
        "Cars, top-1",
        "VOC07, 11-point mAP",
    ]
    values = {score.settings["set"]: score.value for score in scores}
    mean = values.pop("all")
    assert all(value > 99.9 for name, value in values.items() if name != "VOC07"), values
    assert values["VOC07"] > 80
    assert mean == pytest.approx(sum(values.values()) / 11)
    assert subject.backbone.seen == sum(score.train_size + score.test_size for score in scores[:-1])
    for score in scores[:-1]:
        assert {"penalties", "lowest", "highest"} <= score.settings.keys()
        assert score.chosen.keys() == {"l2", "validation_value"}
    assert scores[0].preprocessing.resize == 16  # the short side becomes the input's, as published


def test_the_short_side_becomes_that_of_the_input(sets: Path, subject: Subject) -> None:
    """As published, and whatever the subject resizes to otherwise: the same features without a margin to cut off."""
    plain = Subject("halves", Halves(), PREPROCESSING)
    plain = replace(plain, preprocessing=replace(PREPROCESSING, resize=PREPROCESSING.size))
    seen: list[torch.Tensor] = []
    for one in (subject, plain):
        one.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        evaluate_transfer(one, sets, TransferSettings(sets=("pets",), penalties=1), seed=0, compute=Compute())
    assert torch.equal(torch.cat(seen[:2]), torch.cat(seen[2:]))


def test_one_set_agrees_with_scikit_learn(sets: Path, subject: Subject) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score

    rng = np.random.default_rng(5)
    for path in sorted((sets / "caltech101").rglob("image_*.jpg"))[::3]:  # so that values are no 100
        save(path, int(rng.integers(CLASSES)), rng)
    settings = TransferSettings(sets=("caltech101",), penalties=4, lowest=1, highest=4, tolerance=1e-6)
    (score, _) = evaluate_transfer(subject, sets, settings, seed=0, compute=Compute())
    data = open_one("caltech101", sets)
    same = Subject("halves", Halves(), Preprocessing(16, 16, 3, (0.5,) * 3, (0.25,) * 3))
    learn, test = (Compute().features(same, part, "").features.numpy() for part in (data.learn, data.test))
    labels, val = data.learn.targets, data.validation

    def fitted(l2: float, rows: np.ndarray) -> LogisticRegression:
        return LogisticRegression(C=1 / l2, max_iter=10_000, tol=1e-8).fit(learn[rows], labels[rows])

    values = {
        l2: balanced_accuracy_score(labels[val], fitted(l2, ~val).predict(learn[val])) for l2 in np.logspace(1, 4, 4)
    }
    best = max(values, key=values.__getitem__)  # the smallest of equally good ones
    assert score.chosen["l2"] == pytest.approx(best)
    predicted = fitted(best, np.ones(len(val), bool)).predict(test)
    assert score.value == pytest.approx(100 * balanced_accuracy_score(data.test.targets, predicted))
    assert score.value < 99


def test_sets_that_are_not_there_are_left_out_with_a_sentence(tmp_path: Path, subject: Subject) -> None:
    write_pets(tmp_path, np.random.default_rng(0))
    scores = evaluate_transfer(subject, tmp_path, TransferSettings(penalties=3), seed=0, compute=Compute())
    by_set = {score.settings["set"]: score for score in scores[:-1]}
    assert by_set["Pets"].value is not None
    assert scores[-1].metric == "mean of the sets"
    assert scores[-1].value == by_set["Pets"].value
    assert "Aircraft" in scores[-1].note
    assert by_set["Food-101"].value is None
    assert "no folder 'food-101'" in by_set["Food-101"].note
    assert "address is dead" in by_set["Cars"].note
    assert sorted(path.name for path in tmp_path.iterdir()) == ["oxford-iiit-pet"]  # nothing was made


def test_a_set_that_is_asked_for_must_be_there(tmp_path: Path, subject: Subject) -> None:
    def run(**settings: object) -> None:
        evaluate_transfer(subject, tmp_path, TransferSettings.model_validate(settings), seed=0, compute=Compute())

    with pytest.raises(
        SetUnavailable, match=r"DTD is not complete in .*there is no folder 'dtd'.*: allow its download"
    ):
        run(sets=("dtd",))
    with pytest.raises(
        ValueError, match=r"none of the 11 data sets is there; .* the folder that torchvision keeps them in"
    ):
        run()
    with pytest.raises(ValueError, match="Cars could not be downloaded.*broken"):
        run(sets=("cars",), download=True)


def test_a_set_without_some_files_says_so(sets: Path) -> None:
    (sets / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / "test.txt").unlink()
    with pytest.raises(SetUnavailable, match="VOC07 is not complete.*test.txt"):
        open_one("voc07", sets)
    (sets / "cifar-10-batches-py" / "test_batch").write_bytes(b"cut")
    with pytest.raises(SetUnavailable, match="CIFAR-10 is not complete .*corrupted"):
        open_one("cifar10", sets)
    (sets / "fgvc-aircraft-2013b" / "data" / "images_variant_val.txt").write_text("1 Concorde\n")
    with pytest.raises(SetUnavailable, match="Aircraft is not complete"):
        open_one("aircraft", sets)
    (sets / "SUN397" / "Testing_01.txt").write_text("/a/abbey/sun_gone.jpg\n")
    with pytest.raises(SetUnavailable, match="partition names 'a/abbey/sun_gone.jpg'"):
        open_one("sun397", sets)
    (sets / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / "test.txt").write_text("000001\n")
    (sets / "VOCdevkit" / "VOC2007" / "Annotations" / "000001.xml").write_text("<annotation><size>")
    with pytest.raises(SetUnavailable, match=r"VOC07: the annotation '.*000001.xml' is damaged"):
        open_one("voc07", sets)


def test_every_set_is_kept_when_it_is_done(sets: Path, subject: Subject) -> None:
    """What was finished before an interruption, or before a set was added, is not measured again."""
    [protocol] = find_protocols("transfer")
    kept: list[Result] = []

    def run(**values: object) -> list[Result]:
        settings = read_settings([protocol], {"penalties": 2, **values})["transfer"]
        finished: dict[str, list[Result]] = {}
        for result in kept:
            finished.setdefault(result.task, []).append(result)
        return run_protocols(
            subject, (sets,), {protocol: settings}, compute=Compute(), keep=kept.extend, finished=finished
        )

    shutil.rmtree(sets / "dtd")
    with pytest.raises(SetUnavailable, match="DTD"):
        run(sets=("pets", "dtd", "cifar10"))
    assert [one.settings["set"] for one in kept] == ["Pets"]
    seen = subject.backbone.seen
    three = run(sets=("pets", "dtd", "cifar10"), skip_missing=True)
    assert [one.settings["set"] for one in three] == ["Pets", "DTD", "CIFAR-10", "CIFAR-10, Pets"]
    assert [one.settings["set"] for one in kept] == ["Pets", "CIFAR-10", "CIFAR-10, Pets"]
    assert (three[-1].value, three[-1].note) == ((three[0].value + three[2].value) / 2, "without DTD")
    assert subject.backbone.seen - seen == three[2].train_size + three[2].test_size
    write_dtd(sets, np.random.default_rng(0))
    seen = subject.backbone.seen
    added = run(sets=("pets", "dtd", "cifar10"))
    assert (added[0], added[2]) == (three[0], three[2])
    assert added[3].settings["set"] == "CIFAR-10, DTD, Pets"
    assert subject.backbone.seen - seen == added[1].train_size + added[1].test_size
    count = len(kept)
    assert run(sets=("pets", "dtd", "cifar10")) == added
    assert len(kept) == count
    # A picture more in a folder of a class: the set is another, and measured again.
    extra = next((sets / "dtd").rglob("*.jpg"))
    shutil.copy(extra, extra.with_name("extra.jpg"))
    pets, dtd, _ = run(sets=("pets", "dtd"))
    assert (pets.task == added[0].task, dtd.task == added[1].task) == (True, False)


def test_a_downloaded_set_is_not_measured_again(
    sets: Path, tmp_path: Path, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    [protocol] = find_protocols("transfer")
    opened = transfer.open_set
    elsewhere = tmp_path / "new"

    def bring(name: str, data_dir: Path, **options: object) -> object:
        shutil.copytree(sets / "dtd", data_dir / "dtd", dirs_exist_ok=True)
        return opened(name, data_dir, **options)

    monkeypatch.setattr(transfer, "open_set", bring)
    settings = {protocol: read_settings([protocol], {"sets": ("dtd",), "penalties": 2, "download": True})["transfer"]}
    first = run_protocols(subject, (elsewhere,), settings, compute=Compute())
    finished = {result.task: [result] for result in first}
    assert run_protocols(subject, (elsewhere,), settings, compute=Compute(), finished=finished) == first


def test_floors_stand_beside_the_backbone_and_means_of_other_sets_do_not(sets: Path, subject: Subject) -> None:
    """Raw pixels have another side than the backbone, and are the same measurement."""
    [protocol] = find_protocols("transfer")

    def run(*names: str) -> list[Result]:
        settings = read_settings([protocol], {"penalties": 2, "sets": names})["transfer"]
        small = replace(subject, preprocessing=replace(PREPROCESSING, size=48, resize=48))
        return run_protocols(small, (sets,), {protocol: settings}, compute=Compute(), floors=True)

    summary = summarise(run("dtd", "pets"))
    assert len(summary.columns) == 3
    assert [len(cells) for cells in summary.rows.values()] == [3] * len(summary.rows)
    both = summarise([*run("dtd", "pets"), *run("pets", "cifar10")])
    means = [column for column in both.columns if "mean of the sets" in column]
    assert means == ["transfer, set DTD, Pets, mean of the sets", "transfer, set CIFAR-10, Pets, mean of the sets"]


def test_an_unreadable_picture_is_left_out(sets: Path, subject: Subject) -> None:
    (sets / "oxford-iiit-pet" / "images" / "pug_trainval2.jpg").write_bytes(b"no picture")
    compute = Compute()
    score = evaluate_transfer(subject, sets, TransferSettings(sets=("pets",), penalties=3), seed=0, compute=compute)[0]
    assert (score.train_size, score.test_size) == (14, 6)
    assert score.value == 100  # the labels of those after it are still theirs
    assert compute.unreadable == {("Pets, training", "train/2")}


def test_scipy_is_asked_for_by_name(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "scipy" else found(name, *a))
    with pytest.raises(SetUnavailable, match=r"Flowers is read with scipy: .*`pip install scipy`"):
        open_one("flowers", sets)
    open_one("pets", sets)
