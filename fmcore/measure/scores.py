"""All that samples are measured with: the yardstick, and the published protocol if there is one."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fmcore.codec.latents import Units
from fmcore.measure import protocol
from fmcore.measure.passing import Passing
from fmcore.measure.protocol import Published
from fmcore.measure.yardstick import Yardstick
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

    def row(
        self,
        sampler: str,
        found: Iterable[Solution],
        units: Units,
        label: Tensor | None,
        *,
        shown: int = 0,
    ) -> tuple[SamplerCuts, Passing]:
        """Return the row of solutions that come in parts, `samples` rows in all, and what passed.

        Each part is measured and dropped. Only a protocol keeps its samples, for its metrics take
        all of them together. The first `shown` are in what passed.
        """
        n, passed = self.yardstick.samples, Passing(found, units, shown)
        kept: list[Tensor] = []

        def first() -> Iterator[Tensor]:
            left = n
            for x in passed:
                if self.published is not None:
                    kept.append(x)
                if left > 0:
                    yield x[:left]
                    left -= len(x)

        parts = first()
        each = self.yardstick.measure(parts, None if label is None else label[:n])
        assert next(parts, None) is None  # what only the protocol takes passes, too
        published = {} if self.published is None else self.published.measure(torch.cat(kept))
        return SamplerCuts(sampler, passed.nfe, each, published), passed
