"""Results: one value with everything that it depends on, kept as lines of JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mira.files import append_lines
from mira.json_lines import read_json_lines

Value = bool | int | float | str | None | list["Value"] | dict[str, "Value"]
"""What a protocol's settings may hold: plain JSON."""

LEARNED = "MIRA"
"""Features that MIRA has learned; those of another method of assignment have its title."""
RANDOM = "random backbone"
PIXELS = "raw pixels"
FLOORS = (PIXELS, RANDOM)
ARCHITECTURE_OF = "the architecture of "
"""Before a checkpoint, in `Result.checkpoint` of a random backbone."""
LEARNED_FROM = ", learned from "
"""Between the test pictures and the training pictures in `Result.data`, where they are of two sources."""


@dataclass(frozen=True)
class Result:
    """One number of one protocol.

    Attributes:
        protocol: its name on the command line: "knn", "clusters", "health", ...
        features: what was evaluated: "MIRA", "random backbone", "raw pixels", or a name of other weights.
        metric: "top-1", "NMI", "RankMe", ...
        value: percent, or what the metric is in; None where it could not be computed, and `note` says why.
        settings: every value of the protocol that the number depends on.
        chosen: what the protocol found by itself for these features: a penalty, a learning rate.
        data: name of the test pictures' source and, where labels of another source were learned from, of that one.
        train_size: labelled pictures that the protocol learned from.
        test_size: pictures that it was measured on.
        unreadable: pictures that could not be read, of both parts.
        seed: of everything that the protocol draws, and of the random backbone.
        checkpoint: where the backbone came from.
        checkpoint_hash: of the weights themselves, whatever file they lie in (see `digest.weights_digest`).
        preprocessing: size, resizing, channels, mean and standard deviation of the backbone's input.
        precision: of the backbone's passes.
        task: of the call that gave this result (protocol, all its settings, weights, pictures, seed).
        versions: of Python and the libraries that decide the bits.
        seconds: that the call took, passes over pictures included where they were not cached.
        time: when it ended, in UTC.
        note: why there is no value, or what a reader must know.
        pretraining: of a run's backbone: "recipe", a digest of all settings but the seed; "seed"; "step".
    """

    protocol: str
    features: str
    metric: str
    value: float | None
    settings: Mapping[str, Value]
    data: str
    train_size: int
    test_size: int
    unreadable: int = 0
    seed: int = 0
    checkpoint: str = ""
    checkpoint_hash: str = ""
    preprocessing: Mapping[str, Value] = field(default_factory=dict)
    precision: str = "float32"
    task: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None
    time: str = ""
    note: str = ""
    chosen: Mapping[str, Value] = field(default_factory=dict)
    pretraining: Mapping[str, Value] = field(default_factory=dict)


class ResultsNotKept(OSError):
    """The results could not be written; `results` holds them."""

    def __init__(self, message: str, results: Sequence[Result]) -> None:
        super().__init__(message)
        self.results = results


def append_results(path: str | Path, results: Sequence[Result]) -> None:
    """Add results to a file of JSON lines, all in one piece.

    Evaluations that run side by side do not mix; a line that an earlier process left unfinished is closed first.

    Raises:
        ValueError: a value is NaN or infinite; a protocol says None and why.
    """
    for result in results:
        if result.value is not None and not math.isfinite(result.value):
            raise ValueError(f"{result.protocol}: the {result.metric} is {result.value}, not a number to keep.")
    if results:
        append_lines(Path(path), "".join(json.dumps(asdict(result)) + "\n" for result in results))


def read_results(path: str | Path) -> list[Result]:
    """The results in a file; [] where there is none.

    Unknown fields are passed over, and lines that are no result left out with a warning (see `read_json_lines`).
    """
    return read_json_lines(Path(path), _parse)


_LARGEST = 1e15
_KINDS: dict[str, Any] = {
    "protocol": str,
    "features": str,
    "metric": str,
    "value": int | float | None,
    "settings": dict,
    "data": str,
    "train_size": int,
    "test_size": int,
    "unreadable": int,
    "seed": int,
    "checkpoint": str,
    "checkpoint_hash": str,
    "preprocessing": dict,
    "precision": str,
    "task": str,
    "versions": dict,
    "seconds": int | float | None,
    "time": str,
    "note": str,
    "chosen": dict,
}
"""What a line may hold under each name: files are edited, merged and damaged."""
_EARLIER_PROTOCOLS = {"k-NN": "knn", "k-means": "clusters", "prototypes": "clusters"}


def _parse(content: dict[str, Any]) -> Result:
    if "settings" not in content:
        content = _from_version_0_1(content)
    result = Result(**{name: value for name, value in content.items() if name in _KINDS})
    for name, kind in _KINDS.items():
        value = getattr(result, name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{name} is no {kind}")
        if isinstance(value, int | float) and not abs(value) < _LARGEST:  # also of NaN
            raise ValueError(f"{name} is out of range")
    _check_worded(result)
    return result


def _check_worded(result: Result) -> None:
    """Refuse a result without the settings that tables have words for, or with an input that they cannot name."""
    numbers = {"knn": ("fraction", "k"), "clusters": ("k",)}.get(result.protocol, ())
    if result.protocol == "semi-supervised" and not result.settings.get("list"):
        numbers = ("fraction",)
    for name in numbers:
        value = result.settings[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST:
            raise ValueError(f"{name} is no number")
    if result.protocol == "clusters" and "clusters" not in result.settings:
        raise ValueError("it does not say which clusters")
    if result.preprocessing and not {"size", "resize", "interpolation"} <= result.preprocessing.keys():
        raise ValueError("it does not say which input")


def _from_version_0_1(content: dict[str, Any]) -> dict[str, Any]:
    """A line as mira-ssl 0.1.0 wrote it: k, temperature, fraction and shift were fields of every result."""
    protocol = content["protocol"]
    names = ("k", "temperature", "fraction", "shift") if protocol == "k-NN" else ("k", "shift")
    settings = {name: content[name] for name in names}
    if protocol != "k-NN":
        settings["clusters"] = protocol
    return {
        **content,
        "protocol": _EARLIER_PROTOCOLS.get(protocol, protocol),
        "settings": settings,
        "train_size": content["bank_size"],
        "test_size": content["query_size"],
        "versions": {"mira-ssl": content["mira"]} if "mira" in content else {},
    }
