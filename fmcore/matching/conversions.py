"""Velocity, source, target and score: four views of one field (Das 2024).

With W = alpha sigma' - alpha' sigma, and E[.| x_t = x] for what a network learns:

    velocity = alpha' target + sigma' source,   x = alpha target + sigma source

so two of (x, velocity, source, target) give the others. The score of the marginal at t is
-source / sigma, only for the independent coupling with standard normal source (Tweedie).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fmcore.matching.interpolant import Objective, Schedule, expand
from fmcore.settings import ReflowError

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x [B, *D], t [B]) -> dx/dt [B, *D]. Any module, or a lambda."""

BLIND = 1e-2
"""Distance kept from the ends of [0, 1], where the prediction does not determine the velocity."""
LEAST = 1e-30
"""The smallest alpha by which a prediction of the source is divided; float32 ends at 1e-38."""


def to_source(interpolant: Schedule, velocity: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Return E[source | x_t = x] = (alpha v - alpha' x) / W [B, *D]; holds for any coupling."""
    a, b, da, db = interpolant.at(t, x)
    return _divided(a * velocity - da * x, a * db - da * b, a, x / b)


def to_target(interpolant: Schedule, velocity: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Return E[target | x_t = x] = (sigma' x - sigma v) / W [B, *D]; holds for any coupling."""
    a, b, da, db = interpolant.at(t, x)
    return _divided(db * x - b * velocity, a * db - da * b, b, x / a)


def _divided(value: Tensor, w: Tensor, absent: Tensor, whole: Tensor) -> Tensor:
    """Return value / W; `whole`, which is x over its own weight, where the other is absent from x.

    Raises ReflowError where W = 0 otherwise, as at t = 1 of the polynomial interpolant: there any
    source and target give the same velocity, so that it says nothing of them.
    """
    if bool(((w == 0) & (absent != 0)).any()):
        raise ReflowError(
            "the velocity does not determine source and target at a time where alpha sigma' ="
            " alpha' sigma; ask for them at a time inside (0, 1)"
        )
    return torch.where(absent == 0, whole, value / w)


def to_score(interpolant: Schedule, velocity: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Return the score -E[source | x] / sigma(t) of the marginal at t > 0 [B, *D].

    Valid only for the independent coupling with standard normal source (Tweedie): on a coupling
    that a flow produced, source and target determine each other and this is not the score. Raises
    ReflowError where sigma = 0: noise that is not there has no score.
    """
    if bool((interpolant.sigma(t) == 0).any()):
        raise ReflowError("there is no score where sigma(t) = 0; ask for it at t > 0")
    return -to_source(interpolant, velocity, x, t) / interpolant.sigma(expand(t, x))


def from_source(interpolant: Schedule, source: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Return the velocity (alpha' x + W source) / alpha [B, *D]; needs alpha(t) > 0."""
    a, b, da, db = interpolant.at(t, x)
    return (da * x + (a * db - da * b) * source) / a


def from_target(interpolant: Schedule, target: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Return the velocity (sigma' x - W target) / sigma [B, *D]; needs sigma(t) > 0."""
    a, b, da, db = interpolant.at(t, x)
    return (db * x - (a * db - da * b) * target) / b


def drift(interpolant: Schedule, t: Tensor) -> Tensor:
    """Return f(t) = alpha' / alpha [B] of the forward SDE dx = f x dt + g dw."""
    return interpolant.d_alpha(t) / interpolant.alpha(t)


def diffusion_squared(interpolant: Schedule, t: Tensor) -> Tensor:
    """Return g(t)^2 = 2 sigma (sigma' - alpha' sigma / alpha) [B] of the forward SDE."""
    sigma = interpolant.sigma(t)
    return 2 * sigma * (interpolant.d_sigma(t) - drift(interpolant, t) * sigma)


def usable_times(interpolant: Schedule, objective: Objective) -> tuple[float, float]:
    """Return the times between which a network of this objective gives a finite velocity.

    The source does not determine the target where alpha = 0, nor the target the source where
    sigma = 0, and next to these ends small errors of a network give large errors of its velocity.
    A network of the source is not asked where alpha is too small for float32.
    """
    low = max(interpolant.first, BLIND if objective == "target" else 0.0)
    if objective != "noise":
        return low, 1.0
    high = 1 - BLIND
    if float(interpolant.alpha(torch.tensor(high, dtype=torch.float64))) < LEAST:
        times = torch.linspace(high, 0.0, 1000, dtype=torch.float64)
        high = float(times[int((interpolant.alpha(times) >= LEAST).int().argmax())])
    return low, high


def to_velocity(
    interpolant: Schedule, objective: Objective, output: Tensor, x: Tensor, t: Tensor
) -> Tensor:
    """Turn the output of a network of this objective at (x, t) into the velocity [B, *D]."""
    convert = {"noise": from_source, "target": from_target}.get(objective)
    return output if convert is None else convert(interpolant, output, x, t)
