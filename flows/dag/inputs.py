"""The stage `inputs`: records the code and the files that DVC's graph does not show.

It writes a small JSON file for each other stage, and that stage depends on the file:

    code   the meaning of each module of fmcore that the stage's verb imports
    own    the meaning of the user's own classes that its parameters name
    files  the content of the files and folders that its parameters name, with count and bytes
    source, compute for prepare, where they are set or a codec encodes (sections.py)

So editing a comment reruns nothing, editing a function reruns the stages that use it, and replacing
a data file changes the input, on this and on every other machine. This module does not import torch
or DVC, because the stage runs every time.
"""

import hashlib
import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows.dag import sections, teachers
from flows.dag.places import NAMED_FILES, PROTOCOL, READER, READS, in_params
from flows.project.meaning import Code
from flows.project.own_meaning import own_closure
from flows.project.seen import Seen
from fmcore.checked import files_named, folder_digest, sha256
from fmcore.own import is_own, named
from fmcore.settings import ReflowError

STAGE, STAGES = "inputs", {"adopt": "train"}
FOLDER = "inputs"


def compute(root: Path, only: Collection[str] | None = None) -> dict[str, str]:
    """Return what the files of the stage `inputs`, or `only` some of them, hold now, by path.

    Raises ReflowError if params.yaml cannot be read.
    """
    params = _params(root)
    found = {}
    with Seen(root) as seen:
        code = Code({"fmcore": _package(root)}, seen, folder=root)
        closures: dict[str, dict[str, str]] = {}
        for path, verb, words in _stages(params):
            if only is not None and path not in only:
                continue
            chosen = _chosen(params, verb, words)
            if verb not in closures:
                closures[verb] = code.closure(f"fmcore.{verb}")
            entry = {
                "code": closures[verb],
                "own": _own(code, chosen, closures[verb]),
                "files": dict(_files(root, seen, verb, chosen)),
                **sections.sections(verb, chosen),
            }
            found[path] = json.dumps(entry, indent=1, sort_keys=True) + "\n"
    return found


def missing(root: Path) -> dict[str, str]:
    """Return the files and folders that params.yaml names and that are not there, by place."""
    return {place: path for found in missing_to(root).values() for place, path in found.items()}


def missing_to(root: Path) -> dict[str, dict[str, str]]:
    """Return the same for each stage that reads some of them, by its file of `inputs`."""
    params, found = _params(root), dict[str, dict[str, str]]()
    for file, verb, words in _stages(params):
        for place, path in _paths(verb, _chosen(params, verb, words)):
            if not (root / path).exists():
                found.setdefault(file, {})[in_params(place, words.get("key", ""))] = path
    return found


def write(root: Path) -> None:
    """Write the files of the stage `inputs`, and nothing else into its folder.

    A file that holds the same already is left alone; another one is replaced, not written into:
    DVC's cache may share its bytes.
    """
    found = compute(root)
    for path, text in found.items():
        file = root / path
        if text_of(file) != text:
            _remove(file)
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(".part")
            part.write_text(text)
            part.replace(file)
    for other in sorted((root / FOLDER).rglob("*"), reverse=True):  # a folder after its files
        name = other.relative_to(root).as_posix()
        if name not in found and not any(path.startswith(f"{name}/") for path in found):
            _remove(other)


def text_of(file: Path) -> str | None:
    """Return the text of a file; None if it cannot be read as text."""
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def changes(before: str | None, after: str | None) -> list[str]:
    """Say in words what differs between two versions of a stage's file; empty if nothing does."""
    if before == after:
        return []
    if after is None:
        return ["params.yaml no longer has it"]
    old, new = _parts(before), _parts(after)
    said = [f"code of {name} changed" for name in _different(old["code"], new["code"])]
    for part in ("source", "compute"):
        said += [f"{part} changed in params.yaml"] if old[part] != new[part] else []
    for name in _different(old["own"], new["own"]):
        named_now, named_before = name in new["own"], name in old["own"]
        how = "changed" if named_now and named_before else "is named now"
        said.append(f"your class {name} {how if named_now else 'is named no longer'}")
    for place in _different(old["files"], new["files"]):
        said.append(f"{place}: {_content(old['files'].get(place), new['files'].get(place))}")
    return said if before and said else ["the record of its code and files is another"]


def _parts(text: str | None) -> dict[str, Mapping[str, Any]]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = {}
    named = ("code", "own", "files", "source", "compute")
    return {part: _mapping(_mapping(found).get(part)) for part in named}


