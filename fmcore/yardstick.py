"""The yardstick of a chain: features, statistics of real data, and the real-vs-real floor.

Real data is cut `splits` times into two disjoint random halves of n samples. One half is the
reference, the other gives the floor: what a perfect generator would score at this n. Generated
samples come in `splits` groups of the same n, so that the sampling bias is the same on both sides.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fmcore.coupling import open_coupling, read
from fmcore.metrics.features import (
    Extractor,
    FeatureSettings,
    extract,
    fingerprint,
    fit_classifier,
    load_extractor,
    metric_name,
    quantise,
    save_extractor,
)
from fmcore.metrics.frechet import GaussianStats, frechet_distance
from fmcore.metrics.transport import energy_distance, sliced_w2, w2
from fmcore.settings import Log, ReflowError, Settings, derive_seed

PLANE_SAMPLES = 1000


class YardstickSettings(Settings):
    """Which features, how many samples a half, how many cuts."""

    features: FeatureSettings = FeatureSettings()
    samples: int = Field(default=5000, gt=1)
    splits: int = Field(default=4, gt=0)


@dataclass(frozen=True)
class Yardstick:
    """A fitted yardstick; `measure` is what evaluation calls."""

    extractor: Extractor | None
    references: list[GaussianStats]
    points: list[Tensor]
    about: dict[str, Any]

    @property
    def name(self) -> str:
        """Return the metric's name, with the features in it: fd_clf, fd_identity."""
        return str(self.about["metric"])

    @property
    def samples(self) -> int:
        """Return how many generated samples `measure` expects: splits times n."""
        return int(self.about["n"]) * len(self.references)

    def measure(self, x: Tensor) -> dict[str, float]:
        """Return the distances of generated x [samples, *D] to the data, mean and spread."""
        return _distances(self, list(x.split(int(self.about["n"]))))


def _features(extractor: Extractor | None, x: Tensor) -> Tensor:
    return extract(extractor, quantise(x) if extractor is not None else x)


def _distances(yardstick: Yardstick, groups: list[Tensor]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for i, (group, reference) in enumerate(zip(groups, yardstick.references, strict=True)):
        stats = GaussianStats.from_features(_features(yardstick.extractor, group))
        values.setdefault(yardstick.name, []).append(frechet_distance(stats, reference))
        if yardstick.points:
            a, b = group[:PLANE_SAMPLES].flatten(1), yardstick.points[i]
            values.setdefault("w2", []).append(w2(a, b))
            values.setdefault("sliced_w2", []).append(sliced_w2(a, b, seed=i))
            values.setdefault("energy", []).append(energy_distance(a, b))
    means = {name: fmean(v) for name, v in values.items()}
    return {**means, **{f"{name}_sd": pstdev(v) for name, v in values.items()}}


def fit(data: Path, settings: YardstickSettings, *, seed: int, log: Log) -> Yardstick:
    """Learn the features from the real data in the coupling `data` and measure the floor."""
    coupling = open_coupling(data)
    pairs = read(coupling)
    n = min(settings.samples, len(pairs) // 2)
    if n < 2:
        raise ReflowError(f"{data}: {len(pairs)} samples cannot be cut in two halves; add data")
    extractor = None
    if settings.features.kind == "classifier":
        if pairs.label is None or not coupling.about.image:
            raise ReflowError(
                f"{data}: yardstick.features.kind classifier needs images with labels, this data"
                " has none; set it to identity, or put the images into one folder per class"
            )
        extractor = fit_classifier(
            pairs.target, pairs.label, settings.features, derive_seed(seed, "classifier"), log
        )
    about: dict[str, Any] = {
        "metric": metric_name(settings.features),
        "fingerprint": fingerprint(extractor),
        "n": n,
        "splits": settings.splits,
    }
    references, points, others = [], [], []
    for i in range(settings.splits):
        generator = torch.Generator().manual_seed(derive_seed(seed, "halves", i))
        order = torch.randperm(len(pairs), generator=generator)
        reference = pairs.target[order[:n]]
        references.append(GaussianStats.from_features(_features(extractor, reference)))
        others.append(pairs.target[order[n : 2 * n]])
        if not coupling.about.image:
            points.append(reference[:PLANE_SAMPLES].flatten(1))
    yardstick = Yardstick(extractor, references, points, about)
    return Yardstick(
        extractor, references, points, {**about, "floor": _distances(yardstick, others)}
    )


def save(path: Path, yardstick: Yardstick) -> None:
    """Write the yardstick to the folder `path`: safetensors and JSON, no pickle."""
    path.mkdir(parents=True, exist_ok=True)
    if yardstick.extractor is not None:
        save_extractor(path / "extractor", yardstick.extractor)
    tensors: dict[str, Tensor] = {}
    for i, stats in enumerate(yardstick.references):
        tensors[f"mean.{i}"], tensors[f"m2.{i}"] = stats.mean, stats.m2
    for i, points in enumerate(yardstick.points):
        tensors[f"points.{i}"] = points
    save_file(
        {k: v.contiguous().clone() for k, v in tensors.items()}, path / "reference.safetensors"
    )
    (path / "yardstick.json").write_text(json.dumps(yardstick.about, indent=2) + "\n")


def load(path: Path) -> Yardstick:
    """Read a yardstick; refuses one whose extractor is not the one it was made with."""
    try:
        about = json.loads((path / "yardstick.json").read_text())
        tensors = load_file(path / "reference.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise ReflowError(f"{path}: not a yardstick ({error}); run the stage calibrate") from error
    folder = path / "extractor"
    extractor = load_extractor(folder) if folder.exists() else None
    if fingerprint(extractor) != about["fingerprint"]:
        raise ReflowError(f"{folder}: not the extractor that {path} was made with; run calibrate")
    count = int(about["splits"])
    references = [
        GaussianStats(int(about["n"]), tensors[f"mean.{i}"], tensors[f"m2.{i}"])
        for i in range(count)
    ]
    points = [tensors[f"points.{i}"] for i in range(count) if f"points.{i}" in tensors]
    return Yardstick(extractor, references, points, about)
