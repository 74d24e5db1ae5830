"""The sampler of a coupling, made of a model's folder, prepared data and settings, and checked."""

from pathlib import Path
from typing import Any

from fmcore.choices.solvers import solver_of_pairs
from fmcore.codec.latents import same_codec
from fmcore.coupling.checks import check_labels
from fmcore.coupling.read import Coupling, open_coupling, read
from fmcore.coupling.write import About
from fmcore.network.store import Model, condition, load
from fmcore.sampling.flow import Flow
from fmcore.sampling.pairs import Couple, PairSampler, nfe_of, recorded
from fmcore.sampling.probe import RECEIPT, Auto
from fmcore.scale import same_units
from fmcore.settings import GuidanceWithin, ReflowError, strength
from fmcore.work.compute import numerics
from fmcore.work.work import Work


def sampler_of(model: Path, data: Path, settings: Couple, work: Work) -> PairSampler:
    """Return the sampler of the coupling that the folder `model` makes from `data`."""
    velocity = load(model, weights=settings.weights, device=str(work.device))
    real = open_coupling(data)
    condition(velocity, real.about.conditions, real.conditions, str(data))
    flow = Flow.of(velocity, work.compute)
    _check(flow, real, settings)
    same_codec(flow.codec, real.about.codec, str(data))
    same_units(velocity.scale, real.about.units, str(data))
    named = settings.solver or solver_of_pairs(flow.interpolant)
    solver = None if isinstance(named, Auto) else named
    about = About(
        kind="mixed" if len(settings.mix) > 1 else next(iter(settings.mix)),
        shape=list(velocity.shape),
        image=real.about.image,
        pairs=settings.pairs,
        seed=work.seed,
        model=velocity.digest,
        weights=str(settings.weights),
        solver=None if solver is None else recorded(solver),
        nfe=None if solver is None else nfe_of(solver, flow, settings),
        audit_every=settings.audit_every,
        numerics=numerics(work.device, work.compute, flow.tile),
        mix={str(k): v for k, v in settings.mix.items()} if len(settings.mix) > 1 else None,
        **_guidance(flow, settings, velocity),
        classes=real.about.classes,
        scale=real.about.scale,
        source=real.about.source,
        store=settings.store.settled(image=real.about.image),
        conditions=real.about.conditions,
        codec=real.about.codec,
    )
    needed = flow.classes or "inverted" in settings.mix
    known = read(real, sources=False) if needed else None
    if "inverted" in settings.mix and known is not None and known.real_id is None:
        raise ReflowError(
            f"{data}: prepared by an earlier version, without the column real_id that keeps"
            " held-out samples out of inverted pairs; run the stage prepare again"
        )
    if flow.classes and known is not None and (known.label is not None or settings.guidance != 1):
        check_labels(known.label, flow.classes, str(data))
    sampler = PairSampler(flow, real.source, known, about, settings, work.device, real.conditions)
    return sampler.settled(named, work.scratch / RECEIPT) if isinstance(named, Auto) else sampler


def _check(flow: Flow, real: Coupling, settings: Couple) -> None:
    """Raise ReflowError for guidance or a form of the pairs that cannot be."""
    if settings.guidance != 1 and not flow.classes:
        raise ReflowError(
            f"couplings: guidance {strength(settings.guidance):g} needs a flow with classes; set"
            " network.classes or network.conditions, or guidance 1"
        )
    if settings.guidance != 1:
        flow.velocity(guidance=settings.guidance)  # refused where the pairs had some already
    if why := settings.store.refusal(noise=real.about.source is None, mix=settings.mix):
        raise ReflowError(f"couplings: store.source {why}")


def _guidance(flow: Flow, settings: Couple, model: Model) -> dict[str, Any]:
    """Return what a coupling records of its guidance, and of that further up the chain."""
    given = settings.guidance
    within = [*given.within] if isinstance(given, GuidanceWithin) else None
    return {
        "guidance": strength(given) if flow.classes else None,
        "guidance_within": within,
        "guided": strength(given) if given != 1 else model.config.get("guided"),
    }
