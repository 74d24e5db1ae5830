"""Verb: learn a velocity from a coupling; the same code trains round 1 and round k."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmcore.choices.laws import LawOfTime
from fmcore.codec.latents import same_codec
from fmcore.coupling.checks import check_labels, check_source
from fmcore.coupling.pairs import Pairs
from fmcore.coupling.read import Coupling, labels, open_coupling, read
from fmcore.matching.interpolant import Objective, Schedule
from fmcore.network.field import Field
from fmcore.network.snapshots import POWER, save_snapshot, snapshot_file
from fmcore.network.store import Model, condition, load
from fmcore.scale import same_units
from fmcore.settings import ReflowError
from fmcore.training.batches import batches, longest
from fmcore.training.checkpoint import START, State
from fmcore.training.divergence import Watch, advice_on_loss, check_loss, watch_of
from fmcore.training.divided import gather, keep, resume, states
from fmcore.training.fit import Train, fit, map_of
from fmcore.training.held_out import Sides, beside_constant, held_out_losses, held_out_sides
from fmcore.training.outcome import write, write_model
from fmcore.training.processes import Group, rank, training_group
from fmcore.training.start import check_pairs, network_to_train
from fmcore.work.compute import in_tiles
from fmcore.work.work import Work

__all__ = ["Train", "train"]

LEAST_ROWS = 256
"""Pairs at least on which the losses are found that a diverged one is told by."""


def train(
    coupling: Path,
    init: Path,
    out: Path,
    curve: Path,
    metrics: Path,
    settings: Train,
    *,
    name: str,
    work: Work,
) -> None:
    """Train the model `init` on `coupling`; write the model, its curve (csv) and metrics (json).

    The scratch folder keeps checkpoints: a killed training continues from there and gives the same
    bytes. If its subfolder `CONTINUED` has the checkpoint of a training with other settings,
    training goes on from that one, and the model's config says so. Several processes that torchrun
    started train together (`train.processes`); only the first writes.
    """
    start = load(init, weights=settings.start_from)
    opened = open_coupling(coupling)
    _check(opened, start, init, settings)
    if not rank():
        _advise(opened, settings, work)
    network = network_to_train(start.network, settings, seed=work.seed)
    divided = settings.shard == "full"
    with training_group(settings.processes, settings.batch, work.device, divided=divided) as (
        group,
        own,
    ):
        running, state = states(network.to(own), settings, group)
        watch = _watch(state, opened, settings, work) if group.leads and state else None
        _resume(running, start, settings, group, work)
        _run(running, state, opened, settings, group, work, watch)
        state = gather(running, state, group)
        if not group.leads or state is None:
            return
    sides = held_out_sides(opened, limit=16 * settings.batch)
    final = _held_out(state, sides, settings, work=work, limit=16 * settings.batch)
    work.accept(final := final | beside_constant(final, sides[0], *_rule(settings)))
    steps = _snapshot_steps(state, settings)
    about = {"round": name, "seed": work.seed, **_about(state, opened, settings, start, steps)}
    snapshots = [work.scratch / POWER / snapshot_file(step) for step in steps]
    write_model(out, state, settings, about, snapshots)
    write(curve, metrics, state, final, start, settings)


def _resume(running: State, start: Model, settings: Train, group: Group, work: Work) -> None:
    """Fill a state from its last checkpoint, if there is one, and tell the step."""
    if settings.adapter:
        running.settings[START] = start.digest
    if resume(work.scratch, running, group) and group.leads:
        work.log({}, running.step)


def _advise(coupling: Coupling, settings: Train, work: Work) -> None:
    """Warn of a loss that does not learn the mean, and of what several processes cannot do."""
    if advice := advice_on_loss(settings, independent=coupling.independent):
        work.warn(advice)
    replicas = settings.processes > 1 and settings.shard == "replicate"
    if replicas and settings.objective == "mean_flow":
        work.warn(
            "train.objective mean_flow: DistributedDataParallel passes no forward-mode product, so"
            " the processes average their gradients after the backward pass, not during it"
        )


def _watch(state: State, coupling: Coupling, settings: Train, work: Work) -> Watch | None:
    some = read(coupling, split="train", limit=max(settings.batch, LEAST_ROWS))
    return watch_of(state, some, settings, seed=work.seed) if len(some) else None


def _rule(settings: Train) -> tuple[Schedule, Objective, LawOfTime | None, int]:
    """Return by what the loss of a constant velocity is known."""
    law = settings.time if settings.student else None
    return settings.interpolant, settings.objective, law, settings.pieces


def _about(
    state: State, coupling: Coupling, settings: Train, start: Model, steps: list[int]
) -> dict[str, Any]:
    """Return what the model's config says of its training."""
    kept = settings.power_ema
    return {
        "interpolant": settings.interpolant.model_dump(),
        "objective": settings.objective,
        **map_of(settings),
        **({"pieces": settings.pieces} if settings.pieces > 1 else {}),
        "time": settings.time.model_dump(),
        "pairing": settings.pairing.name,
        "loss": settings.loss.model_dump(mode="json", exclude_none=True),
        "learns_mean": settings.loss.learns_mean,
        "coupling": coupling.about.kind,
        "init": start.digest,
        "steps": settings.steps,
        "ema": settings.average(),
        **({"adapter": settings.adapter.model_dump(mode="json")} if settings.adapter else {}),
        **({"power_ema": {"sigma_rel": kept.sigma_rel, "steps": steps}} if kept else {}),
        **({"continued": state.continued} if state.continued else {}),
        **coupling.about.carried(),
    }


