"""Pictures with objects: COCO's format and VOC's, whole and broken."""

import json
from pathlib import Path

import numpy as np
import pytest
from drawn_objects import SHAPES, write_coco
from drawn_sets import SIDE, colours_of, write_voc
from PIL import Image

from mira.evaluation.detection import DetectionSet, open_detection, read_coco, read_voc
from mira.evaluation.detection.scoring import average_precision, encode_masks
from mira.evaluation.detection.training import Examples


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_coco(tmp_path, "train", 6, side=64, seed=1)
    write_coco(tmp_path, "val", 3, side=64, seed=2)
    return tmp_path


def edit(folder: Path, change: dict, part: str = "train") -> None:
    path = folder / "annotations" / f"instances_{part}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def content(folder: Path, part: str = "train") -> dict:
    return json.loads((folder / "annotations" / f"instances_{part}.json").read_text())


def of_one_colour(pixels: np.ndarray, colour: np.ndarray) -> float:
    """The share of pixels that have it. A shape has one colour, and a photograph many."""
    return float((np.abs(pixels - colour) < 1).all(axis=-1).mean())


def assert_shape(pixels: np.ndarray, mask: np.ndarray) -> None:
    """The mask has what one colour was painted on, to the pixels at its border."""
    colour = np.median(pixels[mask], axis=0)
    assert of_one_colour(pixels[mask], colour) > 0.9
    assert of_one_colour(pixels[~mask], colour) < 0.05


def test_boxes_and_masks_lie_on_the_shapes(folder: Path) -> None:
    train, test = open_detection(folder, channels=3, masks=True)
    assert (len(train), len(test)) == (6, 3)
    assert train.classes == SHAPES
    for index in range(len(train)):
        boxes, labels = train.boxes(index)
        masks = train.masks(index).astype(bool)
        picture = train.read(index)
        objects = [one for one in content(folder)["annotations"] if one["image_id"] == 100 + index]
        assert labels.tolist() == [one["category_id"] // 10 for one in objects]  # ids 10, 20, 30 are classes 1, 2, 3
        for (x1, y1, x2, y2), mask in zip(boxes, masks, strict=True):
            rows, columns = np.nonzero(mask)
            found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(found, [x1, y1, x2, y2], atol=1.5)
            assert_shape(picture, mask)


def test_examples_turned_over_still_fit(folder: Path) -> None:
    train = open_detection(folder, channels=3)[0]
    examples = Examples(train, batch_size=6, seed=0, masks=True)
    turned = 0
    for step in range(4):
        for picture, target in examples[step]:
            pixels = picture.permute(1, 2, 0).numpy() * 255
            originals = [train.read(index) for index in range(6)]
            turned += not any(np.allclose(pixels, original) for original in originals)
            assert any(
                np.allclose(pixels[:, ::-1], original) or np.allclose(pixels, original) for original in originals
            )
            for box, mask in zip(target["boxes"].tolist(), target["masks"].numpy().astype(bool), strict=True):
                assert_shape(pixels, mask)
                columns = np.nonzero(mask.any(axis=0))[0]
                np.testing.assert_allclose([columns.min(), columns.max() + 1], box[0::2], atol=1.5)
    assert 4 <= turned <= 20  # of 24


def test_batches_are_a_function_of_seed_and_step(folder: Path) -> None:
    train = open_detection(folder, channels=3)[0]
    examples, same, other = (Examples(train, batch_size=2, seed=seed, masks=False) for seed in (3, 3, 4))

    def pixels(batches: Examples, step: int) -> bytes:
        return b"".join(picture.numpy().tobytes() for picture, _ in batches[step])

    assert [pixels(examples, step) for step in range(3)] == [pixels(same, step) for step in (0, 1, 2)]
    assert [pixels(examples, step) for step in range(3)] != [pixels(other, step) for step in range(3)]


def test_all_spellings_of_a_mask(folder: Path) -> None:
    from pycocotools import mask

    own = content(folder)
    first = next(one for one in own["annotations"] if one["image_id"] == 100)
    expected = read_coco(folder / "train", folder / "annotations/instances_train.json").masks(0)
    packed = mask.encode(np.asfortranarray(expected[0]))
    flat = expected[0].ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=0))
    runs = np.diff([0, *edges.tolist(), flat.size]).tolist()
    for spelling in (
        {"size": [64, 64], "counts": packed["counts"].decode()},
        {"size": [64, 64], "counts": runs},
    ):
        first["segmentation"] = spelling
        edit(folder, {"annotations": own["annotations"]})
        found = read_coco(folder / "train", folder / "annotations/instances_train.json").masks(0)
        np.testing.assert_array_equal(found, expected)


