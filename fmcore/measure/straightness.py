"""How straight the paths of a flow are: S = int_0^1 E||(Z1 - Z0) - dZ_t/dt||^2 dt.

Liu et al. 2022, equation 4; 0 means straight. Trajectories are [T+1, B, *D] on a uniform grid from
t = 1 (source Z1) to t = 0 (target Z0); sums run over dimensions, averages over samples.
"""

import torch
from torch import Tensor


def straightness_curve(trajectory: Tensor) -> tuple[Tensor, Tensor]:
    """Return t [T] (midpoints, rising) and the mean squared gap between chord and velocity [T].

    The velocity of a segment is its mean over the segment, so a grid of T steps gives a gap that
    is slightly too small: the error falls as 1/T for Euler trajectories, 1/T^2 for Heun and RK4.
    """
    x = trajectory.double().flatten(2)
    steps = len(x) - 1
    chord = x[0] - x[-1]
    velocity = (x[:-1] - x[1:]) * steps
    gap = (velocity - chord).square().sum(-1).mean(-1)
    t = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    return t, gap.flip(0)


def straightness(trajectory: Tensor) -> float:
    """Return S, summed over dimensions."""
    return float(straightness_curve(trajectory)[1].mean())


def straightness_per_dim(trajectory: Tensor) -> float:
    """Return S / d, the form in rfpp (Lee et al. 2024)."""
    return straightness(trajectory) / trajectory[0, 0].numel()


def straightness_rel(trajectory: Tensor) -> float:
    """Return S / E||Z1 - Z0||^2: independent of the scale of the data."""
    ends = trajectory[[0, -1]].double().flatten(2)
    return straightness(trajectory) / float((ends[0] - ends[1]).square().sum(-1).mean())


def curvature_angle(trajectory: Tensor) -> float:
    """Return the mean angle between chord and velocity, in radians, over samples and t."""
    x = trajectory.double().flatten(2)
    chord = (x[0] - x[-1]).expand_as(x[:-1])
    cosine = torch.nn.functional.cosine_similarity(x[:-1] - x[1:], chord, dim=-1)
    return float(cosine.clamp(-1, 1).acos().mean())


def initial_velocity_delta(velocity: Tensor, trajectory: Tensor) -> float:
    """Return E||v(Z1, 1) - (Z1 - Z0)||^2 / d, for the velocity [B, *D] at the source.

    It is the error of one Euler step, whose endpoint is Z1 - v(Z1, 1) in place of Z0.
    """
    gap = velocity.double() - (trajectory[0].double() - trajectory[-1].double())
    return float(gap.square().mean())


def normalised_path_energy(trajectory: Tensor, w2_squared: float) -> float:
    """Return |int E||v||^2 dt - W2^2| / W2^2 (Tong et al. 2024), 0 for optimal transport.

    Only where W2 between source and target is known; straight paths need not be optimal for d > 1.
    """
    x = trajectory.double().flatten(2)
    energy = ((x[:-1] - x[1:]) * (len(x) - 1)).square().sum(-1).mean()
    return float((energy - w2_squared).abs() / w2_squared)
