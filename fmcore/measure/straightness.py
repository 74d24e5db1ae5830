"""How straight the paths of a flow are, by every definition in use; each value of each path.

A trajectory is [T+1, B, *D], from t = 1 (source Z1) to t = 0 (target Z0), on the grid `times`
[T+1], even steps unless given. The velocity of a segment is its mean over the segment, so a grid of
T steps gives values slightly too small: by an error in 1/T for Euler's paths, 1/T^2 for Heun's and
RK4's. Values of two grids do not compare; every paper has its own.

- `straightness`: S = int ||(Z1 - Z0) - dZ_t/dt||^2 dt, summed over dimensions. Liu et al. 2022,
  "Flow straight and fast", equation 4.
- `straightness_per_dim`: S / d. Lee et al. 2023, "Minimizing trajectory curvature", who call it
  curvature (`straightness` in utils.py of sangyun884/fast-ode); Lee et al. 2024 (rfpp).
- `straightness_norm`: int ||(Z1 - Z0) - dZ_t/dt|| dt, the norm not squared. Zhu et al. 2024,
  "SlimFlow", as its image_sampling.py computes it (Euler, 100 steps).
- `straightness_rel`: S / E||Z1 - Z0||^2, free of the scale of the data.
- `curvature_angle`: mean angle between chord and velocity, radians.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from fmcore.measure.transport import ratio_with_error, standard_error


def _lasting(trajectory: Tensor, times: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return how long each segment lasts [T], and its midpoint [T], both on the CPU."""
    if times is None:
        times = torch.linspace(1, 0, len(trajectory), dtype=torch.float64)
    times = times.double().cpu()
    return times[:-1] - times[1:], (times[:-1] + times[1:]) / 2


def _velocities(trajectory: Tensor, lasting: Tensor) -> Iterator[Tensor]:
    """Yield the mean velocity [B, d] of each segment: no copy of all trajectories in float64."""
    for before, after, dt in zip(trajectory, trajectory[1:], lasting.tolist(), strict=False):
        yield (before.double() - after.double()).flatten(1) / dt


def _chord(trajectory: Tensor) -> Tensor:
    return (trajectory[0].double() - trajectory[-1].double()).flatten(1)


def _gaps(trajectory: Tensor, lasting: Tensor) -> Tensor:
    """Return ||chord - velocity||^2 of each segment of each path [T, B]."""
    chord = _chord(trajectory)
    each = [(chord - v).square().sum(-1) for v in _velocities(trajectory, lasting)]
    return torch.stack(each).cpu()


def straightness_curve(trajectory: Tensor, times: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return t [T] (midpoints, rising) and the mean squared gap between chord and velocity [T]."""
    lasting, t = _lasting(trajectory, times)
    gap = _gaps(trajectory, lasting).mean(1)
    t = t.flip(0)
    return t, gap.flip(0)


def per_path(trajectory: Tensor, times: Tensor | None = None) -> dict[str, Tensor]:
    """Return the value of each path [B], by the name of the metric.

    Besides the definitions above `chord` is ||Z1 - Z0||^2, which `straightness_rel` divides by.
    """
    lasting, _ = _lasting(trajectory, times)
    gaps, chord = _gaps(trajectory, lasting), _chord(trajectory)
    cosines = [cosine_similarity(v, chord, dim=-1) for v in _velocities(trajectory, lasting)]
    angles = torch.stack(cosines).clamp(-1, 1).acos().cpu()
    total = lasting @ gaps
    return {
        "straightness": total,
        "straightness_per_dim": total / chord.shape[1],
        "straightness_norm": lasting @ gaps.sqrt(),
        "curvature_angle": lasting @ angles,
        "chord": chord.square().sum(-1).cpu(),
    }


def with_errors(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Return mean and standard error (`<name>_se`) over independent paths of values [B]."""
    found: dict[str, float] = {}
    for name, each in values.items():
        found[name] = float(each.mean())
        found[f"{name}_se"] = standard_error(each)
    return found


def measured(trajectory: Tensor, times: Tensor | None = None) -> dict[str, float]:
    """Return every definition of straightness with its standard error over the paths."""
    each = per_path(trajectory, times)
    chord = each.pop("chord")
    rel, error = ratio_with_error(each["straightness"], chord)
    return {**with_errors(each), "straightness_rel": rel, "straightness_rel_se": error}


def straightness(trajectory: Tensor, times: Tensor | None = None) -> float:
    """Return S, summed over dimensions."""
    return float(per_path(trajectory, times)["straightness"].mean())


def straightness_rel(trajectory: Tensor, times: Tensor | None = None) -> float:
    """Return S / E||Z1 - Z0||^2: independent of the scale of the data."""
    each = per_path(trajectory, times)
    return ratio_with_error(each["straightness"], each["chord"])[0]


def initial_velocity_delta(velocity: Tensor, trajectory: Tensor) -> Tensor:
    """Return ||v(Z1, 1) - (Z1 - Z0)||^2 / d of each path [B], for the velocity [B, *D] at Z1.

    IVD of Kim et al. 2025, "Balanced conic rectified flow". It is the error of one Euler step,
    whose endpoint is Z1 - v(Z1, 1) in place of Z0.
    """
    gap = velocity.double() - (trajectory[0].double() - trajectory[-1].double())
    return gap.flatten(1).square().mean(-1)


def path_energy(trajectory: Tensor, times: Tensor | None = None) -> Tensor:
    """Return int ||dZ_t/dt||^2 dt of each path [B]."""
    lasting, _ = _lasting(trajectory, times)
    speeds = [v.square().sum(-1) for v in _velocities(trajectory, lasting)]
    return lasting @ torch.stack(speeds).cpu()


def normalised_path_energy(
    trajectory: Tensor, w2_squared: float, times: Tensor | None = None
) -> tuple[float, float]:
    """Return |int E||v||^2 dt - W2^2| / W2^2, 0 for optimal transport, and its standard error.

    NPE of Tong et al. 2024 (OT-CFM). Only where W2 between source and target is known;
    straight paths need not be optimal for d > 1.
    """
    energy = path_energy(trajectory, times)
    npe = abs(float(energy.mean()) - w2_squared) / w2_squared
    return npe, standard_error(energy) / w2_squared
