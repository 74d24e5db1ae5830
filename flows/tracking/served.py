"""The code that MLflow keeps beside a model and runs to turn noise into samples."""

from pathlib import Path

import mlflow
import numpy as np
import torch
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from fmcore.flow import Flow
from fmcore.network import load
from fmcore.solver import Solver


class Sampler(PythonModel):
    """`predict(noise [B, *D], params={"nfe": 1})` -> samples [B, *D] by Euler steps."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the velocity network from the artifact."""
        self.flow = Flow.of(load(Path(context.artifacts["model"])))

    # MLflow would read type hints of `predict` as a schema; the signature has the schema.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Carry noise [B, *D] to data [B, *D]."""
        noise = model_input["noise"] if isinstance(model_input, dict) else model_input
        x = torch.from_numpy(np.asarray(noise, dtype=np.float32))
        solver = Solver(name="euler", steps=int((params or {}).get("nfe", 1)))
        return self.flow.sample(x, solver, device=torch.device("cpu")).x.numpy()


mlflow.models.set_model(Sampler())
