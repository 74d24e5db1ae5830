"""Classes of the user's own: `{name: custom, path: "module:Class", settings: {...}}`.

A class is used only if the project's own params.yaml names it (`trust`) and its module is a file in
the project's folder. Before any of its code runs, the file's text must define the class; before the
class is called, it must be a subclass of its base, and its settings must be right.
"""

import ast
import hashlib
import importlib
import json
import re
import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterable, Mapping
from functools import cached_property
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from fmcore.expected import mistake
from fmcore.settings import ReflowError, Settings

T = TypeVar("T")
PATTERN = r"^[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*$"
"""The pattern of `module:Class`."""

_trusted: dict[str, Path] = {}
"""The folder of each trusted `module:Class`."""
_imported: dict[str, tuple[Path, str]] = {}
"""Modules that were imported from a trusted folder: their files, and the hashes of these."""
_used: set[str] = set()
_on_path: list[str] = []
"""The folder of the modules imported last, if importing them added it to sys.path."""
_lock = threading.RLock()


def trust(folder: Path, paths: Iterable[str]) -> None:
    """Allow the classes `module:Class` in `paths`, whose modules lie in `folder`.

    Code that reads a project's params.yaml calls this; in a notebook call it yourself. Nothing is
    imported here. A later folder replaces an earlier one.
    """
    with _lock:
        _trusted.update(dict.fromkeys(paths, folder.resolve()))


def is_own(settings: Mapping[str, Any]) -> bool:
    """Say whether settings given as plain data choose a class of the user's own."""
    return "custom" in (settings.get("name"), settings.get("kind"))


def named(settings: Any) -> set[str]:
    """Return the `module:Class` of every `name: custom` or `kind: custom` in plain settings.

    >>> named({"data": {"name": "custom", "path": "mine:Rings"}, "seed": 0})
    {'mine:Rings'}
    """
    if isinstance(settings, Mapping):
        found = {path for value in settings.values() for path in named(value)}
        path = settings.get("path")
        own = is_own(settings) and isinstance(path, str) and re.match(PATTERN, path)
        return found | {str(path)} if own else found
    if isinstance(settings, list | tuple):
        return {path for value in settings for path in named(value)}
    return set()


def find(path: str, base: type[T]) -> type[T]:
    """Return the class `module:Class`, a subclass of `base`.

    Raises ValueError before any of its code runs if it is not trusted, lies outside the trusted
    folder or is no class; and before it is called if it is no subclass.
    """
    if path not in _trusted:
        raise ValueError(
            f"{path} is named only by a model's config.json or by other data, not by the project's"
            " params.yaml; none of its code was run: name it there, or call fmcore.own.trust"
        )
    with _lock:
        module, _, name = path.partition(":")
        file = _file(path, _trusted[path])
        bases = _bases(file, name)
        if bases is None:
            raise ValueError(f"{path}: {file.name} has no `class {name}` at its top level")
        if not bases:  # known before the module is imported
            raise ValueError(f"{path} is no subclass of {base.__module__}.{base.__qualname__}")
        found = vars(_import(module, file, _trusted[path])).get(name)
        _used.add(path)
    if not isinstance(found, type) or not issubclass(found, base):
        raise ValueError(f"{path} is no subclass of {base.__module__}.{base.__qualname__}")
    if lacking := sorted(getattr(found, "__abstractmethods__", ())):
        raise ValueError(f"{path} lacks {', '.join(lacking)}")
    return found


class Own(Settings):
    """A class of the user's own, checked and made when these settings are read."""

    base: ClassVar[type]
    """The class of which the user's class must be a subclass."""

    name: Literal["custom"]
    path: str = Field(pattern=PATTERN, description="The class as `module:Class`.")
    """The class, as `module:Class`; the module lies in the project."""
    settings: dict[str, Any] = Field(
        default_factory=dict, description="The fields of the class, checked by it."
    )
    """The values of the class's fields."""

    @cached_property
    def own(self) -> Any:
        """The user's class with its settings."""
        return parsed(find(self.path, self.base), self.settings)

    @model_validator(mode="after")
    def _made(self) -> "Own":
        called(self.path, self.check, self.own)
        return self

    def check(self, own: Any) -> None:
        """Raise ValueError if the user's class does not do what its base requires."""


def parsed(kind: type[BaseModel], settings: Mapping[str, Any]) -> Any:
    """Return settings as an instance of their class; raise ValueError with one line.

    They are read as JSON, so a list may stand for a tuple, as it does in params.yaml.
    """
    try:
        return kind.model_validate_json(json.dumps(settings, default=str))
    except ValidationError as error:
        raise ValueError(one_line(error, "settings", kind)) from None


