"""Reflow on tensors in memory: pairs, a flow trained on them, the pairs that the flow makes.

The same code and the same numbers as the stages of a project, without folders: `fit_flow` is
`train`, `rectify` is `couple`.
"""

import hashlib
import sys
import warnings
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fmcore.choices.solvers import OdeSolver, solver_of_pairs
from fmcore.coupling.checks import check_labels, check_source
from fmcore.coupling.noise import gaussian_noise
from fmcore.coupling.pairs import Pairs
from fmcore.coupling.read import Split, open_coupling, read
from fmcore.coupling.source import Source
from fmcore.network.adapter import merged
from fmcore.network.build import Network, VelocityNetwork, build
from fmcore.network.mlp import MLP
from fmcore.network.store import Model, load
from fmcore.sampling.flow import Flow
from fmcore.settings import Log, ReflowError, derive_seed
from fmcore.training.batches import shuffled_batches
from fmcore.training.checkpoint import State
from fmcore.training.divergence import Watch, advice_on_loss, check_loss, watch_of
from fmcore.training.fit import Step, Train, fit, map_of, new_state
from fmcore.training.start import check_pairs, network_to_train
from fmcore.work.compute import Compute


def independent(
    target: Tensor, label: Tensor | None = None, *, source: Tensor | None = None
) -> Pairs:
    """Return targets [N, *D] as pairs whose source training draws at every step.

    It is standard normal, or one of the samples `source` [M, *D].
    """
    if source is not None and source.shape[1:] != target.shape[1:]:
        raise ReflowError(
            f"independent: target and source need samples of one shape, got"
            f" {list(target.shape[1:])} and {list(source.shape[1:])}"
        )
    pool = None if source is None else source.float()
    law = Source(tuple(target.shape[1:]), pool)
    drawn = law.draw(derive_seed(0, "held_out"), np.arange(len(target)))
    ids = torch.arange(len(target))
    return Pairs(ids, target.float(), drawn, label, independent=True, pool=pool)


def coupled(target: Tensor, source: Tensor, label: Tensor | None = None) -> Pairs:
    """Return the pairs of targets and sources [N, *D], row by row."""
    if target.shape != source.shape:
        raise ReflowError(
            f"coupled: target and source of one shape needed, got {list(target.shape)} and"
            f" {list(source.shape)}"
        )
    return Pairs(torch.arange(len(target)), target.float(), source.float(), label)


def fit_flow(
    pairs: Pairs,
    settings: Train,
    *,
    network: Network | None = None,
    init: Flow | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    compute: Compute | None = None,
    log: Log | None = None,
) -> Flow:
    """Train a flow on pairs, from a new network or from the weights of `init`.

    Shows the progress on a terminal, or tells `log` the mean loss every `settings.log_every` steps
    and at the end. Keeps no checkpoints and runs in one process; if you need these, write the pairs
    into a project with `write_coupling`.
    """
    _check(pairs, settings, init)
    if advice := advice_on_loss(settings, independent=pairs.independent):
        warnings.warn(advice, stacklevel=2)
    shape = tuple(pairs.target.shape[1:])
    if init is not None and init.made_of is not None:
        start: VelocityNetwork = deepcopy(init.made_of[0].network)
    else:
        start = build(network or MLP(), shape, seed=derive_seed(seed, "initialise"))
    check_pairs(
        settings,
        start,
        independent=pairs.independent,
        kept=1 if pairs.trajectory is None else 1 + pairs.trajectory.shape[1],
        scaled=False,
        name="pairs",
    )
    check_labels(pairs.label, start.settings.classes, "pairs")
    source = None if pairs.pool is None else {"name": "tensor"}
    check_source(source, settings.interpolant)
    start = network_to_train(start, settings, seed=seed)
    state = new_state(start.to(device or _device()), settings)
    pairs = _without_longest(pairs, settings.drop_longest)
    some = pairs.rows(torch.arange(min(len(pairs), max(settings.batch, 256))))
    watch = watch_of(state, some, settings, seed=seed)
    stream = shuffled_batches(pairs, batch=settings.batch, seed=seed)
    steps = fit(state, stream, settings, seed=seed, compute=compute)
    _drive(steps if log else _shown(steps, settings.steps), state, settings, watch, log)
    trained = cast(VelocityNetwork, state.ema.module).eval()
    trained = merged(trained) if settings.adapter else trained.requires_grad_(False)
    return Flow.of(Model(trained, _about(pairs, settings, init), digest=""), compute)


def _about(pairs: Pairs, settings: Train, init: Flow | None) -> dict[str, Any]:
    """Return the config of a model that was trained on pairs."""
    about: dict[str, Any] = {
        "interpolant": settings.interpolant.model_dump(),
        "objective": settings.objective,
        **map_of(settings),
        "coupling": "independent" if pairs.independent else "imported",
        "pairing": settings.pairing.name,
        "source": None if pairs.pool is None else {"name": "tensor"},
        **({"guided": pairs.guided} if pairs.guided != 1 else {}),
        "loss": settings.loss.model_dump(mode="json", exclude_none=True),
        "learns_mean": settings.loss.learns_mean,
    }
    if init is not None and init.made_of is not None:
        before = init.made_of[0].config
        kept = [k for k in ("classes", "scale", "source") if not about.get(k) and before.get(k)]
        about |= {key: before[key] for key in kept}
    return about


