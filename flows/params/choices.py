"""Errors of a setting that may be a value or a section: those of what was meant."""

from collections.abc import Iterable
from typing import Any

from fmcore.expected import SECTION_EXPECTED


def meant(errors: Iterable[Any], given: Any) -> list[Any]:
    """Return pydantic's errors in `given`, without those for being of the other of two forms.

    Where a setting may be a number or a section, a section with a mistake is told twice: as no
    number, and by its mistake. A value that is neither is told once, as no value of its form.
    """
    errors = list(errors)
    return [e for e in errors if not any(_rather(e, other, given) for other in errors)]


def _rather(error: Any, other: Any, given: Any) -> bool:
    """Whether `other` tells of the form that was given, and `error` that it is another one."""
    own, another = error["loc"], other["loc"]
    if error["type"] == "too_short":  # items that are wrong are not counted
        return len(another) > len(own) and another[: len(own)] == own
    beside = len(another) >= len(own) and another[: len(own) - 1] == own[:-1]
    if not beside or another[len(own) - 1] == own[-1] or not error["type"].endswith("_type"):
        return False
    if not _is_form(own, given):
        return False
    if isinstance(error["input"], dict):
        return len(another) > len(own) or not other["type"].endswith("_type")
    return error["type"] in SECTION_EXPECTED


def _is_form(loc: tuple[Any, ...], given: Any) -> bool:
    """Whether the last part of a place is pydantic's name for one of two forms, and no key."""
    key = True
    for part in loc:
        key = part in given if isinstance(given, dict) else isinstance(given, list)
        given = given[part] if key else given
    return not key
