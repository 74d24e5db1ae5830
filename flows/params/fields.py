"""Every setting of params.yaml: its place, type, default, bounds and description.

The description of a field is the string below it. Python ignores that string, so it is read from
the source when it is needed; importing a settings class takes no longer.
"""

import ast
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from flows.params.load import Params

NAMED = {"rounds": "<round>", "couplings": "<coupling>"}
"""Sections whose keys are names that the user chooses."""


@dataclass(frozen=True)
class Setting:
    """One key of params.yaml; in a section with a `name`, `kind` is the name that has this key.

    `default` is "" if the key is required.
    """

    place: str
    kind: str
    holds: str
    default: str
    bounds: str
    description: str


@dataclass(frozen=True)
class Section:
    """The settings of one class at one place."""

    place: str
    kind: str
    cls: type[BaseModel]
    settings: tuple[Setting, ...]


def sections() -> Iterator[Section]:
    """Yield the section of all settings, then those within it, each class once at each place."""
    seen: set[tuple[str, type[BaseModel]]] = set()
    for section in _sections(Params, "", ""):
        if (section.place, section.cls) not in seen:
            seen.add((section.place, section.cls))
            yield section


def _sections(cls: type[BaseModel], place: str, kind: str) -> Iterator[Section]:
    """Yield the section of a settings class, then all sections within it."""
    said = descriptions(cls)
    hints = get_type_hints(cls, include_extras=True)
    names = sorted(cls.model_fields, key=lambda name: name != "name")
    yield Section(
        place,
        kind,
        cls,
        tuple(
            _setting(_join(place, info.alias or n), kind, hints[n], info, said)
            for n, info in ((n, cls.model_fields[n]) for n in names)
        ),
    )
    for name in names:
        inner = [t for t in _types(hints[name]) if isinstance(t, type) and issubclass(t, BaseModel)]
        name = cls.model_fields[name].alias or name
        below = _join(place, name, NAMED.get(_join(place, name), ""))
        for one in inner:
            named = len(inner) > 1 or _must_be_named(one)
            yield from _sections(one, below, _kind(one) if named else "")


@cache
def descriptions(cls: type[BaseModel]) -> dict[str, str]:
    """Return the description of each field: the string below it, in the class or in a base.

    A `name` that has one value only is described by the docstring of its class.
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        found |= _written(base.__module__).get(base.__name__, {})
    if "name" in cls.model_fields and "name" not in found:
        found["name"] = _flowing((inspect.getdoc(cls) or "").split("\n\n")[0])
    fields = cls.model_fields.items()
    return {info.alias or name: found.get(name, "") for name, info in fields}


@cache
def _written(module: str) -> dict[str, dict[str, str]]:
    """Return the strings below the fields of a module's classes: {class: {field: text}}."""
    file = getattr(sys.modules[module], "__file__", None)
    tree = ast.parse(Path(file).read_text() if file and file.endswith(".py") else "")
    return {
        node.name: {
            field.target.id: _flowing(below.value.value)
            for field, below in zip(node.body, node.body[1:], strict=False)
            if isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        }
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }


def accepts(hint: Any, value: Any) -> bool:
    """Say whether a value is valid for a field of this type, short forms included."""
    try:
        TypeAdapter(hint).validate_python(value)
    except (ValidationError, ValueError, TypeError):
        return False
    return True


def names_of(hint: Any) -> list[str]:
    """Return the values that `name` has in the sections that a field of this type may hold."""
    found = [t for t in _types(hint) if isinstance(t, type) and issubclass(t, BaseModel)]
    return [name for t in found if _kind(t) for name in _kind(t).split(", ")]


def _setting(place: str, kind: str, hint: Any, info: FieldInfo, said: dict[str, str]) -> Setting:
    name = place.rpartition(".")[2]
    default = info.get_default(call_default_factory=True, validated_data={})
    chooses = kind and name in ("name", "kind")  # among classes, so it is required
    short = any(accepts(hint, name) for name in names_of(hint))
    return Setting(
        place,
        kind,
        _holds(hint) + (", or the name alone" if short else ""),
        "" if chooses or default is PydanticUndefined else yaml(default),
        ", ".join(_bounds([*info.metadata, *_inner(hint)])),
        said[name],
    )


