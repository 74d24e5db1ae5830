"""Reduce a chain for a machine without a GPU, as `without_gpu` in its parameter file says.

Stages always run with the numbers in params.yaml, so `reflow use` writes the smaller numbers there.
If stages chose a smaller size themselves, no record would show it, and DVC would take the small
model for the full one.
"""

import re
from pathlib import Path
from typing import Any

from flows.params.edit import edited
from flows.params.load import Params, WithoutGpu, load
from flows.params.tree import read_text
from fmcore.network.ema import HalfLife

LEAST_SAMPLES = 256
SCHEMA_LINE = re.compile(
    r"^(# yaml-language-server: \$schema=)(?:[^\s:]*/)?(params\.schema\.json)", re.M
)
"""The line that gives editors the path of the schema, relative to the parameter file."""


def fitted(path: Path, root: Path | None = None) -> tuple[str, str]:
    """Return the text of a parameter file for this machine, and what was reduced, in words.

    The chain is reduced if there is no GPU and the file has `without_gpu`; else the settings stay
    as they are, and the words are "". Raises ReflowError if the file is not valid.
    """
    params = load(path, root)
    cut = params.without_gpu
    text = at_root(read_text(path))
    if cut is None or params.compute.start().type != "cpu":
        return text, ""
    smaller = edited(text, reductions(params, cut), drop="without_gpu")
    return f"# Cut down; {said(cut)}.\n{smaller}", said(cut)


def at_root(text: str) -> str:
    """Return the text of a parameter file with the path of the schema as seen from the project.

    >>> at_root("# yaml-language-server: $schema=../params.schema.json\\nseed: 0\\n")
    '# yaml-language-server: $schema=params.schema.json\\nseed: 0\\n'
    """
    return SCHEMA_LINE.sub(r"\1\2", text)


def reductions(params: Params, cut: WithoutGpu) -> dict[str, Any]:
    """Return the values that change, by their place: {"rounds.rf1.train.steps": 600}."""
    share = cut.share
    changes: dict[str, Any] = {
        "yardstick.samples": _part(params.yardstick.samples, share, LEAST_SAMPLES),
        "evaluate.trajectories": _part(params.evaluate.trajectories, share, LEAST_SAMPLES),
        "evaluate.reconstructions": _part(params.evaluate.reconstructions, share, LEAST_SAMPLES),
    }
    if cut.network:
        changes["network"] = cut.network.model_dump(mode="json", exclude_unset=True)
    for name, round_ in params.rounds.items():
        train, place = round_.train, f"rounds.{name}.train"
        if train is None:
            continue
        changes[f"{place}.steps"] = _part(train.steps, share)
        changes[f"{place}.warmup"] = _part(train.warmup, share, 0)  # the same share of the steps,
        batch = changes[f"{place}.batch"] = min(train.batch, cut.batch or train.batch)
        if isinstance(train.ema, HalfLife):  # as for the moving average
            fewer = share * batch / train.batch
            changes[f"{place}.ema.half_life"] = max(1.0, round(fewer * train.ema.half_life, 1))
        else:
            ema = min(train.ema, max(0.9, 1 - (1 - train.ema) / share))
            changes[f"{place}.ema"] = round(ema, 6)
    for key, coupling in params.couplings.items():
        if not coupling.pairs:
            continue  # all pairs of an import, whose number only its files know
        changes[f"couplings.{key}.pairs"] = _part(coupling.pairs, share)
    return changes


def said(cut: WithoutGpu) -> str:
    """Describe the reductions in words."""
    batch = f", batch {cut.batch} at most" if cut.batch else ""
    network = f", a smaller {cut.network.name}" if cut.network else ""
    return f"no GPU: {cut.share:g} of steps, pairs and samples{batch}{network}"


def _part(number: int, share: float, least: int = 1) -> int:
    return max(min(least, number), round(share * number))
