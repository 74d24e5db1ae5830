"""Features in which generated and real samples are compared.

A small classifier trained on the data itself gives `fd_clf`, EfficientNet-Lite0 `fd_lite0`, samples
as they are `fd_identity`; distances compare only between equal fingerprints. Only the features of
the Inception network of 2015 give a name with `fid` in it, and it says n and the reference.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Discriminator, Field, Tag
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fmcore.features.lite0 import Lite0
from fmcore.features.own import Custom, OwnFeatures
from fmcore.features.pretrained import INCEPTION_SHA256, Inception2015, Transformer
from fmcore.own import read
from fmcore.settings import BatchSize, LearningRate, Log, ReflowError, Settings, derive_seed

FILES = {
    "inception": "weights-inception-2015-12-05-6726825d.pth",
    "dinov2": "dinov2_vitl14_pretrain.pth",
}
"""The published files with the weights of each kind."""


class FeatureSettings(Settings):
    """`classifier` for images with labels, `identity` for vectors, `lite0` for RGB images.

    `inception` and `dinov2` read the file `weights`, whose hash has to be `sha256`.
    """

    kind: Literal["classifier", "lite0", "inception", "dinov2", "identity"] = "classifier"
    """`classifier` is trained on the data itself (images with labels), `lite0`, `inception` and
    `dinov2` are pretrained networks for images, `identity` takes samples as they are (vectors)."""
    weights: str | None = None
    """Path of the file with the weights of kind inception or dinov2; nothing is downloaded. Other
    kinds ignore it."""
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """Expected hash of the file `weights`. null expects that of the Inception of 2015, and takes
    any file of DINOv2. The distance of another Inception is called fd_inception, not fid."""
    epochs: int = Field(default=30, gt=0, le=10_000)
    """Passes over the data that train the classifier. Raise it when its accuracy is low."""
    batch: BatchSize = 128
    """Images in each batch of the classifier's training."""
    lr: LearningRate = 1e-3
    """Learning rate of AdamW at the start of the classifier's training; it falls to 0 along a
    cosine."""
    width: int = Field(default=32, gt=0, le=4096)
    """Channels of the classifier's first convolution; the second has twice as many."""


def _which(value: Any) -> str:
    own = isinstance(value, Custom) or (isinstance(value, dict) and value.get("name") == "custom")
    return "custom" if own else "features"


FeaturesOf = Annotated[
    Annotated[FeatureSettings, Tag("features")] | Annotated[Custom, Tag("custom")],
    Discriminator(_which),
]


