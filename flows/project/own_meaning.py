"""The meaning of one class of a module: of the code that it uses, and of what this imports.

So several classes of the user's own may share a file, and editing one reruns only the stages that
name it.
"""

import ast
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from flows.project.meaning import RULES, Code, imported_by, meaning

WHOLE = {"globals", "vars", "eval", "exec", "modules"}
"""Names by which code may use what it does not name; then the whole module counts."""

OWN_RULES = f"{RULES}, {hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]}"
"""The question that `Seen` stores answers to; it changes with the rules in this file."""


def own_closure(code: Code, path: str) -> dict[str, str]:
    """Return the meaning of the class `module:Class`, and of each module that it needs."""
    module, _, name = path.partition(":")
    file = code.file(module)
    if file is None:
        return {}
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    text = code.seen.text(file, f"{OWN_RULES} of {name}", lambda f: _describe(f, name, package))
    own, *imports = text.split()
    parts = package.split(".") if package else []
    above = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return {**code.closure(*imports, *(a for a in above if a != module)), path: own}


def _describe(file: Path, name: str, package: str) -> str:
    """Return the meaning of a class and the names that its module imports for it."""
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError:  # the stage that imports it will say where
        return meaning(ast.parse(repr(file.read_bytes())))
    part = ast.Module(body=list(_reached(tree, name)), type_ignores=[])
    return " ".join([meaning(part), *sorted(set(imported_by(part, package)))])


def _reached(tree: ast.Module, name: str) -> Iterator[ast.stmt]:
    """Yield the statements of a module that its class `name` may depend on, in their order."""
    body = [piece for node in tree.body for piece in _pieces(node)]
    binds = {i: _bound(node) for i, node in enumerate(body)}
    kept: set[int] = set()
    needed = {name}
    while new := {i for i in binds if i not in kept and (not binds[i] or binds[i] & needed)}:
        kept |= new
        needed |= {word for i in new for word in _words(body[i])}
    everything = bool(needed & WHOLE)
    yield from (node for i, node in enumerate(body) if everything or i in kept)


def _pieces(node: ast.stmt) -> Iterator[ast.stmt]:
    """Yield an import of several names as one import for each."""
    if isinstance(node, ast.Import):
        yield from (ast.Import(names=[alias]) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            yield ast.ImportFrom(module=node.module, names=[alias], level=node.level)
    else:
        yield node


def _bound(node: ast.stmt) -> set[str]:
    """Return the names that a statement defines; none if it may do more, so that it is kept."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return set() if node.decorator_list else {node.name}
    if isinstance(node, ast.Import):
        return set()  # a module may be imported for what it does
    if isinstance(node, ast.ImportFrom):
        alias = node.names[0]
        always = alias.name == "*" or getattr(node, "module", None) == "__future__"
        return set() if always else {alias.asname or alias.name.partition(".")[0]}
    if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        plain = not any(isinstance(part, ast.Call) for part in ast.walk(node.value))
        if plain and all(isinstance(target, ast.Name) for target in targets):
            return {target.id for target in targets if isinstance(target, ast.Name)}
    return set()


def _words(node: ast.stmt) -> Iterator[str]:
    """Yield each name that a statement may refer to, also in strings: annotations may be some."""
    said = {id(part.value) for part in ast.walk(node) if isinstance(part, ast.Expr)}  # docstrings
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Attribute):
            yield part.attr
        elif isinstance(part, ast.Constant) and id(part) not in said:
            yield from re.findall(r"\w+", str(part.value))
