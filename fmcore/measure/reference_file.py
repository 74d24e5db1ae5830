"""Reference statistics of real images from a file that somebody else computed.

Layouts, told apart by their keys:
    mu, sigma                    EDM's fid-refs, clean-fid, pytorch-fid (.npz)
    mu, sigma, mu_s, sigma_s     ADM's evaluator, `_s` of the spatial features (.npz)
    mu, sigma                    torch-fidelity's cache of `stat-fid` (.pt)
No code in a file is run.
"""

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import npyio
from torch import Tensor

from fmcore.measure.frechet import GaussianStats
from fmcore.settings import ReflowError

POOLED, SPATIAL = 2048, 2023
"""Dimensions of the pooled and of the spatial features of the Inception of 2015."""

EXPECTED = (
    "expected statistics of the Inception of 2015: mu [2048] and sigma [2048, 2048], in an .npz of"
    " EDM, ADM or clean-fid, or in a .pt of torch-fidelity's cache"
)


@dataclass(frozen=True)
class Reference:
    """Statistics of pooled features, of spatial ones where the file has them, and its sha256."""

    pooled: GaussianStats
    spatial: GaussianStats | None
    sha256: str


def read_reference(path: Path) -> Reference:
    """Read statistics in one of the four layouts; raise ReflowError for anything else."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        found = _torch(path) if path.suffix in (".pt", ".pth") else _numpy(path)
        pooled = _stats(found, "mu", "sigma", POOLED)
        spatial = _stats(found, "mu_s", "sigma_s", SPATIAL) if "mu_s" in found else None
    except OSError as error:
        reason = error.strerror or str(error)
        raise ReflowError(
            f"yardstick.protocol.statistics: {path}: cannot be read ({reason}); give the path of a"
            " file with statistics, nothing is downloaded"
        ) from error
    except Exception as error:  # numpy, zipfile, pickle and torch raise many kinds for damage
        reason = (str(error).splitlines() or [type(error).__name__])[0][:150]
        raise ReflowError(f"{path}: {EXPECTED}; got: {reason}") from error
    return Reference(pooled, spatial, digest)


def _numpy(path: Path) -> Mapping[str, Any]:
    if not zipfile.is_zipfile(path):
        raise ValueError("no .npz archive")
    with np.load(path, allow_pickle=False) as file:
        assert isinstance(file, npyio.NpzFile)
        names = {"mu", "sigma", "mu_s", "sigma_s"} & set(file.files)
        if not {"mu", "sigma"} <= names:
            raise ValueError(f"the arrays {', '.join(sorted(file.files)[:8])}")
        return {name: file[name] for name in names}  # not ADM's images, arr_0


def _torch(path: Path) -> Mapping[str, Any]:
    """Read a .pt of numpy arrays or tensors; only the types of arrays may be in it."""
    allowed: list[Any] = [np.ndarray, np.dtype, np.dtypes.Float32DType, np.dtypes.Float64DType]
    rebuild: Any = np.array(0).__reduce__()[0]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # numpy 1 and 2
        allowed.append((rebuild, f"{module}._reconstruct"))
    with torch.serialization.safe_globals(allowed):
        found = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(found, dict) or not {"mu", "sigma"} <= set(found):
        raise ValueError(f"a {type(found).__name__} without mu and sigma")
    return found


def _stats(found: Mapping[str, Any], mean: str, covariance: str, size: int) -> GaussianStats:
    mu, sigma = (_float64(found[name]) for name in (mean, covariance))
    if mu.shape != (size,) or sigma.shape != (size, size):
        raise ValueError(f"{mean} {list(mu.shape)} and {covariance} {list(sigma.shape)}")
    if not bool(mu.isfinite().all() and sigma.isfinite().all()):
        raise ValueError(f"{mean} or {covariance} with values that are not finite")
    if not torch.allclose(sigma, sigma.T, rtol=1e-3, atol=1e-4):
        raise ValueError(f"{covariance} that is not symmetric")
    return GaussianStats.of(mu, (sigma + sigma.T) / 2)


def _float64(value: Any) -> Tensor:
    return torch.as_tensor(np.asarray(value)).double()
