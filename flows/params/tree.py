"""The YAML of a parameter file, read within limits: its tree, plain values, and lines of keys."""

import contextlib
import os
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from fmcore.expected import short, shown
from fmcore.settings import ReflowError

LARGEST_FILE = 1 << 18
"""Bytes of a parameter file: a thousand rounds with all their settings take less."""
DEEPEST = 32
"""Sections within sections; the settings need 6, those of a class of the user's own some more."""
LONGEST = 4096
"""Characters of a text or a number: the longest path that Linux opens."""
MOST_VALUES = 50_000
"""Values of a file, where each alias counts as what it stands for."""
LARGEST_INT = 2**63 - 1
"""Whole numbers are 64-bit in every file that the chain writes."""


def read_text(path: Path) -> str:
    """Return the text of a parameter file. Raises ReflowError if it cannot be read or is large."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
        _check_size(data, path)
        return data.decode()
    except FileNotFoundError:
        raise ReflowError(
            f"{path.name}: not found; run inside a project, or `git checkout` it"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ReflowError(f"{path}: cannot be read ({reason}); name a YAML file") from None


def write_text(path: Path, text: str) -> None:
    """Give a parameter file a text, whole or not at all: a full disk or a kill leaves the old one.

    Raises ReflowError if the text is too large or cannot be written.
    """
    path = path.resolve()  # a link stays one
    part = path.with_name(f".{path.name}.{os.getpid()}")
    data = text.encode()
    _check_size(data, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            part.chmod(path.stat().st_mode & 0o777)
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise ReflowError(
            f"{path}: cannot be written ({error.strerror}), so it stays as it was; free some space"
            " or mend the permissions"
        ) from None


def _check_size(data: bytes, path: Path) -> None:
    if len(data) > LARGEST_FILE:
        raise ReflowError(
            f"{path.name}: larger than {LARGEST_FILE >> 10} KiB; a parameter file holds only"
            " settings, keep data in files of their own"
        )


def parse(text: str, name: str) -> Any:
    """Return the tree of a YAML text, as ruamel's round-trip nodes, which know their lines.

    Raises ReflowError in one line, with the line in the file `name`, for what is no YAML, for what
    exceeds the limits above, and for keys that are not plain.
    """
    try:
        _within_limits(text, name)
        tree = YAML(typ="rt").load(text)
        YAML(typ="safe").load(text)  # DVC reads it so: no colon in a word inside braces
    except ReflowError:
        raise
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or (str(error).splitlines() or ["unknown"])[0]
        if problem == "found unexpected ':'":
            problem += "; put text with a colon in quotes"
        raise ReflowError(f"{name}{where}: not valid YAML: {short(problem)}") from None
    except Exception as error:  # ruamel lets pass what int() or a date raise, without a line
        reason = short((str(error).splitlines() or [""])[0] or type(error).__name__)
        raise ReflowError(f"{name}: a value cannot be read ({reason}); put it in quotes") from None
    if not isinstance(tree, dict):
        found = "nothing" if tree is None else f"a {_kind(tree)}"
        raise ReflowError(f"{name}: expected a mapping of settings, got {found}")
    return tree


def _within_limits(text: str, name: str) -> None:
    """Follow the parser's events, which build nothing, and raise ReflowError beyond a limit."""
    sizes: dict[str, int] = {}  # of finished nodes with an anchor; an alias counts as much
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]
    for event in YAML(typ="safe", pure=True).parse(text):
        where = f"{name}:{event.start_mark.line + 1}"
        anchor, size = getattr(event, "anchor", None), 0
        if isinstance(event, MappingStartEvent | SequenceStartEvent):
            open_nodes.append((anchor, 1))
            if len(open_nodes) > DEEPEST:
                raise ReflowError(f"{where}: nested more than {DEEPEST} deep; use fewer brackets")
            continue
        if isinstance(event, MappingEndEvent | SequenceEndEvent):
            anchor, size = open_nodes.pop()
        elif isinstance(event, AliasEvent):
            if any(anchor == still for still, _ in open_nodes):
                raise ReflowError(f"{where}: *{short(anchor)} is part of itself; write it out")
            size = sizes.get(str(anchor), 1)
            anchor = None
        elif isinstance(event, ScalarEvent):
            size = 1
            if len(event.value) > LONGEST:
                raise ReflowError(
                    f"{where}: a value of {len(event.value)} characters; at most {LONGEST}"
                )
        if anchor is not None:
            sizes[str(anchor)] = size
        open_nodes[-1] = (open_nodes[-1][0], open_nodes[-1][1] + size)
        if open_nodes[-1][1] > MOST_VALUES:
            raise ReflowError(
                f"{where}: more than {MOST_VALUES} values, aliases written out; remove some"
            )


def plain(node: Any) -> Any:
    """Turn ruamel's round-trip nodes into plain Python values, which strict types accept."""
    if isinstance(node, dict):
        return {plain(key): plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [plain(value) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def unusual(node: Any, keys: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], str]]:
    """Return (keys, mistake) for values of plain data that no setting can hold."""
    if len(keys) > DEEPEST:
        return [(keys[:2], f"nested more than {DEEPEST} deep; use fewer brackets")]
    if isinstance(node, dict):
        wrong = [
            ((*keys, key), f"a key is a text, got {shown(key)}; put it in quotes")
            for key in node
            if not isinstance(key, str)
        ]
        return wrong + [found for key in node for found in unusual(node[key], (*keys, key))]
    if isinstance(node, list):
        return [found for i, item in enumerate(node) for found in unusual(item, (*keys, i))]
    if isinstance(node, bool | float) or node is None:
        return []
    if isinstance(node, int):
        far = abs(node) > LARGEST_INT
        return [(keys, f"whole numbers are below 2^63, got {shown(node)}")] if far else []
    if not isinstance(node, str):
        return [(keys, f"expected a number or a text, got a {_kind(node)}; put it in quotes")]
    if any(not c.isprintable() and c != "\n" for c in node):
        return [(keys, f"has a character that cannot be printed, got {shown(node)}; remove it")]
    return []


def place(name: str, tree: Any, keys: tuple[Any, ...], *, absent: bool = True) -> str:
    """Return `params.yaml:12: rounds.rf2.train.lr` for the keys that exist in the tree.

    The last key is said even if the file does not have it, unless `absent` is false.
    """
    line, node, said = 0, tree, []
    for key in keys:
        try:
            at: Any = node.lc  # ruamel keeps line and column of each key there
            here = at.key(key) if isinstance(node, dict) else at.item(key)
            line, node = here[0], node[key]
        except (KeyError, IndexError, AttributeError, TypeError):
            # pydantic puts the tag of a union into the location; the file has no such key.
            brief = isinstance(node, str) and key == "name"  # `u_shaped` for {name: u_shaped}
            last = isinstance(node, dict) and key == keys[-1] and node.get("name") != key
            if not (brief or (last and absent)):
                continue
        said.append(short(key))
    return f"{name}:{line + 1}: {'.'.join(said)}"


def _kind(value: Any) -> str:
    name = type(value).__name__
    return {"CommentedSeq": "list", "CommentedMap": "mapping", "CommentedSet": "set"}.get(
        name, name
    )
