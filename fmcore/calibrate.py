"""Verb: make the yardstick that every round is measured with."""

from pathlib import Path

from fmcore.measure import yardstick
from fmcore.measure.yardstick import YardstickSettings
from fmcore.settings import Log


def calibrate(data: Path, out: Path, settings: YardstickSettings, *, seed: int, log: Log) -> None:
    """Fit features and floor on the real data in the coupling `data`; write them to `out`."""
    yardstick.save(out, yardstick.fit(data, settings, seed=seed, log=log))
