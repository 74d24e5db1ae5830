"""Change values of a parameter file by their place; comments and layout stay."""

from collections.abc import Mapping
from io import StringIO
from typing import Any

from ruamel.yaml import YAML

from fmcore.settings import ReflowError


def edited(text: str, changes: Mapping[str, Any], drop: str | None = None) -> str:
    """Return a YAML text with the values at `a.b.c` replaced, and the section `drop` left out.

    >>> edited("seed: 0  # why\\ndata: {name: digits}\\n", {"seed": 1})
    'seed: 1  # why\\ndata: {name: digits}\\n'

    Raises ReflowError for a place that the file does not have.
    """
    yaml = YAML(typ="rt")
    yaml.width = 4096  # long lines stay as they are
    tree = yaml.load(text)
    for place, value in changes.items():
        _override(tree, place, value)
    if drop:
        del tree[drop]
    written = StringIO()
    yaml.dump(tree, written)
    return written.getvalue()


def _override(tree: Any, place: str, value: Any) -> None:
    """Set the value at `a.b.c`; the section `a.b` must exist."""
    *way, last = place.split(".")
    at = tree
    for key in way:
        if not isinstance(at, Mapping) or key not in at:
            known = ", ".join(map(str, at)) if isinstance(at, Mapping) else "none"
            raise ReflowError(f"overrides: {place}: no {key!r}; there are: {known}")
        at = at[key]
    if not isinstance(at, Mapping):
        raise ReflowError(f"overrides: {place}: {way[-1]} holds a value, not a section")
    at[last] = value  # type: ignore[index]
