"""The built-in recipes, as files. What they mean is `mira.training.recipe`'s: to list them loads none of it."""

import difflib
from importlib import resources

import yaml

_SUFFIX = ".yaml"


def builtin_recipes() -> dict[str, str]:
    """Names and descriptions of the recipes that come with the package."""
    return {name: str(yaml.safe_load(recipe_text(name)).get("description", "")) for name in _names()}


def recipe_text(name: str) -> str:
    """The YAML of one of them.

    Raises:
        ValueError: there is none of that name; the message has the nearest.
    """
    names = _names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"Did you mean '{near[0]}'? " if near else ""
        raise ValueError(
            f"there is no built-in recipe '{name}'. {hint}"
            f"Built in are: {', '.join(names)}. A file of your own must end in .yaml"
        )
    return (resources.files(__name__) / f"{name}{_SUFFIX}").read_text("utf-8")


def _names() -> list[str]:
    files = (file.name for file in resources.files(__name__).iterdir())
    return sorted(name.removesuffix(_SUFFIX) for name in files if name.endswith(_SUFFIX))