def one_line(
    error: ValidationError, place: str, kind: type[BaseModel] | None = None, given: Any = None
) -> str:
    """Return the first mistake that pydantic found below `place`, in one line.

    A place that pydantic gives begins with the tag of a union, which is not a key in `given`.
    """
    first = error.errors()[0]
    loc = first["loc"]
    if isinstance(given, Mapping) and loc and loc[0] not in given and first["type"] != "missing":
        loc = loc[1:]
    where = ".".join(map(str, (place, *loc)))
    if first["type"] == "extra_forbidden" and kind is not None:
        return f"{where}: unknown key; accepted: {', '.join(sorted(kind.model_fields)) or 'none'}"
    return f"{where}: {mistake(first)}"


def read(kind: Any, value: Any, place: str) -> Any:
    """Return `value` as the settings `kind`, found in a file; `place` names the file and the key.

    Raises ReflowError with one line.
    """
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise ReflowError(one_line(error, place, given=value)) from None


def called(path: str, call: Any, *args: Any) -> Any:
    """Return `call(*args)` of a class; whatever it raises becomes a ValueError of one line."""
    try:
        return call(*args)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:
        raise ValueError(f"{path} fails: {_words(error)}") from error


def in_use() -> tuple[tuple[str, str], ...]:
    """Return the classes that this process has imported, with their folders, to tell a worker."""
    return tuple(sorted((path, str(_trusted[path])) for path in _used))


def use(classes: Iterable[tuple[str, str]]) -> None:
    """Import, in a worker, the classes that `in_use` returned in the process that sends work."""
    for path, folder in classes:
        trust(Path(folder), [path])
        try:
            find(path, object)
        except ValueError as error:
            raise ReflowError(f"{error}; the worker needs the project's folder {folder}") from None


def _file(path: str, folder: Path) -> Path:
    """Return the file that an import of a path's module would run, found without importing."""
    module = path.partition(":")[0]
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top in ("fmcore", "flows"):
        raise ValueError(f"{path}: the module {top!r} is not the project's; choose another name")
    importlib.invalidate_caches()
    places, parts = [str(folder)], module.split(".")
    for end in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:end]), places)
        if spec is None or not isinstance(spec.loader, SourceFileLoader) or not spec.origin:
            missing = "/".join(parts[:end])
            raise ValueError(
                f"{path}: the project has no {missing}.py; a package needs {missing}/__init__.py"
            )
        file = Path(spec.origin).resolve()
        if not file.is_relative_to(folder):
            raise ValueError(f"{path}: {file} lies outside of the project")
        places = list(spec.submodule_search_locations or ())
    return file


def _bases(file: Path, name: str) -> list[str] | None:
    """Return the bases of `class name` at the top level of a file; None if it has no such class.

    Only the text is read; nothing of it runs.
    """
    try:
        body = ast.parse(file.read_bytes()).body
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{file.name}: cannot be read as Python: {_words(error)}") from None
    found = [node for node in body if isinstance(node, ast.ClassDef) and node.name == name]
    return [ast.unparse(base) for base in found[-1].bases] if found else None


def _import(module: str, file: Path, folder: Path) -> ModuleType:
    """Import a module from its file in the folder, in place of another folder's of that name."""
    _forget(folder)
    have = sys.modules.get(module)
    if have is not None and _source(have) != file:
        if _installed(have):
            raise ValueError(f"{module} is the name of an installed package; choose another name")
        for key in [k for k in sys.modules if k == module or k.startswith(f"{module}.")]:
            del sys.modules[key]
    before, kept = set(sys.modules), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    # Bytecode is known by the second and the size of its file: an edit within it would not be seen.
    sys.dont_write_bytecode = True
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{file.name} cannot be imported: {_words(error)}") from error
    finally:
        sys.dont_write_bytecode = kept
        sys.path.remove(str(folder))
        if str(folder) not in sys.path:  # last, for imports inside functions
            sys.path.append(str(folder))
            _on_path.append(str(folder))
        for key in {*sys.modules} - before | {module}:
            _remember(key, folder)
    if _source(found) != file:
        raise ValueError(f"{module} is the name of another module; choose another name")
    return found


def _remember(module: str, folder: Path) -> None:
    file = _source(sys.modules.get(module))
    if file and file.is_relative_to(folder) and not _installed(sys.modules[module]):
        _imported[module] = (file, _digest(file))


def _forget(folder: Path) -> None:
    """Drop all imported modules if one lies outside the folder or its file has changed."""
    if all(f.is_relative_to(folder) and _digest(f) == d for f, d in _imported.values()):
        return
    for module in _imported:
        sys.modules.pop(module, None)
    _imported.clear()
    for place in _on_path:
        sys.path.remove(place)
    _on_path.clear()


def _source(module: ModuleType | None) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if file else None


def _installed(module: ModuleType) -> bool:
    file, paths = _source(module), sysconfig.get_paths()
    libraries = [Path(paths[k]).resolve() for k in ("stdlib", "purelib", "platlib")]
    return file is None or any(file.is_relative_to(library) for library in libraries)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def _words(error: BaseException) -> str:
    """Return an error in one line, with the line of code that raised it."""
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(": ")
    frames = traceback.extract_tb(error.__traceback__)
    return f"{said} ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else said
