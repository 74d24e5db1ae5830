"""Read params.yaml and check it as a whole, before any stage runs."""

import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, Field, ValidationError

from flows.params import adopted
from flows.params.choices import meant
from flows.params.couplings import CouplingOf
from flows.params.possible import impossible
from flows.params.replicates import mistakes
from flows.params.tree import parse, place, plain, read_text, unusual
from fmcore import own
from fmcore.dataset.kinds import Dataset, Noise, SourceOf
from fmcore.expected import mistake, shown, tag_key
from fmcore.measure.harness import Evaluate
from fmcore.measure.yardstick import YardstickSettings
from fmcore.network.build import Network
from fmcore.network.teachers import Teacher
from fmcore.settings import BatchSize, ReflowError, Seed, Settings
from fmcore.training.fit import Train
from fmcore.verdict.gates import Gates
from fmcore.work.compute import Compute

FILE = "params.yaml"
INDEPENDENT, SCRATCH = "independent", "scratch"
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
"""Names of rounds and couplings are parts of the names of files, which have 255 characters."""
MOST_ROUNDS = 1000
"""Rounds and couplings of a file; DVC takes a minute to read the stages of a thousand."""


class Round(Settings):
    """A round: the coupling it trains on, the model it starts from, and its training.

    A round with `model` in place of `train` has a model that others trained (docs/teachers.md).
    """

    coupling: str
    """The coupling that the round trains on: `independent` (data with fresh noise), or a name under
    `couplings`."""
    init: str
    """The model that the round starts from: `scratch` (untrained weights), or the name of another
    round."""
    train: Train | None = None
    """How the round is trained. Only a round with `model` has none."""
    model: Teacher | None = None
    """The model of a round that is not trained here, in place of `train`: a folder of diffusers, a
    class of one's own with weights, a model of another project or of MLflow's registry."""
    continue_: bool = Field(default=False, alias="continue")
    """Whether a training that was stopped goes on from its last checkpoint although its settings
    were changed, say the learning rate. config.json of the model says from which step. Such a model
    cannot be made again from its inputs alone."""
    seed: Seed | None = None
    """Seed of the training itself; `seed` in the model's config.json repeats that model. null
    derives it from the chain's seed and the number of rounds before, so a name does not matter."""
    replicate_of: str | None = None
    """The round that this one repeats with other draws in training: `reflow run --seeds 5` writes
    such rounds. null is a round of its own."""
    replicate: int | None = Field(default=None, ge=2, le=1000)
    """Number of the repetition; the round itself is number 1. Weights from scratch, batches and
    noise of the training, and the pairs made from it, are drawn anew for each number."""


class WithoutGpu(Settings):
    """How `reflow use` reduces a chain on a machine without a GPU.

    Only `share` of the steps, pairs and samples is done; the batch is at most `batch`; `network`
    replaces the network of the chain.
    """

    share: float = Field(gt=0, le=1)
    """Share of the steps, pairs and samples that is done; warm-up and EMA are shortened with them.
    0.02 turns 30000 steps into 600."""
    batch: BatchSize | None = None
    """Largest training batch, in pairs. null keeps the batch of each round."""
    network: Network | None = None
    """The network that replaces the network of the chain. null keeps that of the chain."""


class Params(Settings):
    """All settings of a chain; DVC requires the sections that stages depend on."""

    seed: Seed
    """Seed of every random draw of the chain: data, weights, batches, noise. Change it to repeat a
    chain with other draws. `data`, `yardstick`, `evaluate`, each round and each coupling may have
    a `seed` of their own."""
    compute: Compute
    """Where the stages compute: device, CPU threads, precision."""
    data: Dataset
    """The target samples: a density, a public data set, or files of your own."""
    source: SourceOf = Noise()
    """The samples at t = 1, from which the flow starts: noise, or any data set, for a transfer from
    one data set to another. Both sides need one shape, and have the scale of `data`."""
    network: Network
    """The velocity network of all rounds; without a name it is a residual_mlp."""
    yardstick: YardstickSettings
    """How generated samples are compared with real ones: features and sample sizes."""
    evaluate: Evaluate
    """What is measured for each round, and how accurately."""
    gates: Gates
    """Bounds on measured numbers. `{}` takes the standard levels."""
    rounds: dict[str, Round] = Field(min_length=1, max_length=MOST_ROUNDS)
    """The rounds of the chain by name; each trains a velocity. A round added here gets its stages
    in dvc.yaml by itself."""
    couplings: dict[str, CouplingOf] = Field(default_factory=dict, max_length=MOST_ROUNDS)
    """The couplings by name; each is a data set of pairs, sampled from a round or imported."""
    without_gpu: WithoutGpu | None = None  # no stage depends on it
    """How `reflow use` reduces the chain on a machine without a GPU; null changes nothing. No stage
    depends on it."""


def load(path: Path, root: Path | None = None) -> Params:
    """Read and check a parameter file of the project `root`, or of the one that it lies in.

    The user's own classes that it names are loaded from that project alone.

    Raises ReflowError with one line for each mistake: file, line, key, what is wrong, the fix.
    """
    return load_text(read_text(path), path, root)


def load_text(text: str, path: Path, root: Path | None = None) -> Params:
    """Check a text as `load` would if the file at `path` had it, which it may get afterwards."""
    tree = parse(text, path.name)
    given = plain(tree)
    _refuse(path, tree, unusual(given))
    own.trust(root or folder_of(path), own.named(given))
    try:
        params = Params.model_validate(given)
    except ValidationError as error:
        lines = [_explain(path, tree, e) for e in meant(error.errors(), given)]
        raise ReflowError("\n".join(dict.fromkeys(lines))) from None
    # What refers to nothing is said alone: what does not fit together may follow from it.
    _refuse(path, tree, _graph_mistakes(params))
    _refuse(path, tree, impossible(params))
    return params


