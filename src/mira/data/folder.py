"""Pictures in a folder: nested or flat, with or without a class per folder, with or without splits."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from mira.data.decoding import OPTIONAL_SUFFIXES, SUFFIXES, decode, read_file
from mira.data.names import Names, escaped
from mira.wording import counted

TRAIN_FOLDER = "train"
TEST_FOLDERS = ("test", "val", "valid", "validation")  # the first that exists is the test split
TEST_SHARE = 0.2


class FolderSource:
    """The pictures below a folder, sorted by relative path.

    A file is a picture when its suffix says so (`SUFFIXES`, any case); its format is then taken from the content.
    Hidden files and folders (`.name`) are passed over; `left_out` counts the other files by suffix. Links are followed,
    each folder once. What cannot be read (a broken link, a locked folder) stays in the list and says so when read.

    Splits: with a sub-folder `train`, "train" is that folder, "test" the first of `test`, `val`, `valid`,
    `validation`, and "all" everything. Without one, "test" is a fixed fifth of the pictures, chosen by a hash of
    the relative path (so adding pictures moves no other), "train" the rest.
    """

    def __init__(self, root: Path, *, split: str, labels: str, channels: int) -> None:
        """List the folder; raises ValueError when it is missing, not a folder, or has no picture to offer."""
        if not root.is_dir():
            what = "is a file, not a folder" if root.exists() else "does not exist"
            raise ValueError(f"the picture folder {root} {what}: give the folder that holds your pictures")
        self.name = escaped(str(root))
        self.channels = channels
        self.left_out: Counter[str] = Counter()
        self.root = root
        start = _split_folder(root, split)
        try:
            os.scandir(start).close()
        except OSError as error:
            raise ValueError(f"the picture folder {start} may not be listed ({error.strerror})") from error
        keys = sorted(self._scan(start, visited=set()))
        if not keys:
            others = f" ({left_out(self)})" if self.left_out else ""
            raise ValueError(
                f"no pictures below {escaped(str(start))}{others}: known suffixes are {', '.join(sorted(SUFFIXES))}"
            )
        if labels == "folder":
            self._check_class_folders(start, keys)
        if start == root and split != "all":
            keys = [key for key in keys if held_out(key) == (split == "test")]
            if not keys:
                raise ValueError(f"{root} has too few pictures to hold a fifth of them out: use split 'all'")
        self.classes: tuple[str, ...] = ()
        self.labels: Int64[np.ndarray, " N"] | None = None
        if labels == "folder":
            classes = _class_names(root)
            self.classes = tuple(map(escaped, classes))
            number = {name: label for label, name in enumerate(classes)}
            self.labels = np.array([number[_class_of(root, key)] for key in keys], np.int64)
        self._names = Names(keys)

    def __len__(self) -> int:
        """The number of pictures, unreadable ones included."""
        return len(self._names)

    @property
    def ignored(self) -> int:
        """The number of files that are not taken for pictures."""
        return self.left_out.total()

    def key(self, index: int) -> str:
        """The path relative to the folder, on one line (control characters are escaped)."""
        return escaped(self._names[index]).replace(os.sep, "/")

    def read(self, index: int) -> UInt8[np.ndarray, "H W C"]:
        """Decode one picture; raises `UnreadablePicture`."""
        return decode(self.encoded(index), key=self.key(index), channels=self.channels)

    def encoded(self, index: int) -> bytes:
        """The content of a picture's file; raises `UnreadablePicture`."""
        return read_file(self.root / self._names[index], key=self.key(index))

    def identity(self) -> str:
        """Which files these are, with their sizes and the times of their last change."""
        lines = [str(self.root.resolve()), str(self.channels)]
        for name in map(self._names.__getitem__, range(len(self))):
            try:
                status = (self.root / name).stat()
                lines.append(f"{name}\0{status.st_size}\0{status.st_mtime_ns}")
            except OSError:
                lines.append(name)
        return "\n".join(lines)

    def _scan(self, folder: Path, *, visited: set[tuple[int, int]]) -> Iterator[str]:
        """The relative paths of the pictures below `folder`, in no order; counts what it ignores."""
        status = folder.stat()
        if (status.st_dev, status.st_ino) in visited:
            return
        visited.add((status.st_dev, status.st_ino))
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            yield str(folder.relative_to(self.root))  # reading it gives the reason
            return
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = folder / entry.name
            is_picture = path.suffix.lower() in SUFFIXES
            if path.is_dir():  # unlike entry.is_dir, false for a loop of links
                pictures = list(self._scan(path, visited=visited))
                yield from pictures
                is_picture = is_picture and not pictures
            elif not is_picture:
                self.left_out[path.suffix.lower()] += 1
            if is_picture:
                yield str(path.relative_to(self.root))

    def _check_class_folders(self, start: Path, keys: list[str]) -> None:
        loose = [key for key in keys if (path := self.root / key).parent == start and not path.is_dir()]
        if loose:
            raise ValueError(
                "labels 'folder' takes the class from the first folder level, but "
                f"{counted(len(loose), 'picture lies', 'pictures lie')} directly in {start} (the first is "
                f"{loose[0]!r}): move them into one folder per class, or use labels 'none'"
            )


