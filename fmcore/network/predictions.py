"""What a diffusion model of other hands predicts, and how that is a velocity of ours.

Such a model is called with x scaled its own way and with a time of its own: a number of a time
step, or log(sigma) / 4. Its ODE has straight coordinates: with x_1 the state at its last time, the
path is x_t = (1 - t) target + t x_1, the linear interpolant, and a step of DDIM is a step of Euler.
x_1 = signal target + noise source; sampling takes it from N(0, I), as diffusers does, and so loses
the signal that is left there (`TerminalSignal`).
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fmcore.matching.conversions import from_source, from_target
from fmcore.matching.interpolant import Schedule, expand
from fmcore.settings import Length, Settings
from fmcore.work.of_diffusers import diffusers

Predict = Callable[[Tensor, Tensor], Tensor]
"""(x [B, *D] in the network's own scale, its own time [B]) -> its output [B, *D]."""


class TerminalSignal(Schedule):
    """alpha = 1 - (1 - signal) t, sigma = noise t: straight, but the target has not gone at t = 1.

    The path of a diffusion model whose last time step has a signal-to-noise ratio above 0 (Lin et
    al. 2024), with x scaled so that the paths are straight in t. To its ODE it is the linear
    interpolant from x at t = 1, signal target + noise source, which samplers replace by N(0, I).
    """

    signal: float = Field(ge=0, lt=1)
    """Weight of the target at t = 1. 0 is the linear interpolant."""
    noise: float = Field(default=1.0, gt=0, le=1)
    """Weight of the source at t = 1."""

    def alpha(self, t: Tensor) -> Tensor:
        """Return the weight of the target [B]."""
        return 1 - (1 - self.signal) * t

    def sigma(self, t: Tensor) -> Tensor:
        """Return the weight of the source [B]."""
        return self.noise * t

    def d_alpha(self, t: Tensor) -> Tensor:
        """Return d alpha / dt [B]."""
        return torch.full_like(t, self.signal - 1)

    def d_sigma(self, t: Tensor) -> Tensor:
        """Return d sigma / dt [B]."""
        return torch.full_like(t, self.noise)


class Prediction(Settings):
    """The base of every prediction."""

    @cached_property
    @abstractmethod
    def path(self) -> TerminalSignal:
        """The path of the model in straight coordinates."""

    @abstractmethod
    def nodes(self) -> Tensor:
        """Return times t [N] in order, in float64, at which the network's own time is known."""

    @abstractmethod
    def velocity(self, predict: Predict, x: Tensor, t: Tensor, nodes: Tensor) -> Tensor:
        """Return dx/dt [B, *D] of the linear interpolant at x [B, *D] and t [B]."""

    @abstractmethod
    def times(self, own: Iterable[float]) -> tuple[float, ...]:
        """Return the grid of `times` that ends at 0, for falling times of a scheduler."""


class Discrete(Prediction):
    """A network of numbered time steps with a table of betas (DDPM), asked between them too.

    Between two steps its time is interpolated, linearly in t; below the first it is the first.
    """

    name: Literal["epsilon", "v_prediction", "sample"]
    """What the network returns: `epsilon` is the source, `sample` the target, `v_prediction`
    alpha source - sigma target with alpha^2 + sigma^2 = 1."""
    steps: int = Field(default=1000, ge=2, le=100_000)
    """Number of time steps that the network was trained on; they are numbered from 0."""
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = "linear"
    """Schedule of the betas, as diffusers names them."""
    beta_start: float = Field(default=1e-4, gt=0, lt=1)
    """First beta of a linear, scaled_linear or sigmoid schedule."""
    beta_end: float = Field(default=0.02, gt=0, lt=1)
    """Last beta of a linear, scaled_linear or sigmoid schedule."""
    betas: Annotated[
        tuple[Annotated[float, Field(gt=0, lt=1)], ...] | None, Field(max_length=100_000)
    ] = Field(default=None, strict=False)
    """Betas given one by one, in place of a schedule. null is a schedule."""
    zero_terminal_snr: bool = False
    """Whether the betas are rescaled so that the last step is noise alone. Not for epsilon, which
    says nothing of the target there."""

    @model_validator(mode="after")
    def _determined(self) -> "Discrete":
        if self.zero_terminal_snr and self.name == "epsilon":
            raise ValueError(
                "zero_terminal_snr: at the last step x is noise alone, and epsilon says nothing of"
                " the target; only v_prediction or sample can be sampled from there"
            )
        if self.betas is not None and len(self.betas) != self.steps:
            raise ValueError(f"betas: {len(self.betas)} of them for {self.steps} steps")
        return self

    def alphas_cumprod(self) -> Tensor:
        """Return alpha^2 [N] of each step, as diffusers computes it, in float64."""
        found = diffusers().DDPMScheduler(
            num_train_timesteps=self.steps,
            beta_schedule=self.beta_schedule,
            beta_start=self.beta_start,
            beta_end=self.beta_end,
            trained_betas=None if self.betas is None else list(self.betas),
            rescale_betas_zero_snr=self.zero_terminal_snr,
        )
        table: Tensor = found.alphas_cumprod
        return table.double()

    @cached_property
    def path(self) -> TerminalSignal:
        """The path, whose end is the last time step."""
        last = float(self.alphas_cumprod()[-1])
        return TerminalSignal(signal=math.sqrt(last), noise=math.sqrt(1 - last))

    def nodes(self) -> Tensor:
        """Return the time t [steps] of each time step."""
        table, path = self.alphas_cumprod(), self.path
        a, b = table.sqrt(), (1 - table).sqrt()
        # In float32, so that a solver's time is that of the step exactly.
        return (b / (path.noise * a + (1 - path.signal) * b)).float().double()

    def velocity(self, predict: Predict, x: Tensor, t: Tensor, nodes: Tensor) -> Tensor:
        """Return dx/dt [B, *D]; x is given to the network with alpha^2 + sigma^2 = 1."""
        path, s = self.path, t.double().clamp(nodes[0], nodes[-1])
        scale = torch.hypot(path.alpha(s), path.sigma(s))
        out = predict((x / expand(scale, x)).to(x.dtype), between(nodes, s).to(x.dtype))
        turn = {"epsilon": from_source, "sample": from_target, "v_prediction": from_v_prediction}
        return turn[self.name](path, out, x, s).to(x.dtype)

    def times(self, own: Iterable[float]) -> tuple[float, ...]:
        """Return the grid of some time steps, from the last one, and 0."""
        nodes = self.nodes()
        return (*(float(nodes[round(step)]) for step in own), 0.0)


class FlowMatching(Prediction):
    """A network that predicts our velocity, with its time in thousandths.

    A shift of its scheduler is a grid of times, `solver.shift`, and changes no velocity.
    """

    name: Literal["flow_prediction"]
    """The network returns source - target, the velocity of the linear interpolant."""
    steps: int = Field(default=1000, ge=1, le=100_000)
    """The network's time at t = 1."""

    @cached_property
    def path(self) -> TerminalSignal:
        """The linear interpolant."""
        return TerminalSignal(signal=0.0)

    def nodes(self) -> Tensor:
        """Return both ends."""
        return torch.tensor([0.0, 1.0], dtype=torch.float64)

    def velocity(self, predict: Predict, x: Tensor, t: Tensor, nodes: Tensor) -> Tensor:
        """Return the output itself."""
        return predict(x, self.steps * t)

    def times(self, own: Iterable[float]) -> tuple[float, ...]:
        """Return the grid of some of the network's times, from the last one, and 0."""
        return (*(time / self.steps for time in own), 0.0)


class Edm(Prediction):
    """An EDM denoiser (Karras et al. 2022): x = target + sigma source, sigma from 0 to sigma_max.

    D = c_skip x + c_out F(c_in x, log(sigma) / 4). Below sigma_min it is asked at sigma_min.
    """

    name: Literal["edm"]
    """A preconditioned network: its time is log(sigma) / 4."""
    sigma_min: Length = 0.002
    """Smallest sigma at which the network is asked, in units of its data."""
    sigma_max: Length = 80.0
    """Largest sigma, that of t = 1, in units of its data."""
    sigma_data: Length = 0.5
    """Standard deviation of the data that the network was made for."""
    output: Literal["epsilon", "v_prediction", "denoised"] = "epsilon"
    """`epsilon` is F with Karras' c_out, `v_prediction` F with its sign turned, as in diffusers;
    `denoised` is D itself, of a network called with x and sigma."""

    @model_validator(mode="after")
    def _ordered(self) -> "Edm":
        if not max(self.sigma_min, 1) < self.sigma_max:
            raise ValueError(
                f"sigma_max {self.sigma_max:g} must be above 1 and sigma_min {self.sigma_min:g}"
            )
        return self

    @cached_property
    def path(self) -> TerminalSignal:
        """The path of x / (1 + (1 - 1 / sigma_max) sigma)."""
        return TerminalSignal(signal=1 / self.sigma_max)

    def _time(self, sigma: float) -> float:
        return sigma / (1 + (1 - 1 / self.sigma_max) * sigma)

    def nodes(self) -> Tensor:
        """Return the times of sigma_min and sigma_max."""
        ends = [self._time(self.sigma_min), 1.0]
        return torch.tensor(ends, dtype=torch.float64)

    def velocity(self, predict: Predict, x: Tensor, t: Tensor, nodes: Tensor) -> Tensor:
        """Return dx/dt [B, *D]."""
        path, s = self.path, t.double().clamp(nodes[0], nodes[-1])
        sigma = path.sigma(s) / path.alpha(s)
        scaled, sd = x / expand(path.alpha(s), x), self.sigma_data
        if self.output == "denoised":
            target = predict(scaled.to(x.dtype), sigma.to(x.dtype)).double()
        else:
            norm = torch.hypot(sigma, torch.full_like(sigma, sd))
            c_skip, c_out = sd**2 / norm**2, sigma * sd / norm
            c_out = -c_out if self.output == "v_prediction" else c_out
            given = (scaled / expand(norm, x)).to(x.dtype)
            out = predict(given, (sigma.log() / 4).to(x.dtype))
            target = expand(c_skip, x) * scaled + expand(c_out, x) * out
        return from_target(path, target, x, s).to(x.dtype)

    def times(self, own: Iterable[float]) -> tuple[float, ...]:
        """Return the grid of some falling sigmas, from sigma_max, and 0."""
        return (*(self._time(sigma) for sigma in own), 0.0)


def from_v_prediction(interpolant: Schedule, v: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Return the velocity (h' / h) x + (W / h) v [B, *D] with h^2 = alpha^2 + sigma^2.

    v = (alpha source - sigma target) / h is what "v-prediction" means (Salimans & Ho 2022): the
    derivative by the angle of a path that keeps its variance. It is finite at all times.
    """
    a, b, da, db = interpolant.at(t, x)
    h = (a * a + b * b).sqrt()
    return ((a * da + b * db) / h * x + (a * db - da * b) * v) / h


def between(nodes: Tensor, t: Tensor) -> Tensor:
    """Return the number of the node at each t [B], with the part of the way to the next one.

    Of nodes that are one time in float32 it is the later one.
    """
    after = torch.searchsorted(nodes, t.contiguous(), right=True).clamp(1, len(nodes) - 1)
    low, high = nodes[after - 1], nodes[after]
    return after - 1 + ((t - low) / (high - low)).where(high > low, 1.0)


AnyPrediction = Annotated[Discrete | FlowMatching | Edm, Field(discriminator="name")]
