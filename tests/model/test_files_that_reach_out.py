"""Files of weights that name addresses, other files and pickles: nothing of it is followed."""

import json
import pickle
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import mira
from mira.model import BackboneSettings, create_backbone
from mira.model.options import architecture_words
from mira.opening import open_subject

import timm  # isort: skip


@pytest.fixture(autouse=True)
def silent_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


class Payload:
    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self):
        return (Path.touch, (self.touched,))


def reaching_out(folder: Path) -> list[dict]:
    evil = folder / "evil.bin"
    evil.write_bytes(pickle.dumps(Payload(folder / "touched")))
    torch.save({"state_dict": Payload(folder / "touched")}, folder / "evil2.bin")
    address = "http://127.0.0.1:9/secret.pth"
    return [
        {"options": {"checkpoint_path": str(evil)}},
        {"options": {"checkpoint_path": str(folder / "evil2.bin")}},
        {"pretrained": True},
        {"pretrained": str(evil)},
        {"pretrained": True, "options": {"pretrained_cfg": {"url": address}}},
        {"pretrained": True, "options": {"pretrained_cfg_overlay": {"url": address}}},
        {"pretrained": True, "options": {"pretrained_cfg": {"hf_hub_id": "a/b", "hf_hub_filename": "c.bin"}}},
        {"pretrained": True, "options": {"pretrained_cfg": {"file": str(evil)}}},
        {"options": {"pretrained": True}},
        {"options": {"cache_dir": str(folder)}},
        {"options": {"features_only": True}},
        {"options": {"pretrained_model_args": {"checkpoint_path": str(evil)}}},
        {"options": {"layers": {"url": address}}},
        {"name": "hf-hub:a/b"},
        {"name": f"local-dir:{folder}"},
    ]


def test_exports_open_without_a_socket_and_run_no_pickle(tmp_path: Path) -> None:
    weights = timm.create_model("test_resnet", num_classes=0).state_dict()
    crafted = reaching_out(tmp_path)
    refused = []
    for number, settings in enumerate(crafted):
        content = {
            "settings": {"name": "test_resnet", "stem": "standard"} | settings,
            "crop_size": 64,
            "preprocessing": {"size": 64, "resize": 73, "channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3},
        }
        path = tmp_path / f"{number}.safetensors"
        save_file(weights, path, metadata={"mira.backbone": json.dumps(content)})
        try:
            open_subject(path).untrained()
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) == len(crafted) - 2  # the file itself brings the weights: "pretrained" counts for nothing
    for sentence in refused:
        assert str(tmp_path) in sentence
        assert any(words in sentence for words in ("has no model.backbone.options.", "timm has no", "must be a number"))
    assert not (tmp_path / "touched").exists()


def test_checkpoints_open_without_a_socket_and_run_no_pickle(finished_run: Path, tmp_path: Path) -> None:
    newest = max((finished_run / "checkpoints").glob("step-*.pt"))
    whole = torch.load(newest, weights_only=True)
    own = whole["recipe"]["model"]["backbone"]
    for number, settings in enumerate(reaching_out(tmp_path)):
        options = {"options": own["options"] | settings["options"]} if "options" in settings else {}
        whole["recipe"]["model"]["backbone"] = own | settings | options
        path = tmp_path / f"{number}.pt"
        torch.save(whole, path)
        if "options" in settings or "name" in settings:
            with pytest.raises(ValueError, match=rf"'{path}'.*backbone"):
                mira.load_backbone(path)
        else:
            mira.load_backbone(path)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("name", ["resnet18", "vit_small_patch16_224", "convnext_tiny", "efficientnet_b0"])
def test_no_word_of_an_architecture_loads_or_fetches(name: str) -> None:
    words = architecture_words(name)
    assert "drop_rate" in words
    telling = ("path", "url", "pretrained", "cache", "file")
    assert not [word for word in words - {"drop_path_rate"} if any(part in word for part in telling)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"layers": [1]}),
        ("resnet18", {"act_layer": "nope"}),
        ("resnet18", {"channels": [8]}),
        ("resnet18", {"layers": [2**31, 1, 1, 1]}),
        ("resnet18", {"channels": [60000] * 4}),
        ("resnet18", {"block": "nope"}),
        ("vit_tiny_patch16_224", {"patch_size": 0}),
        ("vit_tiny_patch16_224", {"num_heads": 0}),
        ("vit_tiny_patch16_224", {"depth": 10**9}),
        ("vit_tiny_patch16_224", {"embed_dim": -3}),
        ("vit_tiny_patch16_224", {"drop_path_rate": float("nan")}),
        ("vit_tiny_patch16_224", {"mlp_ratio": "x"}),
        ("vit_tiny_patch16_224", {"norm_layer": "nope"}),
    ],
)
def test_options_that_cannot_be_built_get_a_sentence(name: str, options: dict) -> None:
    with pytest.raises(ValueError, match=r"option|GB for its weights alone"):
        create_backbone(BackboneSettings(name=name, options=options), crop_size=64)


def test_an_unknown_tag_gets_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"Invalid pretrained tag \(nope\)"):
        BackboneSettings(name="resnet18.nope")
