"""Changed parameter files: what is said of them, and whether what is accepted can be built.

`python -m tests.flows.params.fuzz COUNT [SEED]` counts the outcomes of many of them.
"""

import random
import sys
import tempfile
import traceback
from collections import Counter
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML

from flows.params.load import Params, load
from fmcore.conditions.table import Table
from fmcore.dataset.samples import Known
from fmcore.features.extractor import Extractor, FeatureSettings
from fmcore.matching.loss import flow_matching_loss
from fmcore.network.build import Network, fitting, with_spans
from fmcore.network.field import Field
from fmcore.network.mlp import MLP
from fmcore.settings import ReflowError
from fmcore.solve.solver import Solver, solve
from fmcore.tensors import independent
from fmcore.training.batch import draw_batch
from fmcore.training.fit import Train, batch_rules, new_state

ROOT = Path(__file__).parents[3]
FILES = [ROOT / "params.yaml", *sorted((ROOT / "params").glob("*.yaml"))]
CPU = torch.device("cpu")
NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 7, 10, 100, 1000, 10**6, 10**9, 2**31, 2**63, 10**60,
    0.0, -0.5, 0.5, 1e-9, 1e-3, 1.5, 1e3, 1e30, 1e308, float("inf"), float("nan"), "", "x", "rf1",
    "rf2", "independent", "scratch", "x" * 300, "a\0b", "unet", "dit", "point", "grid", "optimal",
    "mean_flow", "noise", "target", "euler", "dopri5", "custom", "identity", "lite0", "inception",
    "../x", [], [1], [[]], {}, {"name": "x"}, {"name": "point"}, {"name": "grid", "steps": 3},
    {"name": "unet"}, {"name": "dit"}, {"name": "two_moons"}, {"name": "digits"}, {1: 2},
    {"name": "beta", "a": 0.01, "b": 1000}, {"name": "variance_exploding"}, {"steps": 3},
    {"name": "gaussian", "mean": [1, 2], "std": [1, 1]}, {"name": "emoji", "size": 9},
    {"name": "euler", "steps": 1}, {"name": "polynomial", "power": 100}, {"name": "sinkhorn"},
]  # fmt: skip
BITS = ["{", "}", "[", "]", ":", "- ", "&a ", "*a", "\n", "  ", "\t", "#", "!!x ", "? ", "'", '"',
        "<<: ", "%", "\x00", "\ufeff", "é", "0x", "1e999", "---\n", "|", ">"]  # fmt: skip


@cache
def texts() -> list[str]:
    """Return the texts of all parameter files."""
    return [file.read_text() for file in FILES]


def changed(draw: random.Random) -> str:
    """Return the text of a parameter file with one to three changes."""
    text = draw.choice(texts())
    if draw.random() < 0.25:
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(len(text))
            text = text[:at] + draw.choice(BITS) + text[at + draw.choice([0, 0, 1, 5, 60]) :]
        return text
    tree = YAML(typ="safe").load(text)
    other = YAML(typ="safe").load(draw.choice(texts()))
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        _change(tree, other, draw)
    out = StringIO()
    YAML(typ="safe").dump(tree, out)
    return out.getvalue()


def _change(tree: Any, other: Any, draw: random.Random) -> None:
    places = list(_places(tree))
    if not places:
        return
    at, key = draw.choice(places)
    kind = draw.choice([0, 1, 2, 2, 3, 3, 3, 4, 4])
    if kind == 0:
        del at[key]
    elif kind == 1 and isinstance(at, dict):
        at[draw.choice(["x", "name", "steps", "classes", f"{key}x"])] = at.pop(key)
    elif kind == 2:
        there, its = draw.choice(list(_places(other)))
        at[its if isinstance(at, dict) else key] = there[its]
    elif kind == 3 and isinstance(at[key], int | float) and not isinstance(at[key], bool):
        at[key] = type(at[key])(at[key] * draw.choice([0, -1, 0.001, 0.5, 3, 1000, 10**8]))
    else:
        at[key] = draw.choice(NASTY)


def _places(node: Any) -> Any:
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        yield node, key
        if isinstance(value, dict | list):
            yield from _places(value)


