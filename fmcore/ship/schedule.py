"""Schedulers of diffusers whose steps are those of Euler on the grid of a solver."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from fmcore.network.predictions import Discrete
from fmcore.settings import ReflowError
from fmcore.solve.solver import Solver
from fmcore.work.of_diffusers import diffusers

THOUSAND = 1000
"""Times of diffusers for t in [0, 1]."""
SAME = 2e-6
"""Largest difference of two times that are one: six digits of a time say which it is."""


@dataclass(frozen=True)
class Schedule:
    """A scheduler of diffusers and its steps: those it makes itself, or `given` in each call."""

    scheduler: Any
    steps: int
    given: tuple[float, ...] | None = None

    @property
    def call(self) -> dict[str, Any]:
        """What a pipeline is called with."""
        if self.given is None:
            return {"num_inference_steps": self.steps}
        return {"sigmas": list(self.given)}


def of_flow(solver: Solver, steps: int = THOUSAND, *, even: bool = False) -> Schedule:
    """Return FlowMatchEulerDiscreteScheduler for a network whose time at t = 1 is `steps`.

    `even` is for a pipeline that asks the scheduler for even steps, as Flux' does; others let it
    take its own, which end at 1 / steps. Settings make any grid of `shift`; a grid of `times` is
    given in each call.
    """
    kind = diffusers().FlowMatchEulerDiscreteScheduler
    grid, count = solver.grid(1.0, 0.0), solver.steps
    made = kind(num_train_timesteps=steps, **_shifted(solver, steps, even=even))
    if even:
        made.set_timesteps(sigmas=grid_of(count)[:-1].tolist())
    else:
        made.set_timesteps(count)
    if torch.allclose(made.sigmas.double(), grid, rtol=0, atol=SAME):
        return Schedule(made, count)
    return Schedule(kind(num_train_timesteps=steps), count, tuple(grid[:-1].tolist()))


def grid_of(count: int) -> torch.Tensor:
    """Return even times [count + 1] from 1 to 0."""
    return torch.linspace(1, 0, count + 1, dtype=torch.float64)


def is_even(solver: Solver) -> bool:
    """Whether the steps of a grid have one length."""
    return torch.allclose(solver.grid(1.0, 0.0), grid_of(solver.steps), rtol=0, atol=1e-9)


def _shifted(solver: Solver, steps: int, *, even: bool) -> dict[str, Any]:
    """Return the settings with which the scheduler has the grid of `solver.shift`.

    Its own times u fall evenly from 1 to m = r / (T + r - 1), which is 1 / T shifted by r, its
    `shift`. It shifts them by r again and stretches 1 - t so that the last one is `shift_terminal`.
    With w = 1 - u that gives 1 - t = c w / (r - (r - 1) w); the grid of shift s has
    1 - t = v / (s - (s - 1) v) in even v. Both are even, v = w b / a with b = 1 / N and
    a = (1 - m) / (N - 1), and so they agree if (1 - 1/r) a = (1 - 1/s) b: a quadratic for r.
    """
    count, shift = solver.steps, solver.shift
    if even:
        return {"shift": shift}
    if count == 1 or steps == 1:
        return {}
    k = (1 - 1 / shift) * (count - 1) / (count * (1 - 1 / steps))
    first, middle = k / steps, 1 - k * (1 - 1 / steps)
    root = math.sqrt(max(0.0, middle**2 - 4 * first))
    last = float(solver.grid(1.0, 0.0)[-2])
    return {"shift": 2 / (middle + root) if middle + root > 0 else 1.0, "shift_terminal": last}


def ddim(solver: Solver, prediction: Discrete) -> Schedule | None:
    """Return DDIMScheduler, a step of which is one of Euler; None if its steps are others.

    It goes from the last time step by equal numbers of time steps, which have to divide them all.
    """
    times = ddim_times(prediction, solver.steps)
    if times is None or not torch.allclose(solver.grid(1.0, 0.0), times, rtol=0, atol=SAME):
        return None
    made = diffusers().DDIMScheduler(
        **_betas(prediction), clip_sample=False, set_alpha_to_one=True,
        timestep_spacing="trailing", rescale_betas_zero_snr=prediction.zero_terminal_snr,
    )  # fmt: skip
    return Schedule(made, solver.steps)


def ddim_times(prediction: Discrete, count: int) -> torch.Tensor | None:
    """Return the times [count + 1] of `count` steps of DDIM; None if they do not divide all."""
    each, rest = divmod(prediction.steps, count)
    if rest or not each:
        return None
    own = range(prediction.steps - 1, -1, -each)
    return torch.tensor(prediction.times(own), dtype=torch.float64)


def of_sigmas(solver: Solver, prediction: Discrete) -> Schedule:
    """Return EulerDiscreteScheduler, to which each call gives sigma / alpha of the grid's times.

    Between two time steps it interpolates the network's time in log sigma, we in t: steps are so
    near to each other that the samples differ by less than 1e-4. Below the first step, where we
    ask the network at that step and it goes on, they may differ by more.

    Raises ReflowError where the last time step is noise alone: there sigma / alpha is infinite.
    """
    if prediction.zero_terminal_snr:
        count = next(n for n in range(min(solver.steps, prediction.steps), 0, -1)
                     if prediction.steps % n == 0)  # fmt: skip
        times = ddim_times(prediction, count)
        assert times is not None
        listed = ",".join(f"{t:.6f}".rstrip("0").rstrip(".") for t in times.tolist())
        raise ReflowError(
            f"--nfe {solver.steps}: its last time step is noise alone (zero_terminal_snr), which"
            f" DDIM alone can start from, on its own grid: --times {listed}"
        )
    made = diffusers().EulerDiscreteScheduler(**_betas(prediction), timestep_spacing="leading")
    t = solver.grid(1.0, 0.0)[:-1]
    path = prediction.path
    return Schedule(made, solver.steps, (*(path.sigma(t) / path.alpha(t)).tolist(), 0.0))


def _betas(prediction: Discrete) -> dict[str, Any]:
    """Return the settings of a table of betas; one by one where not each scheduler names them."""
    said = {"num_train_timesteps": prediction.steps, "prediction_type": prediction.name}
    said |= {"steps_offset": 1}  # of no effect here; Stable Diffusion's pipeline warns of another
    names = ("beta_schedule", "beta_start", "beta_end")
    named = {name: getattr(prediction, name) for name in names}
    if prediction.betas is not None:
        return {**said, "trained_betas": list(prediction.betas)}
    if prediction.beta_schedule == "sigmoid":
        made = diffusers().DDPMScheduler(num_train_timesteps=prediction.steps, **named)
        return {**said, "trained_betas": made.betas.tolist()}
    return {**said, **named}
