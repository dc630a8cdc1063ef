"""Files are written whole or not at all, where they were meant to be, with the permissions of the person."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mira.files import append_lines, atomic_path, cache_folder, is_temporary, refuse_unwritable, remove, write_text


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_link_is_followed_and_permissions_stay(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    real, link = tmp_path / "elsewhere/real.txt", tmp_path / "link.txt"
    write_text(real, "old")
    real.chmod(0o600)
    link.symlink_to(real)
    write_text(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert mode(real) == 0o600
    dangling = tmp_path / "dangling.txt"
    dangling.symlink_to(tmp_path / "elsewhere/made.txt")
    write_text(dangling, "made")
    assert (tmp_path / "elsewhere/made.txt").read_text() == "made"


def test_a_new_file_has_the_permissions_of_the_umask_whatever_library_writes_it(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    before = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "weights.safetensors") as temporary:
            save_file({"a": np.zeros(3, np.float32)}, temporary)
        write_text(tmp_path / "text.txt", "text")
    finally:
        os.umask(before)
    assert mode(tmp_path / "weights.safetensors") == mode(tmp_path / "text.txt") == 0o640


def test_names_of_temporaries_cannot_be_foreseen_and_nothing_in_their_way_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = set()
    for _ in range(3):
        with atomic_path(tmp_path / "a.npz") as temporary:
            assert is_temporary(temporary)
            assert temporary.suffix == ".npz"
            names.add(temporary.name)
    assert len(names) == 3
    monkeypatch.setattr("mira.files.secrets.token_hex", lambda _: "known")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".a.known.tmp.txt").symlink_to(victim)
    with pytest.raises(OSError, match=r"a\.txt' cannot be written \(File exists\)"):
        write_text(tmp_path / "a.txt", "mine")
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("name", ["folder", "file/below", "/proc/nothing/x", "/dev/null/x"])
def test_what_cannot_be_written_is_a_sentence_with_its_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    path = tmp_path / name
    for write in (lambda: write_text(path, "x"), lambda: append_lines(path, "x\n"), lambda: refuse_unwritable(path)):
        with pytest.raises(OSError, match="cannot be written") as refused:
            write()
        assert "Errno" not in str(refused.value)
        assert str(path) in str(refused.value)
        assert refused.value.errno


def test_looking_whether_a_file_can_be_written_changes_nothing(tmp_path: Path) -> None:
    refuse_unwritable(tmp_path / "new.txt")
    assert not list(tmp_path.iterdir())
    (tmp_path / "old.txt").write_text("old")
    refuse_unwritable(tmp_path / "old.txt")
    assert (tmp_path / "old.txt").read_text() == "old"
    refuse_unwritable(Path("/dev/null"))
    append_lines(Path("/dev/null"), "x\n")


LIMITED = """
import resource, sys
from pathlib import Path
from mira.files import append_lines
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
for number in range(9):
    try:
        append_lines(Path(sys.argv[1]), f"{number:015}\\n", durable=number % 2 == 0)
    except OSError as error:
        print(number, error)
"""


def test_lines_that_do_not_fit_are_taken_back_and_said(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    said = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=True).stdout
    assert path.read_text() == "".join(f"{number:015}\n" for number in range(6))
    assert [line[0] for line in said.splitlines()] == ["6", "7", "8"]
    assert "cannot be written (File too large): make room there" in said


def test_no_room_is_said_with_the_name(tmp_path: Path) -> None:
    def fill() -> None:
        with atomic_path(tmp_path / "a.npz"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"a\.npz' cannot be written \(No space left on device\): make room there"):
        fill()
    assert not list(tmp_path.iterdir())


def test_names_that_are_no_unicode_can_be_written(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    append_lines(tmp_path / "skipped.txt", f"{name}\tdamaged\n")
    write_text(tmp_path / "one.txt", name)
    assert (tmp_path / "skipped.txt").read_text("utf-8") == "caf\\udce9.jpg\tdamaged\n"
    assert (tmp_path / "one.txt").read_text("utf-8") == "caf\\udce9.jpg"


def test_folders_go_in_one_step(tmp_path: Path) -> None:
    (tmp_path / "folder/inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    remove(tmp_path / "link")
    remove(tmp_path / "nothing")
    assert (tmp_path / "folder/inner").is_dir()
    remove(tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def test_every_kind_of_cache_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRA_CACHE", str(tmp_path))
    assert len({cache_folder("features"), cache_folder("pictures"), cache_folder("shards")}) == 3
    assert all(cache_folder(kind).parent == tmp_path for kind in ("features", "pictures", "shards"))


def test_clearing_features_leaves_other_caches_and_other_peoples_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture_folder: Path
) -> None:
    from mira.cli import main
    from mira.data import open_source
    from mira.data.cache import CachedSource

    monkeypatch.setenv("MIRA_CACHE", str(tmp_path))
    source = open_source(picture_folder, split="all")
    CachedSource(source, cache_folder("pictures"), short_side=None, limit=2**30)
    np.savez(cache_folder("pictures").parent / "mine.npz", a=np.zeros(3))
    cache_folder("features").mkdir()
    np.savez(cache_folder("features") / "mine.npz", a=np.zeros(3))
    (cache_folder("features") / f"{'0' * 32}.npz").write_bytes(b"features")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert main(["cache", "clear"]) == 0
    assert before - {path for path in tmp_path.rglob("*") if path.is_file()} == {
        cache_folder("features") / f"{'0' * 32}.npz"
    }
