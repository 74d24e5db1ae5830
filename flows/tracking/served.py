"""The code that MLflow keeps beside a model and runs to turn noise into samples."""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from torch import Tensor

from fmcore.coupling.noise import gaussian_noise
from fmcore.network.store import load, weights_of
from fmcore.sampling.flow import Flow
from fmcore.settings import ReflowError, derive_seed
from fmcore.solve.solver import Solver


class Sampler(PythonModel):
    """`predict(noise [B, *D], params={"nfe": 1})` -> samples [B, *D] by Euler steps.

    Samples are in the data's own units; those of a flow on latents are latents. A class is given by
    `label`, its number, or `class`, its name.

    With `count` above 0 the noise is drawn: `predict([], params={"seed": 0, "count": 64})` gives
    what `reflow sample` gives for that seed.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the averaged network from the artifact; other weights when they are asked for."""
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.folder = Path(context.artifacts["model"])
        self.model = load(self.folder, device=str(self.device))
        self.flows = {"ema": Flow.of(self.model)}
        self.shape = self.model.shape

    # From this type hint MLflow infers no schema; with another one, or none, it warns.
    def predict(
        self,
        context: PythonModelContext,
        model_input: np.ndarray,
        params: dict[str, Any] | None = None,
    ) -> np.ndarray:
        """Turn noise [B, *D], or `count` draws from `seed`, into samples [B, *D]."""
        given = params or {}
        source = self._source(model_input, int(given.get("seed", 0)), int(given.get("count", 0)))
        label = self._label(int(given.get("label", -1)), str(given.get("class", "")), len(source))
        solver = Solver(name="euler", steps=int(given.get("nfe", 1)))
        guidance = float(given.get("guidance", 1.0))
        flow = self._flow(str(given.get("weights", "ema")))
        found = flow.sample(source, solver, device=self.device, label=label, guidance=guidance)
        return flow.scale.inverse(found.x).numpy()

    def _flow(self, weights: str) -> Flow:
        """Return the flow of some weights of the model: ema, raw, or a power average's length."""
        if weights not in self.flows:
            chosen = load(self.folder, weights=weights_of(weights), device=str(self.device))
            self.flows[weights] = Flow.of(chosen)
        return self.flows[weights]

    def _label(self, number: int, name: str, count: int) -> Tensor | None:
        """Return the label [count] of a class by number or name; None for -1 and no name."""
        if name and number >= 0:
            raise ReflowError(f"expected label or class, got both: {number} and {name!r}")
        if not name and number < 0:
            return None
        known = number if not name else self.model.label(name)
        classes = self.model.network.settings.classes
        if known >= classes:
            raise ReflowError(f"label {number}: the model has {classes} classes")
        return torch.full((count,), known)

    def _source(self, given: Any, seed: int, count: int) -> Tensor:
        noise = np.asarray(given["noise"] if isinstance(given, dict) else given, dtype=np.float32)
        if count > 0 and self.model.config.get("source") is not None:
            raise ReflowError(
                "this flow starts from the samples of another data set, not from noise: give them,"
                " in model units, instead of params seed and count"
            )
        if count > 0 and noise.size == 0:
            return gaussian_noise(derive_seed(seed, "sample"), np.arange(count), self.shape)
        if count > 0 or noise.shape[1:] != self.shape or noise.size == 0:
            raise ReflowError(
                f"expected noise of shape [B, {', '.join(map(str, self.shape))}], or no noise and"
                f" params seed and count; got shape {list(noise.shape)} and count {count}"
            )
        return torch.from_numpy(noise)


mlflow.models.set_model(Sampler())
