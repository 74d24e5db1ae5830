"""A module of a user's own, with one class of each kind, and the parameters that name them."""

MODULE = '''
"""Seven classes of a user's own."""

import math

import torch
from torch import Tensor, nn

from fmcore.dataset.samples import Data, Samples
from fmcore.features.own import FeatureMap
from fmcore.matching.interpolant import Schedule
from fmcore.matching.loss import SampleLoss
from fmcore.matching.times import Law
from fmcore.network.own import OwnNetwork
from fmcore.choices.solvers import StepRule


class Rings(Data):
    """Concentric rings; the ring is the class."""

    samples: int = 400
    rings: int = 2

    def read(self, seed: int) -> Samples:
        draw = torch.Generator().manual_seed(seed)
        ring = torch.randint(self.rings, (self.samples,), generator=draw)
        angle = 2 * math.pi * torch.rand(self.samples, generator=draw)
        points = torch.stack([angle.cos(), angle.sin()], dim=1) * (ring[:, None] + 1.0)
        return Samples(points, ring, image=False)


class Tiny(OwnNetwork):
    """One hidden layer, and an embedding of the label."""

    def __init__(self, shape: tuple[int, ...], classes: int, width: int = 16) -> None:
        super().__init__(shape, classes)
        size = math.prod(shape)
        self.enter, self.leave = nn.Linear(size + 1, width), nn.Linear(width, size)
        self.label = nn.Embedding(classes + 1, width)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        h = self.enter(torch.cat([x.flatten(1), t[:, None]], dim=1))
        return self.leave((h + self.label(self.labels(label, t))).tanh()).reshape(x.shape)


class Absolute(SampleLoss):
    """The mean absolute gap to some power."""

    power: float = 1.0

    def per_sample(self, gap, t, interpolant, objective):
        return gap.flatten(1).abs().pow(self.power).mean(dim=1)


class Ralston(StepRule):
    """Order 2 with the least truncation error, two evaluations."""

    def step(self, v, x, t, dt):
        first = v(x, t)
        return x + dt * (first / 4 + 3 / 4 * v(x + 2 / 3 * dt * first, t + 2 / 3 * dt))


class Triangular(Law):
    """Density 2 t."""

    def spread(self, u: Tensor) -> Tensor:
        return u.sqrt()


class Polar(FeatureMap):
    """Radius and angle."""

    scale: float = 1.0

    def features(self, samples: Tensor) -> Tensor:
        angle = torch.atan2(samples[:, 1], samples[:, 0])
        return self.scale * torch.stack([samples.norm(dim=1), angle], dim=1)


class Sine(Schedule):
    """Slow at both ends."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(math.pi / 2 * t) ** 2

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * t) ** 2

    def d_alpha(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * torch.sin(math.pi * t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return math.pi / 2 * torch.sin(math.pi * t)
'''

PARAMS = """
seed: 0
compute: {device: cpu, threads: 1}
data: {name: custom, path: "my_flows:Rings", settings: {samples: 300}}
network: {name: custom, path: "my_flows:Tiny", classes: 2, settings: {width: 8}}
yardstick:
  features: {name: custom, path: "my_flows:Polar"}
  samples: 100
  splits: 2
evaluate:
  nfe: [1, 2]
  solver: {name: custom, path: "my_flows:Ralston", steps: 2}
  trajectories: 16
gates:
  endpoint_shift: {warn: null, fail: null}
  solver_gap_rel: {warn: null, fail: null}
  held_out_ratio: {warn: null, fail: null}
  cost_rise: {warn: null, fail: null}
  noise_z: {warn: null, fail: null}
rounds:
  rf1:
    coupling: independent
    init: scratch
    train: {steps: 10, batch: 32, interpolant: {name: custom, path: "my_flows:Sine"}}
  rf2:
    coupling: rf1
    init: rf1
    train:
      steps: 10
      batch: 32
      loss: {name: custom, path: "my_flows:Absolute", settings: {power: 1.5}}
      time: {name: custom, path: "my_flows:Triangular"}
couplings:
  rf1:
    round: rf1
    pairs: 128
    shard: 64
    solver: {name: custom, path: "my_flows:Ralston", steps: 3}
"""

HARM = """
from os import system
from pathlib import Path

Path("{mark}").write_text("imported")


def function(**settings):
    Path("{mark}").write_text("called")


def _make(*_, **__):
    Path("{mark}").write_text("made")


Assigned = type("Assigned", (), {{}})
"""
"""A module that leaves a mark when it is imported or called."""

OTHER = '''
from pathlib import Path


class Other(Exception):
    """A subclass of nothing."""

    def __new__(cls, *_, **__):
        Path("{mark}").write_text("called")
        return super().__new__(cls)

    def __init__(self, *_, **__):
        pass
'''
