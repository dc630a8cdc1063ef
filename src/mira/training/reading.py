"""From YAML, built-in names and command-line overrides to a validated recipe."""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mira.recipes import recipe_text
from mira.settings import shortened
from mira.training.assignment_methods import MiraSettings
from mira.training.mistakes import explain
from mira.training.plain_yaml import read_yaml, write_yaml
from mira.training.recipe import Recipe

Override = str | tuple[str, Any]
"""A change of one setting: "section.key=value", the value in YAML; or (key, value), which is taken as it is."""


def load_recipe(source: str | Path | Mapping[str, Any], overrides: Iterable[Override] = ()) -> Recipe:
    """Build a recipe.

    Args:
        source: the name of a built-in recipe, the path of a YAML file, or a mapping.
        overrides: "section.key=value" each, the value in YAML: `training.epochs=20`, `assignment.beta=[0.8,0.7]`; or
            (key, value).

    Raises:
        ValueError: no such recipe or file, broken YAML, an unknown key (with the nearest known one), a wrong
            type, a value out of range, or an impossible combination. The message names every key concerned.
    """
    if isinstance(source, Mapping):
        values, origin = _copy(source), "the recipe"
    else:
        values, origin = _read(source)
    asked = parse_overrides(overrides)
    _leave_other_method(values, asked)
    _merge(values, asked)
    _shorten_start(values, asked)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        lines = explain(error.errors())
        raise ValueError(f"{origin} cannot be used:\n" + "\n".join(f"  - {line}" for line in lines)) from None


def parse_overrides(overrides: Iterable[Override]) -> dict[str, Any]:
    """Overrides as nested keys and values, not yet validated.

    Raises:
        ValueError: one is not "section.key=value".
    """
    values: dict[str, Any] = {}
    for override in overrides:
        _set(values, override)
    return values


def look_up(values: Mapping[str, Any], key: str) -> Any:
    """What nested values hold under a key such as "training.epochs"; None where there is nothing."""
    inner: Any = values
    for part in key.split("."):
        inner = inner.get(part) if isinstance(inner, Mapping) else None
    return inner


def _merge(values: dict[str, Any], others: Mapping[str, Any]) -> None:
    for key, value in others.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), dict) and key != "options":
            _merge(values[key], value)
        else:
            values[key] = value


def _shorten_start(values: dict[str, Any], asked: Mapping[str, Any]) -> None:
    """A run that is asked to be short, to try a recipe, has a warm-up and frozen prototypes that fit into it."""
    epochs = look_up(asked, "training.epochs")
    if not isinstance(epochs, int) or epochs < 1:
        return
    usual = Recipe()
    for key, default, short in (
        ("optimiser.warmup_epochs", usual.optimiser.warmup_epochs, epochs / 10),
        ("model.prototypes.freeze_epochs", usual.model.prototypes.freeze_epochs, 1 if epochs >= 10 else 0),
    ):
        before = look_up(values, key)
        before = default if before is None else before
        if look_up(asked, key) is None and isinstance(before, int | float) and before >= epochs:
            section, _, name = key.rpartition(".")
            _merge(values, _nested(section, {name: short}))
            warnings.warn(f"{key} is {short:g} in place of {before:g}, which {epochs} epochs cannot hold", stacklevel=4)


def _nested(section: str, inner: dict[str, Any]) -> dict[str, Any]:
    for part in reversed(section.split(".")):
        inner = {part: inner}
    return inner


def _leave_other_method(values: dict[str, Any], asked: Mapping[str, Any]) -> None:
    """Naming another way to labels begins its section anew: the settings of one mean nothing to another."""
    before, after = values.get("assignment"), asked.get("assignment")
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        name = before.get("name", MiraSettings().name)
        if after.get("name", name) != name:
            del values["assignment"]


def recipe_to_yaml(recipe: Recipe) -> str:
    """The recipe as YAML that `load_recipe` reads back to an equal one."""
    return write_yaml(recipe.model_dump(mode="json"))


def _read(source: str | Path) -> tuple[dict[str, Any], str]:
    path = Path(source)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise ValueError(f"there is no recipe file '{path}'")
        return _parse(path.read_bytes(), str(path)), f"the recipe '{path}'"
    return _parse(recipe_text(str(source)), str(source)), f"the recipe '{source}'"


def _parse(text: str | bytes, origin: str) -> dict[str, Any]:
    try:
        values = read_yaml(text)
    except ValueError as error:
        raise ValueError(f"'{origin}' is not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"'{origin}' must hold keys and values, such as 'training: {{epochs: 20}}'")
    return values


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _set(values: dict[str, Any], override: Override) -> None:
    if isinstance(override, str):
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ValueError(f"'{shortened(override)}' is no override: write section.key=value, as training.epochs=20")
        try:
            value = read_yaml(text)
        except ValueError as error:
            raise ValueError(f"the value of '{shortened(override)}' is not valid YAML: {error}") from None
    else:
        key, value = override
    *sections, last = key.strip().split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ValueError(f"'{shortened(str(override))}': '{section}' is a value, not a section")
        values = inner
    values[last] = value
