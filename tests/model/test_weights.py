import contextlib
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import mira
from mira.model import BackboneSettings, create_backbone
from mira.model.weights import load_backbone_weights, read_weights

import timm  # isort: skip

SETTINGS = BackboneSettings(name="resnet18", stem="standard", options={"channels": [8, 8, 16, 16]})


def test_pretrained_from_a_local_file_with_its_classifier(tmp_path: Path) -> None:
    theirs = timm.create_model("resnet18", channels=[8, 8, 16, 16], num_classes=7)
    save_file(theirs.state_dict(), tmp_path / "a.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}}, tmp_path / "b.pth")
    x = torch.randn(2, 3, 64, 64)
    theirs.eval().reset_classifier(0)
    for name in ("a.safetensors", "b.pth"):
        settings = SETTINGS.model_copy(update={"pretrained": str(tmp_path / name)})
        ours = create_backbone(settings, crop_size=64).eval()
        assert torch.equal(ours(x), theirs(x))


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    other = timm.create_model("resnet18", channels=[8, 8, 16, 32], num_classes=0).state_dict()
    other["extra.weight"] = torch.zeros(1)
    del other["bn1.bias"]
    save_file(other, tmp_path / "other.safetensors")
    backbone = create_backbone(SETTINGS, crop_size=64)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    with pytest.raises(ValueError, match="do not fit") as caught:
        load_backbone_weights(backbone, tmp_path / "other.safetensors")
    message = str(caught.value)
    assert "bn1.bias is missing" in message
    assert "extra.weight is not part of the backbone" in message
    assert "(32, 16, 3, 3), the backbone's is (16, 16, 3, 3)" in message
    assert all(torch.equal(before[k], v) for k, v in backbone.state_dict().items())


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    file = tmp_path / "harmful.pth"
    file.write_bytes(pickle.dumps({"model": Harmful()}))
    torch.save({"model": Harmful()}, tmp_path / "harmful2.pth")
    for path in (file, tmp_path / "harmful2.pth"):
        with pytest.raises(ValueError, match="damaged or not a file of plain tensors"):
            read_weights(path)
        with pytest.raises(ValueError, match="damaged or not a file of plain tensors"):
            mira.load_backbone(path)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("name", ["none.pth", "none.safetensors"])
def test_missing_and_damaged_files(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no weights file"):
        read_weights(tmp_path / name)
    (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(ValueError, match="readable safetensors|damaged"):
        read_weights(tmp_path / name)


def test_wherever_a_file_is_cut_or_changed_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    weights = {"weight": torch.randn(200)}
    torch.save(weights, path)
    whole = path.read_bytes()
    for end in range(2, len(whole), 37):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"weights.pth' is damaged"):
            read_weights(path)
    refused = 0
    for at in {*range(2, len(whole), 7), *range(len(whole) - 1000, len(whole))}:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with contextlib.suppress(ValueError):  # what is read all the same has a byte of padding, a date or the like
            read, _ = read_weights(path)
            assert torch.equal(read["weight"], weights["weight"])
            continue
        refused += 1
    assert refused > 100


def test_a_compressed_archive_gets_advice_that_helps(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(5000)}, tmp_path / "stored.pt")
    with (
        zipfile.ZipFile(tmp_path / "stored.pt") as stored,
        zipfile.ZipFile(tmp_path / "other.pt", "w", zipfile.ZIP_DEFLATED) as other,
    ):
        for name in stored.namelist():
            other.writestr(name, stored.read(name))
    with pytest.raises(ValueError, match=r"not written by torch.save: .* torch.jit.load, save its state dict"):
        read_weights(tmp_path / "other.pt")


def test_a_file_without_a_state_dict(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="holds no state dict; its entries are epoch"):
        read_weights(tmp_path / "x.pth")
