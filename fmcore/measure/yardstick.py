"""The yardstick of a chain: features, statistics of real data, and the real-vs-real floor.

Real data is cut `splits` times into two disjoint random halves of n samples. One half is the
reference, the other gives the floor: what a perfect generator would score at this n. Generated
samples come in `splits` groups of the same n, so that the sampling bias is the same on both sides.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load as tensors_in
from torch import Tensor

from fmcore.checked import FILES, hashes, read_checked, read_json, sealed
from fmcore.coupling.read import Coupling, Pairs, open_coupling, read
from fmcore.dataset.densities import EightGaussians
from fmcore.features.extractor import (
    Features,
    FeatureSettings,
    FeaturesOf,
    extract,
    fingerprint,
    fit_classifier,
    load_extractor,
    metric_name,
    pretrained,
    quantise,
    save_extractor,
    suffix,
)
from fmcore.measure.frechet import GaussianStats, frechet_distance, frechet_infinity
from fmcore.measure.neighbours import kernel_distance, manifold_scores, mode_scores, nearest_train
from fmcore.measure.transport import energy_distance, sliced_w2, w2
from fmcore.network.store import write_tensors
from fmcore.settings import Log, ReflowError, Settings, SeveralSamples, derive_seed

FILE = "yardstick.json"
"""The file of a yardstick's folder that describes it, with the hashes of the others."""

PLANE_SAMPLES = 1000
NEIGHBOURS = 2000
"""Number of samples on each side for metrics that compare all pairs of samples."""


class YardstickSettings(Settings):
    """The features, the number of samples in each half, the number of cuts."""

    features: FeaturesOf = FeatureSettings()
    """The features in which generated and real samples are compared."""
    samples: SeveralSamples = 5000
    """Samples in each half of a cut (n); half of the data at most. More samples make distances less
    biased; distances compare at equal n only."""
    splits: int = Field(default=4, gt=0, le=1000)
    """How many random cuts of the data into two halves. A round is measured with n samples for each
    cut, so more cuts lower the spread and cost time."""


@dataclass(frozen=True)
class Yardstick:
    """A fitted yardstick; `measure` is what evaluation calls.

    `references` are statistics of one half of each cut; `real` [M, d] features of the first half;
    `points` the halves themselves where samples are points; `classes` the first half by class.
    """

    extractor: Features | None
    references: list[GaussianStats]
    real: Tensor
    points: list[Tensor]
    classes: dict[int, GaussianStats]
    about: dict[str, Any]

    @property
    def name(self) -> str:
        """Return the metric's name, with the features in it: fd_clf, fd_identity."""
        return str(self.about["metric"])

    @property
    def samples(self) -> int:
        """Return how many generated samples `measure` expects: splits times n."""
        return int(self.about["n"]) * len(self.references)

    def measure(self, x: Tensor, label: Tensor | None = None) -> dict[str, float]:
        """Return the distances of generated x [samples, *D] to the data, mean and spread.

        With labels [samples] also the Frechet distance of each class to the real one.
        """
        n = int(self.about["n"])
        return _distances(self, list(x.split(n)), None if label is None else label[:n])


def _features(extractor: Features | None, x: Tensor) -> Tensor:
    return extract(extractor, quantise(x) if extractor is not None and x.ndim == 4 else x)


def _distances(
    yardstick: Yardstick, groups: list[Tensor], label: Tensor | None
) -> dict[str, float]:
    """Measure each group against its cut; metrics by neighbour or class take the first group."""
    values: dict[str, list[float]] = {}
    found: dict[str, float] = {}
    for i, (group, reference) in enumerate(zip(groups, yardstick.references, strict=True)):
        features = _features(yardstick.extractor, group)
        stats = GaussianStats.from_features(features)
        values.setdefault(yardstick.name, []).append(frechet_distance(stats, reference))
        if i == 0:
            found = _first(yardstick, features, reference, label)
        if yardstick.points:
            a, b = group[:PLANE_SAMPLES].flatten(1), yardstick.points[i]
            values.setdefault("w2", []).append(w2(a, b))
            values.setdefault("sliced_w2", []).append(sliced_w2(a, b, seed=i))
            values.setdefault("energy", []).append(energy_distance(a, b))
    means = {name: fmean(v) for name, v in values.items()}
    spread = {f"{name}_sd": pstdev(v) for name, v in values.items()}
    return {**means, **spread, **found, **_modes(yardstick, groups)}


def _first(
    yardstick: Yardstick, features: Tensor, reference: GaussianStats, label: Tensor | None
) -> dict[str, float]:
    """Measure features [n, d] of the first group by kernel, by neighbours and by class."""
    some, name = features[:NEIGHBOURS], yardstick.name
    found = {
        f"{name}_inf": frechet_infinity(features, reference),
        f"kd_{yardstick.about['features']}": kernel_distance(some, yardstick.real),
        **manifold_scores(some, yardstick.real),
        "nearest_train": nearest_train(some, yardstick.real),
    }
    if label is None:
        return found
    for key, stats in yardstick.classes.items():
        own = features[label == key][: yardstick.about["class_n"]]
        if len(own) > 1:
            distance = frechet_distance(GaussianStats.from_features(own), stats)
            found[f"{name}_class_{key}"] = distance
    return found


