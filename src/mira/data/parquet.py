"""Encoded pictures in a column of Parquet files."""

import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from mira.data.decoding import UnreadablePicture, decode
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
        self._files = files_of_split(every, split)
        self.name = pattern
        self.channels = channels
        self._readers: dict[int, Any] = {}
        self._groups: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._process = os.getpid()
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
        places = [(number, group, row) for number, group, rows in ends for row in range(rows)]
        self._places: Int64[np.ndarray, "N 3"] = np.array(places, np.int64).reshape(-1, 3)
        chosen = rows_of_split([self.key(index) for index in range(len(self))], every, split)
        self._places = self._places[chosen]
        if not len(self):
            raise ValueError(f"no rows in {pattern}")
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
        return f"{self._files[number].name}/{group}/{row}"

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
        return bytes(value)

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

    def _read_labels(self, column: str, chosen: Int64[np.ndarray, " N"], names: tuple[str, ...]) -> None:
        parts = [self._reader(number).read(columns=[column]).column(0).to_numpy() for number in range(len(self._files))]
        values = np.concatenate(parts)[chosen]
        if values.dtype == object and all(isinstance(value, str) for value in values):
            found, numbers = np.unique(values.astype(str), return_inverse=True)
            self.classes, self.labels = tuple(str(name) for name in found), numbers.astype(np.int64)
        elif np.issubdtype(values.dtype, np.integer) and values.min() >= 0:
            self.labels = values.astype(np.int64)
            self.classes = names or tuple(str(label) for label in range(int(values.max()) + 1))


def _open(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError("Parquet files need pyarrow: pip install pyarrow") from error
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a readable Parquet file ({' '.join(str(error).split())})") from error


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
    except (TypeError, KeyError, ValueError):
        return ()
