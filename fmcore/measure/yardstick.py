"""The yardstick of a chain: features, statistics of real data, and the real-vs-real floor.

Real data is cut `splits` times into two disjoint random halves of n samples. One half is the
reference of that cut: each cut has a group of n generated samples of its own, so the metrics of a
round are `splits` independent values. The floor is the mean over more such cuts of what the other
half scores: a perfect generator at this n.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load as tensors_in
from torch import Tensor

from fmcore.checked import FILES, hashes, read_checked, read_json, sealed
from fmcore.coupling.read import open_coupling
from fmcore.features.extractor import (
    Extractor,
    Features,
    FeatureSettings,
    FeaturesOf,
    fingerprint,
    load_extractor,
    metric_name,
    save_extractor,
    suffix,
)
from fmcore.measure.distances import (
    PAIRS,
    WIDE,
    Group,
    Measures,
    Summary,
    disjoint,
)
from fmcore.measure.floor import floor_of, has_modes, modes, most_classes, nearest_floor, shared
from fmcore.measure.frechet import ROWS, GaussianStats
from fmcore.measure.neighbours import nearest
from fmcore.measure.passing import cut_anew, sizes
from fmcore.measure.protocol import Protocol
from fmcore.measure.real import accuracy, apart, extractor_for, features_of, real_samples
from fmcore.network.snapshots import write_tensors
from fmcore.settings import Log, ReflowError, Seed, Settings, SeveralSamples, derive_seed
from fmcore.verdict import errors

FILE = "yardstick.json"
"""The file of a yardstick's folder that describes it, with the hashes of the others."""


class YardstickSettings(Settings):
    """The features, the number of samples in each half, the number of cuts."""

    features: FeaturesOf = FeatureSettings()
    """The features in which generated and real samples are compared."""
    samples: SeveralSamples = 5000
    """Samples in each half of a cut (n); half of the data at most. More samples make Frechet
    distances less biased; they compare at equal n only. Energy distances take 2,000 of them,
    kernels and neighbours 1,000."""
    splits: int = Field(default=4, gt=0, le=1000)
    """How many random cuts of the data into two halves (K). A round is measured with n samples for
    each cut. More cuts give smaller errors and cost time; with one there is no error."""
    floor_cuts: int = Field(default=64, gt=0, le=10_000)
    """Over how many cuts the floor is averaged; 8 at most for what is dear to measure (W2,
    neighbours, features wider than 512)."""
    protocol: Protocol | None = None
    """The published protocol: FID of 50,000 samples to the whole training set and what goes with
    it, measured beside the distances to halves. null leaves it out; it needs weights and a GPU."""
    w2_samples: int = Field(default=1000, gt=1, le=20_000)
    """Points on each side for w2 and sliced_w2, whose names end in this number. 1,000 take a fifth
    of a second, 10,000 half a minute; published values are often of 10,000."""
    seed: Seed | None = None
    """Seed of the cuts and of the classifier's training. null takes the chain's."""


