"""Verb: make the yardstick that every round is measured with."""

from dataclasses import replace
from pathlib import Path

from fmcore.coupling.read import open_coupling
from fmcore.measure import protocol, yardstick
from fmcore.measure.reconstructed import NAME, reconstruction
from fmcore.measure.yardstick import Yardstick, YardstickSettings
from fmcore.settings import Say
from fmcore.verdict import keys
from fmcore.verdict.errors import with_error
from fmcore.work.work import Work

__all__ = ["YardstickSettings", "calibrate"]


def _silent(_: str) -> None:
    """Say nothing."""


def calibrate(
    data: Path,
    out: Path,
    settings: YardstickSettings,
    work: Work,
    *,
    say: Say = _silent,
    warn: Say = _silent,
) -> None:
    """Fit features and floor on the real data in the coupling `data`; write them to `out`.

    `say` is told which metric judges the rounds, its floor, and which differences it can resolve;
    `warn` is called where it cannot judge what samples show. The reference of the published
    protocol is written too, if the settings have one. Of latents the distance of what a codec gives
    back is measured, and must be accepted: no round can have a smaller one.
    """
    if settings.features.kind == "identity" and open_coupling(data).originals.about.image:
        warn(
            "yardstick.features.kind identity judges images by mean and covariance of their raw"
            " pixels, which do not see what an image shows: take lite0, or classifier for images"
            " with labels"
        )
    if settings.protocol is not None:
        reference = protocol.fit(data, settings.protocol, seed=work.seed, device=work.device)
        protocol.save(out / protocol.FOLDER, reference)
    made = yardstick.fit(data, settings, seed=work.seed, log=work.log)
    again = reconstruction(open_coupling(data), made, seed=work.seed, device=work.device)
    if again:
        made = replace(made, about={**made.about, NAME: again})
        say(_lost(made, again))
        work.accept(again)
    yardstick.save(out, made)
    say(_words(made))


def _lost(made: Yardstick, again: dict[str, float]) -> str:
    name = f"{made.about['frechet']}/{NAME}"
    scored = with_error(again[name], again.get(keys.error(name)))
    return (
        f"real data that the codec encoded and decoded scores {scored}, {again[NAME]:.3g} times the"
        " floor: no round on its latents can be better"
    )


def _words(made: Yardstick) -> str:
    name, floor, n = made.name, made.floor, made.judged
    scored = with_error(floor[name], floor.get(keys.error(name)))
    said = f"rounds are judged by {name} of {n:,} samples a cut; real against real (the floor)"
    said += f" {scored}"
    resolves, cuts = made.about["resolves"], len(made.cuts)
    if cuts < 2:
        return f"{said}; a single cut has no error: raise yardstick.splits to compare by a test"
    if resolves is None:
        return f"{said}; a floor of one cut does not say what a test resolves: raise floor_cuts"
    return f"{said}; near it a paired test over {cuts} cuts sees differences above {resolves:.2g}"
