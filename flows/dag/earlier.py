"""Earlier runs of stages, from dvc.lock and DVC's run cache: results that a stage can take over.

DVC restores a result for the same command alone, so a round with another name, or a coupling with
more pairs, is new to it. Here runs are compared by what they mean: the verb, the content of the
dependencies by their words in the command, the parameters without the names.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows.dag import lineage
from flows.dag.inputs import FOLDER
from flows.dag.lock import Entry, File
from flows.dag.store import run_cache

NAMES = {"rounds": ("coupling", "init"), "couplings": ("round",)}
"""Parameters that only name another round or coupling; its content is a dependency."""


def smaller_or_larger(root: Path, stage: str) -> list[str]:
    """Return the hashes of couplings that differ from that of `stage` in the number of pairs alone.

    The model, the data, the code and all other parameters were the same. None if `stage` ran before
    as it is: somebody forces it to run again, and expects that it does.
    """
    now = _now(root, stage)
    wanted = _meaning(now, "pairs")
    found = [e for e in _runs(root, now) if _meaning(e, "pairs") == wanted]
    if any(e.cmd == now.cmd and _meaning(e) == _meaning(now) for e in found):
        return []
    hashes = [entry.outs[entry.paths["out"]].md5 for entry in found]
    return list(dict.fromkeys(md5 for md5 in hashes if md5))


def _now(root: Path, stage: str) -> Entry:
    """Return the stage as dvc.lock would record it now, without its outputs."""
    inputs = lineage.inputs(root, stage)
    deps = {path: File(md5) for path, md5 in inputs.deps.items()}
    return Entry(inputs.cmd, deps, {}, inputs.params, "")


def _runs(root: Path, now: Entry) -> Iterator[Entry]:
    """Yield the earlier runs with the verb and the words of `now`, the newest first."""
    entries = list(lineage.lock_entries(root).values())
    content = [file.md5 for path, file in now.deps.items() if path in now.paths.values()]
    for file in sorted(run_cache(root).glob("*/*/*"), key=_age):
        try:
            text = file.read_text()
            if all(md5 in text for md5 in content if md5):  # most are other stages: not parsed
                entry = Entry.of(YAML(typ="safe").load(text))
                entries += [entry] if entry else []
        except (OSError, UnicodeDecodeError, YAMLError):
            continue  # DVC was writing it, or it is damaged; the stage runs
    for entry in entries:
        if entry.runs(now.verb, *now.paths) and entry.paths["out"] in entry.outs:
            yield entry


def _kind(path: str) -> str:
    """Return what a dependency without a word is: the stage's file of `inputs`, or a path."""
    return FOLDER if path.startswith(f"{FOLDER}/") else path


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
