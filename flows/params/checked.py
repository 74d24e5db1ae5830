"""Check params.yaml as a whole; a text that passed before is not checked again: no imports."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

from flows.params.tree import parse, plain, read_text
from flows.project.meaning import Code
from flows.project.seen import Seen
from fmcore.own import named, trust
from fmcore.settings import ReflowError

FILE = "params.yaml"


def check(root: Path) -> None:
    """Check params.yaml as `flows.params.load` does, unless the same text passed before.

    The user's own classes that it names are trusted from then on.

    Raises ReflowError with a line for each mistake.
    """
    packages = {name: _folder(name) for name in ("fmcore", "flows")}
    classes = _named(root / FILE)
    trust(root, classes)
    with Seen(root) as seen:
        own = {path.partition(":")[0] for path in classes}
        code = Code(packages, seen, root).closure("flows.params.load", *sorted(own))
        rules = hashlib.sha256(repr(code).encode()).hexdigest()[:16]
        if (root / FILE).is_file():
            seen.text(root / FILE, f"checked by {rules}", _load)
        else:
            _load(root / FILE)


def _named(file: Path) -> set[str]:
    """Return the user's own classes that a parameter file names; none if it is not YAML."""
    try:
        text = read_text(file)
        return named(plain(parse(text, file.name))) if "custom" in text else set()
    except ReflowError:  # `_load` says what is wrong
        return set()


def _load(file: Path) -> str:
    from flows.params.load import load  # imports torch, for the settings of networks

    load(file)
    return "right"


def _folder(package: str) -> Path:
    """Return where a package lies, without importing its modules."""
    spec = find_spec(package)
    return Path(next(iter((spec and spec.submodule_search_locations) or [package])))
