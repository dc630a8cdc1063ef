"""A run that has begun keeps its recipe: what may change when it goes on, and what was asked for in vain."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mira.data.sources import absolute_spec
from mira.files import write_text
from mira.training.reading import load_recipe, look_up, parse_overrides, recipe_to_yaml
from mira.training.recipe import Recipe

CHANGEABLE = (
    "training.workers",
    "training.device",
    "monitor.",
    "data.max_unreadable",
    "data.cache_gigabytes",
    "data.worker_timeout",
)
"""What may differ between a run and its continuation: nothing of it decides what is learned."""


def asked_in_vain(
    own: Recipe,
    data: str | Path | None,
    recipe: str | Path | Mapping[str, Any] | Recipe | None,
    overrides: Iterable[str],
) -> list[str]:
    """What a command asks for, as "key=value", that the run it continues does otherwise.

    Args:
        own: the run's recipe, resolved.
        data, recipe, overrides: as `pretrain` takes them.
    """
    try:
        asked = parse_overrides(overrides)
        meant: dict[str, Any] = {}
        if recipe is not None:
            source = recipe.model_dump() if isinstance(recipe, Recipe) else recipe
            meant = load_recipe(source, overrides).model_dump(mode="json")
        elif asked:
            named = load_recipe(own.model_dump(), overrides).model_dump(mode="json")
            meant = {}
            for key, _ in _flat(asked):
                _put(meant, key, look_up(named, key))
        if data is not None:
            _put(meant, "data.source", absolute_spec(str(data)))
    except ValueError:  # a new run it could not have begun; the old one is not concerned
        return []
    return [f"{key}={value}" for key, value in _differing(own, meant)]


def keep_recipe_file(path: Path, own: Recipe) -> list[str]:
    """Write a run's recipe where it is missing or has been edited; returns what was edited, as "key=value"."""
    edited: list[str] = []
    if path.is_file():
        try:
            edited = [f"{key}={value}" for key, value in _differing(own, load_recipe(path).model_dump(mode="json"))]
        except (ValueError, OSError):
            edited = ["it is no recipe any more"]
    if edited or not path.is_file():
        write_text(path, recipe_to_yaml(own))
    return edited


def _differing(own: Recipe, other: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and values of nested settings that are not the run's, but for those that may change or leave it open."""
    values = own.model_dump(mode="json")
    for key, value in _flat(other):
        if not key.startswith(CHANGEABLE) and value not in ("auto", None) and value != look_up(values, key):
            yield key, value


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value and key != "options":
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[last] = value