def test_what_is_there_scores_100(folder: Path) -> None:
    """Also with ids from 0 on, as here, which pycocotools takes for "not found"."""
    source = open_detection(folder, channels=3, masks=True)[1]
    found: dict[str, list[dict]] = {"bbox": [], "segm": []}
    for index, image in enumerate(source.content["images"]):
        boxes, labels = source.boxes(index)
        for box, label, outline in zip(boxes.tolist(), labels, encode_masks(source.masks(index)), strict=True):
            common = {"image_id": image["id"], "category_id": source.category_ids[label - 1], "score": 0.5}
            found["bbox"].append({**common, "bbox": [*box[:2], box[2] - box[0], box[3] - box[1]]})
            found["segm"].append({**common, "segmentation": outline})
    for kind, detections in found.items():
        values = average_precision(source.content, detections, kind)
        assert values == pytest.approx(dict.fromkeys(("AP", "AP50", "AP75"), 100))


def test_crowds_and_empty_boxes_are_not_learned_from(folder: Path) -> None:
    objects = content(folder)["annotations"]
    for one in objects:
        if one["image_id"] in (100, 101):
            one |= {"iscrowd": 1} if one["image_id"] == 100 else {"bbox": [3, 3, 0, 5]}
    edit(folder, {"annotations": objects})
    train = open_detection(folder, channels=3)[0]
    assert train.usable().tolist() == [2, 3, 4, 5]
    edit(folder, {"annotations": []})
    with pytest.raises(ValueError, match="instances_train.json' has no object to learn from"):
        Examples(open_detection(folder, channels=3)[0], batch_size=1, seed=0, masks=False)


def test_voc_counts_pixels_from_one(tmp_path: Path) -> None:
    for year in ("2007", "2012"):
        write_voc(tmp_path, np.random.default_rng(int(year)), year=year)
    train, test = open_detection(tmp_path, channels=3)
    assert (len(train), len(test)) == (42, 12)
    assert (train.name, test.name) == ("VOC2007 trainval + VOC2012 trainval", "VOC2007 test")
    assert train.rules == test.rules == "VOC2007"
    assert len(train.classes) == 20
    assert train.category_ids == list(range(1, 21))
    for source in (train, test):
        for index in range(len(source)):
            boxes, labels = source.boxes(index)
            half = SIDE // 2
            assert boxes.tolist() == [[0, 0, half, SIDE], [half, 0, SIDE, SIDE]]
            assert tuple(labels - 1) == colours_of(source.read(index))
    difficult = [one["difficult"] for one in train.content["annotations"]]
    assert 0 < sum(difficult) < len(difficult)  # and the boxes above have them all
    with pytest.raises(ValueError, match="VOC has boxes and no masks"):
        open_detection(tmp_path, channels=3, masks=True)


def test_sets_of_other_folders_have_other_names(tmp_path: Path) -> None:
    """Their files have the same names; where a person gave one of his own, it stays."""
    for name in ("shapes", "more"):
        write_coco(tmp_path / name, "val", 1, side=64)
    own = tmp_path / "more" / "mine.json"
    (tmp_path / "more" / "annotations" / "instances_val.json").rename(own)
    files = (tmp_path / "shapes" / "annotations" / "instances_val.json", own)
    assert [read_coco(tmp_path / "more" / "val", file).name for file in files] == ["shapes val", "more mine"]