@dataclass(frozen=True)
class Yardstick:
    """A fitted yardstick; `measure` is what evaluation calls.

    `cuts` are the references, one a cut; `train` [M, d] the features of what rounds train on.
    """

    extractor: Features | None
    cuts: list[Summary]
    train: Tensor
    measures: Measures
    about: dict[str, Any]

    @property
    def name(self) -> str:
        """Return the name of the metric that rounds are judged by: fd_clf, energy."""
        return str(self.about["metric"])

    @property
    def samples(self) -> int:
        """Return how many generated samples `measure` expects: splits times n."""
        return int(self.about["n"]) * len(self.cuts)

    @property
    def judged(self) -> int:
        """Return how many samples of a cut the metric `name` compares: at most 2,000 for energy."""
        n = int(self.about["n"])
        return min(n, PAIRS) if self.name == "energy" else n

    @property
    def floor(self) -> dict[str, float]:
        """Return every metric of real against real data, with its standard error."""
        return dict(self.about["floor"])

    @property
    def reconstruction(self) -> dict[str, float]:
        """Return what reconstructions of a codec score (`measure.reconstructed`); empty without."""
        return dict(self.about.get("reconstruction", {}))

    def measure(
        self, x: Tensor | Iterable[Tensor], label: Tensor | None = None
    ) -> list[dict[str, float]]:
        """Return the distances of generated x [samples, *D] to the data, one mapping a cut.

        x may come in parts, of any sizes: each is dropped when its features are summed. The metrics
        of different cuts are independent draws. With labels [samples] also the Frechet
        distance of each class to the real one. `_inf`, and classes in wide features, are of the
        first cut alone.
        """
        n = int(self.about["n"])
        labels = [None] * len(self.cuts) if label is None else list(label.split(n))
        for given in (x, label):
            if isinstance(given, Tensor) and len(given) != self.samples:
                raise ValueError(f"{self.samples} samples expected, got {len(given)}")
        each = sizes(n, ROWS)
        anew = cut_anew([x] if isinstance(x, Tensor) else x, each * len(self.cuts))
        return [
            self._cut(i, islice(anew, len(each)), own, real)
            for i, (own, real) in enumerate(zip(labels, self.cuts, strict=True))
        ]

    def _cut(
        self, i: int, parts: Iterable[Tensor], label: Tensor | None, real: Summary
    ) -> dict[str, float]:
        kept: list[Group] = []
        groups = self._groups(parts, label, points=real.points is not None)
        if i == 0 or has_modes(self.about):
            groups = kept_too(groups, kept)
        classes = real.classes if i == 0 or real.stats.mean.numel() <= WIDE else ()
        measures = self.measures
        fake = Summary.of(groups, measures.points, classes, limit=measures.class_n)
        found = {**measures.cheap(fake, real), **measures.dear(fake, real)}
        if len(self.train):
            found["nearest_train"] = float(nearest(fake.features, self.train).mean())
        if i == 0:
            features = torch.cat([group.features for group in kept])
            found |= measures.infinity(features, real, seed=i)
        found |= measures.classes(fake, real)
        if not has_modes(self.about):
            return found
        points = [group.points for group in kept if group.points is not None]
        return {**found, **modes(self.about, torch.cat(points))}

    def _groups(
        self, parts: Iterable[Tensor], label: Tensor | None, *, points: bool
    ) -> Iterator[Group]:
        first = 0
        for x in parts:
            own = None if label is None else label[first : first + len(x)]
            first += len(x)
            yield Group(features_of(self.extractor, x), x.flatten(1) if points else None, own)


def kept_too(groups: Iterable[Group], kept: list[Group]) -> Iterator[Group]:
    """Yield groups and put each into `kept`."""
    for group in groups:
        kept.append(group)
        yield group


