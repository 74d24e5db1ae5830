"""All that samples are measured with: the yardstick, and the published protocol if there is one."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fmcore.measure import protocol
from fmcore.measure.protocol import Published
from fmcore.measure.yardstick import Yardstick
from fmcore.sampling.flow import mean_nfe
from fmcore.solve.solver import Solution
from fmcore.verdict.cuts import SamplerCuts


def load_protocol(yardstick: Path, device: torch.device) -> Published | None:
    """Read the protocol of the yardstick in a folder; None if it has none."""
    folder = yardstick / protocol.FOLDER
    return protocol.load(folder, device) if folder.exists() else None


@dataclass(frozen=True)
class Scores:
    """What samples are measured with: the yardstick, and the published protocol if there is one."""

    yardstick: Yardstick
    published: Published | None

    @property
    def samples(self) -> int:
        """How many samples are drawn: the larger number that the two take; they share them."""
        wanted = 0 if self.published is None else self.published.settings.samples
        return max(self.yardstick.samples, wanted)

    def row(self, sampler: str, found: Solution, x: Tensor, label: Tensor | None) -> SamplerCuts:
        """Return the row of samples x [samples, *D] in the data's own units."""
        n = self.yardstick.samples
        each = self.yardstick.measure(x[:n], None if label is None else label[:n])
        published = {} if self.published is None else self.published.measure(x)
        return SamplerCuts(sampler, mean_nfe(found), each, published)
