"""Names of any bytes, in every kind of source and of everything that is named: one decision, the same everywhere."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import mira
from mira.data import open_source
from mira.data.names import escaped, path_of, path_text
from mira.evaluation.results import Result
from mira.evaluation.summary import print_summary, summarise
from mira.evaluation.table import print_results

ODD = [b"caf\xe9", b"new\nline", b"tab\tbed", b"esc\x1b[31mred", b"bidi\xe2\x80\xaetxt", b"plain", b"[bold]x[v2]"]
SHOWN = ["caf\\udce9", "new\\nline", "tab\\tbed", "esc\\x1b[31mred", "bidi\\u202etxt", "plain", "[bold]x[v2]"]


def picture(number: int) -> bytes:
    file = io.BytesIO()
    values = np.random.default_rng(number).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def odd_folder(folder: Path) -> Path:
    for label, name in enumerate(ODD):
        inner = os.path.join(os.fsencode(folder), name)  # noqa: PTH118 (bytes)
        os.makedirs(inner)  # noqa: PTH103
        for number in range(6):
            with open(os.path.join(inner, b"%d-" % number + name + b".png"), "wb") as file:  # noqa: PTH118, PTH123
                file.write(picture(10 * label + number) if number else b"damaged")
    return folder


def odd_tar(path: Path) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as file:
        for label, name in enumerate(map(os.fsdecode, ODD)):
            for number in range(6):
                data = picture(10 * label + number) if number else b"damaged"
                member = tarfile.TarInfo(f"{name}/{number}-{name}.png")
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("kind", ["folder", "tar", "parquet"])
def test_keys_and_classes_are_escaped_in_every_source(kind: str, tmp_path: Path) -> None:
    if kind == "folder":
        spec, labels = odd_folder(tmp_path / "f"), "folder"
    elif kind == "tar":
        spec, labels = odd_tar(tmp_path / "t.tar"), "folder"
    else:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        texts = [name.decode("utf-8", "replace") for name in ODD]
        pq.write_table(pa.table({"image": [picture(i) for i in range(7)], "label": texts}), tmp_path / "p.parquet")
        spec, labels = tmp_path / "p.parquet", "auto"
    source = open_source(spec, split="all", labels=labels)
    wanted = SHOWN if kind != "parquet" else ["caf\ufffd", *SHOWN[1:]]
    assert sorted(source.classes) == sorted(wanted)
    for name in (*source.classes, *(source.key(index) for index in range(len(source)))):
        assert name == escaped(name)
        name.encode("utf-8")


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_a_run_on_odd_names_from_pretraining_to_its_report(kind: str, tiny_recipe: dict, tmp_path: Path) -> None:
    spec = odd_folder(tmp_path / "f") if kind == "folder" else odd_tar(tmp_path / "t.tar")
    tiny_recipe["training"]["epochs"] = 1
    tiny_recipe["data"] = {"labels": "folder", "split": "all", "max_unreadable": 0.5}
    out = Path(os.fsdecode(os.fsencode(tmp_path) + b"/run-\xe9"))
    run = mira.pretrain(spec, out=out, recipe=tiny_recipe, quiet=True)
    lines = (run / "skipped.txt").read_text("utf-8").splitlines()
    assert lines
    assert all(line.count("\t") == 1 for line in lines)
    mira.resume(run, quiet=True)
    page = mira.write_report(run).read_text("utf-8")
    assert "caf\\udce9" in page
    features = mira.embed(run, spec, labels="folder", out=tmp_path / "e.npz")
    assert len(features) == 35
    assert len(mira.evaluate(run, "knn", spec, labels="folder", k=[1])) > 0


@pytest.mark.parametrize(
    "name", [b"new\nline", b"caf\xe9", b"called.tar", b"called.parquet", b"'quoted': [x", b"\xe5\x86\x99 a"]
)
def test_folders_of_any_name_are_found(name: bytes, picture_folder: Path, tiny_recipe: dict, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))  # noqa: PTH118
    folder.symlink_to(picture_folder)
    tiny_recipe["training"]["epochs"] = 1
    run = mira.pretrain(folder, out=tmp_path / "run", recipe=tiny_recipe, quiet=True)
    assert "class0" in mira.write_report(run).read_text()
    assert len(mira.embed(run, str(folder))) == 64


def test_a_path_survives_as_text(tmp_path: Path) -> None:
    there = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9\xff"))
    there.mkdir()
    text = path_text(there)
    text.encode("utf-8")
    assert path_of(text) == there
    literal = tmp_path / "a\\udce9"
    literal.mkdir()
    assert path_of(str(literal)) == literal
    with pytest.raises(ValueError, match="nobodyhere"):
        path_of("~nobodyhere/x")


def result(features: str, checkpoint: str = "") -> Result:
    settings = {"k": 20, "temperature": 0.07, "fraction": 1.0}
    return Result("knn", features, "top-1", 50.0, settings, "data[v2]", 10, 10, checkpoint=checkpoint)


def test_names_are_no_markup_and_obey_no_escape_sequence() -> None:
    for show in (lambda found, console: print_results(found, console), lambda f, c: print_summary(summarise(f), c)):
        out = io.StringIO()
        show([result("w[v2]"), result("[/]"), result("a[bold]b"), result("\x1b[31mred")], Console(file=out, width=200))
        text = out.getvalue()
        for name in ("w[v2]", "[/]", "a[bold]b", "\\x1b[31mred"):
            assert name in text
        assert "\x1b[31m" not in text
