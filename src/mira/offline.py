"""Fetching what others have published, and saying at once that there is no network instead of trying for a minute."""

import os
import socket
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType
from urllib.parse import urlsplit

_PATIENCE = 5.0  # seconds for a server to answer at all


@contextmanager
def fetching(what: str, otherwise: str, *, hub: bool = True) -> Iterator[None]:
    """Turn whatever the clients of a hub raise into one sentence, and spare their retries where there is no network.

    What lies in their caches is taken from there in any case.

    Args:
        what: is fetched, as the subject of a sentence in the plural.
        otherwise: how to do without, as the end of a sentence.
        hub: whether it lies on Hugging Face's hub; who fetches from elsewhere does not try again and again.

    Raises:
        ValueError: it is not here and cannot be fetched.
    """
    with _without_retries() if hub else nullcontext("") as missing:
        try:
            yield
        except Exception as error:  # the clients raise many kinds, some of them ValueErrors with advice of their own
            reason = missing or (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise ValueError(
                f"{what} are not on this machine and could not be fetched ({reason}). To work offline, fetch them once "
                f"with a network (they are kept below ~/.cache, which can be copied here), or {otherwise}"
            ) from error


@contextmanager
def _without_retries() -> Iterator[str]:
    """What is missing, in words; the hub's clients look into their caches alone meanwhile. Empty with a network."""
    from huggingface_hub import constants

    missing = _unreachable(constants.ENDPOINT)
    places: list[ModuleType] = [constants] if missing else []
    if missing and "datasets" in sys.modules:
        places.append(sys.modules["datasets"].config)
    before = [place.HF_HUB_OFFLINE for place in places]
    for place in places:
        place.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    try:
        yield missing
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value  # type: ignore[attr-defined]


def _unreachable(address: str) -> str:
    """Why a server cannot be reached; empty where it can, or where a proxy stands before it."""
    if urllib.request.getproxies() or os.environ.get("HF_HUB_OFFLINE"):
        return ""
    parts = urlsplit(address)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 443), timeout=_PATIENCE).close()
    except OSError as error:
        return f"no network: {parts.hostname} cannot be reached, {error.strerror or error}"
    return ""