def _snapshot_steps(state: State, settings: Train) -> list[int]:
    """Return the steps whose power averages are kept; not those of a training that it continues."""
    if settings.power_ema is None:
        return []
    first = max((told["step"] for told in state.continued), default=0)
    return [step for step in settings.power_ema.steps(settings.steps) if step > first]


def _run(
    state: State,
    whole: State | None,
    coupling: Coupling,
    settings: Train,
    group: Group,
    work: Work,
    watch: Watch | None,
) -> None:
    """Run `fit`: average the loss between logs, check it, save checkpoints.

    `whole` is where a divided state comes together, on the process that leads.
    """
    stream = _stream(state, coupling, settings, group, work)
    losses: list[Tensor] = []
    limit = 4 * settings.batch
    sides = held_out_sides(coupling, limit) if group.leads else None
    snapshots = set(_snapshot_steps(state, settings))
    for done in fit(state, stream, settings, seed=work.seed, compute=work.compute, group=group):
        losses.append(done.loss)
        if done.step in snapshots:  # before the checkpoint of the same step
            _snapshot(gather(state, whole, group), done.step, group, work)
        if watch:
            watch.recent.append(done.loss)
        last = done.step == settings.steps
        logged = done.step % settings.log_every == 0 or last
        kept = done.step % settings.checkpoint_every == 0 or last
        if not (logged or kept):
            continue
        row = {"step": float(done.step), "loss": float(torch.stack(losses).mean())}
        row |= {"lr": state.rate(done.step), "grad_norm": float(done.grad_norm)}
        kept_in = work.scratch.name if work.scratch.exists() else None
        check_loss(row["loss"], state, settings, kept_in)
        if watch:
            watch.check(done.step, settings, kept_in)
        losses.clear()
        if kept:
            whole = gather(state, whole, group)
        if kept and whole and sides:
            held = _held_out(whole, sides, settings, work=work, limit=limit)
            if "held_out_loss" in held:
                row["held_out_loss"] = held["held_out_loss"]
        if group.leads:
            state.history.append(row)
        if kept:
            keep(work.scratch, state, group)
        if group.leads:
            work.log({k: v for k, v in row.items() if k != "step"}, done.step)
            if not group.divided:
                work.look(state)


def _snapshot(state: State | None, step: int, group: Group, work: Work) -> None:
    """Keep the power averages after a step, if this process leads."""
    if state and group.leads:
        save_snapshot(work.scratch / POWER, step, state.powers)


def _stream(
    state: State, coupling: Coupling, settings: Train, group: Group, work: Work
) -> Iterator[Pairs]:
    """Return the pairs of each step from the current one on."""
    return batches(
        coupling,
        batch=settings.batch,
        seed=work.seed,
        start=state.step,
        memory=settings.memory_mb << 20,
        shorter_than=longest(coupling, settings.drop_longest, group),
        group=group,
        whole=settings.pairing.name != "independent",
    )


def _check(coupling: Coupling, start: Model, init: Path, settings: Train) -> None:
    """Raise ReflowError for what cannot be trained, before the first step."""
    shape = list(start.shape)
    if coupling.about.shape != shape:
        raise ReflowError(
            f"{init}: samples of shape {shape}, those of {coupling.path} {coupling.about.shape};"
            " start the round from a model of the same shape, or from scratch"
        )
    same_codec(start.config.get("codec"), coupling.about.codec, str(coupling.path))
    same_units(start.scale, coupling.about.units, str(coupling.path))
    condition(start, coupling.about.conditions, coupling.conditions, str(coupling.path))
    check_source(coupling.about.source, settings.interpolant)
    if not rank():  # the others do not read what is not theirs
        check_labels(labels(coupling), start.network.settings.classes, str(coupling.path))
    check_pairs(
        settings,
        start.network,
        independent=coupling.independent,
        kept=coupling.about.form.store.pieces,
        scaled=not coupling.about.units.identity,
        name=str(coupling.path),
    )


def _held_out(
    state: State, sides: Sides, settings: Train, *, work: Work, limit: int
) -> dict[str, float]:
    """Return the losses of the EMA weights; for a student, at the times that it learns."""
    home, device = next(state.network.parameters()).device, work.device
    state.ema.module.to(device)  # a divided state comes together on the CPU
    classes = state.network.settings.classes
    state.ema.eval()
    network = in_tiles(state.ema, state.network.tile)
    field = Field(network, settings.interpolant, settings.objective, classes)
    found = held_out_losses(
        field,
        sides,
        seed=work.seed,
        device=device,
        limit=limit,
        law=settings.time if settings.student else None,
        pieces=settings.pieces,
    )
    state.ema.module.to(home)
    state.ema.train()
    return found
