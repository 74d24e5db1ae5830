"""The meaning of code: what a module does, without its comments, docstrings and layout.

Uses only the standard library and runs none of the code that it reads, so the stage `inputs` takes
a fraction of a second.
"""

import ast
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flows.project.seen import Seen


@dataclass(frozen=True)
class Module:
    """A module, from its text alone: the hash of its meaning, and the names that it imports."""

    meaning: str
    imports: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """Where packages are: each name has a folder or a file, `{"fmcore": Path(...)}`.

    With a `folder`, the modules in it are known too: the user's own.
    """

    packages: Mapping[str, Path]
    seen: Seen
    folder: Path | None = None

    def closure(self, *modules: str) -> dict[str, str]:
        """Return the meaning of each module that importing `modules` loads, by its name.

        A package's `__init__` is loaded before its modules and counts too, except that of the top
        package: `fmcore/__init__` only exports names of other modules.
        """
        found: dict[str, str] = {}
        read: set[str] = set()
        queue = list(modules)
        while queue:
            name = queue.pop()
            file = self.file(name)
            if file is None or name in read or name in self.packages:
                continue
            read.add(name)
            module = self._read(file, name)
            if module.meaning != NOTHING:  # many an `__init__` is only a docstring
                found[name] = module.meaning
            queue.extend(module.imports)
            queue.extend(".".join(name.split(".")[:i]) for i in range(1, name.count(".") + 1))
        return dict(sorted(found.items()))

    def file(self, module: str) -> Path | None:
        """Return the file of a module, if it is one of the packages or lies in the folder."""
        first, *rest = module.split(".")
        base = self.packages.get(first)
        if base is None and self.folder is not None:
            base = self.folder / first
        if base is None:
            return None
        path = base.joinpath(*rest)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
        return None

    def _read(self, file: Path, name: str) -> Module:
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        text = self.seen.text(file, RULES, lambda path: _describe(path.read_bytes(), package))
        meaning, _, imports = text.partition(" ")
        return Module(meaning, tuple(imports.split()))


def _describe(source: bytes, package: str) -> str:
    """Return the meaning of a source and the names that it imports, separated by spaces."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # the stage that imports it will say where
        return hashlib.sha256(source).hexdigest()[:16]
    return " ".join([meaning(tree), *sorted(set(imported_by(tree, package)))])


def meaning(tree: ast.AST) -> str:
    """Return a hash of a syntax tree without docstrings, field descriptions and type-only imports.

    >>> meaning(ast.parse("x = 1  # one")) == meaning(ast.parse("'About x.'\\nx  =  1"))
    True
    """
    return hashlib.sha256(repr(_plain(tree)).encode()).hexdigest()[:16]


def _plain(node: object) -> object:
    """Turn a tree into nested tuples that are the same in every version of Python."""
    if isinstance(node, list):
        return tuple(_plain(item) for item in node if not _words(item))
    if not isinstance(node, ast.AST):
        return node
    fields = [(k, _plain(v)) for k, v in ast.iter_fields(node) if k != "kind"]
    return type(node).__name__, *((k, v) for k, v in fields if v not in (None, ()))


def _words(node: object) -> bool:
    """Whether a node is only for people and type checkers."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    if isinstance(node, ast.keyword):
        return node.arg == "description"
    return isinstance(node, ast.If) and _for_types_only(node)


def _for_types_only(node: ast.If) -> bool:
    return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imported_by(node: ast.AST, package: str) -> Iterator[str]:
    """Yield the modules that the code imports anywhere; `from a import b` gives a and a.b."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and _for_types_only(child):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - child.level + 1]
            parts = [*(above if child.level else []), *([child.module] if child.module else [])]
            yield ".".join(parts)
            yield from (".".join([*parts, alias.name]) for alias in child.names)
        else:
            yield from imported_by(child, package)


NOTHING = meaning(ast.parse(""))
"""The meaning of a module without code."""

RULES = f"code by {hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]}"
"""The question that `Seen` stores answers to; it changes with the rules in this file."""
