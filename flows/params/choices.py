"""Errors of a setting that may be a value or a section: those of what was meant."""

from collections.abc import Iterable
from typing import Any


def meant(errors: Iterable[Any]) -> list[Any]:
    """Return pydantic's errors without those that a value has for being of the other form.

    Where a setting may be a number or a section, a section with a mistake is told twice: as no
    number, and by its mistake. A value that is neither is told once, as no value of its form.
    """
    errors = list(errors)
    return [e for e in errors if not any(_rather(e, other) for other in errors)]


def _rather(error: Any, other: Any) -> bool:
    """Whether `other` tells of the form that was given, and `error` that it is another one."""
    if error["type"] == "too_short":  # items that are wrong are not counted
        inside = other["loc"][: len(error["loc"])] == error["loc"]
        return inside and len(other["loc"]) > len(error["loc"])
    place, form = error["loc"][:-1], error["loc"][-1:]
    beside = other["loc"][: len(place)] == place and other["loc"][len(place) :][:1] != form
    if not beside or len(other["loc"]) <= len(place) or not error["type"].endswith("_type"):
        return False
    if isinstance(error["input"], dict):  # a field of the section is told, deeper or as a whole
        return not other["type"].endswith("_type") or len(other["loc"]) > len(error["loc"])
    section = error["type"] in ("model_type", "model_attributes_type", "dict_type")
    return section and other["input"] is error["input"]
