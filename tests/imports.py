"""The import closure of a module inside fmcore, read from the source: no code is run."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent


def closure(module: str) -> set[str]:
    """Return the files (relative, posix) that importing `module` loads, within this repository."""
    found: set[str] = set()
    queue = [module]
    while queue:
        file = _file(queue.pop())
        if file is None or file in found or file == "fmcore/__init__.py":  # it loads nothing
            continue
        found.add(file)
        queue.extend(_imports(ROOT / file))
    return found


def _file(module: str) -> str | None:
    path = ROOT / Path(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.exists():
            return candidate.relative_to(ROOT).as_posix()
    return None


def _imports(path: Path) -> list[str]:
    names: list[str] = []
    for node in _nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
    parents = [".".join(n.split(".")[:i]) for n in names for i in range(1, n.count(".") + 2)]
    return [n for n in parents if n.startswith("fmcore")]


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes but those below `if TYPE_CHECKING`, which never run."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from _nodes(node)
