"""Earlier runs of stages, from dvc.lock and DVC's run cache: results that a stage can take over.

DVC restores a result for the same command alone, so a round with another name, or a coupling with
more pairs, is new to it. Here runs are compared by what they mean: the verb, the content of the
dependencies by their words in the command, the parameters without the names.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows.dag.inputs import FOLDER
from flows.dag.lock import Entry, File, read_lock

VERBS = ("train", "couple", "evaluate")
"""The verbs whose commands name a round or a coupling."""

NAMES = {"rounds": ("coupling", "init", "replicate_of"), "couplings": ("round",)}
"""Parameters that only name another round or coupling; its content is a dependency."""


def other_sizes(root: Path, cache: Path, now: Entry) -> list[str]:
    """Return the hashes of couplings that differ from the stage `now` in the number of pairs alone.

    The model, the data, the code and all other parameters were the same. None if the stage ran
    before as it is: somebody forces it to run again, and expects that it does.
    """
    wanted, whole = _meaning(now, "pairs"), _meaning(now)
    found = [e for e in _runs(root, cache, now) if _meaning(e, "pairs") == wanted]
    if any(e.cmd == now.cmd and _meaning(e) == whole for e in found):
        return []
    return list(dict.fromkeys(entry.md5(entry.paths["out"]) for entry in found))


def other_names(root: Path, cache: Path, now: Entry) -> list[Entry]:
    """Return earlier runs with the inputs of the stage `now` under other names, the newest first.

    `now` has the hashes of its dependencies. None if the stage ran before under its own name:
    DVC restores that itself, unless somebody forces it to run again.
    """
    if now.verb not in VERBS:
        return []
    wanted = _meaning(now)
    found = [e for e in _runs(root, cache, now) if _meaning(e) == wanted]
    if any(e.cmd == now.cmd for e in found):
        return []
    return found


def moved(now: Entry, earlier: Entry) -> dict[str, str]:
    """Return the hash that each output of the stage `now` has in an earlier run, by path."""
    words = {word: path for word, path in earlier.paths.items() if path in earlier.outs}
    return {now.paths[word]: earlier.md5(path) for word, path in words.items()}


def _runs(root: Path, cache: Path, now: Entry) -> Iterator[Entry]:
    """Yield the earlier runs with the verb and the words of `now`: dvc.lock's, then the newest."""
    try:
        entries = list(read_lock((root / "dvc.lock").read_text()).values())
    except (OSError, UnicodeDecodeError):
        entries = []
    content = [file.md5 for path, file in now.deps.items() if path in now.paths.values()]
    for file in sorted(cache.glob("*/*/*"), key=_age):
        try:
            text = file.read_text()
            if all(md5 in text for md5 in content if md5):  # most are other stages: not parsed
                entry = Entry.of(YAML(typ="safe").load(text))
                entries += [entry] if entry else []
        except (OSError, UnicodeDecodeError, YAMLError):
            continue  # DVC is writing it, or it is damaged: it is no help, and no harm
    for entry in entries:
        made = entry.outs.get(entry.paths.get("out", ""))
        if entry.runs(now.verb, *now.paths) and made is not None and made.md5:
            yield entry


def _age(file: Path) -> float:
    try:
        return -file.stat().st_mtime
    except FileNotFoundError:  # DVC has moved it to its final name
        return 0.0


def _meaning(entry: Entry, *without: str) -> dict[str, object]:
    """Return what the result of a stage depends on, without the names of rounds and couplings."""
    words = {path: word for word, path in entry.paths.items()}
    deps = {words.get(path) or _kind(path): file.md5 for path, file in entry.deps.items()}
    params: dict[str, object] = {}
    for key, value in entry.settings.items():
        section, _, name = key.partition(".")
        if name == entry.key and isinstance(value, Mapping):
            drop = (*NAMES.get(section, ()), *without)
            params[section] = {k: v for k, v in value.items() if k not in drop}
        else:
            params[key] = value
    return {"verb": entry.verb, "deps": deps, "params": params}


def _kind(path: str) -> str:
    """Return what a dependency without a word is: the stage's file of `inputs`, or a path."""
    return FOLDER if path.startswith(f"{FOLDER}/") else path


def entry_of(cmd: str, deps: Mapping[str, str], params: dict[str, dict[str, object]]) -> Entry:
    """Return the entry of a stage before it runs, from the hashes of its dependencies."""
    return Entry(cmd, {path: File(md5) for path, md5 in deps.items()}, {}, params, "")