def _modes(yardstick: Yardstick, groups: list[Tensor]) -> dict[str, float]:
    data = yardstick.about.get("data") or {}
    if data.get("name") != "eight_gaussians":
        return {}
    law = EightGaussians.model_validate(data)
    return mode_scores(torch.cat(groups), law.modes(), law.std)


def fit(data: Path, settings: YardstickSettings, *, seed: int, log: Log) -> Yardstick:
    """Learn the features from the real data in the coupling `data` and measure the floor."""
    coupling = open_coupling(data)
    pairs = read(coupling)
    pairs = replace(pairs, target=coupling.about.units.inverse(pairs.target))  # in its own units
    n = min(settings.samples, len(pairs) // 2)
    if n < 2:
        raise ReflowError(f"{data}: {len(pairs)} samples cannot be cut in two halves; add data")
    extractor = _extractor(coupling, pairs, settings.features, seed=seed, log=log)
    about: dict[str, Any] = {
        "metric": metric_name(settings.features),
        "features": suffix(settings.features),
        "fingerprint": fingerprint(extractor),
        "n": n,
        "splits": settings.splits,
        "data": coupling.about.data,
    }
    references, points, others = [], [], []
    for i in range(settings.splits):
        generator = torch.Generator().manual_seed(derive_seed(seed, "halves", i))
        order = torch.randperm(len(pairs), generator=generator)
        reference = pairs.target[order[:n]]
        features = _features(extractor, reference)
        references.append(GaussianStats.from_features(features))
        others.append(pairs.target[order[n : 2 * n]])
        if i == 0:
            real, halves = features, order
        if not coupling.about.image:
            points.append(reference[:PLANE_SAMPLES].flatten(1))
    classes: dict[int, GaussianStats] = {}
    label = None
    if pairs.label is not None:
        own, label = pairs.label[halves[:n]], pairs.label[halves[n : 2 * n]]
        classes, about["class_n"] = _by_class(real, own, label)
    real = real[:NEIGHBOURS].clone()
    yardstick = Yardstick(extractor, references, real, points, classes, about)
    return replace(yardstick, about={**about, "floor": _distances(yardstick, others, label)})


def _extractor(
    coupling: Coupling, pairs: Pairs, settings: FeaturesOf, *, seed: int, log: Log
) -> Features | None:
    if settings.kind == "identity":
        return None
    if not isinstance(settings, FeatureSettings) or settings.kind != "classifier":
        return pretrained(settings)
    if pairs.label is None or not coupling.about.image:
        raise ReflowError(
            f"{coupling.path}: yardstick.features.kind classifier needs images with labels, this"
            " data has none; set it to lite0 or identity, or put the images into one folder per"
            " class"
        )
    return fit_classifier(pairs.target, pairs.label, settings, derive_seed(seed, "classifier"), log)


def _by_class(real: Tensor, label: Tensor, other: Tensor) -> tuple[dict[int, GaussianStats], int]:
    """Return the statistics of each class, and how many of each class are compared."""
    keys = [int(k) for k in label.unique() if int((label == k).sum()) > 1]
    size = min((int((side == k).sum()) for side in (label, other) for k in keys), default=0)
    return {k: GaussianStats.from_features(real[label == k]) for k in keys}, size


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
    for key, stats in yardstick.classes.items():
        tensors[f"class.{key}.mean"], tensors[f"class.{key}.m2"] = stats.mean, stats.m2
        tensors[f"class.{key}.n"] = torch.tensor(stats.n)
    tensors["real"] = yardstick.real
    write_tensors(
        path / "reference.safetensors", {k: v.contiguous().clone() for k, v in tensors.items()}
    )
    about = sealed({**yardstick.about, FILES: hashes(path, besides=FILE)})
    (path / FILE).write_text(json.dumps(about, indent=2) + "\n")


def load(path: Path) -> Yardstick:
    """Read a yardstick; raise ReflowError for damage, or for another extractor than its own."""
    folder = path / "extractor"
    try:
        about = read_json(path / FILE)
        tensors = tensors_in(read_checked(path, "reference.safetensors", about))
        for name in about[FILES]:
            read_checked(path, name, about)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ReflowError(f"{path}: not a yardstick ({error}); run the stage calibrate") from error
    extractor = load_extractor(folder) if folder.exists() else None
    del about[FILES]
    if fingerprint(extractor) != about["fingerprint"]:
        raise ReflowError(f"{folder}: not the extractor that {path} was made with; run calibrate")
    count = int(about["splits"])
    references = [
        GaussianStats(int(about["n"]), tensors[f"mean.{i}"], tensors[f"m2.{i}"])
        for i in range(count)
    ]
    points = [tensors[f"points.{i}"] for i in range(count) if f"points.{i}" in tensors]
    classes = {
        int(key.split(".")[1]): GaussianStats(
            int(tensors[key]), tensors[f"{key[:-1]}mean"], tensors[f"{key[:-1]}m2"]
        )
        for key in tensors
        if key.startswith("class.") and key.endswith(".n")
    }
    return Yardstick(extractor, references, tensors["real"], points, classes, about)
