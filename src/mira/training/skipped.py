"""Pictures that could not be read: named once each, counted, and too many of them stop the run."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from mira.data import Batch
from mira.errors import TooManyUnreadable
from mira.files import append_lines, write_text


def read_skipped(path: Path) -> list[tuple[str, str]]:
    """(name, reason) of the lines of a `skipped.txt`, whatever bytes they hold; [] where there is none."""
    if not path.is_file():
        return []
    lines = path.read_bytes().decode("utf-8", "replace").split("\n")
    return [(key, reason) for key, _, reason in (line.partition("\t") for line in lines if line)]


class SkippedLog:
    """The run's `skipped.txt`, one `name<TAB>reason` a line.

    Args:
        path: appended to; a resumed run goes on where it was.
        total: pictures in the source.
        allowed: largest share of them that may be unreadable.
        first: whether this is rank 0, which is told what all ranks could not read; the others write only their last
            words.
    """

    def __init__(self, path: Path, *, total: int, allowed: float, first: bool = True) -> None:
        self._path = path
        self._total = total
        self._allowed = allowed
        self._keys: set[str] = set()
        if first and path.is_file():
            # A process killed while appending leaves half a line; it is named again when it is met again.
            whole, newline, half = path.read_bytes().rpartition(b"\n")
            if half:
                write_text(path, (whole + newline).decode("utf-8", "replace"))
            self._keys = {key for key, _ in read_skipped(path)}

    def __len__(self) -> int:
        return len(self._keys)

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Pass batches on; what could not be read of one that could not be made at all is noted."""
        try:
            yield from batches
        except TooManyUnreadable as error:
            self.add(error.unreadable)
            raise

    def add(self, unreadable: Iterable[tuple[int, str]]) -> None:
        """Note pictures of a batch.

        Args:
            unreadable: (index, "name<TAB>reason") pairs; a name seen before is passed over.

        Raises:
            TooManyUnreadable: more than the allowed share has been seen.
        """
        new = {line.partition("\t")[0]: line for _, line in unreadable}
        new = {key: line for key, line in new.items() if key not in self._keys}
        if not new:
            return
        append_lines(self._path, "".join(line + "\n" for line in new.values()))
        self._keys.update(new)
        if len(self._keys) > self._allowed * self._total:
            raise TooManyUnreadable(
                f"at least {len(self._keys)} of {self._total} pictures cannot be read, more than the allowed "
                f"{self._allowed:.0%}; the rest has not been looked at. They are named in '{self._path}'. Mend or "
                "remove them, or raise data.max_unreadable"
            )
