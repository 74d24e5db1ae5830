"""The protocols of the literature: FID, sFID, IS, KID, precision and recall, FD-DINOv2, CMMD.

The published FID is that of 50,000 generated samples to the whole training set, in the features of
the Inception of 2015. The names of metrics say n and the reference, as in `fid50k_train`; only with
the weights of 2015 is there `fid` in them.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fmcore.checked import read_json, sealed
from fmcore.coupling.read import Coupling, open_coupling, read
from fmcore.dataset.kinds import Dataset
from fmcore.features.extractor import quantise
from fmcore.features.pretrained import INCEPTION_SHA256, Inception2015, Transformer
from fmcore.measure.frechet import GaussianStats, frechet_distance, frechet_error
from fmcore.measure.neighbours import manifold_scores, recall_error
from fmcore.measure.published import cmmd, inception_score, published_kid
from fmcore.measure.reference_file import read_reference
from fmcore.network.snapshots import write_tensors
from fmcore.own import read as read_settings
from fmcore.settings import ReflowError, Settings, derive_seed

FOLDER = "protocol"
"""The folder of a yardstick that holds the reference of its protocol."""

FILE, TENSORS = "protocol.json", "protocol.safetensors"

KEPT = 50_000
"""Real samples, at most, whose features are kept for KID and CMMD; mean and covariance take all."""

NEAR, K = 10_000, 3
"""Samples of each side, and the k, of precision and recall (Kynkaanniemi et al. 2019, who took the
features of VGG-16; those of Inception as in ADM)."""

BATCH, CHUNK = 100, 5000
"""Images in a call of a network, and in one update of mean and covariance."""


class Protocol(Settings):
    """Measures rounds also as papers do: 50,000 samples against the whole training set, by FID.

    Needs the weights of the Inception of 2015 and, for 50,000 samples, a GPU.
    """

    weights: str
    """Path of weights-inception-2015-12-05-6726825d.pth (torch-fidelity; pytorch-fid's
    pt_inception-... is the same). Nothing is downloaded."""
    sha256: str = Field(default=INCEPTION_SHA256, pattern="^[0-9a-f]{64}$")
    """Expected hash of the file `weights`. With another hash no metric is called fid, is or kid."""
    samples: int = Field(default=50_000, ge=10, le=10**9)
    """Samples that are generated for each sampler; the names of metrics say it. Published values
    are of 50,000; fewer make a larger FID."""
    reference: Literal["train", "test", "file"] = "train"
    """Real images of the comparison: the whole training set, the published test set, or the
    statistics of a `file`."""
    statistics: str | None = None
    """Path of the statistics, for reference file: an .npz of EDM, ADM or clean-fid, or a .pt of
    torch-fidelity's cache. KID, precision and recall need images, and are left out."""
    resize: Literal["tensorflow", "clean"] = "tensorflow"
    """How images are resized to 299 pixels: as TensorFlow 1 did, in all papers on flows, or as
    clean-fid does, whose metrics are then called cleanfid."""
    dinov2: str | None = None
    """Path of dinov2_vitl14_pretrain.pth, for FD-DINOv2; null leaves it out. Needs reference train
    or test."""
    clip: str | None = None
    """Path of the model.safetensors of openai/clip-vit-large-patch14-336, for CMMD; null leaves it
    out. Needs reference train or test."""

    @model_validator(mode="after")
    def _one_reference(self) -> "Protocol":
        if (self.reference == "file") != (self.statistics is not None):
            raise ValueError("statistics: name a file where reference is file, and nowhere else")
        if self.reference == "file" and (self.dinov2 or self.clip):
            raise ValueError("dinov2, clip: need images; set reference to train or test")
        return self

    def tail(self, n: int | None = None) -> str:
        """Return what names end in: the number of samples and the reference, as in 50k_train."""
        of: str = self.reference
        if self.statistics is not None:
            of = "file_" + re.sub(r"\W", "_", Path(self.statistics).stem)
        return f"{thousands(n or self.samples)}_{of}"

    def named(self, metric: str, n: int | None = None) -> str:
        """Return the name of a metric in Inception's features, of `n` samples if not of all.

        It is `fid`, `sfid`, `is`, `kid`, `precision` or `recall`; another one for other weights.
        """
        clean = "clean" if self.resize == "clean" else ""
        end = thousands(self.samples) if metric == "is" else self.tail(n)  # IS has no reference
        if self.sha256 == INCEPTION_SHA256:
            return f"{clean}{metric}{end}"
        return f"{clean}{OTHERWISE.get(metric, metric)}_inception_{end}"


