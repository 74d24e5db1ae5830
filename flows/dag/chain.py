"""What dvc.lock and the receipts say about a chain, with no word of MLflow.

A receipt is a small output that a stage writes beside its large ones: metrics (json) and curves
(csv). They hold nothing volatile, so they can be published at any time, anywhere, any number of
times.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flows.dag.lineage import digest, lineage
from fmcore.settings import ReflowError

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Round:
    """A round as dvc.lock records it; entries are None for what has not run yet."""

    name: str
    index: int
    key: str
    train: Entry | None
    evaluate: Entry | None
    couples: dict[str, Entry]


@dataclass(frozen=True)
class Chain:
    """A chain: its key, its settings, its rounds in their order, and the comparison.

    Chains of one `recipe` differ in the seed alone.
    """

    key: str
    name: str
    recipe: str
    settings: dict[str, Any]
    rounds: list[Round]
    compare: Entry | None
    entries: Mapping[str, Entry]


def arguments(cmd: str) -> dict[str, str]:
    """Return the paths in a stage's command: `out=models/rf1` -> {"out": "models/rf1"}."""
    return dict(word.split("=", 1) for word in cmd.split() if "=" in word)


def chain(planned: Mapping[str, Entry], locked: Mapping[str, Entry]) -> Chain:
    """Describe the chain of `planned` stages with what `locked` (dvc.lock) has of them.

    `planned` may be dvc.lock itself; with the workspace's entries the keys are known before
    anything ran. A locked stage of another lineage is not part of this chain.
    """
    keys, past = lineage(planned), lineage(locked)
    done = {n: e for n, e in locked.items() if n in keys and past[n] == keys[n]}
    names = [n.removeprefix("train@") for n in planned if n.startswith("train@")]
    names.sort(key=lambda n: _depth(planned, n))
    rounds = [
        Round(
            name=name,
            index=index,
            key=keys[f"train@{name}"],
            train=done.get(f"train@{name}"),
            evaluate=done.get(f"evaluate@{name}"),
            couples=_couples(done, arguments(planned[f"train@{name}"]["cmd"])["out"]),
        )
        for index, name in enumerate(names, start=1)
    ]
    settings: dict[str, Any] = {}
    for entry in planned.values():
        settings |= settings_of(entry)
    settings = {k: v for k, v in settings.items() if k not in ("rounds", "couplings")}
    data = str(settings.get("data", {}).get("name", "data"))
    whole = digest([r.key for r in rounds])
    recipe = digest(lineage({n: _seedless(e) for n, e in planned.items()}))
    return Chain(whole, data, recipe, settings, rounds, done.get("compare"), done)


def _seedless(entry: Entry) -> Entry:
    params = {
        file: {k: v for k, v in values.items() if k != "seed"}
        for file, values in entry.get("params", {}).items()
    }
    return {**entry, "params": params}


def _depth(entries: Mapping[str, Entry], name: str) -> tuple[int, str]:
    """Return how many rounds come before a round, so that round k follows round k - 1."""
    depth, seen = 0, {name}
    while True:
        init = arguments(entries[f"train@{name}"]["cmd"])["init"].rsplit("/", 1)[-1]
        if f"train@{init}" not in entries or init in seen:
            return depth, name
        seen.add(init)
        depth, name = depth + 1, init


def _couples(done: Mapping[str, Entry], model: str) -> dict[str, Entry]:
    return {
        name.removeprefix("couple@"): entry
        for name, entry in done.items()
        if name.startswith("couple@") and arguments(entry["cmd"])["model"] == model
    }


def settings_of(entry: Entry) -> dict[str, Any]:
    """Return the parameters of an entry, of all its files."""
    return {k: v for values in entry.get("params", {}).values() for k, v in values.items()}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested settings: {"train": {"lr": 1}} -> {"train.lr": "1"}."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = str(value)
    return found


def md5_of(entry: Entry, path: str) -> str:
    """Return the hash that dvc.lock has for an output or a dependency."""
    for item in [*entry.get("outs", []), *entry.get("deps", [])]:
        if item["path"] == path:
            return str(item["md5"])
    raise ReflowError(f"dvc.lock: no hash of {path}; run `dvc repro`")
