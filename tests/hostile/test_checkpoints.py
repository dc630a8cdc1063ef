"""Checkpoints and exports, mutated and crafted: weights that are right, or one sentence; no pickle runs."""

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from campaign import mutated, sentence_or_nothing, tries
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import mira

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def files(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    export = mira.export(finished_run, tmp_path_factory.mktemp("export") / "w.safetensors")
    newest = max((finished_run / "checkpoints").glob("step-*.pt"))
    old = io.BytesIO()
    torch.save(load_file(export), old, _use_new_zipfile_serialization=False)
    return {"w.safetensors": export.read_bytes(), "step-00000012.pt": newest.read_bytes(), "old.pth": old.getvalue()}


def test_mutated_files_never_give_other_weights(files: dict[str, bytes], tmp_path: Path) -> None:
    right = {}
    for name in ("w.safetensors", "step-00000012.pt"):
        (tmp_path / name).write_bytes(files[name])
        right[name] = mira.load_backbone(tmp_path / name).state_dict()
    for number, rng in tries("mutated weights", 100):
        name = list(files)[number % 3]
        data = mutated(files[name], rng)
        if data == files[name]:
            continue
        path = tmp_path / name
        path.write_bytes(data)
        backbone = sentence_or_nothing(lambda: mira.load_backbone(path), (name, number), ValueError)
        if backbone is not None and name in right:  # the change lay where nothing is read
            weights = backbone.state_dict()
            assert all(torch.equal(weights[key], value) for key, value in right[name].items()), (name, number)


VALUES: list[Any] = [
    None,
    0,
    -1,
    2**63,
    1.5,
    float("nan"),
    True,
    "x",
    "",
    [],
    {},
    [1],
    {"a": 1},
    b"x",
    torch.zeros(2),
    "\ud800",
]


def paths_in(content: Any, before: tuple = ()) -> list[tuple]:
    found = [before] if before else []
    if isinstance(content, dict) and len(before) < 4:
        for key, value in content.items():
            found += paths_in(value, (*before, key))
    return found


def test_checkpoints_with_any_value_anywhere(files: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "step-00000012.pt"
    places = paths_in(torch.load(io.BytesIO(files[path.name]), weights_only=True))
    places = [place for place in places if place[0] not in ("model", "optimiser")] * 3 + places
    for _, rng in tries("crafted checkpoints", 60):
        content = torch.load(io.BytesIO(files[path.name]), weights_only=True)
        *inner, last = places[int(rng.integers(len(places)))]
        section = content
        for key in inner:
            section = section[key]
        value = VALUES[int(rng.integers(len(VALUES)))]
        if rng.random() < 0.2:
            del section[last]
        else:
            section[last] = value
        torch.save(content, path)
        sentence_or_nothing(lambda: mira.load_backbone(path), (inner, last, value), ValueError)


def test_exports_with_any_value_anywhere(files: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(files[path.name])
    weights = load_file(path)
    with safe_open(path, "pt") as file:
        text = file.metadata()["mira.backbone"]
    places = paths_in(json.loads(text))
    plain = [value for value in VALUES if not isinstance(value, bytes | torch.Tensor)]
    for _, rng in tries("crafted exports", 250):
        content = json.loads(text)
        content.pop("digest")
        *inner, last = places[int(rng.integers(len(places)))]
        section = content
        for key in inner:
            section = section[key]
        section[last] = plain[int(rng.integers(len(plain)))]
        save_file(weights, path, metadata={"mira.backbone": json.dumps(content)})
        sentence_or_nothing(lambda: mira.load_backbone(path), (inner, last, content), ValueError)


def test_pickles_of_every_protocol_run_nothing(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "touched",))

    for protocol in range(6):
        for wrap in (lambda x: x, lambda x: {"model": x}, lambda x: {"state_dict": {"a": x}}, lambda x: [x, {"b": x}]):
            for name in ("a.pth", "a.pt", "a.bin", "a.safetensors", "step-00000001.pt"):
                path = tmp_path / name
                path.write_bytes(pickle.dumps(wrap(Payload()), protocol=protocol))
                with pytest.raises(ValueError, match=name):
                    mira.load_backbone(path)
                torch.save(wrap(Payload()), path, _use_new_zipfile_serialization=protocol % 2 == 0)
                with pytest.raises(ValueError, match=name):
                    mira.load_backbone(path)
    assert not (tmp_path / "touched").exists()


def test_noise_is_no_file_of_weights(tmp_path: Path) -> None:
    for number, rng in tries("noise for weights", 150):
        path = tmp_path / ("a.safetensors", "a.pth")[number % 2]
        start = (b"", b"PK\x03\x04", b"\x80\x02", (10).to_bytes(8, "little"), (2**40).to_bytes(8, "little"))[number % 5]
        path.write_bytes(start + rng.bytes(int(2 ** np.random.default_rng(number).uniform(0, 12))))
        with pytest.raises(ValueError, match=path.name):
            mira.load_backbone(path)
