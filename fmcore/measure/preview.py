"""Samples of a training so far, from fixed noise: for people, never for a result.

They change no byte of the training: their noise has a seed of its own, and they are drawn from the
average of the weights, which the training only writes. No verb imports this module, so a change of
it trains nothing again.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fmcore.codec.latents import Units
from fmcore.coupling.read import Coupling, read
from fmcore.coupling.source import Source
from fmcore.matching.times import Grid, Point
from fmcore.network.field import Field, maps_to_end
from fmcore.network.flops import TRAINING
from fmcore.sampling.flow import span_of
from fmcore.settings import ReflowError, derive_seed
from fmcore.solve.solver import Solver, solve
from fmcore.training.checkpoint import State
from fmcore.training.fit import Train, map_of
from fmcore.verdict.plane import ROWS, Plane
from fmcore.verdict.shown import Shown, to_show

IMAGES, POINTS = 16, 256
"""Samples of a preview."""
NFE = (1, 8)
"""Euler steps of a preview: one, and enough to see what the round has learned."""
SHARE = 0.005
"""Share of the time of a training that previews take, at most."""


class Preview:
    """Called with a training now and then, shows its samples, each time from the same noise.

    It waits until the training has taken so long that all previews are `SHARE` of it at most: where
    samples are dear they are few, and there are none if one would be too dear. What the first one
    costs is foreseen from its evaluations and the time of the steps before. One that fails, say for
    want of memory, is the last: no training stops for a picture.
    """

    def __init__(
        self, coupling: Coupling, settings: Train, seed: int, show: Callable[[Shown], object]
    ) -> None:
        self.coupling, self.settings, self.seed, self.show = coupling, settings, seed, show
        self.count = IMAGES if len(coupling.about.shape) > 1 else POINTS
        law = settings.time
        steps = law.steps if isinstance(law, Grid) else 1
        self.nfe = (steps,) if isinstance(law, Grid | Point) else NFE
        self.began: tuple[float, int] | None = None
        self.failed = False
        self.spent = self.took = 0.0
        self.source: Tensor | None = None
        self.plane: Plane | None = None
        self.units: Units | None = None

    def __call__(self, state: State) -> None:
        """Show samples of the average after the present step, if their time has come."""
        now = time.monotonic()
        if self.began is None:
            self.began = (now, state.step)
        elapsed, steps = now - self.began[0], state.step - self.began[1]
        evaluations = self.count * sum(self.nfe) / (TRAINING * self.settings.batch)
        foreseen = self.took or evaluations * elapsed / max(steps, 1)
        if self.failed or not steps or elapsed * SHARE < self.spent + foreseen:
            return
        try:
            self.show(self._drawn(state))
        except (RuntimeError, ReflowError):
            self.failed = True
        self.took = time.monotonic() - now
        self.spent += self.took

    def _drawn(self, state: State) -> Shown:
        about = self.coupling.about
        units = self.units = self.units or Units.of(about.units, about.codec)
        if not (about.image or units.image) and self.plane is None:
            some = read(self.coupling, split="train", limit=ROWS, sources=False).target
            self.plane = Plane.of(units.inverse(some))
        found = {nfe: units.inverse(self._sampled(state, nfe)) for nfe in self.nfe}
        return to_show(found, None, self.plane, step=state.step)

    @torch.no_grad()
    def _sampled(self, state: State, nfe: int) -> Tensor:
        """Return samples [N, *D] of the average, in model units, on the CPU."""
        settings, device = self.settings, next(state.ema.parameters()).device
        if self.source is None:
            self.source = _sources(self.coupling, self.count, self.seed)
        source = settings.interpolant.noise_scale * self.source.to(device)
        classes, solver = state.network.settings.classes, Solver(name="euler", steps=nfe)
        label = torch.arange(len(source), device=device) % classes if classes else None
        field = Field(state.ema, settings.interpolant, settings.objective, classes)
        state.ema.eval()
        try:
            to_end = maps_to_end(map_of(settings))
            velocity = field.velocity(label, span=span_of(solver, 1.0, 0.0, to_end=to_end))
            return solve(velocity, source, solver, start=1.0, end=0.0).x.cpu()
        finally:
            state.ema.train()


def _sources(coupling: Coupling, count: int, seed: int) -> Tensor:
    """Return sources [N, *D] in model units: the noise on which rounds are measured.

    Where the source is data, those of pairs that train.
    """
    about = coupling.about
    if about.source is not None:
        return read(coupling, split="train", limit=count).source
    return Source(tuple(about.shape)).draw(derive_seed(seed, "evaluate"), np.arange(count))
