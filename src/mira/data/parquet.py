"""Encoded pictures in a column of Parquet files."""

import json
import os
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from mira.data.class_numbers import classes_of
from mira.data.decoding import UnreadablePicture, decode
from mira.data.names import escaped
from mira.data.shards import files_of_split, identity_of, rows_of_split, shard_paths

PICTURE_COLUMNS = ("image", "img", "picture", "jpg", "png", "bytes")
LABEL_COLUMNS = ("label", "labels", "cls", "class", "fine_label")
_KEPT_BYTES = 2**28  # of row groups, in each process


class ParquetSource:
    """The pictures in a column of one or many Parquet files.

    The column holds the bytes of picture files, alone or as `bytes` of a structure (the convention of Hugging Face).
    It is the only such column or has one of the names in `PICTURE_COLUMNS`; class numbers are in one of
    `LABEL_COLUMNS`. A picture is read with its whole row group; the groups read last are kept, up to 256 MB in each
    process, so files with small groups (about a hundred pictures) serve random order best.

    Splits: as for `TarSource`.
    """

    def __init__(self, pattern: str, *, split: str, labels: str, channels: int) -> None:
        """Read the files' footers; raises ValueError when pyarrow is missing or a file cannot be used."""
        every = shard_paths(pattern, ".parquet")
        self._readers: dict[int, Any] = {}
        self._groups: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._process = os.getpid()
        self._files = _readable(files_of_split(every, split))
        self.name = escaped(pattern)
        self.channels = channels
        schemas = [self._reader(number).schema_arrow for number in range(len(self._files))]
        self._column = _picture_column(schemas[0], self._files[0])
        for schema, path in zip(schemas, self._files, strict=True):
            if self._column not in schema.names:
                raise ValueError(f"{path} has no column {self._column!r}, which {self._files[0]} has")
        ends = [
            (number, group, self._reader(number).metadata.row_group(group).num_rows)
            for number in range(len(self._files))
            for group in range(self._reader(number).num_row_groups)
        ]
        self._refuse_claims(ends)
        parts = [np.stack(np.broadcast_arrays(number, group, np.arange(rows)), axis=1) for number, group, rows in ends]
        self._places: Int64[np.ndarray, "N 3"] = np.concatenate([np.empty((0, 3), np.int64), *parts])
        chosen = rows_of_split([self.key(index) for index in range(len(self))], every, split)
        self._places = self._places[chosen]
        if not len(self):
            raise ValueError(f"no rows in {self.name}")
        self.labels: Int64[np.ndarray, " N"] | None = None
        self.classes: tuple[str, ...] = ()
        column = next((name for name in LABEL_COLUMNS if name in schemas[0].names), None)
        if labels == "auto" and column is not None:
            self._read_labels(column, chosen, _class_names(schemas[0], column))

    def __len__(self) -> int:
        """The number of pictures, unreadable ones included."""
        return len(self._places)

    def key(self, index: int) -> str:
        """The file, the row group and the row within it."""
        number, group, row = self._places[index].tolist()
        return escaped(f"{self._files[number].name}/{group}/{row}")

    def read(self, index: int) -> UInt8[np.ndarray, "H W C"]:
        """Decode one picture; raises `UnreadablePicture`."""
        return decode(self.encoded(index), key=self.key(index), channels=self.channels)

    def encoded(self, index: int) -> bytes:
        """The content of a picture's file; raises `UnreadablePicture`."""
        number, group, row = self._places[index].tolist()
        try:
            value = self._group(number, group)[row].as_py()
        except Exception as error:  # whatever pyarrow raises on damaged files: OSError, ArrowInvalid, ...
            raise UnreadablePicture(self.key(index), f"the Parquet file cannot be read here: {error}") from error
        value = value.get("bytes") if isinstance(value, dict) else value
        if value is None:
            raise UnreadablePicture(self.key(index), "the row holds no picture")
        if not isinstance(value, bytes):
            raise UnreadablePicture(self.key(index), f"the row holds {type(value).__name__}, no picture")
        return value

    def identity(self) -> str:
        """The files with their sizes and the times of their last change, and which rows of them."""
        return identity_of(self._files, self.channels, self._column, self._places.tolist())

    def __getstate__(self) -> dict[str, Any]:
        # Open files stay with their process.
        return self.__dict__ | {"_readers": {}, "_groups": OrderedDict()}

    def _group(self, number: int, group: int) -> Any:
        """The pictures of a row group as one array of pyarrow."""
        if os.getpid() != self._process:  # after a fork: the parent's files are not ours
            self._readers, self._groups, self._process = {}, OrderedDict(), os.getpid()
        if (number, group) not in self._groups:
            table = self._reader(number).read_row_group(group, columns=[self._column], use_threads=False)
            self._groups[number, group] = table.column(0).combine_chunks()
            while len(self._groups) > 1 and sum(kept.nbytes for kept in self._groups.values()) > _KEPT_BYTES:
                self._groups.popitem(last=False)
        self._groups.move_to_end((number, group))
        return self._groups[number, group]

    def _reader(self, number: int) -> Any:
        if number not in self._readers:
            self._readers[number] = _open(self._files[number])
        return self._readers[number]

    def _refuse_claims(self, ends: list[tuple[int, int, int]]) -> None:
        """A footer may say anything: more rows than the file has bits hold no pictures."""
        for number, path in enumerate(self._files):
            rows, size = sum(count for file, _, count in ends if file == number), path.stat().st_size
            if rows > 8 * size:
                raise ValueError(f"{escaped(str(path))} says that it has {rows} rows in {size} bytes: it is damaged")

    def _read_labels(self, column: str, chosen: Int64[np.ndarray, " N"], names: tuple[str, ...]) -> None:
        values: list[Any] = []
        try:
            for number in range(len(self._files)):
                values += self._reader(number).read(columns=[column]).column(0).to_pylist()
        except Exception as error:  # whatever pyarrow raises on damaged files
            reason = " ".join(str(error).split())[:300]
            warnings.warn(f"the classes of {self.name} are left out: they cannot be read ({reason})", stacklevel=2)
            return
        # Of the whole set, before it is divided: both parts have the same classes.
        labels, self.classes = classes_of(values, self.name, names=names)
        self.labels = None if labels is None else labels[chosen]