def test_pictures_in_other_usual_places(folder: Path) -> None:
    (folder / "images").mkdir()
    for part in ("train", "val"):
        (folder / part).rename(folder / "images" / part)
    assert len(open_detection(folder, channels=1)[0].read(0).shape) == 3
    (folder / "images" / "val").rename(folder / "val")
    assert open_detection(folder, channels=3)[1].read(0).shape == (64, 64, 3)


def test_identity_changes_with_pictures_and_with_objects(folder: Path) -> None:
    def identity() -> str:
        return open_detection(folder, channels=3)[0].identity()

    first = identity()
    assert identity() == first
    Image.new("RGB", (64, 64)).save(folder / "train" / "000.png")
    second = identity()
    assert second != first
    edit(folder, {"annotations": content(folder)["annotations"][1:]})
    assert identity() != second


BROKEN = {
    "no images": ({"images": []}, "instances_train.json' has no images: there is nothing to detect"),
    "no categories": ({"categories": []}, "instances_train.json' has no categories: there is nothing to detect"),
    "a missing list": ({"annotations": None}, "not in COCO's format, which has the lists images, categories"),
    "a category of nothing": (
        {"annotations": [{"image_id": 100, "category_id": 7, "bbox": [1, 1, 2, 2]}]},
        "object 1 in '.*instances_train.json' has the category_id 7, which is none of its categories",
    ),
    "an object of nothing": (
        {"annotations": [{"image_id": 7, "category_id": 10, "bbox": [1, 1, 2, 2]}]},
        "object 1 in '.*instances_train.json' has the image_id 7",
    ),
    "no box": (
        {"annotations": [{"image_id": 100, "category_id": 10, "bbox": None}]},
        "object 1 in '.*instances_train.json' has no bbox",
    ),
    "no size": (
        {"images": [{"id": 1, "file_name": "000.png"}]},
        "an entry of images in '.*instances_train.json' has no width, height",
    ),
    "an id twice": (
        {"categories": [{"id": 10, "name": "disc"}, {"id": 10, "name": "square"}]},
        "some categories in '.*instances_train.json' have the same id",
    ),
    "pictures that are not there": (
        {"images": [{"id": i, "file_name": f"x{i}.png", "width": 1, "height": 1} for i in range(100, 106)]},
        r"6 of the 6 pictures that '.*instances_train.json' names are not in '.*train' \('x100.png', 'x101.png', ",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_said_in_a_sentence(folder: Path, case: str) -> None:
    change, sentence = BROKEN[case]
    edit(folder, change)
    with pytest.raises(ValueError, match=sentence):
        open_detection(folder, channels=3)


def test_files_that_are_missing_or_damaged(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no annotation file '.*gone.json'"):
        read_coco(folder / "train", folder / "gone.json")
    (folder / "cut.json").write_text('{"images": [')
    with pytest.raises(ValueError, match="'.*cut.json' is not a readable JSON file"):
        read_coco(folder / "train", folder / "cut.json")
    with pytest.raises(ValueError, match="has no file 'annotations/instances_train.* and no 'VOCdevkit/VOC2007'"):
        open_detection(folder / "train", channels=3)
    with pytest.raises(ValueError, match="'.*VOC2007' has no list 'ImageSets/Main/test.txt'"):
        read_voc([(folder / "VOC2007", "test")])
    objects = content(folder)["annotations"]
    del objects[0]["segmentation"]
    edit(folder, {"annotations": objects})
    with pytest.raises(ValueError, match="1 of the .* objects in .* have no mask: evaluate 'detection'"):
        open_detection(folder, channels=3, masks=True)


def test_a_picture_of_another_size_than_its_annotations(folder: Path) -> None:
    Image.new("RGB", (32, 64)).save(folder / "train" / "000.png")
    source: DetectionSet = open_detection(folder, channels=3)[0]
    with pytest.raises(ValueError, match="'000.png' has 32 x 64 pixels and its annotations are for 64 x 64"):
        source.read(0)