def _refuse(path: Path, tree: Any, mistakes: Iterable[tuple[tuple[Any, ...], str]]) -> None:
    """Raise ReflowError with a line for each (keys, mistake), if there are any."""
    lines = [f"{place(path.name, tree, where)}: {what}" for where, what in mistakes]
    if lines:
        raise ReflowError("\n".join(dict.fromkeys(lines)))


def folder_of(path: Path) -> Path:
    """Return the folder of the project that a parameter file belongs to: where its dvc.yaml is."""
    folder = path.resolve().parent
    return next((f for f in (folder, *folder.parents) if (f / "dvc.yaml").is_file()), folder)


def _explain(path: Path, tree: Any, error: Any) -> str:
    missing = error["type"] == "missing"
    where = place(path.name, tree, error["loc"], absent=missing)
    if error["type"] == "extra_forbidden":
        accepted = sorted(_fields(error["loc"]))
        close = difflib.get_close_matches(str(error["loc"][-1]), accepted, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"{where}: unknown key; {hint}accepted: {', '.join(accepted)}"
    if missing:
        item = f"item {error['loc'][-1] + 1} " if isinstance(error["loc"][-1], int) else ""
        return f"{where}: {item}is missing; add it"
    if error["type"] == "union_tag_invalid":
        context = error["ctx"]
        at = place(path.name, tree, (*error["loc"], tag_key(error)))
        return f"{at}: expected one of {context['expected_tags']}, got {shown(context['tag'])}"
    return f"{where}: {mistake(error)}"


def _fields(loc: tuple[Any, ...]) -> set[str]:
    """Return the keys that the settings class at a location accepts."""
    classes: list[type[BaseModel]] = [Params]
    for key in loc[:-1]:
        found = [t for c in classes for t in _inside(c, key)]
        # pydantic puts the tag of a union into the location: of its classes the one of that name
        classes = found or [c for c in classes if _is_named(c, key)] or classes
    return {info.alias or name for c in classes for name, info in c.model_fields.items()}


def _is_named(owner: type[BaseModel], tag: Any) -> bool:
    """Say whether `tag` is a `name` that the settings class `owner` takes."""
    info = owner.model_fields.get("name")
    return info is not None and tag in get_args(info.annotation)


def _inside(owner: type[BaseModel], key: Any) -> Iterator[type[BaseModel]]:
    """Yield the settings classes that the field `key` of `owner` may hold."""
    fields = owner.model_fields
    named = {info.alias: info for info in fields.values()}
    info = fields.get(str(key)) or named.get(str(key))
    queue: list[Any] = [info.annotation] if info else []
    while queue:
        kind = queue.pop()
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield kind
        queue.extend(getattr(kind, "__args__", ()))


def _graph_mistakes(params: Params) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (key, mistake) for names that are not valid and references that lead nowhere."""
    rounds, couplings = params.rounds, params.couplings
    for kind, names, taken in (
        ("rounds", rounds, SCRATCH),
        ("couplings", couplings, INDEPENDENT),
    ):
        for name in names:
            if not NAME.fullmatch(name):
                yield (
                    (kind, name),
                    (f"a name is lower-case letters, digits and _, 64 at most, got {shown(name)}"),
                )
            if name == taken:
                yield (kind, name), f"the name {taken!r} is taken; choose another"
    for name, round_ in rounds.items():
        if round_.coupling not in {INDEPENDENT, *couplings}:
            known = ", ".join([INDEPENDENT, *couplings])
            unknown = shown(round_.coupling)
            what = f"no coupling {unknown}; add it under couplings, or use one of: {known}"
            yield ("rounds", name, "coupling"), what
        if round_.init not in {SCRATCH, *rounds}:
            known = ", ".join([SCRATCH, *rounds])
            yield ("rounds", name, "init"), f"no round {shown(round_.init)}; use one of: {known}"
    for name, coupling in couplings.items():
        made_elsewhere = coupling.import_ is not None and coupling.round == SCRATCH
        if coupling.round not in rounds and not made_elsewhere:
            what = f"no round {shown(coupling.round)}; use one of: {', '.join(rounds)}"
            yield ("couplings", name, "round"), what
    yield from mistakes(params)
    yield from adopted.mistakes(params)
    if cycle := _cycle(params):
        what = f"the rounds go in a circle: {' -> '.join(cycle)}; let one start from scratch"
        yield ("rounds", cycle[0]), what


def parents(params: Params, name: str) -> list[str]:
    """Return the rounds that a round needs: for its first weights, and for its pairs."""
    round_ = params.rounds[name]
    needed = [round_.init] if round_.init in params.rounds else []
    if round_.coupling in params.couplings:
        needed.append(params.couplings[round_.coupling].round)
    return [r for r in dict.fromkeys(needed) if r in params.rounds]


def maker(params: Params, name: str) -> str | None:
    """Return the round whose coupling a round trains on; None where no round here made it."""
    made = params.couplings.get(params.rounds[name].coupling)
    return made.round if made and made.round in params.rounds else None


def _cycle(params: Params) -> list[str]:
    """Return rounds that need each other, the first of them again at the end; [] if none do."""
    left = {name: parents(params, name) for name in params.rounds}  # not yet looked at
    done: set[str] = set()
    for start in params.rounds:
        path = [] if start in done else [start]
        while path:
            if not left[path[-1]]:
                done.add(path.pop())
            elif (parent := left[path[-1]].pop(0)) in path:
                return [*path[path.index(parent) :], parent]
            elif parent not in done:
                path.append(parent)
    return []
