"""A round as an MLflow model: noise in, samples out. Safetensors and code, no pickle."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from flows.tracking import pages
from fmcore.checked import FILES, read_checked
from fmcore.network.store import read_config

REQUIREMENTS = ("torch", "numpy", "pydantic", "safetensors", "pyarrow", "mlflow")
OF_NETWORK = {name: ("diffusers",) for name in ("unet", "dit", "mmdit", "outside")}
"""What a network needs beside these, by its name."""
PARAMS = (
    ("nfe", "long", 1),
    ("seed", "long", 0),
    ("count", "long", 0),
    ("label", "long", -1),
    ("class", "string", ""),
    ("guidance", "double", 1.0),
    ("weights", "string", "ema"),
)
"""Parameters of `predict` beside the noise: `count` above 0 draws it, a class has a number
(`label`, -1: none) or a name (`class`), `weights` are ema, raw, or the relative length of a power
average."""


def log_model(mlflow: Any, run: str, folder: Path) -> str:
    """Log the model directory `folder` as `velocity` of the run; return the model's id.

    The signature has no input, because noise is optional: a seed and a count may replace it.
    Raises ReflowError for a damaged model.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    config = read_config(folder)
    for name in config[FILES]:
        read_checked(folder, name, config)
    shape = config["shape"]
    needs = (*REQUIREMENTS, *OF_NETWORK.get(config["network"]["name"], ()))
    float32 = np.dtype("float32")
    signature = ModelSignature(
        outputs=Schema([TensorSpec(float32, (-1, *shape))]),
        params=ParamSchema([ParamSpec(name, kind, value) for name, kind, value in PARAMS]),
    )
    package = Path(__file__).parents[2] / "fmcore"
    with mlflow.start_run(run_id=run, log_system_metrics=False):
        logged = mlflow.pyfunc.log_model(
            name="velocity",
            python_model=str(Path(__file__).with_name("served.py")),
            artifacts={"model": str(folder)},
            code_paths=[str(package)],
            signature=signature,
            input_example=np.zeros((2, *shape), np.float32),
            pip_requirements=[f"{name}=={version(name).split('+')[0]}" for name in needs],
        )
    words = {"mlflow.note.content": pages.loading(logged.model_uri, config)}
    mlflow.MlflowClient().set_logged_model_tags(logged.model_id, words)
    return str(logged.model_id)