def _holds(hint: Any) -> str:
    """Return a type in words."""
    hint = _plain(hint)
    parts = get_args(hint)
    models = [t for t in _types(hint) if isinstance(t, type) and issubclass(t, BaseModel)]
    if get_origin(hint) in (Union, UnionType) and type(None) in parts:
        rest = [p for p in parts if p is not type(None)]
        return f"{_holds(Union[tuple(rest)])}, or null"  # noqa: UP007  of a tuple
    if get_origin(hint) is dict:
        return "sections by name" if models else "mapping"
    if get_origin(hint) in (tuple, list):
        return f"list of {_plural(_holds(parts[0]))}"
    plain = [p for p in parts if _plain(p) in (float, int, str)]
    if len(models) == 1 and plain:
        return f"{_holds(plain[0])} or section"
    if get_origin(hint) in (Union, UnionType) and not models and plain:
        return _either([w for p in parts for w in _holds(p).split(" or ")])
    if len(models) > 1:
        return f"section with {_chooser(models)} {_either(names_of(hint))}"
    if models:
        return "section"
    values = [v for t in ([hint] if get_origin(hint) is Literal else parts) for v in get_args(t)]
    if values:
        return _either([str(v) for v in values])
    words = {int: "whole number", float: "number", bool: "true or false", str: "text"}
    return words.get(hint, "anything")


def _bounds(metadata: list[Any]) -> Iterator[str]:
    for item in metadata:
        for key, words in (
            ("gt", "> {}"), ("ge", ">= {}"), ("lt", "< {}"), ("le", "<= {}"),
            ("multiple_of", "a multiple of {}"),
            ("min_length", "at least {}"), ("max_length", "at most {}"),
        ):  # fmt: skip
            if (value := getattr(item, key, None)) is not None:
                yield words.format(_number(value))


def _number(value: float) -> str:
    """Return a bound as a person writes it.

    >>> _number(10_000_000), _number(2**63 - 1), _number(1e-6)
    ('10,000,000', '2^63 - 1', '1e-6')
    """
    if isinstance(value, int):
        return "2^63 - 1" if value == 2**63 - 1 else f"{value:,}"
    return f"{value:g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def _inner(hint: Any) -> list[Any]:
    """Return the bounds of the items of a list or mapping, or of a value that may be null."""
    found: list[Any] = []
    for part in get_args(_plain(hint)):
        if get_origin(part) is Annotated:
            for extra in part.__metadata__:
                found += extra.metadata if isinstance(extra, FieldInfo) else []
        found += _inner(part)
    return found


def yaml(value: Any) -> str:
    """Return a default as a person would write it in YAML.

    >>> yaml((1, 0.5, None, True))
    '[1, 0.5, null, true]'
    """
    if isinstance(value, BaseModel):
        said = value.model_dump(exclude_unset=True)
        only = {"name": getattr(value, "name", None)} if "name" in type(value).model_fields else {}
        return yaml({**only, **said})
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(yaml(item) for item in value) + "]"
    words = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _types(hint: Any) -> Iterator[Any]:
    """Yield a type, then the types inside of it."""
    hint = _plain(hint)
    yield hint
    if get_origin(hint) is not Literal:
        for part in get_args(hint):
            yield from _types(part)


def _plain(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _kind(cls: type[BaseModel]) -> str:
    """Return the values of a class's `name`: "grid", or "euler, heun"; or its one `kind`."""
    info = cls.model_fields.get("name")
    if info is None and (kind := cls.model_fields.get("kind")):
        info = kind if len(get_args(kind.annotation)) == 1 else None
    return ", ".join(str(v) for v in get_args(info.annotation)) if info else ""


def _chooser(models: list[type[BaseModel]]) -> str:
    """Return the key that chooses among classes: `name`, or its alias; or `kind`."""
    info = models[0].model_fields.get("name")
    return (info and info.alias) or ("name" if info or not _kind(models[0]) else "kind")


def _must_be_named(cls: type[BaseModel]) -> bool:
    info = cls.model_fields.get("name")
    return info is not None and info.is_required()


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _either(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _plural(words: str) -> str:
    return words if words.endswith("null") else f"{words}s"


def _flowing(text: str) -> str:
    return " ".join(text.split())
