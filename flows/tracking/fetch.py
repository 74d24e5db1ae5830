"""The folder of a registered model, fetched from MLflow."""

import shutil
from pathlib import Path

from flows.project.environment import configure
from flows.tracking.client import answers
from fmcore.settings import ReflowError


def registered(root: Path, model: str, uri: str | None, into: Path) -> Path:
    """Download a version that `reflow publish` registered to `into`; return our model's folder.

    `model` is models:/NAME/VERSION or models:/NAME@ALIAS, `uri` a server, that of the project where
    it is None. Raises ReflowError if there is no such version, or it holds no model of ours.
    """
    configure(root)
    with answers():
        import mlflow

        before = mlflow.get_tracking_uri()
        try:
            if uri is not None:
                mlflow.set_tracking_uri(uri)
            shutil.rmtree(into, ignore_errors=True)
            into.mkdir(parents=True)
            got = Path(mlflow.artifacts.download_artifacts(model, dst_path=str(into)))
        finally:
            mlflow.set_tracking_uri(before)
    found = [file.parent for file in got.glob("artifacts/*/config.json")]
    if len(found) != 1:
        raise ReflowError(
            f"{model}: no model of a reflow round is in it; name one that `reflow publish`"
            " registered, or use another kind of model"
        )
    return found[0]
