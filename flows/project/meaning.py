"""The meaning of code: what a module does, without its comments, docstrings and layout.

Uses only the standard library and runs none of the code that it reads, so the stage `inputs` takes
a fraction of a second.
"""

import ast
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import EllipsisType
from typing import Any

from flows.project.seen import Seen


@dataclass(frozen=True)
class Module:
    """A module, from its text alone: the hash of its meaning, and the names that it imports."""

    meaning: str
    imports: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """Where packages lie: each name stands for a folder, `{"fmcore": Path(...)}`.

    With a `folder`, the modules in it are known too: the user's own.
    """

    packages: Mapping[str, Path]
    seen: Seen
    folder: Path | None = None
    _known: dict[str, Module | None] = field(default_factory=dict)
    _folders: dict[str, bool] = field(default_factory=dict)

    def closure(self, *modules: str) -> dict[str, str]:
        """Return the meaning of each module that importing `modules` loads, by its name.

        The `__init__` of a room is loaded before its modules and counts too. That of a package
        does not: `fmcore/__init__` only names what its modules define. Other code that imports the
        package itself may reach all of its modules, so all of them count.
        """
        found: dict[str, str] = {}
        read: set[str] = set()
        queue = [(module, "") for module in modules]
        while queue:
            wanted, package = queue.pop()
            owner, _, member = wanted.partition(":")
            inner = f"{owner}.{member}"
            name = inner if member and self._is_folder(owner) and self._module(inner) else owner
            if name in read:
                continue
            if name in self.packages and name == package:  # from inside
                continue
            read.add(name)
            if name in self.packages:
                queue.extend((module, name) for module in self._all(name))
            elif module := self._module(name):
                if module.meaning != NOTHING:  # a room's `__init__` is one sentence
                    found[name] = module.meaning
                package, _, _ = name.partition(".")
                queue.extend((needed, package) for needed in module.imports)
                if room := name.rpartition(".")[0]:
                    queue.append((room, package))
        return dict(sorted(found.items()))

    def file(self, module: str) -> Path | None:
        """Return the file of a module, if it is one of the packages or lies in the folder."""
        if not (path := self._path(module)):
            return None
        for file in (path / "__init__.py", path.with_name(f"{path.name}.py")):
            if file.is_file():
                return file
        return None

    def _path(self, name: str) -> Path | None:
        """Return where a module or a folder of this name would be, without a suffix."""
        first, *rest = name.split(".")
        base = self.packages.get(first) or (self.folder and self.folder / first)
        return base.joinpath(*rest) if base else None

    def _is_folder(self, name: str) -> bool:
        """Whether a name that is imported from may hold modules: most hold names alone."""
        if name not in self._folders:
            path = self._path(name)
            self._folders[name] = bool(path and path.is_dir())
        return self._folders[name]

    def _module(self, name: str) -> Module | None:
        if name not in self._known:
            file = self.file(name)
            self._known[name] = self._read(file, name) if file else None
        return self._known[name]

    def _read(self, file: Path, name: str) -> Module:
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        asked = f"{RULES}, as {name}"
        text = self.seen.text(file, asked, lambda path: _describe(path.read_bytes(), package))
        meaning, _, imports = text.partition(" ")
        return Module(meaning, tuple(imports.split()))

    def _all(self, package: str) -> list[str]:
        """Return the modules of a package."""
        folder = self.packages[package]
        files = [file.relative_to(folder).with_suffix("") for file in folder.rglob("*.py")]
        return [".".join((package, *file.parts)) for file in files if file.name != "__init__"]


def _describe(source: bytes, package: str) -> str:
    """Return the meaning of a source and the names that it imports, separated by spaces."""
    try:
        tree = ast.parse(source)
        return " ".join([meaning(tree), *sorted(set(imported_by(tree, package)))])
    except (SyntaxError, ValueError, RecursionError):  # the stage that imports it will say where
        return hashlib.sha256(source).hexdigest()[:16]


def meaning(tree: ast.AST) -> str:
    """Return a hash of a syntax tree without what only people and type checkers read.

    That is docstrings, descriptions of fields, imports for types, statements that do nothing.

    >>> meaning(ast.parse("x = 1  # one")) == meaning(ast.parse("'About x.'\\nx  =  1"))
    True
    """
    return hashlib.sha256(ascii(_plain(tree)).encode()).hexdigest()[:16]


def _plain(node: object) -> object:
    """Turn a tree into nested tuples that are the same in every version of Python."""
    if isinstance(node, list):
        return tuple(_plain(item) for one in node for item in _acting(one))
    if not isinstance(node, ast.AST):
        return node
    if isinstance(node, ast.Call) and _name(node.func) == "Field":
        words = [k for k in node.keywords if k.arg not in FIELD_WORDS]
        node = ast.Call(node.func, node.args, words)
    if isinstance(node, ast.JoinedStr):  # the first releases of 3.12 put empty texts into it
        node = ast.JoinedStr([v for v in node.values if getattr(v, "value", "x") != ""])
    fields = [(k, _plain(v)) for k, v in ast.iter_fields(node) if k != "kind"]
    return type(node).__name__, *((k, v) for k, v in fields if v not in (None, ()))


def _acting(node: object) -> list[Any]:
    """Return what of an item of a list acts when the code runs: itself as a rule."""
    if isinstance(node, ast.Pass):
        return []
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return [] if isinstance(node.value.value, str | EllipsisType) else [node]
    if isinstance(node, ast.If) and _name(node.test) == TYPES_ONLY:
        return [item for one in node.orelse for item in _acting(one)]
    if isinstance(node, ast.ImportFrom) and node.module == "typing":
        names = [alias for alias in node.names if alias.name != TYPES_ONLY]
        return [ast.ImportFrom("typing", names, node.level)] if names else []
    return [node]


def _name(node: ast.AST) -> str:
    """Return the last name of `name` or `module.name`; "" for any other expression."""
    return getattr(node, "id", "") or getattr(node, "attr", "")


def imported_by(node: ast.AST, package: str) -> Iterator[str]:
    """Yield the modules that the code imports, wherever it does; `a:b` for a name b of a."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            rooms = package.split(".") if package else []
            above = rooms[: len(rooms) - child.level + 1] if child.level else []
            owner = ".".join([*above, *([child.module] if child.module else [])])
            yield from (f"{owner}:{alias.name}" for alias in child.names if owner)
        elif isinstance(child, ast.If) and _name(child.test) == TYPES_ONLY:
            for other in child.orelse:
                yield from imported_by(ast.Module([other], []), package)
        else:
            yield from imported_by(child, package)


TYPES_ONLY = "TYPE_CHECKING"
FIELD_WORDS = ("description", "title", "examples")
"""What pydantic's `Field` takes for people alone."""

NOTHING = meaning(ast.parse(""))
"""The meaning of a module without code."""

RULES = f"code by {hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]}"
"""The question that `Seen` stores answers to; it changes with the rules in this file."""
