"""The package as it is installed: complete, importable elsewhere, and saying only what it has."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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


@pytest.mark.slow
def test_a_wheel_is_complete_and_works_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("mira_ssl-*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert any(site.glob("mira_ssl-*.dist-info/licenses/LICENSE"))
    assert any(site.glob("mira_ssl-*.dist-info/licenses/**/LICENSE-fashion-mnist"))
    sources = {path.relative_to(ROOT / "src") for path in (ROOT / "src").rglob("*") if path.is_file()}
    sources = {path for path in sources if "__pycache__" not in path.parts}
    assert sources == {p.relative_to(site) for p in (site / "mira").rglob("*") if p.is_file()}
    # -S would hide the dependencies too; -P and the path make sure that this mira is the wheel's.
    code = (
        "import mira, mira.training, mira.cli; from pathlib import Path\n"
        f"assert Path(mira.__file__).is_relative_to({str(site)!r}), mira.__file__\n"
        "assert 'demo' in mira.training.builtin_recipes()\n"
        "assert len(mira.open_source('builtin:fashion', channels=1)) == 10_000\n"
        "assert mira.cli.main(['recipes']) == 0"
    )
    subprocess.run(
        [sys.executable, "-P", "-c", code], check=True, cwd=tmp_path, env={"PYTHONPATH": str(site), "PATH": ""}
    )
