"""Verb: make the yardstick that every round is measured with."""

from pathlib import Path

from fmcore import yardstick
from fmcore.settings import Log
from fmcore.yardstick import YardstickSettings


def calibrate(data: Path, out: Path, settings: YardstickSettings, *, seed: int, log: Log) -> None:
    """Fit features and floor on the real data in the coupling `data`; write them to `out`."""
    yardstick.save(out, yardstick.fit(data, settings, seed=seed, log=log))