OTHERWISE = {"fid": "fd", "sfid": "fd_spatial", "is": "score", "kid": "kd"}
"""What a metric is called where the weights are not those of 2015."""


def thousands(n: int) -> str:
    """Return a number for a name.

    >>> thousands(50_000), thousands(2500)
    ('50k', '2500')
    """
    return f"{n // 1000}k" if n % 1000 == 0 else str(n)


@dataclass(frozen=True)
class Published:
    """A protocol with its networks and its reference; `measure` is what evaluation calls.

    `stats` are those of real images in the features `pooled`, `spatial` and `dinov2`, `real` kept
    features `pooled` [M, 2048] and `clip`; each where the reference has it.
    """

    settings: Protocol
    inception: Inception2015
    others: dict[str, Transformer]
    stats: dict[str, GaussianStats]
    real: dict[str, Tensor]
    device: torch.device

    def measure(self, x: Tensor) -> dict[str, float]:
        """Return the metrics of generated images x [N, C, H, W] in [-1, 1]; takes `samples`."""
        settings = self.settings
        if len(x) < settings.samples:
            raise ValueError(f"{settings.samples} samples expected, got {len(x)}")
        x = x[: settings.samples]
        parts = [self._outputs(part) for part in x.split(BATCH)]
        pooled, logits, spatial = (torch.cat(each) for each in zip(*parts, strict=True))
        name = settings.named("is")
        found = _scored(name, *inception_score(logits))
        found |= _frechet(settings.named("fid"), pooled, self.stats["pooled"])
        if "spatial" in self.stats:
            found |= _frechet(settings.named("sfid"), spatial, self.stats["spatial"])
        if "pooled" in self.real:
            name = settings.named("kid")
            values = published_kid(pooled, self.real["pooled"], seed=derive_seed(0, "kid"))
            found |= _scored(name, *values)
            found |= self._manifold(pooled)
        for kind, network in self.others.items():
            features = torch.cat([self._features(network, part) for part in x.split(BATCH)])
            if kind == "dinov2":
                found |= _frechet(f"fd_dinov2_{settings.tail()}", features, self.stats[kind])
            else:
                name = f"cmmd_{settings.tail()}"
                found[name], found[f"{name}_se"] = cmmd(features, self.real[kind])
        return found

    def _manifold(self, pooled: Tensor) -> dict[str, float]:
        fake, real = pooled[:NEAR], self.real["pooled"][:NEAR]
        scores = manifold_scores(fake, real, k=K)
        precision, recall = (self.settings.named(m, len(fake)) for m in ("precision", "recall"))
        share = scores["precision"]  # of independent samples; recall depends on them together
        found = {precision: share, f"{precision}_se": (share * (1 - share) / len(fake)) ** 0.5}
        error = recall_error(fake, real, k=K, seed=derive_seed(0, "recall"))
        return found | {recall: scores["recall"], f"{recall}_se": error}

    @torch.no_grad()
    def _outputs(self, images: Tensor) -> tuple[Tensor, ...]:
        found = self.inception.outputs(quantise(images).to(self.device))
        return tuple(each.cpu() for each in found)

    @torch.no_grad()
    def _features(self, network: Transformer, images: Tensor) -> Tensor:
        return network.features(quantise(images).to(self.device)).cpu()


def _scored(name: str, value: float, sd: float, error: float) -> dict[str, float]:
    return {name: value, f"{name}_sd": sd, f"{name}_se": error}


def _frechet(name: str, features: Tensor, reference: GaussianStats) -> dict[str, float]:
    """Return the distance and its standard error: 0 samples to spare give none."""
    found = {name: frechet_distance(GaussianStats.from_features(features), reference)}
    if len(features) > features.shape[1]:
        found[f"{name}_se"] = frechet_error(features, reference)
    return found


