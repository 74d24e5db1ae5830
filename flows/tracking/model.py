"""A round as an MLflow model: noise in, samples out. Safetensors and code, no pickle."""

import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

REQUIREMENTS = ("torch", "numpy", "pydantic", "safetensors", "pyarrow", "mlflow")


def log_model(mlflow: Any, run: str, folder: Path) -> None:
    """Log the model directory `folder` as `velocity` of the run, with signature and example."""
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    from fmcore.network import load

    shape = load(folder).shape
    float32 = np.dtype("float32")
    signature = ModelSignature(
        inputs=Schema([TensorSpec(float32, (-1, *shape), "noise")]),
        outputs=Schema([TensorSpec(float32, (-1, *shape))]),
        params=ParamSchema([ParamSpec("nfe", "long", 1)]),
    )
    package = Path(__file__).parents[2] / "fmcore"
    with (
        warnings.catch_warnings(action="ignore"),  # it asks for type hints beside the signature
        mlflow.start_run(run_id=run, log_system_metrics=False),
    ):
        mlflow.pyfunc.log_model(
            name="velocity",
            python_model=str(Path(__file__).with_name("served.py")),
            artifacts={"model": str(folder)},
            code_paths=[str(package)],
            signature=signature,
            input_example={"noise": np.zeros((2, *shape), np.float32)},
            pip_requirements=[f"{name}=={version(name).split('+')[0]}" for name in REQUIREMENTS],
        )
