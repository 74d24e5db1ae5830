"""Typed entries of dvc.lock: what it records about each stage, ours or not.

The command of one of our stages gives its verb and its paths (`Command.parse`). A stage with any
other command, for example of another pipeline in the same repository, has no verb and no paths;
code that looks for a verb does not find it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows.dag.graph import Command, Params, command
from fmcore.settings import ReflowError


@dataclass(frozen=True)
class File:
    """A file or folder: DVC's hash (None before a run), its size in bytes, its number of files."""

    md5: str | None = None
    size: int | None = None
    nfiles: int | None = None


@dataclass(frozen=True)
class Entry:
    """A stage as dvc.lock records it: command, dependencies and outputs by path, parameters.

    `digest` is the sha256 of the record in dvc.lock; MLflow's tags store it.
    """

    cmd: str | list[str]
    deps: dict[str, File]
    outs: dict[str, File]
    params: Params
    digest: str

    @classmethod
    def of(cls, raw: object) -> "Entry | None":
        """Parse a record of dvc.lock; return None if it does not have DVC's format."""
        if not isinstance(raw, Mapping):
            return None
        cmd, params = _cmd(raw.get("cmd")), _params(raw.get("params", {}))
        deps, outs = _files(raw.get("deps", [])), _files(raw.get("outs", []))
        if cmd is None or params is None or deps is None or outs is None:
            return None
        return cls(cmd, deps, outs, params, digest(raw))

    @cached_property
    def _command(self) -> Command:
        return Command.parse(command(self.cmd)) or Command("", "", {})

    @property
    def verb(self) -> str:
        """The verb that the command runs; empty for a stage that is not ours."""
        return self._command.verb

    @property
    def key(self) -> str:
        """The round or the coupling that the command names; empty if it names none."""
        return self._command.key

    @property
    def paths(self) -> dict[str, str]:
        """The paths of the command by their names: {"out": "models/rf1"}."""
        return self._command.paths

    def path(self, name: str) -> str:
        """Return a path of the command by its name. Raises ReflowError if there is none."""
        if name not in self.paths:
            raise ReflowError(f"dvc.lock: no path {name!r} in the command `{command(self.cmd)}`")
        return self.paths[name]

    def runs(self, verb: str, *paths: str) -> bool:
        """Whether the command runs this verb and has paths with these names."""
        return self.verb == verb and all(name in self.paths for name in paths)

    @property
    def settings(self) -> dict[str, object]:
        """The parameters from all parameter files."""
        return {key: value for values in self.params.values() for key, value in values.items()}

    def setting(self, *keys: str) -> object:
        """Return one parameter by its key and the keys inside of it; None if there is none."""
        value: object = self.settings
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def md5(self, path: str) -> str:
        """Return the hash of an output or a dependency. Raises ReflowError if there is none."""
        file = self.outs.get(path) or self.deps.get(path)
        if file is None or file.md5 is None:
            raise ReflowError(f"dvc.lock: no hash of {path}; run `dvc repro`")
        return file.md5


def read_lock(text: str) -> dict[str, Entry]:
    """Return the stages that the text of a dvc.lock records; none if the text is not valid."""
    try:
        whole = YAML(typ="safe").load(text)
    except (YAMLError, ValueError):
        return {}  # a merge conflict committed by mistake records nothing
    stages = whole.get("stages") if isinstance(whole, Mapping) else None
    if not isinstance(stages, Mapping):
        return {}
    entries = {str(name): Entry.of(raw) for name, raw in stages.items()}
    return {name: entry for name, entry in entries.items() if entry is not None}


def _cmd(value: object) -> str | list[str] | None:
    if isinstance(value, list):
        return value if all(isinstance(line, str) for line in value) else None
    return value if isinstance(value, str) else None


def _params(value: object) -> Params | None:
    files = value if isinstance(value, Mapping) else {"": None}
    found = {str(file): dict(v) for file, v in files.items() if isinstance(v, Mapping)}
    return found if len(found) == len(files) else None


def _files(items: object) -> dict[str, File] | None:
    found: dict[str, File] = {}
    for item in items if isinstance(items, list) else [None]:
        if not isinstance(item, Mapping) or not isinstance(item.get("path"), str):
            return None
        md5, size, count = (item.get(key) for key in ("md5", "size", "nfiles"))
        found[item["path"]] = File(
            md5 if isinstance(md5, str) else None,
            size if isinstance(size, int) else None,
            count if isinstance(count, int) else None,
        )
    return found


def digest(value: object) -> str:
    """Return the sha256 of a value written as JSON with sorted keys; for an entry, its digest."""
    if isinstance(value, Entry):
        return value.digest
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