def _readable(paths: list[Path]) -> list[Path]:
    """Of several files those that are Parquet files; the others are left out with a warning."""
    if len(paths) == 1:
        return paths
    found = []
    for path in paths:
        try:
            _open(path)
        except ValueError as error:
            if "pyarrow" in str(error):
                raise
            warnings.warn(f"{error}. It is left out", stacklevel=2)
        else:
            found.append(path)
    if not found:
        raise ValueError(f"none of the {len(paths)} files can be read, the first is {escaped(str(paths[0]))}")
    return found


def _open(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError("Parquet files need pyarrow: pip install pyarrow") from error
    try:
        return pyarrow.parquet.ParquetFile(path)
    except Exception as error:  # ArrowException, OSError, and what numbers raise that damage has made
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{escaped(str(path))} is not a readable Parquet file ({reason})") from error


def _picture_column(schema: Any, path: Path) -> str:
    import pyarrow.types as types

    def holds_bytes(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(field.name == "bytes" and holds_bytes(field.type) for field in kind)
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    columns = [field.name for field in schema if holds_bytes(field.type)]
    named = [name for name in PICTURE_COLUMNS if name in columns]
    if named or len(columns) == 1:
        return str((named or columns)[0])
    what = f"several columns of bytes ({', '.join(columns)})" if columns else "no column of bytes"
    raise ValueError(
        f"{path} has {what} (all columns: {', '.join(schema.names)}): call the column with the encoded pictures 'image'"
    )


def _class_names(schema: Any, column: str) -> tuple[str, ...]:
    """The names that Hugging Face's `datasets` writes into the file."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[column]["names"])
    except (TypeError, KeyError, ValueError, RecursionError):
        return ()
