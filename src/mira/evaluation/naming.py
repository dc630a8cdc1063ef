"""What results are called in tables: words for settings, and short names."""

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePath

from mira.evaluation.protocols import PROTOCOLS
from mira.evaluation.results import ARCHITECTURE_OF, FLOORS, LEARNED_FROM, Result, Value

_TITLES = {protocol.name: protocol.title for protocol in PROTOCOLS}
_WORDED = {"knn": ("fraction", "k"), "clusters": ("clusters", "k"), "semi-supervised": ("fraction", "list")}
"""Settings that `describe` has words for."""


def title(protocol: str) -> str:
    """Of a protocol."""
    return _TITLES.get(protocol, protocol)


def describe(result: Result, tell_apart: Sequence[str]) -> tuple[str, str]:
    """(group, setting) of a result: words for its protocol and settings, without the shift.

    Args:
        result: of any protocol.
        tell_apart: settings that must be named besides those that the words of its protocol have.
    """
    settings, setting = result.settings, result.metric
    group = title(result.protocol)
    if result.protocol == "knn":
        group = f"k-NN, {percent(settings['fraction'])} of labels ({result.train_size:,})"
        setting = f"k {settings['k']}"
    elif result.protocol == "semi-supervised":
        which = settings.get("list") or f"{percent(settings['fraction'])} of labels"
        group = f"{group}, {which} ({result.train_size:,})"
    elif result.protocol == "clusters":
        group = f"{settings['clusters']}, {settings['k']:,} clusters"
    named = [f"{name.replace('_', ' ')} {_shown(settings[name])}" for name in tell_apart if name in settings]
    return ", ".join([group, *named]), setting


def distinguishing(results: Sequence[Result]) -> dict[str, list[str]]:
    """By protocol, the settings that must be named so that results of different settings never share a name.

    Of settings that vary together (a learning rate that goes with a share of labels) the first is enough.
    """
    found: dict[str, list[str]] = {}
    for protocol in dict.fromkeys(result.protocol for result in results):
        own = [result for result in results if result.protocol == protocol]
        worded = list(_WORDED.get(protocol, ()))
        named: list[str] = []
        for name in dict.fromkeys(name for result in own for name in result.settings if name != "shift"):
            if _kinds_of(own, [*worded, *named, name]) > _kinds_of(own, [*worded, *named]):
                named.append(name)
        found[protocol] = named
    return found


def _kinds_of(results: Sequence[Result], names: Sequence[str]) -> int:
    """How many kinds of measurements the values of some settings tell apart."""
    return len(
        {(one.metric, one.data, shift_of(one), *(str(one.settings.get(name)) for name in names)) for one in results}
    )


def percent(share: Value) -> str:
    """A share of all labels, as printed."""
    assert isinstance(share, int | float)
    return f"{100 * share:.3g} %"


def _shown(value: Value) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def shift_of(result: Result) -> int:
    """By how many pixels its test pictures were moved at most."""
    shift = result.settings.get("shift", 0)
    return shift if isinstance(shift, int) else 0


def run_of(result: Result) -> str:
    """What was trained: a checkpoint; nothing, the same for all, where the features are a baseline's."""
    return "" if result.features in FLOORS else result.checkpoint


def pass_of(result: Result) -> str:
    """How pictures went through the backbone, in words: "64 px of 73, bicubic, float32"; empty in older results."""
    read = result.preprocessing
    if not read:
        return ""
    scale = "".join(f", {name} {_shown(read[name])}" for name in ("mean", "std") if name in read)
    return f"{read['size']} px of {read['resize']}, {read['interpolation']}, {result.precision}{scale}"


def shortest(names: Iterable[str]) -> dict[str, str]:
    """For each name the fewest last parts of its path that no other name ends in; names that are no paths stay.

    A checkpoint's " at step 9" belongs to its last part; of "A, learned from B" both parts are shortened, of "the
    architecture of A" the second.
    """
    pieces = {name: _BETWEEN.split(name) for name in names}
    paths = list(dict.fromkeys(piece for parts in pieces.values() for piece in parts))
    short = {piece: _shortest(piece, paths) for piece in paths}
    return {name: "".join(short[piece] for piece in parts) for name, parts in pieces.items()}


_BETWEEN = re.compile(f"({re.escape(LEARNED_FROM)}|^{re.escape(ARCHITECTURE_OF)})")


def _shortest(name: str, names: Sequence[str]) -> str:
    parts = PurePath(name).parts if PurePath(name).is_absolute() else (name,)
    tails = ("/".join(parts[-count:]) for count in range(1, len(parts)))
    return next((tail for tail in tails if not any(o != name and o.endswith(f"/{tail}") for o in names)), name)
