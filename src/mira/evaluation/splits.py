"""Which labelled pictures learn, and which ones choose: held-out parts, and subsets that a file lists."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from mira.data import PictureSource
from mira.evaluation.features import Features


def labels_of(features: Features) -> Int64[Tensor, " N"]:
    """The labels of features whose source has been checked to have some."""
    assert features.labels is not None
    return features.labels


def num_classes(*sources: PictureSource) -> int:
    """One more than the highest label of labelled sources, and at least the number of their class names.

    Raises:
        ValueError: a source has no pictures.
    """
    classes = 0
    for source in sources:
        if len(source) == 0:
            raise ValueError(f"{source.name} has no pictures to evaluate: name a folder or a split that has some.")
        assert source.labels is not None
        classes = max(classes, int(source.labels.max()) + 1, len(source.classes))
    return classes


def hold_out(
    labels: Int64[Tensor, " N"], share: float, *, seed: int
) -> tuple[Int64[Tensor, " M"], Int64[Tensor, " H"]]:
    """Divide pictures into those to learn from and those to choose settings on: the same share of every class.

    A class keeps at least one picture to learn from and, where it has two or more, holds at least one out.

    Returns:
        Row numbers of both parts, each ascending; a function of the labels and the seed alone.

    Raises:
        ValueError: the share is not in (0, 1), or no class has two pictures.
    """
    if not 0 < share < 1:
        raise ValueError(f"the held-out share must be above 0 and below 1 (0.2 is a fifth), not {share}.")
    values = labels.cpu().numpy()
    held = []
    for label in np.unique(values):
        members = np.flatnonzero(values == label)
        count = min(max(1, round(share * len(members))), len(members) - 1)
        # abs: a generator's seed may not be negative. The last number keeps this apart from `labelled_subset`.
        order = np.random.default_rng([seed, abs(int(label)), int(label < 0), 1]).permutation(len(members))
        held.append(members[order[:count]])
    chosen = np.sort(np.concatenate(held)) if held else np.empty(0, np.int64)
    if len(chosen) == 0:
        raise ValueError(
            f"none of the {len(values)} labelled pictures can be held out to choose settings on: "
            "at least one class needs two pictures."
        )
    kept = np.setdiff1d(np.arange(len(values)), chosen)
    return torch.from_numpy(kept), torch.from_numpy(chosen)


def listed_subset(source: PictureSource, path: Path) -> Int64[np.ndarray, " M"]:
    """The pictures of a source that a text file names, one a line; ascending row numbers.

    A line is the end of a picture's path: its file name, as in the lists of ImageNet's 1 % and 10 %
    (`n01440764_10026.JPEG`), or as many of its folders as are given. Empty lines are passed over.

    Raises:
        ValueError: the file cannot be read or names nothing; a line names no picture, or several.
    """
    try:
        names = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the list of pictures '{path}' cannot be read: {error}.") from None
    if not names:
        raise ValueError(f"the list of pictures '{path}' is empty: give one file name a line.")
    keys = [source.key(index) for index in range(len(source))]
    rows = _rows_by_ending(keys, {name.count("/") for name in names})
    _refuse_lines(names, rows, source.name, path)
    return np.array(sorted({rows[name][0] for name in names}), np.int64)


def _rows_by_ending(keys: Sequence[str], depths: set[int]) -> dict[str, list[int]]:
    """The rows of every ending of a key that has one of the depths (the number of its slashes)."""
    rows: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        parts = key.split("/")
        for depth in depths:
            if depth < len(parts):
                rows.setdefault("/".join(parts[-depth - 1 :]), []).append(row)
    return rows


def _refuse_lines(names: list[str], rows: dict[str, list[int]], source: str, path: Path) -> None:
    missing = [name for name in names if name not in rows]
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(names)} names in '{path}' are no pictures of {source}; the first is "
            f"'{missing[0]}': check that the list belongs to these pictures and to this split."
        )
    several = [name for name in names if len(rows[name]) > 1]
    if several:
        raise ValueError(
            f"'{several[0]}' in '{path}' names {len(rows[several[0]])} pictures of {source}: "
            "write their folders before the names."
        )
    (twice, count), *_ = Counter(names).most_common(1)
    if count > 1:
        raise ValueError(f"'{twice}' stands {count} times in '{path}': name each picture once.")
