"""Sets of pictures in a few large files: which files, and which pictures of them belong to a split."""

import glob
import math
import re
from collections.abc import Iterable, Sequence
from itertools import chain, product
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Int64

from mira.data.folder import TEST_FOLDERS, TRAIN_FOLDER, held_out
from mira.data.names import escaped, path_of
from mira.data.remote_file import RemoteFile

File = TypeVar("File", bound=Path | RemoteFile)
_RANGE = re.compile(r"\{([^{}]*)\}")
_MOST = 100_000  # files that one pattern may name


def shard_paths(pattern: str, suffix: str) -> list[Path]:
    """The files that a pattern means: "a-{000..012}.tar", "a-{train,val}.tar", "a-*.tar", one file, or all in a folder.

    Raises:
        ValueError: a file is missing, or there is none.
    """
    paths: list[Path] = []
    for name in _braces(str(path_of(pattern))):
        path = Path(name)
        if path.is_dir():
            found = sorted(path.glob(f"*{suffix}"))
        elif path.exists() or not glob.has_magic(name):
            found = [path]
        else:
            found = [Path(match) for match in sorted(glob.glob(name))]  # noqa: PTH207
        missing = next((path for path in found if not path.is_file()), None)
        if missing is not None:
            raise ValueError(f"there is no file {escaped(str(missing))}: check the pattern {pattern!r}")
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
    """Expand {a,b} and {00..12} as shells do; leading zeros are kept.

    Raises:
        ValueError: more names than anybody has files.
    """
    parts = _RANGE.split(pattern)  # text, and the inside of a pair of braces, in turns
    choices = [_choices(inside) for inside in parts[1::2]]
    if math.prod(map(len, choices)) > _MOST:
        raise ValueError(f"{pattern[:200]} stands for more than {_MOST:,} files: check the braces")
    joined = (chain.from_iterable(zip(parts[::2], (*chosen, ""), strict=True)) for chosen in product(*choices))
    names = ["".join(name) for name in joined]
    if not any(_RANGE.search(name) for name in names[:1]):
        return names
    found: list[str] = []
    for name in names:  # braces within braces
        found += _braces(name)
        if len(found) > _MOST:
            raise ValueError(f"{pattern[:200]} stands for more than {_MOST:,} files: check the braces")
    return found


def _choices(inside: str) -> Sequence[str]:
    first, dots, last = inside.partition("..")
    if not (dots and first.isdecimal() and last.isdecimal() and len(first + last) <= 40):
        return inside.split(",")
    numbers = range(int(first), int(last) + 1)
    if len(numbers) > _MOST:
        raise ValueError(f"{{{inside}}} stands for more than {_MOST:,} files: check the braces")
    return [f"{number:0{len(first)}d}" for number in numbers]


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
    raise ValueError(
        f"beside {escaped(str(paths[0]))} there are no files called {', '.join(TEST_FOLDERS)} for split 'test'"
    )


def rows_of_split(keys: Sequence[str], paths: Sequence[Path | RemoteFile], split: str) -> Int64[np.ndarray, " N"]:
    """Which pictures belong to a split: all where files are called after splits, else a fifth of them is the test."""
    if split == "all" or has_split_files(paths):
        return np.arange(len(keys))
    chosen = np.array([held_out(key) == (split == "test") for key in keys], bool)
    if not chosen.any():
        raise ValueError(f"{escaped(str(paths[0]))} has too few pictures to hold a fifth of them out: use split 'all'")
    return np.flatnonzero(chosen)


def identity_of(paths: Iterable[Path], *more: object) -> str:
    """The files with their sizes and the times of their last change, and what else decides the pictures."""
    status = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return repr((status, more))
