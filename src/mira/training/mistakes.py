"""What is wrong with a recipe, in sentences: pydantic's own are for programmers."""

import difflib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from pydantic import BaseModel

from mira.settings import requirement, shortened
from mira.training.assignment_methods import METHODS
from mira.training.recipe import Recipe

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_TOLD = 30  # problems: who has more has given something else than a recipe
_OWN_SENTENCE = ("value_error", "missing", "too_short", "too_long")


def explain(problems: Iterable["ErrorDetails"]) -> list[str]:
    """One sentence for each key that is wrong; the kinds of value that a key may have stand in one."""
    wanted: dict[str, list[str]] = {}
    given: dict[str, object] = {}
    sentences: list[str] = []
    problems = list(problems)
    for problem in problems[:_TOLD]:
        kind, (key, method) = problem["type"], _key(problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if kind == "extra_forbidden":
            sentences.append(_unknown(key, method))
        elif kind == "union_tag_invalid":
            sentences.append(f"{key}.name: must be one of {', '.join(_method_keys())}")
        elif kind == "union_tag_not_found":
            sentences.append(f"{key}: must hold keys and values, such as 'name: mira'")
        elif kind == "missing":
            sentences.append(f"{key}: a value is missing")
        elif kind in _OWN_SENTENCE:
            sentences.append(f"{key}: {message}" if key else message)
        else:
            wanted.setdefault(key, []).append(requirement(problem))
            given[key] = problem["input"]
    if len(problems) > _TOLD:
        sentences.append(f"and {len(problems) - _TOLD} more")
    return sentences + [
        f"{key}: must {' or '.join(words)}, not {shortened(given[key])}" for key, words in wanted.items()
    ]


def _key(location: tuple[int | str, ...]) -> tuple[str, str | None]:
    """The key as a recipe has it, and the method that `assignment` names; pydantic's location has more in it."""
    section, *inner = location or ("",)
    method = str(inner.pop(0)) if section == "assignment" and inner else None
    known = {*_keys(Recipe), *(key for keys in _method_keys().values() for key in keys)}
    key = str(section)
    for part in inner:
        longer = f"{key}.{part}"
        # Below a setting there are only the places of a list; what else stands there names a kind of value.
        if isinstance(part, str) and key in known and not any(other.startswith(f"{key}.") for other in known):
            continue
        key = longer
    return key, method


def _unknown(key: str, method: str | None) -> str:
    methods = [other for other, keys in _method_keys().items() if key in keys]
    if methods:
        return f"'{key}' is a setting of {' and '.join(methods)}, and assignment.name is '{method}'"
    known = [*_keys(Recipe), *_method_keys().get(method or "mira", ())]
    # The right name in the wrong section, or else a slip of the pen.
    near = [k for k in known if k.rpartition(".")[2] == key.rpartition(".")[2]][:1]
    near = near or difflib.get_close_matches(key[:100], known, n=1, cutoff=0.5)
    return f"unknown key '{key[:100]}'" + (f"; did you mean '{near[0]}'?" if near else "")


def _method_keys() -> dict[str, list[str]]:
    """The keys of `assignment` for each of its methods."""
    return {method().name: list(_keys(method, "assignment.")) for method in METHODS}


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")