def fit(data: Path, settings: Protocol, *, seed: int, device: torch.device) -> Published:
    """Compute the reference of a protocol, or read it from its file; raise ReflowError."""
    found = _networks(settings, device)
    if settings.statistics is not None:
        known = read_reference(Path(settings.statistics))
        found.stats["pooled"] = known.pooled
        if known.spatial is not None:
            found.stats["spatial"] = known.spatial
        return found
    images = _images(open_coupling(data).originals, settings, seed)
    order = torch.randperm(
        len(images), generator=torch.Generator().manual_seed(derive_seed(seed, FOLDER))
    )
    kept: dict[str, list[Tensor]] = {}
    for rows in order.split(CHUNK):
        for name, features in _every(found, images[rows]).items():
            stats = GaussianStats.from_features(features)
            before = found.stats.get(name)
            found.stats[name] = stats if before is None else before.merge(stats)
            if name in ("pooled", "clip") and sum(map(len, kept.get(name, []))) < KEPT:
                kept.setdefault(name, []).append(features)
    found.real.update({name: torch.cat(parts)[:KEPT] for name, parts in kept.items()})
    found.stats.pop("clip", None)
    return found


def _every(found: Published, images: Tensor) -> dict[str, Tensor]:
    """Return the features of real images in every network."""
    parts = [found._outputs(part) for part in images.split(BATCH)]
    pooled, _, spatial = (torch.cat(each) for each in zip(*parts, strict=True))
    features = {"pooled": pooled, "spatial": spatial}
    for kind, network in found.others.items():
        own = [found._features(network, part) for part in images.split(BATCH)]
        features[kind] = torch.cat(own)
    return features


def _networks(settings: Protocol, device: torch.device) -> Published:
    inception = Inception2015(settings.weights, settings.sha256, settings.resize).to(device)
    given: dict[Literal["dinov2", "clip"], str | None] = {
        "dinov2": settings.dinov2,
        "clip": settings.clip,
    }
    others: dict[str, Transformer] = {
        kind: Transformer(kind, path, None).to(device) for kind, path in given.items() if path
    }
    return Published(settings, inception, others, {}, {}, device)


def _images(coupling: Coupling, settings: Protocol, seed: int) -> Tensor:
    """Return the real images of the reference, in [-1, 1]."""
    place = f"yardstick.protocol.reference {settings.reference}"
    if not coupling.about.image:
        raise ReflowError(f"{place}: needs images; remove yardstick.protocol for this data")
    about = coupling.about.data or {}
    if settings.reference == "train":
        if about.get("samples") is not None or about.get("split", "train") != "train":
            raise ReflowError(
                f"{place}: this data is a part of the training set; remove data.samples and"
                " data.split, or give the statistics of the whole in a file"
            )
        return coupling.about.units.inverse(read(coupling, sources=False).target)
    data = read_settings(Dataset, about, f"{coupling.path}: data")
    if "split" not in type(data).model_fields:
        raise ReflowError(
            f"{place}: {about.get('name')} has no published test set; use train, or the statistics"
            " of your own test images in a file"
        )
    whole: Dataset = data.model_copy(update={"split": "test", "samples": None})
    return whole.read(seed).target


def save(path: Path, found: Published) -> None:
    """Write settings and reference to the folder `path`; weights stay where they are."""
    path.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {f"real.{name}": x for name, x in found.real.items()}
    for name, stats in found.stats.items():
        tensors |= {f"mean.{name}": stats.mean, f"m2.{name}": stats.m2}
        tensors[f"n.{name}"] = torch.tensor(stats.n)
    write_tensors(path / TENSORS, {k: v.contiguous().clone() for k, v in tensors.items()})
    about: dict[str, Any] = {
        "settings": found.settings.model_dump(mode="json"),
        "weights": {kind: net.config["sha256"] for kind, net in found.others.items()},
    }
    if found.settings.statistics is not None:
        about["statistics"] = read_reference(Path(found.settings.statistics)).sha256
    (path / FILE).write_text(json.dumps(sealed(about), indent=2) + "\n")


def load(path: Path, device: torch.device) -> Published:
    """Read what `save` wrote; raise ReflowError for damage, or for other weights than its own."""
    try:
        about = read_json(path / FILE)
        tensors = load_file(path / TENSORS)
        settings = Protocol.model_validate(about["settings"])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ReflowError(f"{path}: no protocol ({reason}); run the stage calibrate") from error
    found = _networks(settings, device)
    for kind, net in found.others.items():
        if net.config["sha256"] != about["weights"].get(kind):
            raise ReflowError(f"{path}: not the weights of {kind} it was made with; run calibrate")
    for name in [key.removeprefix("n.") for key in tensors if key.startswith("n.")]:
        n, mean, m2 = (tensors[f"{part}.{name}"] for part in ("n", "mean", "m2"))
        found.stats[name] = GaussianStats(int(n), mean, m2)
    found.real.update({k.removeprefix("real."): v for k, v in tensors.items() if k[:5] == "real."})
    return found
