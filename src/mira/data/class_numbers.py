"""Classes from what stands beside pictures, whatever it is: numbers of classes, or of something else."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from mira.data.names import escaped

_MOST = 100_000
"""A number below may be that of a class: published sets have up to 21,841. Anything above is an identifier."""

Classes = tuple[Int64[np.ndarray, " N"] | None, tuple[str, ...]]


def classes_of(values: Sequence[Any], source: str, *, names: Sequence[str] = ()) -> Classes:
    """Class numbers, and the names of the classes, of all pictures of a set.

    Numbers up to `_MOST` are those of the classes, so that two parts of a set agree. Larger ones are taken for what
    they are, names: the distinct ones become classes, in their order. So do words.

    Args:
        values: one for each picture; None where there is none.
        source: for the warning.
        names: of the classes, where the set has them and they are enough.

    Returns:
        (labels, classes); (None, ()) with a warning where some have none, or have something else.
    """
    known = [value for value in values if _is_number(value) or isinstance(value, str)]
    if not known:
        return None, ()
    kinds = {type(value) is str for value in known}
    if len(known) < len(values) or len(kinds) > 1:
        what = f"{len(values) - len(known)} of {len(values)} have no class" if len(kinds) == 1 else "numbers and words"
        warnings.warn(f"the classes of {source} are left out: {what}", stacklevel=2)
        return None, ()
    if kinds == {False} and max(known) <= _MOST:
        count = int(max(known)) + 1
        enough = len(names) >= count
        return np.array(known, np.int64), tuple(map(escaped, names)) if enough else tuple(map(str, range(count)))
    distinct = sorted(set(known))
    place = {value: label for label, value in enumerate(distinct)}
    return np.array([place[value] for value in known], np.int64), tuple(escaped(str(value)) for value in distinct)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 0)
