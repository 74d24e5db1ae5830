"""Group the stages of dvc.lock into the rounds of a chain, in order, with lineage keys."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from flows.dag.graph import overlap
from flows.dag.inputs import STAGE
from flows.dag.lineage import lineage
from flows.dag.lock import Entry, digest


@dataclass(frozen=True)
class Round:
    """A round as dvc.lock records it; an entry is None if its stage has not run yet."""

    name: str
    index: int
    key: str
    train: Entry | None
    evaluate: Entry | None
    couples: dict[str, Entry]
    replicate_of: str | None = None


@dataclass(frozen=True)
class Chain:
    """A chain: its key, its settings, its rounds in order, and the comparison.

    Chains with the same `recipe` differ only in the seed.
    """

    key: str
    name: str
    recipe: str
    settings: dict[str, object]
    rounds: list[Round]
    compare: Entry | None
    entries: Mapping[str, Entry]

    @property
    def title(self) -> str:
        """The name of its runs: its data, its rounds, the beginning of its key."""
        own = [r.name for r in self.rounds if not r.replicate_of]
        rounds = ", ".join(own) if len(own) < 3 else f"{own[0]} .. {own[-1]}"
        several = len(self.rounds) - len(own)
        more = f"+ {several} replicates" if several else ""
        return " ".join(filter(None, (self.name, rounds, more, self.key[:7])))


def trained(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return the stages that train a round, by the name of the round."""
    found = {f"train@{e.key}": e for e in entries.values() if e.runs("train", "init", "out")}
    return {e.key: e for name, e in found.items() if name in entries}


def chain(planned: Mapping[str, Entry], locked: Mapping[str, Entry]) -> Chain:
    """Describe the chain of `planned` stages, with the results that `locked` (dvc.lock) has.

    `planned` may be dvc.lock itself; with the entries of the workspace, the keys are known before
    anything runs. A locked stage with another lineage key is not part of this chain, nor is one
    that read what is no more. The key is that of all results: trainings, evaluations, comparison.
    """
    keys, past = lineage(planned), lineage(locked)
    done = {n: e for n, e in current(locked).items() if n in keys and past[n] == keys[n]}
    trainings = trained(planned)
    names = sorted(trainings, key=lambda name: _depth(trainings, name))
    names.sort(key=lambda name: bool(trainings[name].setting(f"rounds.{name}", "replicate_of")))
    rounds = [
        Round(
            name=name,
            index=index,
            key=keys[f"train@{name}"],
            train=done.get(f"train@{name}"),
            evaluate=_ours(done, f"evaluate@{name}", "out", "straightness"),
            couples=_couples(done, trainings[name].paths["out"]),
            replicate_of=_text(trainings[name].setting(f"rounds.{name}", "replicate_of")),
        )
        for index, name in enumerate(names, start=1)
    ]
    settings = {key: v for entry in planned.values() for key, v in entry.settings.items()}
    data = settings.get("data")
    results = [f"evaluate@{r.name}" for r in rounds] + ["compare"]
    return Chain(
        key=digest([[r.key for r in rounds], [keys.get(name) for name in results]]),
        name=str(data.get("name", "data") if isinstance(data, Mapping) else "data"),
        recipe=digest(lineage({n: _seedless(e) for n, e in planned.items()})),
        settings={k: v for k, v in settings.items() if k not in ("rounds", "couplings")},
        rounds=rounds,
        compare=_ours(done, "compare", "out"),
        entries=done,
    )


def current(locked: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return the entries of dvc.lock that read what its other entries made.

    When some stages alone ran again, or one was refused, those below are still recorded with what
    they read before: their results are of a model that is no more.
    """
    made = [(out, name) for name, e in locked.items() if name != STAGE for out in e.outs]
    known: dict[str, bool] = {}

    def fresh(name: str) -> bool:
        if name not in known:
            known[name] = True
            known[name] = all(
                fresh(maker) and (out != dep or locked[maker].outs[out].md5 == file.md5)
                for dep, file in locked[name].deps.items()
                for out, maker in made
                if overlap(out, dep)
            )
        return known[name]

    return {name: entry for name, entry in locked.items() if fresh(name)}


def _ours(done: Mapping[str, Entry], stage: str, *paths: str) -> Entry | None:
    entry = done.get(stage)
    return entry if entry and entry.runs(stage.partition("@")[0], *paths) else None


def _seedless(entry: Entry) -> Entry:
    params = {
        file: {key: _unseeded(value) for key, value in values.items() if key != "seed"}
        for file, values in entry.params.items()
    }
    return replace(entry, params=params)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _unseeded(section: object) -> object:
    """Return a section of settings without a seed of its own."""
    if not isinstance(section, Mapping):
        return section
    return {key: value for key, value in section.items() if key != "seed"}


def _depth(trainings: Mapping[str, Entry], name: str) -> tuple[int, str]:
    """Return how many rounds come before a round, and its name: the key to sort rounds by."""
    by_model = {entry.paths["out"]: round_ for round_, entry in trainings.items()}
    depth, seen = 0, {name}
    while True:
        before = by_model.get(trainings[name].paths["init"])
        if before is None or before in seen:
            return depth, name
        seen.add(before)
        depth, name = depth + 1, before


def _couples(done: Mapping[str, Entry], model: str) -> dict[str, Entry]:
    return {
        entry.key: entry
        for entry in done.values()
        if entry.runs("couple", "model", "out") and entry.paths["model"] == model
    }


def flat(values: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Flatten nested settings: {"train": {"lr": 1}} -> {"train.lr": "1"}."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = str(value)
    return found
