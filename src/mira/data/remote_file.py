"""A file that an address names: read from its start, and told apart from another in its place."""

import contextlib
import hashlib
import string
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple, Protocol, runtime_checkable
from urllib.parse import quote, urlsplit

_TIMEOUT = 60.0  # seconds without a byte, and those over which the rate is measured
_SLOWEST = 10_000.0  # bytes a second
_ASKING = 10.0  # seconds for a question that may go unanswered
_BLOCK = 1 << 20


class ShardUnavailable(ValueError):
    """A shard cannot be fetched; the message says which and why."""


@runtime_checkable
class Readable(Protocol):
    """What bytes are read from: a file, or the answer of a server."""

    def read(self, size: int = ..., /) -> bytes:
        """The next bytes, at most so many; none at the end."""


class Answer(NamedTuple):
    """What an address gives.

    Attributes:
        content: from its start.
        length: in bytes, where it is known before.
        version: what the server says that changes with the content, by the names of its headers.
    """

    content: Readable
    length: int | None
    version: dict[str, str]


class RemoteFile:
    """A file that an address names, such as "https://host/train-000.tar" or "s3://bucket/train-000.tar".

    Raises:
        ValueError: an address of http that holds a password.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        parts = urlsplit(url)
        self.name = PurePosixPath(parts.path).name
        self._web = parts.scheme in ("http", "https")
        if self._web and "@" in parts.netloc:
            raise ValueError(
                f"{shown(url)} was given with a user name or password, which would be kept in the files of runs: make "
                "it readable without, or fetch it first"
            )

    def __str__(self) -> str:
        return shown(self.url)

    @contextlib.contextmanager
    def open(self) -> Iterator[Answer]:
        """The content from its start.

        Raises:
            ShardUnavailable: it needs a library that is not installed.
            OSError: it cannot be had now.
        """
        if self._web:
            with urllib.request.urlopen(self._asked("GET"), timeout=_TIMEOUT) as answer:
                if answer.status != 200:  # 206 is a part of it
                    raise OSError(f"the server answers with status {answer.status}")
                yield Answer(answer, _length(answer.headers), _version(answer.headers))
        else:
            import fsspec

            try:
                try:
                    opened = fsspec.open(self.url, "rb")
                except (ImportError, ValueError) as error:  # the package for it is missing, or no such protocol
                    raise ShardUnavailable(f"{self} cannot be opened: {error}") from error
                with opened as file:
                    yield Answer(file, getattr(file, "size", None), {})
            except (OSError, ShardUnavailable):
                raise
            except Exception as error:  # each service has its own kinds
                raise OSError(f"{type(error).__name__}: {error}") from error

    def is_another_than(self, version: Mapping[str, str]) -> bool:
        """Whether the server says now that it has another version; False where it says nothing.

        Raises:
            OSError: it cannot be reached.
        """
        if not self._web or not version:
            return False
        try:
            with urllib.request.urlopen(self._asked("HEAD"), timeout=_ASKING) as answer:
                now = _version(answer.headers)
        except urllib.error.HTTPError:  # it does not answer such questions
            return False
        return any(now.get(name, value) != value for name, value in version.items())

    def _asked(self, method: str) -> urllib.request.Request:
        return urllib.request.Request(quote(self.url, safe=string.punctuation), method=method)


def shown(url: str) -> str:
    """An address as it may be printed: without the password that it may hold."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else url


def copy_content(content: Readable, copy: BinaryIO, *, limit: int) -> tuple[int, str]:
    """Copy to the end; the number of bytes and their digest.

    Raises:
        OSError: it comes too slowly, as from a server that sends a byte now and then.
        ShardUnavailable: it is more than `limit` bytes.
    """
    state = hashlib.blake2b(digest_size=16)
    read: Any = getattr(content, "read1", content.read)  # what is there, not what is to come
    size = got = 0
    since = time.monotonic()
    while block := read(_BLOCK):
        copy.write(block)
        state.update(block)
        size += len(block)
        got += len(block)
        if size > limit:
            raise ShardUnavailable(_too_large(size, limit))
        elapsed = time.monotonic() - since
        if elapsed > _TIMEOUT:
            if got < _SLOWEST * elapsed:
                raise OSError(f"it comes with less than {_SLOWEST / 1000:g} kB a second")
            since, got = time.monotonic(), 0
    return size, state.hexdigest()


def _too_large(size: int, limit: int) -> str:
    return (
        f"a shard takes {size / 2**30:.2g} GB and all copies together may take {limit / 2**30:.2g}: raise "
        "data.cache_gigabytes"
    )


def check_room(needed: int, limit: int) -> None:
    """Raise `ShardUnavailable` for a shard that is larger than all copies together may be."""
    if needed > limit:
        raise ShardUnavailable(_too_large(needed, limit))


def _length(headers: Any) -> int | None:
    length = headers.get("Content-Length")
    if length is None:
        return None
    if not length.strip().isdecimal():
        raise OSError(f"the server says that its length is {length!r}")
    return int(length)


def _version(headers: Any) -> dict[str, str]:
    names = ("ETag", "Last-Modified", "Content-Length")
    return {name: headers[name] for name in names if headers.get(name)}
