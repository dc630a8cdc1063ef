"""From YAML, built-in names and command-line overrides to a validated recipe."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from mira.training.assignment_settings import METHODS, MiraSettings
from mira.training.recipe import Recipe

_SUFFIX = ".yaml"


def builtin_recipes() -> dict[str, str]:
    """Names and descriptions of the recipes that come with the package."""
    folder = resources.files("mira") / "recipes"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(_SUFFIX))
    return {
        name.removesuffix(_SUFFIX): str(_parse((folder / name).read_text("utf-8"), name).get("description", ""))
        for name in names
    }


def load_recipe(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Recipe:
    """Build a recipe.

    Args:
        source: the name of a built-in recipe, the path of a YAML file, or a mapping.
        overrides: "section.key=value" each, the value in YAML: `training.epochs=20`, `assignment.beta=[0.8,0.7]`.

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
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        lines = [_explain(problem["type"], problem["loc"], problem["msg"]) for problem in error.errors()]
        raise ValueError(f"{origin} cannot be used:\n" + "\n".join(f"  - {line}" for line in lines)) from None


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """Overrides as nested keys and values, not yet validated.

    Raises:
        ValueError: one is not "section.key=value".
    """
    values: dict[str, Any] = {}
    for override in overrides:
        _set(values, override)
    return values


def _merge(values: dict[str, Any], others: Mapping[str, Any]) -> None:
    for key, value in others.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), dict) and key != "options":
            _merge(values[key], value)
        else:
            values[key] = value


def _leave_other_method(values: dict[str, Any], asked: Mapping[str, Any]) -> None:
    """Naming another way to labels begins its section anew: the settings of one mean nothing to another."""
    before, after = values.get("assignment"), asked.get("assignment")
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        name = before.get("name", MiraSettings().name)
        if after.get("name", name) != name:
            del values["assignment"]


def recipe_to_yaml(recipe: Recipe) -> str:
    """The recipe as YAML that `load_recipe` reads back to an equal one."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def _read(source: str | Path) -> tuple[dict[str, Any], str]:
    path = Path(source)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise ValueError(f"there is no recipe file '{path}'")
        return _parse(path.read_text("utf-8"), str(path)), f"the recipe '{path}'"
    names = builtin_recipes()
    if str(source) not in names:
        near = difflib.get_close_matches(str(source), names, n=1)
        hint = f"Did you mean '{near[0]}'? " if near else ""
        raise ValueError(
            f"there is no built-in recipe '{source}'. {hint}"
            f"Built in are: {', '.join(names)}. A file of your own must end in .yaml"
        )
    text = (resources.files("mira") / "recipes" / f"{source}{_SUFFIX}").read_text("utf-8")
    return _parse(text, str(source)), f"the recipe '{source}'"


def _parse(text: str, origin: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"'{origin}' is not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"'{origin}' must hold keys and values, such as 'training: {{epochs: 20}}'")
    return values


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _set(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"'{override}' is no override: write section.key=value, such as training.epochs=20")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"the value of '{override}' is not valid YAML: {error}") from None
    *sections, last = key.strip().split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ValueError(f"'{override}': '{section}' is a value, not a section")
        values = inner
    values[last] = value


def _explain(kind: str, location: tuple[int | str, ...], message: str) -> str:
    section, *inner = location or ("",)
    method = str(inner.pop(0)) if section == "assignment" and inner else None  # pydantic names it inside the key
    key = ".".join(str(part) for part in (section, *inner))
    if kind == "extra_forbidden":
        methods = [other for other, keys in _method_keys().items() if key in keys]
        if methods:
            return f"'{key}' is a setting of {' and '.join(methods)}, and assignment.name is '{method}'"
        known = [*_keys(Recipe), *_method_keys().get(method or "mira", ())]
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        if not near:  # the right name in the wrong section
            last = key.rpartition(".")[2]
            near = [k for k in known if k.rpartition(".")[2] == last][:1]
        return f"unknown key '{key}'" + (f"; did you mean '{near[0]}'?" if near else "")
    if kind == "union_tag_invalid":
        return f"{key}.name: must be one of {', '.join(_method_keys())}"
    if kind == "union_tag_not_found":
        return f"{key}: must hold keys and values, such as 'name: mira'"
    message = message.removeprefix("Value error, ")
    return f"{key}: {message}" if key else message


def _method_keys() -> dict[str, list[str]]:
    """The keys of `assignment` for each of its methods."""
    return {method().name: list(_keys(method, "assignment.")) for method in METHODS}


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")
