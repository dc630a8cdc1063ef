"""The base of every section of a recipe, and of the settings of every protocol."""

import reprlib
from collections.abc import Mapping
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

PositiveInt = Annotated[int, Field(ge=1, le=10**9)]
"""A number of things of which nobody has a billion: products of two of them are still whole numbers everywhere."""

_WORDS = {
    "int_type": "be a whole number",
    "int_parsing": "be a whole number",
    "int_from_float": "be a whole number",
    "float_type": "be a number",
    "float_parsing": "be a number",
    "bool_type": "be true or false",
    "bool_parsing": "be true or false",
    "string_type": "be text",
    "too_short": "have a value",
    "tuple_type": "be a list in brackets, as in [a, b]",
    "dict_type": "hold keys and values, such as {key: value}",
    "model_type": "hold keys and values, such as {key: value}",
    "int_parsing_size": "be a whole number of at most 18 digits",
    "string_unicode": "be text",
    "invalid_key": "have words as keys",
}
_SHORT = reprlib.Repr()
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 4
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 3, 80, 80, 40


class Settings(BaseModel):
    """A frozen, validated group of settings: unknown keys and wrong types are errors when it is built."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, values: Any) -> Any:
        # To pydantic true is a 1; in a recipe it is a slip, such as `epochs: yes`.
        for name, field in cls.model_fields.items() if isinstance(values, Mapping) else ():
            if _holds_bool(values.get(name)) and not _takes_bool(field.annotation):
                raise ValueError(
                    f"{name} is {shortened(values[name]).lower()}: write what you mean as a number or a word"
                )
        return values


def _holds_bool(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, list | tuple) and any(map(_holds_bool, value)))


def _takes_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(map(_takes_bool, get_args(annotation)))


def plain_types(annotation: Any) -> set[Any]:
    """The types that an annotation is made of, without what they hold: {tuple, int} for `tuple[int, ...]`."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return plain_types(get_args(annotation)[0])
    if origin is Literal or origin is None:
        return set() if annotation is Ellipsis else {annotation}
    inner = {kind for part in get_args(annotation) for kind in plain_types(part)}
    return inner if origin in (Union, UnionType) else {*inner, origin}


def requirement(problem: "ErrorDetails") -> str:
    """What a value must be, of one of pydantic's complaints: "be a whole number", "be greater than 0"."""
    return _WORDS.get(problem["type"]) or problem["msg"].removeprefix("Input should ")


def shortened(value: object) -> str:
    """A value as a sentence shows it: whoever gave a million characters need not see them all again."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"