def left_out(source: object) -> str:
    """How many files of a source are not taken for pictures, and why, in words; empty where there are none."""
    suffixes: Counter[str] = getattr(source, "left_out", None) or Counter()
    if not suffixes:
        return ""
    kinds = [f"{escaped(suffix) or 'without a suffix'} {count}" for suffix, count in suffixes.most_common(5)]
    more = f", and {len(suffixes) - 5} more suffixes" if len(suffixes) > 5 else ""
    sentence = f"{counted(suffixes.total(), 'file')} with other suffixes left out: {', '.join(kinds)}{more}"
    missing = [package for package, known in OPTIONAL_SUFFIXES.items() if known & suffixes.keys() - SUFFIXES]
    return sentence + (f". To read them: pip install {' '.join(missing)}" if missing else "")


def held_out(key: str) -> bool:
    """Whether a picture belongs to the fifth that is kept for testing, by a hash of its key alone."""
    digest = hashlib.blake2b(os.fsencode(key.replace(os.sep, "/")), digest_size=8).digest()
    return int.from_bytes(digest, "big") < TEST_SHARE * 2**64


def has_splits(root: Path) -> bool:
    """Whether the sub-folders are splits: there is a `train`, and a test folder or nothing else beside it.

    A class may be called "train" too.
    """
    if not (root / TRAIN_FOLDER).is_dir():
        return False
    siblings = {path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
    return siblings == {TRAIN_FOLDER} or not siblings.isdisjoint(TEST_FOLDERS)


def _split_folder(root: Path, split: str) -> Path:
    """The folder below which the pictures of a split lie."""
    if split == "all" or not has_splits(root):
        return root
    if split == "train":
        return root / TRAIN_FOLDER
    for name in TEST_FOLDERS:
        if (root / name).is_dir():
            return root / name
    raise ValueError(f"{root} has a folder 'train' but none of {', '.join(TEST_FOLDERS)} for split 'test'")


def _class_names(root: Path) -> tuple[str, ...]:
    """The folders of the first level, of all splits together: a label means the same class in each of them."""
    tops = [root / name for name in (TRAIN_FOLDER, *TEST_FOLDERS)] if has_splits(root) else [root]
    if has_splits(root):
        tops.append(root)
    names = {path.name for top in tops if top.is_dir() for path in top.iterdir() if path.is_dir()}
    splits = {TRAIN_FOLDER, *TEST_FOLDERS} if has_splits(root) else set()
    return tuple(sorted(name for name in names - splits if not name.startswith(".")))


def _class_of(root: Path, key: str) -> str:
    parts = Path(key).parts
    return parts[1] if has_splits(root) and parts[0] in (TRAIN_FOLDER, *TEST_FOLDERS) else parts[0]
