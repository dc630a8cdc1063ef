"""What one types in Python: names, single values, an image in, a short text out, files that others can read."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny import write_pictures

import mira
from mira.cli import main
from mira.data import UnreadablePicture


def test_modules_and_peers_are_there_without_an_import_of_their_own() -> None:
    code = (
        "import mira; mira.assignment.swapped_cross_entropy; mira.errors.EXIT_OK\n"
        "from mira import sinkhorn, centre_and_sharpen, softmax_labels, swapped_cross_entropy\n"
        "import sys; assert not any(name.startswith(('timm', 'cv2', 'pydantic')) for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {"assignment", "sinkhorn"} <= set(dir(mira))


def test_a_single_value_is_a_list_of_one(finished_run: Path, tmp_path: Path) -> None:
    more = {"seeds": 0, "fractions": 1.0, "labels": "folder"}
    (one,) = mira.evaluate(finished_run, "knn", k=5, results=tmp_path / "r.jsonl", **more)
    assert one.settings["k"] == 5
    with pytest.raises(ValueError, match="k must be a whole number, not 'many'"):
        mira.evaluate(finished_run, "knn", k="many", **more)


@pytest.mark.parametrize("kind", ["image", "array", "path", "palette", "turned"])
def test_the_preprocessing_gives_what_embed_gives_the_backbone(kind: str, finished_run: Path, tmp_path: Path) -> None:
    path = write_pictures(tmp_path / "pictures", 1, side=70) / "class0" / "0000.png"
    image = Image.open(path)
    given: object = image
    match kind:
        case "array":
            given = np.asarray(image)
        case "path":
            given = path
        case "palette":
            given = image.convert("P")
            given.save(path)
        case "turned":
            exif = Image.Exif()
            exif[0x0112] = 6
            image.save(path, exif=exif)
            given = Image.open(path)
    backbone = mira.load_backbone(finished_run)
    x = backbone.preprocessing(given)
    assert x.shape == (3, 32, 32)
    assert x.dtype == torch.float32
    features = mira.embed(finished_run, tmp_path / "pictures")
    with torch.inference_mode():
        torch.testing.assert_close(backbone(x[None]), features.features, rtol=1e-6, atol=1e-6)
    assert backbone.num_features == features.features.shape[1]


def test_the_preprocessing_refuses_with_a_sentence(finished_run: Path, tmp_path: Path) -> None:
    preprocessing = mira.load_backbone(finished_run).preprocessing
    for wrong in (np.zeros((9, 9, 3)), np.zeros((2, 9, 9, 3), np.uint8), np.zeros((9, 9, 4), np.uint8)):
        with pytest.raises(ValueError, match=r"an image is uint8 \[H, W, 3\]"):
            preprocessing(wrong)
    with pytest.raises(UnreadablePicture):
        preprocessing(tmp_path / "none.png")


def test_features_say_in_a_line_what_they_are_and_name_their_classes(finished_run: Path, picture_folder: Path) -> None:
    features = mira.embed(finished_run, picture_folder)
    assert repr(features) == "Features(64 images, 16 numbers each, 2 classes)"
    assert features.classes == ("class0", "class1")
    assert repr(mira.embed(finished_run, picture_folder, labels="none")) == "Features(64 images, 16 numbers each)"


def test_names_of_classes_are_in_the_files_and_taken_from_folders_aloud(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = write_pictures(tmp_path / "pictures", 6)
    (pictures / "class0").rename(pictures / "2024-01")
    (pictures / "class1").rename(pictures / "2024-02")
    for name in ("f.npz", "f.parquet"):
        assert main(["embed", str(finished_run), str(pictures), "--out", str(tmp_path / name), "--quiet"]) == 0
        assert "taken for classes: 2024-01, 2024-02" in capsys.readouterr().err
    with np.load(tmp_path / "f.npz") as content:
        assert content["classes"].tolist() == ["2024-01", "2024-02"]
    table = pq.read_table(tmp_path / "f.parquet").to_pydict()
    assert [key.partition("/")[0] for key in table["key"]] == table["class"]
    command = ["embed", str(finished_run), str(pictures), "--out", str(tmp_path / "f.npz"), "--quiet"]
    assert main([*command, "--labels", "none"]) == 0
    assert "classes" not in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_exports_have_the_mode_of_other_files_and_equal_weights_are_equal_files(
    finished_run: Path, tmp_path: Path
) -> None:
    before = os.umask(0o022)
    try:
        paths = [mira.export(finished_run, tmp_path / f"{number}.safetensors") for number in range(6)]
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o644}
    assert len({path.read_bytes() for path in paths}) == 1
    assert mira.load_backbone(paths[0]).num_features == 16


def test_health_measures_all_images_where_none_has_a_label(finished_run: Path, tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", 40, classes=1)

    def sizes(**more: object) -> set[int]:
        found = mira.evaluate(finished_run, "health", pictures, results=tmp_path / "r.jsonl", **more)
        return {one.test_size for one in found}

    assert sizes(labels="none") == {40}
    assert sizes(labels="none", split="test") == {9}  # a fifth, drawn by names
    other = write_pictures(tmp_path / "other", 5, classes=1)
    assert sizes(labels="none", test=other) == {5}
