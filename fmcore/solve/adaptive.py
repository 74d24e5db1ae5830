"""Dormand-Prince 5(4) with a step size of its own for each row.

The error norm of a batched adaptive solver spans the batch, so that a sample depends on the other
rows, and a coupling on the batch size. Here each row has its own time and step, which a velocity
v(x, t) with t [B] allows; rows that have reached the end wait for the others.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fmcore.matching.conversions import Velocity
from fmcore.matching.interpolant import expand
from fmcore.settings import GridSize, ReflowError, Settings

NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
"""The last stage is the solution of order 5, and the first stage of the next step."""
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
"""Order 5 minus order 4 (Dormand & Prince 1980)."""


class Adaptive(Settings):
    """Dormand-Prince 5(4) with a step size of its own for each row."""

    name: Literal["dopri5"] = "dopri5"
    rtol: float = Field(default=1e-5, ge=1e-9, le=1)
    """Error that a step may have relative to the size of the sample. Lower it for accurate pairs;
    each tenth costs about 1.6 times the evaluations."""
    atol: float = Field(default=1e-5, ge=1e-9, le=1e3)
    """Error that a step may have in absolute terms, in units of the data."""
    max_steps: GridSize = 1000
    """Largest number of steps for a sample; if it needs more, that is an error. Raise it for tight
    tolerances."""

    def refined(self) -> "Adaptive":
        """Return the same solver with a tenth of the tolerances."""
        return self.model_copy(update={"rtol": self.rtol / 10, "atol": self.atol / 10})


def dopri5(
    velocity: Velocity, x: Tensor, settings: Adaptive, start: float, end: float
) -> tuple[Tensor, Tensor]:
    """Integrate each row of x [B, *D] from `start` to `end`; also return its evaluations [B].

    A velocity with something for each row, say labels, needs a method `rows`: of the rows that a
    mask [B] keeps. Raises ReflowError when a row does not reach `end` within `max_steps` steps.
    """
    rtol, atol = settings.rtol, settings.atol
    t = torch.full((len(x),), start, dtype=torch.float64, device=x.device)
    slope = velocity(x, t.to(x.dtype))
    h = _first_step(velocity, x, slope, start, end, rtol, atol)
    ends, calls = x.clone(), torch.full_like(t, 2, dtype=torch.int64)
    going = torch.arange(len(x), device=x.device)
    for _ in range(settings.max_steps):
        left = end - t
        step = torch.where(h.abs() < left.abs(), h, left)
        y, k, error = _step(velocity, x, t, step, slope)
        size = _rms(error / (atol + rtol * torch.maximum(x.abs(), y.abs())))
        calls[going] += 6
        good, factor = size <= 1, 0.9 * _power(size.clamp(min=1e-10), -0.2)
        h = step * torch.where(good, factor.clamp(1, 10), factor.clamp(0.2, 1)).nan_to_num(nan=0.2)
        t = torch.where(good, torch.where(step == left, end, t + step), t)
        x, slope = torch.where(expand(good, x), y, x), torch.where(expand(good, x), k, slope)
        moving = t != end
        ends[going[~moving]] = x[~moving]
        going, x, t, h, slope = (a[moving] for a in (going, x, t, h, slope))
        if not len(going):
            return ends, calls
        velocity = velocity.rows(moving) if hasattr(velocity, "rows") else velocity
    raise ReflowError(
        f"dopri5: {len(going)} samples did not arrive within {settings.max_steps} steps; velocity"
        " rough or not finite: loosen rtol and atol, raise max_steps, or take a fixed grid"
    )


def _step(
    velocity: Velocity, x: Tensor, t: Tensor, h: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x after one step, its slope there, and the estimated error, all [B, *D]."""
    hs = expand(h.to(x.dtype), x)
    k, y = [slope], x
    for node, weights in zip(NODES, STAGES, strict=True):
        y = x + hs * sum(w * s for w, s in zip(weights, k, strict=True) if w)
        k.append(velocity(y, (t + node * h).to(x.dtype)))
    error = hs * sum(w * s for w, s in zip(ERROR, k, strict=True) if w)
    return y, k[-1], error


def _first_step(
    velocity: Velocity, x: Tensor, slope: Tensor, start: float, end: float, rtol: float, atol: float
) -> Tensor:
    """Guess a first step [B] from the size of the slope and its change (Hairer et al., II.4)."""
    scale = atol + rtol * x.abs()
    size, speed = _rms(x / scale), _rms(slope / scale)
    h = torch.where((size < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * size / speed.clamp(min=1e-12))
    sign = 1.0 if end > start else -1.0
    hs = expand((sign * h).to(x.dtype), x)
    change = _rms((velocity(x + hs * slope, (start + sign * h).to(x.dtype)) - slope) / scale) / h
    most = torch.maximum(speed, change)
    guess = torch.where(most <= 1e-15, h.clamp(min=1e-6) * 1e3, _power(0.01 / most, 0.2))
    return sign * torch.minimum(100 * h, guess).clamp(max=abs(end - start))


def _power(x: Tensor, exponent: float) -> Tensor:
    """Return x^exponent [B], whose bytes are a function of the row alone.

    torch's pow is another function for the last rows of a batch than for those that fill a vector
    register, and differs from it in the last bit on some CPUs.
    """
    return (exponent * x.log()).exp()


def _rms(x: Tensor) -> Tensor:
    """Return the root mean square of each row [B], in float64."""
    return x.flatten(1).double().square().mean(dim=1).sqrt()
