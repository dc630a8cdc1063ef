"""Results: one value with everything that it depends on, kept as lines of JSON."""

import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mira.files import append_lines

LEARNED = "MIRA"
STUDENT = "MIRA, student"
RANDOM = "random backbone"
PIXELS = "raw pixels"


@dataclass(frozen=True)
class Result:
    """One number of one protocol.

    Attributes:
        protocol: "k-NN", "k-means" or "prototypes".
        features: what was evaluated: "MIRA", "random backbone" or "raw pixels".
        metric: "top-1", "NMI", "ARI", "Hungarian accuracy" or "purity".
        value: percent; None where it could not be computed, and `note` says why.
        k: neighbours, or clusters.
        temperature: of the votes of k-NN.
        fraction: share of the labels that were used.
        shift: test pictures were moved by up to so many pixels.
        seed: of the label subset, the random backbone, the shifts and the starts of k-means.
        data: name of the test pictures' source.
        bank_size: labelled pictures (k-NN), or 0.
        query_size: pictures that were classified or clustered.
        unreadable: pictures that could not be read, of both parts.
        checkpoint: where the backbone came from.
        note: why there is no value.
    """

    protocol: str
    features: str
    metric: str
    value: float | None
    k: int
    temperature: float | None
    fraction: float
    shift: int
    seed: int
    data: str
    bank_size: int
    query_size: int
    unreadable: int = 0
    checkpoint: str = ""
    note: str = ""


def append_results(path: str | Path, results: Sequence[Result]) -> None:
    """Add results to a file of JSON lines, each with the time and the version of MIRA.

    Evaluations that run side by side do not mix; a line that an earlier process left unfinished is closed first.
    """
    if not results:
        return
    stamp = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "mira": importlib.metadata.version("mira-ssl"),
    }
    text = "".join(json.dumps({**asdict(result), **stamp}, allow_nan=False) + "\n" for result in results)
    append_lines(Path(path), text)


def read_results(path: str | Path) -> list[Result]:
    """The results in a file; [] where there is none. Unfinished lines and unknown fields are passed over."""
    path = Path(path)
    if not path.is_file():
        return []
    names = {field.name for field in fields(Result)}
    results = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            content: dict[str, Any] = json.loads(line)
            results.append(Result(**{name: value for name, value in content.items() if name in names}))
        except (ValueError, TypeError, AttributeError):
            continue  # a line cut off by a killed process must not hide the others
    return results