def md5(text: str) -> str:
    """Return DVC's hash of a file with this content."""
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _own(
    code: Code, chosen: Mapping[str, Any], known: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """Return the meaning of each own class in `chosen`, without the `known` modules."""
    found = {path: own_closure(code, path) for path in sorted(named(list(chosen.values())))}
    return {path: {k: v for k, v in own.items() if k not in known} for path, own in found.items()}


def _different(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]


def _content(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> str:
    if new is None or old is None:
        return "is named no longer" if new is None else "is named now"
    if new.get("missing") or old.get("missing"):
        return "the file is missing" if new.get("missing") else "the file is there now"
    sizes = (teachers.size(x["files"], x["bytes"]) for x in (old, new))
    return f"its content changed ({' -> '.join(sizes)})"


def _params(root: Path) -> Mapping[str, Any]:
    file = root / "params.yaml"
    try:
        params = YAML(typ="safe").load(file.read_text())
    except (OSError, YAMLError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise ReflowError(f"params.yaml: cannot be read ({reason}); mend it") from None
    if not isinstance(params, Mapping):
        raise ReflowError("params.yaml: expected a mapping of settings; mend it")
    return params


def _stages(params: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield (path of its file, verb, words to fill into its places) for every stage."""
    rounds, couplings = (_mapping(params.get(k)) for k in ("rounds", "couplings"))
    for verb in READS:
        if verb in ("train", "adopt", "evaluate"):
            for key, value in rounds.items():
                if verb == "evaluate" or ("model" in _mapping(value)) == (verb == "adopt"):
                    yield f"{FOLDER}/{STAGES.get(verb, verb)}/{key}.json", verb, {"key": key}
        elif verb == "couple":
            for key, value in couplings.items():
                made_by = str(_mapping(value).get("round", ""))
                yield f"{FOLDER}/{verb}/{key}.json", verb, {"key": key, "round": made_by}
        else:
            yield f"{FOLDER}/{verb}.json", verb, {}


def _chosen(params: Mapping[str, Any], verb: str, words: Mapping[str, str]) -> dict[str, Any]:
    """Return the parameters whose files and own classes a stage reads, by place."""
    test = verb == "calibrate" and _at(params, "yardstick.protocol.reference") == "test"
    places = [*READS[verb], *(["data"] if test else [])]  # its test set
    found = {p: _at(params, p) for p in (place.format_map(words) for place in places)}
    return found | (teachers.own_classes(params) if "key" in words else {})


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _at(params: Mapping[str, Any], place: str) -> Any:
    value: Any = params
    for key in place.split("."):
        value = _mapping(value).get(key)
    return value


def _files(
    root: Path, seen: Seen, verb: str, chosen: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
    """Yield (place, content) of the files and folders of some parameters that a verb reads."""
    for place, path in _paths(verb, chosen):
        yield place, content(root / path, seen)
    yield from _own_files(root, seen, "", chosen)


def _paths(verb: str, chosen: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (place, path) of the files and folders that some parameters name for a verb."""
    for (place, name), (key, default) in NAMED_FILES.items():
        if READER[place] != verb and (verb != "calibrate" or place not in chosen):
            continue
        top, _, inner = place.partition(".")
        settings = next((v for k, v in chosen.items() if k.split(".")[-1] == top), None)
        settings = _mapping(_at(_mapping(settings), inner) if inner else settings)
        if name in (settings.get("name"), settings.get("kind")):
            path = settings.get(key) or default
            if isinstance(path, str):
                yield f"{place}.{key}", path
    of = _mapping(next((v for k, v in chosen.items() if k.endswith(".import")), None))
    other, own = of.get("path"), of.get("coupling")
    here = isinstance(other, str) and ":" not in other and not of.get("rev")
    if of.get("kind") == "reflow" and here:  # what a revision or a URL names is not here
        yield "import.path", f"{other}/couplings/{own}" if own else str(other)
    for key in PROTOCOL if verb == "calibrate" else ():
        path = _mapping(_mapping(chosen.get("yardstick")).get("protocol")).get(key)
        if isinstance(path, str):
            yield f"yardstick.protocol.{key}", path
    yield from teachers.files(chosen) if verb == "adopt" else ()
    yield from sections.files(chosen)


def _own_files(root: Path, seen: Seen, place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield (place, content) of each path in the settings of the user's own classes."""
    if is_own(_mapping(value)):
        settings = _mapping(value).get("settings")
        for where, path in files_named(settings, f"{place}settings", root):
            yield where, content(path, seen)
    inside = enumerate(value) if isinstance(value, list) else _mapping(value).items()
    for key, inner in inside:
        yield from _own_files(root, seen, f"{place}{key}.", inner)


def content(path: Path, seen: Seen) -> dict[str, Any]:
    """Return the sha256 of a file or of all files of a folder, with their count and bytes.

    Raises ReflowError where one of them cannot be read.
    """
    try:
        if not path.exists():
            return {"missing": True}
        return folder_digest(path, lambda file: seen.text(file, "sha256", sha256))
    except OSError as error:
        raise ReflowError(
            f"{error.filename or path}: cannot be read ({error.strerror}); params.yaml names it,"
            " so let it be readable"
        ) from None


def _package(root: Path) -> Path:
    """Return the folder of fmcore that stages import: one in the project comes first."""
    own = root / "fmcore"
    if (own / "__init__.py").is_file():
        return own
    spec = find_spec("fmcore")
    return Path(next(iter((spec and spec.submodule_search_locations) or ["fmcore"])))
