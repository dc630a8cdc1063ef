"""The package as it is installed: complete, importable elsewhere, and saying only what it has."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import mira

ROOT = Path(__file__).parents[1]


def test_every_public_name_exists_and_has_a_docstring() -> None:
    for name in mira.__all__:
        assert getattr(mira, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'pretrian'"):
        mira.pretrian  # noqa: B018


def test_the_assignment_knows_nothing_of_the_rest() -> None:
    code = "import sys, mira.assignment; print(*[m for m in sys.modules if m.startswith('mira.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(module.startswith("mira.assignment") for module in done.stdout.split())


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the two ways of building give: `direct/*.whl`, and `through-sdist/` with the archive and its wheel."""
    folder = tmp_path_factory.mktemp("dist")
    for name, words in (("direct", ["--wheel"]), ("through-sdist", [])):
        command = [sys.executable, "-m", "build", *words, "--no-isolation", "--outdir", str(folder / name), str(ROOT)]
        subprocess.run(command, check=True, capture_output=True)
    return folder


def wheel_files(wheel: Path) -> set[str]:
    """What it installs as `mira`."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if name.startswith("mira/")}


@pytest.mark.slow
def test_a_wheel_is_complete_however_it_was_built(dist: Path) -> None:
    sources = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*") if path.is_file()}
    sources = {path for path in sources if "__pycache__" not in path}
    for name in ("direct", "through-sdist"):
        (wheel,) = (dist / name).glob("mira_ssl-*.whl")
        assert wheel_files(wheel) == sources, name
        with zipfile.ZipFile(wheel) as archive:
            licenses = [one for one in archive.namelist() if ".dist-info/licenses/" in one]
        assert {one.rpartition("/")[2] for one in licenses} == {"LICENSE", "LICENSE-fashion-mnist"}
    (archive_path,) = (dist / "through-sdist").glob("mira_ssl-*.tar.gz")
    with tarfile.open(archive_path) as sdist:
        inside = {name.partition("/src/")[2] for name in sdist.getnames() if "/src/mira/" in name}
    assert sources <= inside


@pytest.mark.slow
@pytest.mark.parametrize("way", ["direct", "through-sdist"])
def test_an_installed_wheel_trains_evaluates_and_reports(
    way: str, dist: Path, tmp_path: Path, picture_folder: Path, tiny_recipe: dict
) -> None:
    """In an environment of its own, which borrows the libraries of this one and nothing of the working tree."""
    environment = tmp_path / "env"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    (site,) = environment.glob("lib/python3*/site-packages")
    # Folders named in a .pth join the path, but the .pth files inside them (the editable mira) are not read.
    (site / "libraries.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("-packages")))
    (wheel,) = (dist / way).glob("mira_ssl-*.whl")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--disable-pip-version-check", str(wheel)], check=True)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_recipe))

    def run(*words: str) -> str:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=clean, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert Path(run(str(python), "-c", "import mira; print(mira.__file__)").strip()).is_relative_to(site)
    mira_command = str(environment / "bin" / "mira")
    assert "demo" in run(mira_command, "recipes")
    run(mira_command, "pretrain", str(picture_folder), "--recipe", "tiny.yaml", "--out", "run", "training.epochs=1")
    assert "MIRA" in run(mira_command, "evaluate", "knn", "run", "--k", "5", "--workers", "0")
    run(mira_command, "report", "run")
    assert "What the prototypes found" in (tmp_path / "run" / "report.html").read_text("utf-8")
