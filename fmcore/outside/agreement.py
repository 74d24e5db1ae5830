"""Whether pairs from outside and the data are of one kind: units, source, labels, codec, guidance.

A wrong scale, class number, text table or autoencoder changes no shape: only what is said of pairs
shows it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fmcore.codec.latents import same_codec
from fmcore.coupling.read import Coupling
from fmcore.coupling.write import About
from fmcore.scale import Scale
from fmcore.settings import CONVENTION, ReflowError

FAR = 0.5
"""Distance of two means, over the standard deviation, from which on they are of different data."""
ENOUGH = 4096
"""Samples of a source, about, that are compared with those of pairs."""
SOME = 8
"""Pairs from which on states are compared with other pairs."""
OWN = 0.7
"""How far a state may be from the line of its own pair, over how far it is from those of others:
about 1 if it is of another pair, .24 on the arc cos, sin between Gaussians."""
CLOSE = 0.05
"""How far a state at t = 0 or 1 may be from that end, over the distance of both: half precision."""
SAID = ("codec", "conditions")
"""Keys of what is said of pairs whose value is a record with the sha256 of what it is of."""


def of_chain(other: About, real: About, place: str) -> None:
    """Raise ReflowError if the pairs of another chain do not suit the data `real`."""
    same_codec(other.codec, real.codec, place)
    if other.units != real.units:
        raise ReflowError(
            f"{place}: its pairs are in units of the scale {other.scale}, the data here has"
            f" {real.scale}; give both one data.scale"
        )
    if (other.source is None) != (real.source is None):
        raise ReflowError(
            f"{place}: its source is {other.source or 'noise'}, here it is"
            f" {real.source or 'noise'}; both chains need one `source`"
        )
    if other.conditions != real.conditions:
        raise ReflowError(
            f"{place}: its labels are of other conditions (data.conditions) than the data's;"
            " both chains need the same texts and text encoder"
        )
    _same_classes(other.classes, real.classes, place)


def of_statement(stated: Mapping[str, Any], coupling: Coupling, *, model_units: bool) -> None:
    """Raise ReflowError if what files say of the pairs beside them does not suit the data.

    What is not said is not compared: most pairs of others come without a word. Only what says our
    convention is taken to mean by `source`, `classes` and the rest what we do.
    """
    real, place = coupling.about, "couplings"
    if model_units and "scale" in stated and Scale.of(stated["scale"]) != real.units:
        raise ReflowError(
            f"{place}: the pairs are in units of another scale ({stated['scale']}) than the data"
            f" ({real.scale}); give both one data.scale"
        )
    if stated.get("convention") != CONVENTION:
        return
    for key in SAID:
        own, given = (_sha256(of) for of in (stated.get(key), getattr(real, key)))
        if key in stated and own != given:
            raise ReflowError(
                f"{place}: the pairs are of data.{key} {_short(own)}, the data here of"
                f" {_short(given)}; give both the same, or remove `{key}` from the file beside"
                " the pairs"
            )
    if "source" in stated and bool(stated["source"]) != bool(real.source):
        raise ReflowError(
            f"{place}: the pairs say that their source is {stated['source'] or 'noise'}, here it is"
            f" {real.source or 'noise'}; both need one `source`"
        )
    names = stated.get("classes")
    _same_classes(names if isinstance(names, list) else None, real.classes, place)


def of_source(own: Tensor, real: Tensor) -> None:
    """Raise ReflowError if sources [N, *D] of pairs lie elsewhere than those of the data [M, *D].

    By the distance of the means, which differ by chance too where there are few.
    """
    real = real[:: max(1, len(real) // ENOUGH)].double()  # evenly: they may lie sorted by class
    gap = (own.double().mean(0) - real.mean(0)).square().mean().sqrt()
    spread = real.var(0).mean().sqrt().clamp(min=1e-12)
    chance = (1 / len(own) + 1 / len(real)) ** 0.5
    if float(gap / spread) > FAR + 4 * chance:
        raise ReflowError(
            f"couplings: the sources of the pairs lie {float(gap / spread):.2g} standard deviations"
            " from those of the data's `source`; are the ends swapped, is it another data set, or"
            " are they in other units (import.units)?"
        )


def of_states(states: Tensor, times: Sequence[float], target: Tensor, source: Tensor) -> None:
    """Raise ReflowError if states [N, S, *D] at `times` [S] lie on no path between both ends.

    The first are nearer to the targets than the last, those at 0 and 1 are the ends, and each is
    nearer to the line between the ends of its own pair than to that of another: the spread of
    x(t) - (1 - t) target - t source over the pairs, which what all paths share does not change.
    """
    path = {t: states[:, place] for place, t in sorted(enumerate(times), key=lambda at: at[1])}
    low, high = min(path), max(path)
    turned = max(_off_line(x, 1 - t, target, source) for t, x in path.items()) <= OWN
    if turned and _distance(path[low], target) > _distance(path[high], target):
        raise ReflowError(
            f"couplings: the states at t = {low:g} are farther from the targets than those at"
            f" {high:g}, and t = 0 is the target; turn import.states.times round"
        )
    for t, x in path.items():
        if (off := _off_line(x, t, target, source)) > OWN:
            raise ReflowError(
                f"couplings: the states at t = {t:g} are {off:.2g} times as far from the way of"
                " their own pairs as from that of others; are they of other pairs, or in other"
                " units?"
            )
    gap = max(_distance(target, source), 1e-12)
    for t, end, side in ((0.0, target, "target"), (1.0, source, "source")):
        off = _distance(path[t], end) / gap if t in path else 0.0
        if off > CLOSE:
            raise ReflowError(
                f"couplings: the states at t = {t:g} are not the {side} (off by {off:.2g} of the"
                " distance of both ends); correct import.states.times"
            )


def guidance(given: float, stated: Any) -> float:
    """Return the guidance in the pairs: as given, else as the files beside them state."""
    stated = float(stated) if isinstance(stated, int | float) else 1.0
    if given not in (1.0, stated) and stated != 1:
        raise ReflowError(
            f"couplings: guidance {given:g} is given, the pairs say {stated:g}; correct one of them"
        )
    return given if given != 1 else stated


def guided(stated: Mapping[str, Any]) -> float | None:
    """Return the guidance further up the chain that an export of ours states; None for none."""
    said = stated.get("guided") if stated.get("convention") == CONVENTION else None
    return float(said) if isinstance(said, int | float) and not isinstance(said, bool) else None


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).square().mean().sqrt())


def _off_line(x: Tensor, t: float, target: Tensor, source: Tensor) -> float:
    """Return how far x [N, *D] is from the lines of its own pairs, over that from those of others.

    0 for a few pairs, which say nothing.
    """
    line = (1 - t) * target + t * source
    others = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    far = _spread(x - line[others])
    return _spread(x - line) / max(far, 1e-12) if len(x) >= SOME else 0.0


def _spread(x: Tensor) -> float:
    return float(x.double().var(0, correction=0).mean().sqrt())


def _same_classes(names: Sequence[object] | None, own: Sequence[object] | None, place: str) -> None:
    """Raise ReflowError if the classes of pairs have names, and others than those of the data."""
    if names and own and list(names) != list(own):
        raise ReflowError(
            f"{place}: the labels of the pairs are of the classes {_listed(names)}, those of the"
            f" data of {_listed(own)}; number the classes of both alike"
        )


def _listed(names: Sequence[object]) -> str:
    return f"[{', '.join(map(str, names[:5]))}{', ...' if len(names) > 5 else ''}]"


def _sha256(record: object) -> str | None:
    return str(record.get("sha256")) if isinstance(record, Mapping) else None


def _short(digest: str | None) -> str:
    return f"sha256 {digest[:12]}" if digest else "none"
