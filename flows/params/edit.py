"""Change values of a parameter file by their place; comments and layout stay."""

from collections.abc import Mapping
from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from flows.params.tree import unusual
from fmcore.settings import ReflowError


def edited(text: str, changes: Mapping[str, Any], drop: str | None = None) -> str:
    """Return a YAML text with the values at `a.b.c` replaced, and the section `drop` left out.

    >>> edited("seed: 0  # why\\ndata: {name: digits}\\n", {"seed": 1})
    'seed: 1  # why\\ndata: {name: digits}\\n'
    >>> edited("data: {name: digits}\\n", {"data": {"name": "custom", "path": "mine:Rings"}})
    'data:\\n  name: custom\\n  path: "mine:Rings"\\n'

    Raises ReflowError for a place that the file does not have.
    """
    yaml, tree = opened(text)
    for place, value in changes.items():
        for keys, mistake in unusual(value):
            raise ReflowError(f"overrides: {'.'.join([place, *map(str, keys)])}: {mistake}")
        _override(tree, place, value)
    if drop:
        del tree[drop]
    return written(yaml, tree)


def opened(text: str) -> tuple[YAML, Any]:
    """Return a reader and writer that keeps comments and layout, and the tree of a YAML text."""
    yaml = YAML(typ="rt")
    yaml.width = 4096  # long lines stay as they are
    yaml.preserve_quotes = True
    return yaml, yaml.load(text)


def written(yaml: YAML, tree: Any) -> str:
    """Return the text of a tree that `opened` gave."""
    text = StringIO()
    yaml.dump(tree, text)
    return text.getvalue()


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
    at[last] = quoted(value)  # type: ignore[index]


def quoted(value: Any) -> Any:
    """Return a value whose texts with a colon are quoted: DVC's parser needs that in `{...}`."""
    if isinstance(value, Mapping):
        return {key: quoted(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [quoted(inner) for inner in value]
    return DoubleQuotedScalarString(value) if isinstance(value, str) and ":" in value else value