def fit(data: Path, settings: YardstickSettings, *, seed: int, log: Log) -> Yardstick:
    """Learn the features from the real data in the coupling `data` and measure the floor.

    In memory are the features of all samples, and of images their levels, a byte each.
    """
    coupling = open_coupling(data).originals
    images = coupling.about.image and settings.features.kind != "identity"
    pairs = real_samples(coupling, coded=images)
    n = min(settings.samples, len(pairs) // 2)
    if n < 2:
        raise ReflowError(f"{data}: {len(pairs)} samples cannot be cut in two halves; add data")
    extractor = extractor_for(coupling, pairs, settings.features, seed=seed, log=log)
    points = None if coupling.about.image else pairs.target.flatten(1)
    label = pairs.label if coupling.about.conditions is None else None  # those are no classes
    whole = Group(features_of(extractor, pairs.target), points, label)

    def halves(cuts: int) -> Iterator[tuple[Tensor, Tensor]]:
        return (disjoint(len(pairs), n, derive_seed(seed, "halves", i)) for i in range(cuts))

    most = most_classes(whole.features.shape[1], settings.splits)
    keys, class_n = shared(label, halves(settings.splits), most)
    plane = min(settings.w2_samples, n)
    frechet, word = metric_name(settings.features, n), suffix(settings.features)
    measures = Measures(frechet, f"kd_{word}", plane, class_n)
    cuts = []
    for i, (reference, _) in enumerate(halves(settings.splits)):
        some = keys if i == 0 or whole.features.shape[1] <= WIDE else []
        cuts.append(Summary.of(whole.parts(reference), plane, some))
    about: dict[str, Any] = {
        "metric": judging(settings.features, frechet, image=coupling.about.image),
        "frechet": frechet,
        "features": word,
        "fingerprint": fingerprint(extractor),
        "n": n,
        "splits": settings.splits,
        "floor_cuts": settings.floor_cuts,
        "w2_samples": plane,
        "class_n": class_n,
        "data": coupling.about.data,
    }
    if isinstance(extractor, Extractor):
        about["classifier_accuracy"] = accuracy(extractor, pairs)
    train, unseen = apart(pairs, whole.features)
    floor = floor_of(whole, halves(settings.floor_cuts), measures, keys, about)
    about["floor"] = {**errors.summary(floor), **nearest_floor(train, unseen)}
    judged = [cut[about["metric"]] for cut in floor]
    about["resolves"] = errors.resolvable(judged, settings.splits)
    return Yardstick(extractor, cuts, train, measures, about)


def judging(features: FeaturesOf, frechet: str, *, image: bool) -> str:
    """Return the metric that rounds are judged by.

    For points as they are it is the energy distance, which is 0 for equal laws alone: a Frechet
    distance sees mean and covariance, so that a single blob passes for many modes.
    """
    return "energy" if features.kind == "identity" and not image else frechet


def save(path: Path, yardstick: Yardstick) -> None:
    """Write the yardstick to the folder `path`: safetensors and JSON, no pickle."""
    path.mkdir(parents=True, exist_ok=True)
    if yardstick.extractor is not None:
        save_extractor(path / "extractor", yardstick.extractor)
    tensors: dict[str, Tensor] = {"train": yardstick.train}
    for i, cut in enumerate(yardstick.cuts):
        tensors |= {f"mean.{i}": cut.stats.mean, f"m2.{i}": cut.stats.m2}
        tensors[f"features.{i}"] = cut.features
        if cut.points is not None:
            tensors[f"points.{i}"] = cut.points
        for key, stats in cut.classes.items():
            tensors |= {f"class.{i}.{key}.mean": stats.mean, f"class.{i}.{key}.m2": stats.m2}
            tensors[f"class.{i}.{key}.n"] = torch.tensor(stats.n)
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
        extractor = load_extractor(folder) if folder.exists() else None
        cuts = [_cut_of(tensors, i, int(about["n"])) for i in range(int(about["splits"]))]
        measures = Measures(
            about["frechet"], f"kd_{about['features']}", about["w2_samples"], about["class_n"]
        )
        train = tensors["train"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ReflowError(f"{path}: not a yardstick ({error}); run the stage calibrate") from error
    del about[FILES]
    if fingerprint(extractor) != about["fingerprint"]:
        raise ReflowError(f"{folder}: not the extractor that {path} was made with; run calibrate")
    return Yardstick(extractor, cuts, train, measures, about)


def _cut_of(tensors: dict[str, Tensor], i: int, n: int) -> Summary:
    own = f"class.{i}."
    keys = [name.split(".")[2] for name in tensors if name.startswith(own) and name.endswith(".n")]
    classes = {
        int(k): GaussianStats(
            int(tensors[f"{own}{k}.n"]), tensors[f"{own}{k}.mean"], tensors[f"{own}{k}.m2"]
        )
        for k in keys
    }
    stats = GaussianStats(n, tensors[f"mean.{i}"], tensors[f"m2.{i}"])
    return Summary(stats, tensors[f"features.{i}"], tensors.get(f"points.{i}"), classes)
