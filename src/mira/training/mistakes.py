"""What is wrong with a recipe, in sentences: pydantic's own are for programmers."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from mira.settings import requirement, shortened
from mira.training.assignment_methods import METHODS
from mira.training.recipe import Recipe

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_TOLD = 30  # problems: who has more has given something else than a recipe
_OTHER_NAMES = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "bs": "batch_size",
    "arch": "backbone.name",
    "architecture": "backbone.name",
    "backbone": "backbone.name",
    "clusters": "prototypes.count",
    "prototypes": "prototypes.count",
    "num_prototypes": "prototypes.count",
    "num_workers": "workers",
    "image_size": "global_crops.size",
    "img_size": "global_crops.size",
    "crop_size": "global_crops.size",
    "temperature": "teacher_temperature",
}
"""What other programs call settings, and the last parts of their keys here."""
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
    near = nearest_key(key, method)
    return f"unknown key '{key[:100]}'" + (f"; did you mean '{near}'?" if near else "")


def nearest_key(key: str, method: str | None = None) -> str | None:
    """The setting that a person may have meant by a key, or by a name alone; None where none is near.

    Args:
        key: "training.lr", "epochs", ...
        method: the name of the assignment whose settings count; MIRA's by default.
    """
    known = [*_keys(Recipe), *_method_keys().get(method or "mira", ())]
    settings = [one for one in known if not any(other.startswith(f"{one}.") for other in known)]
    # The right name, or what others call it, in the wrong section; or else a slip of the pen.
    name = key.rpartition(".")[2].lower()
    name = _OTHER_NAMES.get(name, name)
    same = [one for one in settings if one == name or one.endswith(f".{name}")]
    if not same and "." not in key:
        last = {one.rpartition(".")[2]: one for one in reversed(settings)}
        same = [last[one] for one in difflib.get_close_matches(name[:100], last, n=1, cutoff=0.8)]
    near = same or difflib.get_close_matches(key[:100], known, n=1, cutoff=0.5)
    return near[0] if near else None


def is_key(word: str) -> bool:
    """Whether this is a key of a recipe, a section or a setting."""
    return word in {*_keys(Recipe), *(key for keys in _method_keys().values() for key in keys)}


def wrong_overrides(values: Mapping[str, Any]) -> list[str]:
    """One sentence for each key that is wrong whatever the rest of the recipe is: unknown, or not of its kind.

    Args:
        values: overrides, nested, before there is a recipe that they belong to.
    """
    try:
        Recipe.model_validate(values)
    except ValidationError as error:
        # What only sections, or the whole, can say is about values that belong together: here, the defaults'.
        problems = [one for one in error.errors() if len(one["loc"]) > 1 or one["type"] == "extra_forbidden"]
        return explain(problems)
    return []


def _method_keys() -> dict[str, list[str]]:
    """The keys of `assignment` for each of its methods."""
    return {method().name: list(_keys(method, "assignment.")) for method in METHODS}


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")
