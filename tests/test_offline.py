"""Without a network: one sentence at once, with the way to work offline."""

import socket
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

import mira
from mira.data import open_source
from mira.offline import fetching
from mira.opening import open_subject


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def refused_at_once(call) -> str:
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"not on this machine .*no network.*To work offline") as caught:
        call()
    assert time.monotonic() - began < 20  # the hub's client alone tries for 46 s
    assert not constants.HF_HUB_OFFLINE
    return str(caught.value)


def test_weights_of_timm() -> None:
    assert "'timm:test_vit2'" in refused_at_once(lambda: open_subject("timm:test_vit2"))


def test_pretraining_that_starts_from_them(picture_folder: Path, tmp_path: Path) -> None:
    settings = ["model.backbone.name=test_resnet", "model.backbone.pretrained=true", "model.backbone.stem=standard"]
    refused_at_once(lambda: mira.pretrain(picture_folder, out=tmp_path / "run", overrides=settings, quiet=True))
    assert not (tmp_path / "run").exists()


def test_a_set_of_the_hub() -> None:
    pytest.importorskip("datasets")
    assert "hf:nobody/nothing" in refused_at_once(lambda: open_source("hf:nobody/nothing"))


def test_what_lies_in_a_cache_needs_no_network() -> None:
    with fetching("the weights", "wait"):
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


def test_a_proxy_stands_before_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    with fetching("the weights", "wait"):
        assert not constants.HF_HUB_OFFLINE
