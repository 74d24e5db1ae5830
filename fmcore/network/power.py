"""Power-function averages of weights, from which one of any length is made after training.

Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models", section 3
and appendix C. The average follows theta(t) = beta theta(t - 1) + (1 - beta) weights(t) with
beta(t) = (1 - 1/t)^(gamma + 1), so weights of step s count as s^gamma: the average grows with the
training. `sigma_rel` is the standard deviation of this profile over the training's length.

A few averages are kept, with snapshots of them as training goes. The average of another sigma_rel
is a sum of snapshots: the one whose profile is the best by least squares.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from torch import nn

from fmcore.network.ema import Average
from fmcore.settings import ReflowError, Settings

FAR = 0.1
"""Largest distance of a profile made of snapshots from the one asked for, over its own norm."""

SigmaRel = Annotated[float, Field(ge=0.005, le=0.28)]
"""The relative length of a power average; 0.2887 (12^-1/2) would weigh all steps equally."""


class PowerEma(Settings):
    """Averages that are kept beside `ema`, so that one of any length is made after training.

    The model's folder grows by two networks for each snapshot.
    """

    sigma_rel: Annotated[tuple[SigmaRel, ...], Field(min_length=1, max_length=8, strict=False)] = (
        0.05,
        0.10,
    )
    """Relative lengths of the averages that are kept. The two of Karras et al. reach all others."""
    snapshots: int = Field(default=16, ge=1, le=1000)
    """How many times they are kept, at even steps; the last is the end. 16 reach lengths of 0.03 to
    0.25, 8 reach 0.05 to 0.2; each adds two networks to the model's folder."""

    def steps(self, steps: int) -> list[int]:
        """Return the steps of a training of `steps` after which a snapshot is kept.

        >>> PowerEma(snapshots=4).steps(10)
        [2, 5, 8, 10]
        """
        return sorted(
            {max(1, round(steps * i / self.snapshots)) for i in range(1, self.snapshots + 1)}
        )


def gamma_of(sigma_rel: float) -> float:
    """Return the exponent of a profile by its relative standard deviation (their algorithm 2)."""
    t = sigma_rel**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def power_averaged(model: nn.Module, sigma_rel: float) -> Average:
    """Return the power-function average of `model`; its first update is the weights themselves."""
    gamma = gamma_of(sigma_rel)
    return Average(model, lambda n: 1 - (1 - 1 / (n + 1)) ** (gamma + 1))


def coefficients(
    steps: Sequence[int], kept: Sequence[float], sigma_rel: float
) -> tuple[np.ndarray, float]:
    """Return the factors [len(steps), len(kept)] by which snapshots add up to an average.

    It is the average at the last of `steps`. Also return the distance of its profile from the one
    asked for, over the norm of that. The factors add up to 1, which algorithm 3 of Karras et al.
    does not ask for: the scale of their weights has no effect, that of others has.
    """
    t = np.repeat(np.asarray(steps, dtype=np.float64), len(kept))
    gamma = np.tile([gamma_of(s) for s in kept], len(steps))
    end, aim = np.float64(steps[-1]), np.float64(gamma_of(sigma_rel))
    gram = _products(t[:, None], gamma[:, None], t[None], gamma[None])
    onto, own = _products(t, gamma, end, aim), _products(end, aim, end, aim)
    n, unit = len(t), gram.max()
    system = np.block([[gram / unit, np.ones((n, 1))], [np.ones((1, n)), np.zeros((1, 1))]])
    x = np.linalg.lstsq(system, np.append(onto / unit, 1.0), rcond=1e-13)[0][:n]
    far = np.sqrt(max(0.0, float(own - 2 * onto @ x + x @ gram @ x) / float(own)))
    return x.reshape(len(steps), len(kept)), float(far)


def _products(t_a: Any, gamma_a: Any, t_b: Any, gamma_b: Any) -> Any:
    """Return the inner products of profiles that end at t_a and t_b (their algorithm 3)."""
    exponent = np.where(t_a < t_b, gamma_b, -gamma_a)
    above = (gamma_a + 1) * (gamma_b + 1) * (t_a / t_b) ** exponent
    return above / ((gamma_a + gamma_b + 1) * np.maximum(t_a, t_b))


def factors(steps: Sequence[int], kept: Sequence[float], sigma_rel: float) -> np.ndarray:
    """Return `coefficients`; raise ReflowError if the snapshots cannot make such an average."""
    found, far = coefficients(steps, kept, sigma_rel)
    if far > FAR:
        raise ReflowError(
            f"weights {sigma_rel:g}: {len(steps)} snapshots of sigma_rel"
            f" {', '.join(f'{s:g}' for s in kept)} make its profile to {far:.0%} only, at most"
            f" {FAR:.0%} is allowed; take a length nearer to these, or train with more of them"
            " (train.power_ema.snapshots)"
        )
    return found
