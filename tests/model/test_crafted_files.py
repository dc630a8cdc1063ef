"""Exports and checkpoints that were changed, or never were any: one sentence with the file's name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import mira
from mira.training.checkpoint import read_checkpoint

NEWEST = "checkpoints/step-00000012.pt"


@pytest.fixture(scope="module")
def export(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mira.export(finished_run, tmp_path_factory.mktemp("export") / "w.safetensors")


def test_an_export_whose_weights_have_changed_is_refused(export: Path, tmp_path: Path) -> None:
    whole = bytearray(export.read_bytes())
    start = 8 + int.from_bytes(whole[:8], "little")
    for place in range(start, len(whole), (len(whole) - start) // 20):
        changed = bytearray(whole)
        changed[place] ^= 1
        (tmp_path / "w.safetensors").write_bytes(changed)
        with pytest.raises(ValueError, match=r"w.safetensors' has changed since it was written"):
            mira.load_backbone(tmp_path / "w.safetensors")


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["settings"].update(stem="small"),
        lambda content: content["preprocessing"].update(mean=[0.1, 0.1, 0.1]),
        lambda content: content["preprocessing"].update(mean=[0.1]),
        lambda content: content["preprocessing"].update(size=0),
        lambda content: content["preprocessing"].update(size=10**30),
        lambda content: content["preprocessing"].update(std=[1, 1, float("nan")]),
        lambda content: content["preprocessing"].pop("resize"),
        lambda content: content.pop("preprocessing"),
        lambda content: content.update(settings=[]),
        lambda content: content.update(crop_size="x"),
        lambda content: content.update(digest=7),
    ],
)
def test_an_export_whose_description_has_changed_is_refused(change, export: Path, tmp_path: Path) -> None:
    content = json.loads(metadata_of(export)["mira.backbone"])
    change(content)
    path = tmp_path / "w.safetensors"
    save_file(load_file(export), path, metadata={"mira.backbone": json.dumps(content)})
    with pytest.raises(ValueError, match=r"w.safetensors'"):
        mira.load_backbone(path)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", "null", '"x"', "{}"])
def test_a_description_that_is_none(text: str, export: Path, tmp_path: Path) -> None:
    save_file(load_file(export), tmp_path / "w.safetensors", metadata={"mira.backbone": text})
    with pytest.raises(ValueError, match=r"what '.*w.safetensors' says of its backbone is damaged"):
        mira.load_backbone(tmp_path / "w.safetensors")


def test_exports_of_the_same_weights_are_the_same_bytes(export: Path, finished_run: Path, tmp_path: Path) -> None:
    assert mira.export(finished_run, tmp_path / "w.safetensors").read_bytes() == export.read_bytes()


def test_an_export_without_a_digest_still_opens(export: Path, tmp_path: Path) -> None:
    content = json.loads(metadata_of(export)["mira.backbone"])
    del content["digest"]
    save_file(load_file(export), tmp_path / "w.safetensors", metadata={"mira.backbone": json.dumps(content)})
    mira.load_backbone(tmp_path / "w.safetensors")


def without(name: str):
    return lambda content: content.pop(name)


def changed(**values):
    return lambda content: content.update(values)


@pytest.mark.parametrize(
    "change",
    [
        changed(format="one"),
        changed(format=None),
        changed(format=99),
        without("recipe"),
        changed(recipe=7),
        changed(recipe={"data": 3}),
        changed(recipe={"data": {}, "training": {"epochs": "x"}}),
        without("model"),
        changed(model=[]),
        changed(model={"a": 1}),
        changed(model={"a": torch.zeros(1)}),
        changed(model={}),
        changed(step="x"),
        changed(step=-1),
        changed(step=True),
        changed(pictures=None),
        changed(digest=1),
        changed(versions=[]),
        changed(label_state={"centre": "x"}),
        changed(label_state={"centre": torch.zeros(3)}),
        changed(label_state=None),
        changed(optimiser=0),
        changed(more=1),
    ],
)
def test_files_like_checkpoints_get_a_sentence_with_their_name(change, finished_run: Path, tmp_path: Path) -> None:
    content = torch.load(finished_run / NEWEST, weights_only=True)
    change(content)
    path = tmp_path / "step-00000012.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"step-00000012.pt'"):
        mira.load_backbone(path)


def test_an_optimizer_of_nobody_gets_a_sentence_when_resumed(finished_run: Path, tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    for path in (run / "checkpoints").glob("*.pt"):
        if path.name != "step-00000004.pt":
            path.unlink()
    content = torch.load(finished_run / NEWEST, weights_only=True) | {"step": 4, "optimiser": {"state": 1}}
    torch.save(content, run / "checkpoints" / "step-00000004.pt")
    read_checkpoint(run / "checkpoints" / "step-00000004.pt")
    with pytest.raises(ValueError, match="the checkpoint of step 4 does not fit its own recipe"):
        mira.resume(run, quiet=True)