def outcome(text: str, file: Path) -> str:
    """Return `accepted` or `refused` for a text, written to `file` and read as params.yaml is.

    Raises AssertionError for a refusal that is not in lines, and whatever loading or building
    raises that is not meant.
    """
    file.write_bytes(text.encode())
    try:
        params = load(file, ROOT)
    except ReflowError as error:
        said = str(error)
    else:
        build_all(params)
        return "accepted"
    lines = said.splitlines()
    assert lines and all(file.name in line and len(line) < 600 for line in lines), said
    return "refused"


def build_all(params: Params) -> None:
    """Build and call, at a tiny size, what the stages would; raise if one would refuse."""
    known = params.data.known()
    network = params.network
    shape = known.shape or ((2,) if isinstance(network, MLP) else None)
    for round_ in params.rounds.values() if shape else ():
        _train(network, shape, round_.train, known)
    for coupling in params.couplings.values():
        if isinstance(coupling.solver, Solver):
            _falling(coupling.solver)
            _falling(coupling.solver.refined())
    _falling(params.evaluate.solver)
    if params.evaluate.likelihood:
        _falling(params.evaluate.likelihood.solver)
    features = params.yardstick.features
    if isinstance(features, FeatureSettings) and features.kind == "classifier" and known.classes:
        assert shape is not None and len(shape) == 3 and known.image
        if features.width <= 64:
            Extractor((1, 8, 8), known.classes, features.width)


def _falling(solver: Solver) -> None:
    grid = solver.grid(1.0, 0.0)
    assert float(grid[0]) == 1 and float(grid[-1]) == 0 and bool((grid.diff() < 0).all())


def _train(network: Network, shape: tuple[int, ...], train: Train, known: Known) -> None:
    """Take a batch of a round through a network of its kind and through its loss."""
    made = fitting(_tiny(network), _table(network), shape, seed=0)
    if train.objective == "mean_flow":
        made = with_spans(made)
    state = new_state(made, train)
    rows = torch.zeros(8, *shape)
    classes = made.settings.classes
    label = torch.arange(8) % classes if known.classes and classes else None
    rules = batch_rules(train, classes)
    if train.pairing.name == "sinkhorn":
        rules = batch_rules(train.model_copy(update={"pairing": Train(steps=1).pairing}), 0)
    batch = draw_batch(independent(rows, label), rules, seed=0, step=0, device=CPU)
    assert bool(((batch.t >= 0) & (batch.t <= 1)).all()), train.time
    each, loss = flow_matching_loss(
        state.network, batch, train.interpolant, train.objective, train.loss, train.map
    )
    assert bool(each.isfinite().all()) and bool(loss.isfinite()), train
    field = Field(state.network, train.interpolant, train.objective, classes)
    found = solve(field.velocity(batch.label), batch.source, Solver(name="euler", steps=2)).x
    assert found.shape == batch.source.shape


def _table(network: Network) -> Table | None:
    """Return three conditions and none, as sequences where the network attends to tokens."""
    if not getattr(network, "conditions", None):
        return None
    if network.name == "mmdit":
        return Table(torch.ones(4, 2, 3), torch.ones(4, 2), torch.ones(4, 5))
    return Table(torch.ones(4, 3))


def _tiny(network: Network) -> Network:
    """Return the network with fewer and narrower layers, if it is large, and of the same kind."""
    if isinstance(network, MLP):
        return network.model_copy(update={"width": 8, "depth": 1})
    if network.name == "unet" and (max(network.channels) > 64 or network.blocks > 2):
        channels = tuple(min(c, 64) for c in network.channels)
        small = {"channels": channels, "blocks": 1, "head": min(network.head, min(channels))}
        return network.model_copy(update=small)
    if network.name == "dit":
        return network.model_copy(update={"heads": 4, "head": 4, "depth": 1})
    return network


def main(count: int, seed: int) -> None:
    """Count the outcomes of `count` changed files and print the first of each failure."""
    torch.set_num_threads(1)
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for i in range(seed, seed + count):
            text = changed(random.Random(i))
            try:
                found[outcome(text, Path(folder) / "params.yaml")] += 1
            except Exception as error:
                key = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
                if not found[key]:
                    place = traceback.extract_tb(error.__traceback__)[-1]
                    print(f"{i}: {key} ({Path(place.filename).name}:{place.lineno})", flush=True)
                found[key] += 1
            if (i + 1 - seed) % 100 == 0:
                print(i + 1 - seed, dict(found), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