class Extractor(nn.Module):
    """conv - conv/2 - fc 64 (the features) - fc classes, on images [B, C, H, W] in [-1, 1]."""

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"shape": list(shape), "classes": classes, "width": width}
        channels, height, side = shape
        size = 2 * width * -(-height // 2) * -(-side // 2)
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(size, 64),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Linear(64, classes)

    def features(self, images: Tensor) -> Tensor:
        """Return the features [B, 64]."""
        if self.training or images.is_cuda or not torch.backends.mkldnn.is_available():
            return cast(Tensor, self.trunk(images))
        found = cast(Tensor, self.trunk[4:](self._convolved(images)))
        return found + 0 * images.flatten(1).sum(1, keepdim=True)  # oneDNN's ReLU takes NaN for 0

    def _convolved(self, images: Tensor) -> Tensor:
        """Return what follows both convolutions, in oneDNN's own layout: a third less time."""
        x = images.to_mkldnn()
        for layer in (cast(nn.Conv2d, self.trunk[0]), cast(nn.Conv2d, self.trunk[2])):
            kernel, bias = layer.weight.detach().to_mkldnn(), layer.bias
            own = None if bias is None else bias.detach().to_mkldnn()
            x = nn.functional.conv2d(x, kernel, own, layer.stride, layer.padding).relu_()
        return x.to_dense()

    def fixed(self) -> "Extractor":
        """Return itself, ready to compute features."""
        return self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [B, classes]."""
        return cast(Tensor, self.head(self.features(images)))


Features = Extractor | Lite0 | Inception2015 | Transformer | OwnFeatures
"""A network with `features(images)` and a `config`; None stands for the samples themselves."""


def suffix(settings: FeaturesOf) -> str:
    """Return the word for the features in metric names: clf, lite0, inception, dinov2, identity.

    For features of the user's own it is the class name in lower case.
    """
    return "clf" if settings.kind == "classifier" else settings.kind


def metric_name(settings: FeaturesOf, n: int) -> str:
    """Return the name of the Frechet distance of n samples to a half of the data: fd_clf, ...

    `fid_n2000_half` with the weights that define the FID: the published FID is that of 50,000
    samples to the whole training set, which is `measure.protocol`.
    """
    if not isinstance(settings, FeatureSettings) or settings.kind != "inception":
        return f"fd_{suffix(settings)}"
    return f"fid_n{n}_half" if settings.sha256 in (None, INCEPTION_SHA256) else "fd_inception"


def pretrained(settings: FeaturesOf) -> Features:
    """Return the network that `kind` lite0, inception or dinov2 names, or the user's own.

    Raises ReflowError.
    """
    if isinstance(settings, Custom):
        return OwnFeatures(settings)
    if settings.kind == "lite0":
        return Lite0()
    if settings.weights is None:
        raise ReflowError(
            f"yardstick.features.weights: {settings.kind} needs the path of its weights,"
            f" {FILES[settings.kind]}; nothing is downloaded"
        )
    if settings.kind == "dinov2":
        return Transformer("dinov2", settings.weights, settings.sha256)
    return Inception2015(settings.weights, settings.sha256 or INCEPTION_SHA256)


def quantise(images: Tensor) -> Tensor:
    """Clip images to [-1, 1] and round them to the 256 levels of an image file."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def levels(images: Tensor) -> Tensor:
    """Return the levels (uint8) of images in [-1, 1]: a fourth of the memory, nothing is lost.

    >>> x = torch.linspace(-2, 2, 1000)
    >>> torch.equal(of_levels(levels(x)), quantise(x))
    True
    """
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def of_levels(found: Tensor) -> Tensor:
    """Return the images in [-1, 1] that have these levels."""
    return found.float() / 127.5 - 1


def fit_classifier(
    images: Tensor, labels: Tensor, settings: FeatureSettings, seed: int, log: Log
) -> Extractor:
    """Train the classifier on images [N, C, H, W] and labels [N]; a function of the seed.

    Images are in [-1, 1], or are given by their levels (uint8).
    """
    shape = cast(tuple[int, int, int], tuple(images.shape[1:]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Extractor(shape, int(labels.max()) + 1, settings.width)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs)
    images = images if images.dtype == torch.uint8 else levels(images)
    for epoch in range(settings.epochs):
        generator = torch.Generator().manual_seed(derive_seed(seed, "epoch", epoch))
        right = 0
        for rows in torch.randperm(len(images), generator=generator).split(settings.batch):
            logits = network(of_levels(images[rows]))
            loss = nn.functional.cross_entropy(logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            right += int((logits.argmax(1) == labels[rows]).sum())
        schedule.step()
        log({"loss": float(loss.detach()), "accuracy": right / len(images)}, epoch + 1)
    return network.fixed()


def rows_at_once(extractor: Features | None, x: Tensor) -> int:
    """Return of how many samples [N, *D] features are computed at once: what is fastest.

    The classifier is fastest where its widest layer stays in a core's cache: 256 images of 8 x 8,
    16 of 32 x 32. It is no setting: it may change last bits.
    """
    if not isinstance(extractor, Extractor):
        return 500
    return max(16, min(256, 2**14 // (x.shape[-2] * x.shape[-1])))


@torch.no_grad()
def extract(extractor: Features | None, x: Tensor, *, batch: int | None = None) -> Tensor:
    """Return features [N, d]: the network's, or the flattened samples for None."""
    if extractor is None:
        return x.flatten(1)
    parts = x.split(batch or rows_at_once(extractor, x))
    return torch.cat([extractor.features(part) for part in parts])


def fingerprint(extractor: Features | None) -> str:
    """Return a sha256 over weights and config: distances compare only where it is equal."""
    digest = hashlib.sha256()
    if extractor is not None:
        digest.update(json.dumps(extractor.config, sort_keys=True).encode())
        for name, value in extractor.state_dict().items():
            digest.update(name.encode())
            digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_extractor(path: Path, extractor: Features) -> None:
    """Write the classifier to the folder `path`; for a pretrained network only its config."""
    path.mkdir(parents=True, exist_ok=True)
    if isinstance(extractor, Extractor):
        weights = {k: v.contiguous() for k, v in extractor.state_dict().items()}
        file = path / "model.safetensors"
        try:
            save_file(weights, file)
        except (SafetensorError, OSError) as error:
            raise ReflowError(
                f"{file}: cannot be written ({error}); free some space and start again"
            ) from error
    (path / "config.json").write_text(json.dumps(extractor.config, sort_keys=True) + "\n")


def load_extractor(path: Path) -> Features:
    """Read what `save_extractor` wrote."""
    try:
        config = json.loads((path / "config.json").read_text())
        if config.get("name") == "custom":
            return OwnFeatures(read(Custom, config, f"{path}/config.json"))
        if config.get("kind") == "lite0":
            return Lite0(config["size"])
        if config.get("kind") == "inception":
            return Inception2015(config["weights"], config["sha256"])
        if config.get("kind") == "dinov2":
            return Transformer("dinov2", config["weights"], config["sha256"])
        extractor = Extractor(tuple(config["shape"]), config["classes"], config["width"])
        extractor.load_state_dict(load_file(path / "model.safetensors"))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ReflowError(f"{path}: damaged ({reason}); run the stage calibrate again") from error
    return extractor.fixed()
