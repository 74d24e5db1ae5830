"""Read params.yaml and check it as a whole, before any stage runs."""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from fmcore import own
from fmcore.dataset.kinds import Dataset
from fmcore.measure.harness import Evaluate
from fmcore.measure.yardstick import YardstickSettings
from fmcore.network.build import Network
from fmcore.sampling.pairs import Couple
from fmcore.settings import ReflowError, Settings
from fmcore.training.fit import Train
from fmcore.verdict.gates import Gates
from fmcore.work.compute import Compute

FILE = "params.yaml"
INDEPENDENT, SCRATCH = "independent", "scratch"
NAME = re.compile(r"[a-z][a-z0-9_]*")


class Round(Settings):
    """A round: the coupling it trains on, the model it starts from, and its training."""

    coupling: str
    """The coupling that the round trains on: `independent` (data with fresh noise), or a name under
    `couplings`."""
    init: str
    """The model that the round starts from: `scratch` (untrained weights), or the name of another
    round."""
    train: Train
    """How the round is trained."""


class CouplingOf(Couple):
    """A generated coupling: the round whose ODE produces it, and how it is sampled."""

    round: str
    """The round whose ODE makes the pairs."""


class WithoutGpu(Settings):
    """How `reflow use` reduces a chain on a machine without a GPU.

    Only `share` of the steps, pairs and samples is done; the batch is at most `batch`; `network`
    replaces the network of the chain.
    """

    share: float = Field(gt=0, le=1)
    """Share of the steps, pairs and samples that is done; warm-up and EMA are shortened with them.
    0.02 turns 30000 steps into 600."""
    batch: int | None = Field(default=None, gt=0)
    """Largest training batch, in pairs. null keeps the batch of each round."""
    network: Network | None = None
    """The network that replaces the network of the chain. null keeps that of the chain."""


class Params(Settings):
    """All settings of a chain; DVC requires the sections that stages depend on."""

    seed: int = Field(ge=0)
    """Seed of every random draw of the chain: data, weights, batches, noise. Change it to repeat a
    chain with other draws."""
    compute: Compute
    """Where the stages compute: device, CPU threads, precision."""
    data: Dataset
    """The target samples: a density, a public data set, or files of your own."""
    network: Network
    """The velocity network of all rounds; without a name it is a residual_mlp."""
    yardstick: YardstickSettings
    """How generated samples are compared with real ones: features and sample sizes."""
    evaluate: Evaluate
    """What is measured for each round, and how accurately."""
    gates: Gates
    """Bounds on measured numbers. `{}` takes the standard levels."""
    rounds: dict[str, Round] = Field(min_length=1)
    """The rounds of the chain by name; each trains a velocity. A round added here gets its stages
    in dvc.yaml by itself."""
    couplings: dict[str, CouplingOf] = Field(default_factory=dict)
    """The generated couplings by name; each is a data set of pairs, sampled from a round."""
    without_gpu: WithoutGpu | None = None  # no stage depends on it
    """How `reflow use` reduces the chain on a machine without a GPU; null changes nothing. No stage
    depends on it."""


def load(path: Path, root: Path | None = None) -> Params:
    """Read and check a parameter file of the project `root`, or of the one that it lies in.

    The user's own classes that it names are loaded from that project alone.

    Raises ReflowError with one line for each mistake: file, line, key, what is wrong, the fix.
    """
    tree = _tree(path)
    plain = _plain(tree)
    own.trust(root or folder_of(path), own.named(plain))
    try:
        params = Params.model_validate(plain)
    except ValidationError as error:
        lines = [_explain(path, tree, e) for e in error.errors()]
        raise ReflowError("\n".join(dict.fromkeys(lines))) from None
    mistakes = [f"{_at(path, tree, where)}: {what}" for where, what in _graph_mistakes(params)]
    if mistakes:
        raise ReflowError("\n".join(mistakes))
    return params


def folder_of(path: Path) -> Path:
    """Return the folder of the project that a parameter file belongs to: where its dvc.yaml is."""
    folder = path.resolve().parent
    return next((f for f in (folder, *folder.parents) if (f / "dvc.yaml").is_file()), folder)


