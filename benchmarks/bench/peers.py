"""Solvers of other packages, each as a function of a velocity and a source, with counted NFE.

A package that cannot be imported is reported as not measured, and the rest goes on.
"""

import importlib
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.bench.turns import Sizes

Network = Callable[[Tensor, Tensor], Tensor]
"""v(x [B, *D], t [B]), source at t = 1, data at t = 0."""
Solve = Callable[[Network, Tensor], Tensor]
"""The source to its targets."""

PICTURES = ("torchvision", "torchvision.utils", "torchvision.models", "torchvision.transforms")
"""What two packages import for pictures alone. Its builds of PyPI need a torch with CUDA."""


class _Empty(types.ModuleType):
    """A module of which every name is there and empty."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Empty(name)


@cache
def missing(package: str) -> str:
    """Return why a package cannot be used; an empty text if it can."""
    absent = [name for name in PICTURES if name not in sys.modules]
    stand_ins = absent if package.startswith("rectified_flow") else []
    sys.modules.update({name: _Empty(name) for name in stand_ins})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(package)
    except Exception as error:  # whatever a package does when it is imported
        return f"{package}: {type(error).__name__}: {error}"
    finally:
        for name in stand_ins:
            sys.modules.pop(name, None)
    return ""


def all_rows(t: Tensor | float, x: Tensor) -> Tensor:
    """Return one time as that of each row [B]."""
    return torch.as_tensor(t, dtype=x.dtype).reshape(-1).expand(len(x))


def torchdiffeq(method: str, steps: int = 0, tol: float = 1e-5) -> Solve:
    """`odeint` on the whole batch: its error norm is over all rows together."""
    from torchdiffeq import odeint

    options = {"step_size": 1 / steps} if steps else None

    def run(v: Network, x: Tensor) -> Tensor:
        ends, f = torch.tensor([1.0, 0.0]), lambda t, x: v(x, all_rows(t, x))
        found: Tensor = odeint(f, x, ends, rtol=tol, atol=tol, method=method, options=options)
        return found[-1]

    return run


def flow_matching(method: str, steps: int = 0, tol: float = 1e-5) -> Solve:
    """`ODESolver` of flow-matching, in its direction of time."""
    from flow_matching.solver import ODESolver

    def run(v: Network, x: Tensor) -> Tensor:
        solver = ODESolver(velocity_model=lambda x, t: -v(x, 1 - all_rows(t, x)))
        step = 1 / steps if steps else None
        end: Tensor = solver.sample(x_init=x, step_size=step, method=method, rtol=tol, atol=tol)
        return end

    return run


def torchode(tol: float) -> Solve:
    """Dopri5 of torchode: a step size for each row, as ours."""
    import torchode as to

    def run(v: Network, x: Tensor) -> Tensor:
        term = to.ODETerm(lambda t, y: v(y.reshape(x.shape), t).flatten(1))
        control = to.IntegralController(atol=tol, rtol=tol, term=term)
        solver = to.AutoDiffAdjoint(to.Dopri5(term=term), control)
        ends = {"t_start": torch.ones(len(x)), "t_end": torch.zeros(len(x))}
        path: Tensor = solver.solve(to.InitialValueProblem(y0=x.flatten(1), **ends)).ys
        return path[:, -1].reshape(x.shape)

    return run


def rectified_flow(steps: int) -> Solve:
    """`EulerSampler` of rectified-flow."""
    from rectified_flow.rectified_flow import RectifiedFlow
    from rectified_flow.samplers import EulerSampler

    def run(v: Network, x: Tensor) -> Tensor:
        flow = RectifiedFlow(tuple(x.shape[1:]), lambda x, t: -v(x, 1 - t))
        end: Tensor = EulerSampler(flow, num_steps=steps).sample_loop(x_0=x).x_t
        return end

    return run


def rectified_flow_pytorch(steps: int) -> Solve:
    """`RectifiedFlow.sample` of rectified-flow-pytorch: torchdiffeq's midpoint."""
    from rectified_flow_pytorch import RectifiedFlow

    class Backward(nn.Module):
        def __init__(self, v: Network) -> None:
            super().__init__()
            self.v, self.place = v, nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor, times: Tensor) -> Tensor:
            return -self.v(x, 1 - times)

    def run(v: Network, x: Tensor) -> Tensor:
        shape = tuple(x.shape[1:])
        flow = RectifiedFlow(Backward(v), data_shape=shape, data_unnormalize_fn=lambda x: x)
        end: Tensor = flow.sample(batch_size=len(x), steps=steps + 1, noise=x)
        return end

    return run


def scipy(tol: float) -> Solve:
    """RK45 of scipy on the flattened batch, as the code of Song et al. and of Liu et al. has it."""
    from scipy.integrate import solve_ivp

    def run(v: Network, x: Tensor) -> Tensor:
        def f(t: float, flat: np.ndarray) -> np.ndarray:
            at = torch.from_numpy(flat).reshape(x.shape).float()
            return v(at, all_rows(float(t), at)).flatten().numpy()

        start = x.flatten().numpy()
        end = solve_ivp(f, (1.0, 0.0), start, method="RK45", rtol=tol, atol=tol).y[:, -1]
        return torch.from_numpy(end).float().reshape(x.shape)

    return run


def candidates(sizes: Sizes) -> Iterator[tuple[str, str, Callable[[], Solve]]]:
    """Yield (name of the curve, package, maker of a solver) for every point of every curve."""
    for steps in sizes.nfe:
        if steps % 4 == 0:
            yield "torchdiffeq rk4", "torchdiffeq", partial(torchdiffeq, "rk4", steps // 4)
        if steps % 2 == 0:
            mid = steps // 2
            yield "torchdiffeq midpoint", "torchdiffeq", partial(torchdiffeq, "midpoint", mid)
            yield "flow_matching midpoint", "flow_matching", partial(flow_matching, "midpoint", mid)
            package = "rectified_flow_pytorch"
            yield "rectified-flow-pytorch", package, partial(rectified_flow_pytorch, mid)
    for steps in (*sizes.nfe, *sizes.euler):
        yield "rectified-flow Euler", "rectified_flow", partial(rectified_flow, steps)
    for tol in sizes.tolerances:
        yield "torchdiffeq dopri5", "torchdiffeq", partial(torchdiffeq, "dopri5", tol=tol)
        yield "flow_matching dopri5", "flow_matching", partial(flow_matching, "dopri5", tol=tol)
        yield "torchode dopri5", "torchode", partial(torchode, tol)
        yield "scipy RK45", "scipy", partial(scipy, tol)
