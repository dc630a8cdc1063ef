"""Sets of pictures in a few large files: which files, and which pictures of them belong to a split."""

import glob
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Int64

from mira.data.folder import TEST_FOLDERS, TRAIN_FOLDER, held_out
from mira.data.remote_file import RemoteFile

File = TypeVar("File", bound=Path | RemoteFile)
_RANGE = re.compile(r"\{([^{}]*)\}")


def shard_paths(pattern: str, suffix: str) -> list[Path]:
    """The files that a pattern means: "a-{000..012}.tar", "a-{train,val}.tar", "a-*.tar", one file, or all in a folder.

    Raises:
        ValueError: a file is missing, or there is none.
    """
    paths: list[Path] = []
    for name in _braces(os.path.expanduser(pattern)):  # noqa: PTH111 (a pattern is no path)
        path = Path(name)
        if path.is_dir():
            found = sorted(path.glob(f"*{suffix}"))
        elif path.exists() or not glob.has_magic(name):
            found = [path]
        else:
            found = [Path(match) for match in sorted(glob.glob(name))]  # noqa: PTH207
        missing = next((path for path in found if not path.is_file()), None)
        if missing is not None:
            raise ValueError(f"there is no file {missing}: check the pattern {pattern!r}")
        paths += found
    if not paths:
        raise ValueError(f"no {suffix} files match {pattern!r}")
    return paths


def remote_files(pattern: str) -> list[RemoteFile]:
    """The files that an address with braces means, as in "https://host/train-{000..146}.tar".

    Raises:
        ValueError: it has a wildcard.
    """
    if glob.has_magic(pattern):
        raise ValueError(
            f"what lies at an address is not listed: write {{000..012}} instead of the wildcard in {pattern}"
        )
    return [RemoteFile(url) for url in _braces(pattern)]


def _braces(pattern: str) -> list[str]:
    """Expand {a,b} and {00..12} as shells do; leading zeros are kept."""
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, dots, last = match[1].partition("..")
    if dots and first.isdigit() and last.isdigit():
        choices: Sequence[str] = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    else:
        choices = match[1].split(",")
    return [name for choice in choices for name in _braces(pattern[: match.start()] + choice + pattern[match.end() :])]


def has_split_files(paths: Iterable[Path | RemoteFile]) -> bool:
    """Whether files are called after splits, as in "train-00000-of-00005.parquet"."""
    return any(path.name.startswith(TRAIN_FOLDER) for path in paths)


def files_of_split(paths: Sequence[File], split: str) -> list[File]:
    """The files that may hold pictures of a split; raises ValueError when there is none."""
    if split == "all" or not has_split_files(paths):
        return list(paths)
    for name in (TRAIN_FOLDER,) if split == "train" else TEST_FOLDERS:
        if chosen := [path for path in paths if path.name.startswith(name)]:
            return chosen
    raise ValueError(f"beside {paths[0]} there are no files called {', '.join(TEST_FOLDERS)} for split 'test'")


def rows_of_split(keys: Sequence[str], paths: Sequence[Path | RemoteFile], split: str) -> Int64[np.ndarray, " N"]:
    """Which pictures belong to a split: all where files are called after splits, else a fifth of them is the test."""
    if split == "all" or has_split_files(paths):
        return np.arange(len(keys))
    chosen = np.array([held_out(key) == (split == "test") for key in keys], bool)
    if not chosen.any():
        raise ValueError(f"{paths[0]} has too few pictures to hold a fifth of them out: use split 'all'")
    return np.flatnonzero(chosen)


def identity_of(paths: Iterable[Path], *more: object) -> str:
    """The files with their sizes and the times of their last change, and what else decides the pictures."""
    status = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return repr((status, more))