def _tree(path: Path) -> Any:
    try:
        text = path.read_text()
        tree = YAML(typ="rt").load(text)
        YAML(typ="safe").load(text)  # DVC reads it so: no colon in a word inside braces
    except FileNotFoundError:
        raise ReflowError(
            f"{path.name}: not found; run inside a project, or `git checkout` it"
        ) from None
    except OSError as error:
        raise ReflowError(f"{path}: cannot be read ({error.strerror}); name a YAML file") from None
    except (YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        if problem == "found unexpected ':'":
            problem += "; put text with a colon in quotes"
        raise ReflowError(f"{path.name}{where}: not valid YAML: {problem}") from None
    if not isinstance(tree, dict):
        found = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise ReflowError(f"{path.name}: expected a mapping of settings, got {found}")
    return tree


def _plain(node: Any) -> Any:
    """Turn ruamel's round-trip nodes into plain Python values, which strict types accept."""
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def _at(path: Path, tree: Any, keys: tuple[Any, ...]) -> str:
    """Return `params.yaml:12: rounds.rf2.train.lr` for the keys that exist in the tree."""
    line, node, shown = 0, tree, []
    for key in keys:
        try:
            place: Any = node.lc  # ruamel keeps line and column of each key there
            here = place.key(key) if isinstance(node, dict) else place.item(key)
            line, node = here[0], node[key]
        except (KeyError, IndexError, AttributeError, TypeError):
            # pydantic puts the tag of a union into the location; the file has no such key.
            if isinstance(node, dict) and (key != keys[-1] or node.get("name") == key):
                continue
        shown.append(str(key))
    return f"{path.name}:{line + 1}: {'.'.join(shown)}"


def _explain(path: Path, tree: Any, error: Any) -> str:
    where = _at(path, tree, error["loc"])
    if error["type"] == "extra_forbidden":
        accepted = sorted(_fields(error["loc"]))
        close = difflib.get_close_matches(str(error["loc"][-1]), accepted, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"{where}: unknown key; {hint}accepted: {', '.join(accepted)}"
    if error["type"] == "missing":
        return f"{where}: is missing; add it"
    if error["type"] == "union_tag_invalid":
        place = _at(path, tree, (*error["loc"], "name"))
        context = error["ctx"]
        return f"{place}: expected one of {context['expected_tags']}, got {context['tag']!r}"
    if error["type"] == "union_tag_not_found":
        return f"{where}: its name is missing; add `name: ...`"
    said = error["msg"].removeprefix("Value error, ")
    message = said[0].lower() + said[1:]
    got = error["input"]
    shown = f", got {got!r}" if not isinstance(got, dict | list) else ""
    return f"{where}: {message}{shown}"


def _fields(loc: tuple[Any, ...]) -> set[str]:
    """Return the keys that the settings class at a location accepts."""
    classes: list[type[BaseModel]] = [Params]
    for key in loc[:-1]:
        found = [t for c in classes for t in _inside(c, key)]
        classes = found or classes
    return {name for c in classes for name in c.model_fields}


def _inside(owner: type[BaseModel], key: Any) -> Iterator[type[BaseModel]]:
    """Yield the settings classes that the field `key` of `owner` may hold."""
    info = owner.model_fields.get(str(key))
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
                yield (kind, name), f"a name is lower-case letters, digits and _, got {name!r}"
            if name == taken:
                yield (kind, name), f"the name {taken!r} is taken; choose another"
    for name, round_ in rounds.items():
        if round_.coupling not in {INDEPENDENT, *couplings}:
            known = ", ".join([INDEPENDENT, *couplings])
            what = (
                f"no coupling {round_.coupling!r}; add it under couplings, or use one of: {known}"
            )
            yield ("rounds", name, "coupling"), what
        if round_.init not in {SCRATCH, *rounds}:
            known = ", ".join([SCRATCH, *rounds])
            yield ("rounds", name, "init"), f"no round {round_.init!r}; use one of: {known}"
    for name, coupling in couplings.items():
        if coupling.round not in rounds:
            what = f"no round {coupling.round!r}; use one of: {', '.join(rounds)}"
            yield ("couplings", name, "round"), what
    yield from _senseless(params)
    for name in rounds:
        if cycle := _cycle(params, name):
            what = f"the rounds go in a circle: {' -> '.join(cycle)}; let one start from scratch"
            yield ("rounds", name), what
            return


def _senseless(params: Params) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (key, mistake) for settings that are valid alone but not together."""
    for name, round_ in params.rounds.items():
        train, independent = round_.train, round_.coupling == INDEPENDENT
        if train.pairing.name != "independent" and not independent:
            what = f"pairs anew what coupling {round_.coupling!r} has paired; only for independent"
            yield ("rounds", name, "train", "pairing"), what
        if train.drop_longest and independent:
            what = "the independent coupling has no fixed pairs to drop; leave it out"
            yield ("rounds", name, "train", "drop_longest"), what
    asked, known = params.network.classes, params.data.class_count()
    if asked and known is not None and not 0 < known <= asked:
        what = f"data {params.data.name} has {known} classes, not {asked}; set classes: {known}"
        yield ("network", "classes"), what
    guided: list[tuple[tuple[str, ...], float]] = [
        (("couplings", name, "guidance"), coupling.guidance)
        for name, coupling in params.couplings.items()
    ]
    for key, guidance in [*guided, (("evaluate", "guidance"), params.evaluate.guidance)]:
        if guidance != 1 and not params.network.classes:
            yield key, "guidance needs classes; set network.classes, or guidance 1"


def parents(params: Params, name: str) -> list[str]:
    """Return the rounds that a round needs: for its first weights, and for its pairs."""
    round_ = params.rounds[name]
    needed = [round_.init] if round_.init in params.rounds else []
    if round_.coupling in params.couplings:
        needed.append(params.couplings[round_.coupling].round)
    return [r for r in dict.fromkeys(needed) if r in params.rounds]


def maker(params: Params, name: str) -> str | None:
    """Return the round whose coupling a round trains on; None for the independent coupling."""
    made = params.couplings.get(params.rounds[name].coupling)
    return made.round if made else None


def _cycle(params: Params, start: str) -> list[str] | None:
    stack = [[start]]
    while stack:
        path = stack.pop()
        for parent in parents(params, path[-1]):
            if parent == start:
                return [*path, parent]
            if parent not in path:
                stack.append([*path, parent])
    return None