def _without_longest(pairs: Pairs, share: float) -> Pairs:
    """Return the pairs without that share of them which is the farthest apart."""
    if not share:
        return pairs
    lengths = pairs.lengths()
    longest = np.quantile(lengths.numpy(), 1 - share)
    return pairs.rows((lengths < float(longest)).nonzero()[:, 0])


def _check(pairs: Pairs, settings: Train, init: Flow | None) -> None:
    if settings.power_ema is not None:
        raise ReflowError("fit_flow keeps no snapshots for power_ema; train in a project for that")
    if settings.processes > 1:
        raise ReflowError("fit_flow trains in one process; for more run train in a project")
    if settings.start_from != "ema":
        raise ReflowError(
            f"start_from {settings.start_from}: fit_flow starts from the weights that `init` has;"
            " leave it out, or train in a project"
        )
    if settings.adapter and init is None:
        raise ReflowError("adapter: a new network is untrained; give `init`, the flow to adapt")
    if init is not None and init.made_of is None:
        raise ReflowError("init: expected a flow made by fit_flow or load_flow")
    if init is not None and init.made_of is not None:
        shape = tuple(pairs.target.shape[1:])
        if init.made_of[0].shape != shape:
            raise ReflowError(
                f"init: samples of shape {list(init.made_of[0].shape)}, those of the pairs"
                f" {list(shape)}"
            )


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _drive(
    steps: Iterator[Step],
    state: State,
    settings: Train,
    watch: Watch,
    log: Log | None,
) -> None:
    """Take the steps, check the loss, tell it."""
    losses: list[Tensor] = []
    for done in steps:
        losses.append(done.loss)
        watch.recent.append(done.loss)
        if done.step % settings.log_every == 0 or done.step == settings.steps:
            loss = float(torch.stack(losses).mean())
            check_loss(loss, state, settings)
            watch.check(done.step, settings)
            state.history.append({"step": float(done.step), "loss": loss})
            if log is not None:
                log({"loss": loss}, done.step)
            losses.clear()


def _shown(steps: Iterator[Step], count: int) -> Iterator[Step]:
    if not sys.stderr.isatty():
        yield from steps
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(steps, "fit_flow", total=count, console=Console(stderr=True))


def rectify(
    flow: Flow,
    source: int | Tensor,
    solver: OdeSolver | None = None,
    *,
    seed: int | None = None,
    label: Tensor | None = None,
    guidance: float = 1.0,
    batch: int = 1024,
) -> Pairs:
    """Return the coupling that the flow's ODE produces: each source with the end of its path.

    `source` is a number of pairs, whose noise is then a function of (seed, pair), or the sources
    [N, *D] themselves, which a flow from other sources than noise needs. Without a seed it follows
    from the flow's weights, so that each round has noise of its own. Without a solver it is the
    one that `couple` takes for the interpolant. Guidance, which needs labels, is in the pairs
    (`guided`), so the flow that learns them is not guided again.
    """
    if guidance != 1 and (not flow.classes or label is None):
        lacks = "this flow has no classes" if not flow.classes else "no label is given"
        raise ReflowError(
            f"rectify: guidance {guidance:g} pulls samples to their labels, and {lacks}; give"
            " `label` to a flow with classes, or leave guidance at 1"
        )
    if isinstance(source, int):
        if flow.made_of is not None and flow.made_of[0].config.get("source"):
            raise ReflowError("rectify: this flow does not start from noise; give the sources")
        if flow.made_of is None:
            raise ReflowError("rectify: the shape of this flow is not known; give the sources")
        seed = _seed_of(flow.made_of[0].network) if seed is None else seed
        source = gaussian_noise(seed, np.arange(source), flow.made_of[0].shape)
    solver = solver or solver_of_pairs(flow.interpolant)
    target = flow.sample(source, solver, batch=batch, label=label, guidance=guidance).x
    if not bool(torch.isfinite(target).all()):
        raise ReflowError("rectify: the velocity diverges; train longer, or take more solver steps")
    return replace(
        coupled(target, source, label), guided=guidance if guidance != 1 else flow.guided
    )


def _seed_of(network: nn.Module) -> int:
    """Return the seed of the noise of a round's pairs, a function of the round's weights."""
    told = hashlib.sha256()
    for weight in network.state_dict().values():
        told.update(weight.cpu().float().numpy().tobytes())
    return derive_seed(0, "rectify", told.hexdigest())


def load_flow(path: Path | str) -> Flow:
    """Return the flow of a model directory, such as `models/rf1` of a project.

    It samples in model units; `flow.scale.inverse(x)` gives samples in the data's own units.
    """
    return Flow.of(load(Path(path)))


def read_coupling(path: Path | str, *, split: Split = "all", limit: int | None = None) -> Pairs:
    """Read the pairs of a coupling's folder into memory, the first `limit` of a split."""
    return read(open_coupling(path), split=split, limit=limit)
