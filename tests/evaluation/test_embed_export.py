import json
import resource
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open

from mira.evaluation.embed import write_embeddings
from mira.evaluation.export import write_backbone
from mira.evaluation.features import Features

import timm  # isort: skip  (mira has mended torchvision by now)

KEYS = ["cats/a.jpg", "ünïcode/犬.png", "<b>&'\".png", "broken-\udcff.jpg"]


def features(*, labels: bool = True) -> Features:
    return Features(
        torch.randn(4, 3, generator=torch.Generator().manual_seed(0)),
        torch.tensor([1, 0, 2, 1]) if labels else None,
        torch.arange(4),
        KEYS,
        [],
    )


@pytest.mark.parametrize("labels", [True, False])
def test_npz_holds_features_names_and_labels_without_pickle(tmp_path, labels: bool) -> None:
    given = features(labels=labels)
    path = write_embeddings(given, tmp_path / "new" / "e.npz")
    with np.load(path, allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["features"], given.features.numpy())
        assert arrays["features"].dtype == np.float32
        assert arrays["keys"].tolist() == KEYS
        assert set(arrays) == {"features", "keys"} | ({"labels"} if labels else set())
        if labels:
            assert arrays["labels"].tolist() == [1, 0, 2, 1]


@pytest.mark.parametrize("labels", [True, False])
def test_parquet_holds_the_same(tmp_path, labels: bool) -> None:
    given = features(labels=labels)
    table = pq.read_table(write_embeddings(given, tmp_path / "e.parquet")).to_pydict()
    np.testing.assert_array_equal(np.array(table["features"], np.float32), given.features.numpy())
    assert table["key"] == [*KEYS[:3], r"broken-\udcff.jpg"]
    assert table.get("label") == ([1, 0, 2, 1] if labels else None)


def test_another_suffix_names_the_two(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"written as .npz or .parquet, not '.csv': rename 'e.csv'"):
        write_embeddings(features(), tmp_path / "e.csv")
    assert list(tmp_path.iterdir()) == []


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"pip install pyarrow`, or write .npz"):
        write_embeddings(features(), tmp_path / "e.parquet")


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, suffix: str) -> None:
    path = write_embeddings(features(), tmp_path / f"e.{suffix}")
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # a write beyond this fails, as on a full disk
    try:
        with pytest.raises(OSError, match="File too large"):
            write_embeddings(replace(features(), features=torch.randn(4, 100_000)), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


class TestExport:
    def test_timm_loads_the_file_to_the_bit(self, tmp_path) -> None:
        backbone = timm.create_model("resnet18", num_classes=0).to(memory_format=torch.channels_last)
        with torch.no_grad():
            backbone.train()(torch.randn(4, 3, 32, 32))  # BatchNorm statistics of its own
        path = write_backbone(backbone, tmp_path / "w.safetensors", {"mira.backbone": json.dumps({"name": "resnet18"})})
        loaded = timm.create_model("resnet18", num_classes=0, checkpoint_path=str(path))
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in backbone.state_dict().items())

    def test_metadata_is_passed_through_and_the_backbone_left_alone(self, tmp_path) -> None:
        backbone = torch.nn.Linear(3, 2)
        before = {name: value.clone() for name, value in backbone.state_dict().items()}
        metadata = {"mira.backbone": '{"name": "ü"}', "mira.preprocessing": "{}"}
        path = write_backbone(backbone, tmp_path / "w.safetensors", metadata)
        with safe_open(path, "pt") as file:
            assert file.metadata() == metadata
        assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())

    def test_shared_weights_are_written(self, tmp_path) -> None:
        first = torch.nn.Linear(3, 3)
        both = torch.nn.Sequential(first, first)
        with safe_open(write_backbone(both, tmp_path / "w.safetensors", {}), "pt") as file:
            assert set(file.keys()) == {"0.weight", "0.bias", "1.weight", "1.bias"}

    def test_another_suffix_gets_a_sentence(self, tmp_path) -> None:
        with pytest.raises(ValueError, match=r"exported as .safetensors, not '.pt': rename 'w.pt'"):
            write_backbone(torch.nn.Linear(1, 1), tmp_path / "w.pt", {})
