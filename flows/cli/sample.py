"""`reflow sample`: draw samples from a round into a picture or an array."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flows.dag.graph import paths, prepared, read
from fmcore.settings import ReflowError, derive_seed

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Draw:
    """What to draw: by Euler steps or, with churn, the reverse SDE; a class and its guidance.

    `weights` are ema, raw, or the relative length of a power average.
    """

    nfe: int = 1
    count: int = 64
    seed: int = 0
    churn: float = 0.0
    label: str | None = None
    guidance: float = 1.0
    weights: str = "ema"


def draw(root: Path, round_: str, file: Path, wanted: Draw) -> int:
    """Write samples of a round to a .png or .npy file; return the evaluations for each sample."""
    if file.suffix not in {".png", ".npy"}:
        raise ReflowError(f"{file}: expected a name that ends in .png or .npy")
    import numpy as np

    from fmcore.verdict import pictures

    data = prepared(read(root))
    x, nfe = _samples(paths(root, f"train@{round_}")["out"], root / (data or ""), wanted)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".npy":
            np.save(file, x.numpy())
        else:
            pictures.samples_by_nfe(file, {nfe: x}, image=x.ndim == 4, reference=None)
    except OSError as error:
        raise ReflowError(f"{file}: cannot be written ({error.strerror})") from error
    return nfe


def _samples(model: Path, data: Path, wanted: Draw) -> "tuple[Tensor, int]":
    """Return samples [count, *D] in the data's own units, and the evaluations for each.

    They start from noise, or from the real source.
    """
    import numpy as np
    import torch

    from fmcore.coupling.read import open_coupling
    from fmcore.coupling.source import Source
    from fmcore.network.store import load, weights_of
    from fmcore.sampling.flow import Flow, concatenated
    from fmcore.sampling.reverse_sde import Sde, diffusions
    from fmcore.solve.solver import Solver

    loaded = load(model, weights=weights_of(wanted.weights))
    flow, ids, cpu = Flow.of(loaded), np.arange(wanted.count), torch.device("cpu")
    source = Source(loaded.shape)
    if loaded.config.get("source") is not None:
        source = open_coupling(data).source
    noise = source.draw(derive_seed(wanted.seed, "sample"), ids)
    if wanted.label is None and wanted.guidance != 1:
        raise ReflowError("--guidance pulls towards a class; say which by --label")
    label = None
    if wanted.label is not None:
        label = torch.full((wanted.count,), loaded.label(wanted.label))
    if wanted.churn:
        sde = Sde(steps=wanted.nfe, churn=wanted.churn)
        parts = diffusions(
            flow, noise, sde, seed=wanted.seed, device=cpu, label=label,
            guidance=wanted.guidance,
        )  # fmt: skip
        found = concatenated(list(parts))
    else:
        solver = Solver(name="euler", steps=wanted.nfe)
        found = flow.sample(noise, solver, device=cpu, label=label, guidance=wanted.guidance)
    return flow.scale.inverse(found.x), found.nfe
