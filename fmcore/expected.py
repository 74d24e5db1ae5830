"""What pydantic found wrong with a value, in one form of words: `expected ..., got ...`."""

import json
import re
from collections.abc import Mapping
from typing import Any

SECTION_EXPECTED = {"model_type", "model_attributes_type", "dict_type", "dataclass_type"}
"""The types of pydantic's errors for a value where a section belongs."""
LIST_EXPECTED = {"tuple_type", "list_type", "set_type"}
"""The types of pydantic's errors for a value where a list belongs."""

EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "literal_error": "{expected}",
    "none_required": "null",
    "string_too_long": "a text of at most {max_length} characters",
    "string_too_short": "a text of at least {min_length} characters",
    "string_type": "a text",
    "too_long": "at most {max_length} entries",
    "too_short": "at least {min_length} entries",
}
"""What was expected, by the type of pydantic's error; the braces hold names of its context."""


def mistake(error: Mapping[str, Any]) -> str:
    """Return what is wrong with a value, of which pydantic gave `error`, without its place.

    >>> mistake({"type": "greater_than", "ctx": {"gt": 0}, "input": -1})
    'expected a number above 0, got -1'
    """
    kind, given = error["type"], error["input"]
    context = {k: _whole(v) for k, v in error.get("ctx", {}).items()}
    single = not isinstance(given, Mapping | list | tuple)
    if kind == "missing":
        return "is missing; add it"
    if kind.startswith("union_tag"):
        key = tag_key(error)
        if kind == "union_tag_not_found":
            return f"its {key} is missing; add `{key}: ...`"
        return f"its {key}: expected one of {context['expected_tags']}, got {shown(context['tag'])}"
    if kind in SECTION_EXPECTED:
        return f"expected a section, `{{key: value, ...}}`, got {got(given)}"
    if kind in LIST_EXPECTED:
        such = f"[{shown(given)}]" if single else "[a, b]"
        return f"expected a list, such as {such}, got {got(given)}"
    if form := EXPECTED.get(kind):
        found = context["actual_length"] if kind in ("too_short", "too_long") else got(given)
        return f"expected {form.format_map(context)}, got {found}"
    words = " ".join(error["msg"].removeprefix("Value error, ").split())
    said = words[0].lower() + words[1:]
    return f"{said}, got {got(given)}" if single else said


def tag_key(error: Mapping[str, Any]) -> str:
    """Return the key that tells which of several sections is meant, of an error about it.

    >>> tag_key({"ctx": {"discriminator": "'name' | 'kind'"}})
    'kind'
    """
    return str(re.findall(r"\w+", error["ctx"]["discriminator"])[-1])


def _whole(bound: Any) -> Any:
    """Return 0 for 0.0, as people write bounds."""
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound


def got(value: Any) -> str:
    """Return what a value is: `a list`, `a section`, or the value itself.

    >>> got({"a": 1}), got(True), got("x")
    ('a section', 'true', "'x'")
    """
    if isinstance(value, Mapping):
        return "a section"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if value is None or isinstance(value, bool):  # YAML and JSON have words of their own
        return json.dumps(value)
    return shown(value)


def shown(value: Any) -> str:
    """Return a value as Python writes it, on one line, cut where it is long.

    >>> shown("x" * 100)
    "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..."
    """
    try:
        return short(repr(value))
    except ValueError:  # a whole number of more digits than Python writes
        return "a very long number"


def short(text: Any, most: int = 40) -> str:
    """Return a text on one line, cut where it is longer than twice `most`."""
    words = " ".join(str(text).split())
    return words if len(words) <= 2 * most else f"{words[:most]}..."
