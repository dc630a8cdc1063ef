"""YAML as recipes are written: plain keys and values, each key once.

PyYAML takes more than a recipe needs, and some of it in silence or for ever: a section that is there twice counts
once, an alias of aliases is a value of a billion parts, `1:30` is ninety and `010` eight, a date is an object.
"""

import re
from collections.abc import Hashable
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from mira.escaping import escaped

_DEEPEST = 20  # a recipe has four levels
_LARGEST = 2**16  # bytes: the longest recipe here has three thousand


class _Loader(yaml.SafeLoader):
    """Refuses aliases, tags, depth and keys that are there twice; numbers and words are those of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012 (PyYAML's own name, filled below)
    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _problem("anchors (&) and aliases (*) have no place here: write the value out", event)
        if getattr(event, "tag", None) not in (None, "!"):
            raise _problem("tags such as !!int have no place here: write the value alone", event)
        if self._depth >= _DEEPEST:
            raise _problem(f"more than {_DEEPEST} levels deep", event)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _problem("a key must be a word", key)
            if key.value in seen:
                raise _problem(f"'{key.value[:60]}' is there twice: put both into one", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _problem(what: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=what, problem_mark=at.start_mark)


def _add(tag: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))


_add("bool", r"^(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$", "yYnNtTfFoO")
_add("null", r"^(?:~|null|Null|NULL|)$", "~nN")
_Loader.yaml_implicit_resolvers.setdefault("", list(_Loader.yaml_implicit_resolvers["~"]))
# What is longer is no number of a recipe, and is told so as the text that it is.
_add("int", r"^[-+]?(?:0|[1-9][0-9]{0,18})$", "-+0123456789")
_add(
    "float",
    r"^[-+]?(?:[0-9]{1,30}\.[0-9]{0,60}|\.[0-9]{1,60}|[0-9]{1,30}(?=[eE]))(?:[eE][-+]?[0-9]{1,5})?$",
    "-+.0123456789",
)
_add("float", r"^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$", "-+.")


def read_yaml(content: bytes | str) -> Any:
    """The value that a text holds: UTF-8, or UTF-16 with its mark, as PowerShell writes it.

    Raises:
        ValueError: it is no YAML, or no plain one; the message says what and where, not in which file.
    """
    if len(content) > _LARGEST:
        raise ValueError(f"it is larger than a recipe can be ({len(content):,} bytes)")
    try:
        return yaml.load(content, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        raise ValueError(f"it is no text in UTF-8 or UTF-16 ({error.reason}): save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        raise ValueError(f"{(error.problem or error.context or 'it cannot be read')[:300]}{where}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"it cannot be read ({str(error)[:300]})") from None


class _Dumper(yaml.SafeDumper):
    """Quotes every text that `read_yaml` would take for something else."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> ScalarNode:
        # PyYAML folds some line ends of Unicode away unless the text is in double quotes.
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if data != escaped(data) else None)


_Dumper.add_representer(str, _Dumper.represent_str)


def write_yaml(values: Any) -> str:
    """The text that `read_yaml` reads back to equal values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
