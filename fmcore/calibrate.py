"""Verb: make the yardstick that every round is measured with."""

from pathlib import Path

from fmcore.measure import yardstick
from fmcore.measure.yardstick import YardstickSettings
from fmcore.work.work import Work

__all__ = ["YardstickSettings", "calibrate"]


def calibrate(data: Path, out: Path, settings: YardstickSettings, work: Work) -> None:
    """Fit features and floor on the real data in the coupling `data`; write them to `out`."""
    yardstick.save(out, yardstick.fit(data, settings, seed=work.seed, log=work.log))
