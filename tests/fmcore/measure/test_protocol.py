"""The published protocol, with random weights in the layout of the real ones."""

import hashlib
import math
import sys
from types import ModuleType
from typing import ClassVar

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fmcore.coupling.read import open_coupling, read
from fmcore.dataset.arrays import Array
from fmcore.dataset.public import CIFAR10
from fmcore.dataset.samples import Samples
from fmcore.features.inception import Inception
from fmcore.features.pretrained import INCEPTION_SHA256, Inception2015
from fmcore.measure import protocol
from fmcore.measure.frechet import GaussianStats, frechet_distance
from fmcore.measure.protocol import Protocol, fit, load, save
from fmcore.measure.published import inception_score, published_kid
from fmcore.prepare import prepare
from fmcore.settings import ReflowError, derive_seed
from tests.fmcore.features.test_vit import clip, dinov2

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    torch.save(Inception().state_dict(), folder / "inception.pth")
    torch.save(dinov2(), folder / "dino.pth")
    torch.save(clip(), folder / "clip.pth")
    sha = hashlib.sha256((folder / "inception.pth").read_bytes()).hexdigest()
    return folder, sha


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """24 images of 8 x 8, as a coupling."""
    folder = tmp_path_factory.mktemp("data")
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    np.save(folder / "images.npy", images)
    prepare(folder / "data", Array(name="array", path=str(folder / "images.npy")), seed=0)
    return folder / "data"


def settings(weights, **more):
    folder, sha = weights
    given = {"weights": str(folder / "inception.pth"), "sha256": sha, "samples": 12, **more}
    return Protocol.model_validate(given)


def real(**more):
    return Protocol.model_validate({"weights": "w.pth", **more})


def test_fewer_samples_than_splits_of_the_inception_score_are_refused():
    """Ten parts of fewer than ten samples: one is empty, and its score no number."""
    assert real(samples=10).samples == 10
    with pytest.raises(ValidationError, match="greater than or equal to 10"):
        real(samples=9)


def test_names_say_n_and_the_reference_and_fid_only_with_the_weights_of_2015():
    assert real().named("fid") == "fid50k_train" and real().named("is") == "is50k"
    assert real(reference="test", samples=10_000).named("kid") == "kid10k_test"
    assert real(samples=2500).named("sfid") == "sfid2500_train"
    file = real(reference="file", statistics="refs/cifar10-32x32.npz")
    assert file.named("fid") == "fid50k_file_cifar10_32x32"
    assert real(resize="clean").named("fid") == "cleanfid50k_train"
    assert real().named("precision", 10_000) == "precision10k_train"
    assert real(resize="clean").named("recall", 10_000) == "cleanrecall10k_train"
    for metric in ("fid", "sfid", "is", "kid", "precision", "recall"):
        name = real(sha256="0" * 64).named(metric)
        assert "fid" not in name and "kid" not in name and "_inception_" in name
    assert real().sha256 == INCEPTION_SHA256


def test_a_reference_is_a_set_or_a_file():
    for wrong in (
        {"reference": "file"},
        {"statistics": "a.npz"},
        {"reference": "file", "statistics": "a.npz", "clip": "c.pth"},
    ):
        with pytest.raises(ValidationError, match=r"statistics: name a file|need images"):
            real(**wrong)


@pytest.mark.long
def test_every_metric_is_that_of_its_formula(weights, data, tmp_path):
    folder, _ = weights
    mine = settings(weights, dinov2=str(folder / "dino.pth"), clip=str(folder / "clip.pth"))
    fitted = fit(data, mine, seed=0, device=CPU)
    x = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    found = fitted.measure(x)
    end = "inception_12_train"
    assert {
        f"fd_{end}", f"fd_spatial_{end}", "score_inception_12", "score_inception_12_sd",
        "score_inception_12_se", f"kd_{end}", f"kd_{end}_sd", f"kd_{end}_se",
        f"precision_{end}", f"precision_{end}_se", f"recall_{end}", f"recall_{end}_se",
        "fd_dinov2_12_train", "cmmd_12_train", "cmmd_12_train_se",
    } == set(found)  # fmt: skip
    assert all(math.isfinite(value) for value in found.values())
    network = Inception2015(mine.weights, mine.sha256)
    images = open_coupling(data)
    with torch.no_grad():
        a, b = (
            network.outputs(((x + 1) * 127.5).round() / 127.5 - 1),
            network.outputs(read(images).target),
        )
    stats = [GaussianStats.from_features(f[0]) for f in (a, b)]
    assert found[f"fd_{end}"] == pytest.approx(frechet_distance(*stats), rel=1e-4)
    spatial = [GaussianStats.from_features(f[2]) for f in (a, b)]
    assert found[f"fd_spatial_{end}"] == pytest.approx(frechet_distance(*spatial), rel=1e-4)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(derive_seed(0, "protocol")))
    kid = published_kid(a[0], b[0][order], seed=derive_seed(0, "kid"))
    assert found[f"kd_{end}"] == pytest.approx(kid[0], rel=1e-3, abs=1e-9)
    share = found[f"precision_{end}"]
    assert found[f"precision_{end}_se"] == pytest.approx((share * (1 - share) / 12) ** 0.5)
    save(tmp_path / "protocol", fitted)
    assert load(tmp_path / "protocol", CPU).measure(x) == found
    with pytest.raises(ValueError, match="12 samples expected, got 5"):
        fitted.measure(x[:5])


@pytest.mark.long
def test_statistics_of_the_training_set_from_a_file_give_the_same_distance(weights, data, tmp_path):
    whole = fit(data, settings(weights), seed=0, device=CPU)
    pooled, spatial = whole.stats["pooled"], whole.stats["spatial"]
    np.savez(
        tmp_path / "adm.npz",
        mu=pooled.mean, sigma=pooled.covariance, mu_s=spatial.mean, sigma_s=spatial.covariance,
    )  # fmt: skip
    x = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mine = settings(weights, reference="file", statistics=str(tmp_path / "adm.npz"))
    from_file = fit(data, mine, seed=0, device=CPU)
    found, wanted = from_file.measure(x), whole.measure(x)
    for metric in ("fd", "fd_spatial"):
        value = found[f"{metric}_inception_12_file_adm"]
        assert value == pytest.approx(wanted[f"{metric}_inception_12_train"], rel=1e-6)
    assert not any(name.startswith(("kd", "precision")) for name in found)
    assert found["score_inception_12"] == wanted["score_inception_12"]
    save(tmp_path / "protocol", from_file)
    assert load(tmp_path / "protocol", CPU).measure(x) == found


def test_a_part_of_the_training_set_and_data_without_a_test_set_are_refused(
    weights, data, monkeypatch
):
    with pytest.raises(ReflowError, match="has no published test set; use train"):
        fit(data, settings(weights, reference="test"), seed=0, device=CPU)
    about = open_coupling(data).about
    for part in ({"samples": 100}, {"split": "test"}):
        changed = about.model_copy(update={"data": {**about.data, **part}})

        class Part:
            about = changed

        with pytest.raises(ReflowError, match="is a part of the training set"):
            protocol._images(Part, settings(weights), 0)


def test_the_reference_test_is_the_whole_published_test_set(weights, tmp_path, monkeypatch):
    """Also where the chain trains on a part of the training set."""
    asked = []

    def published(self, seed):
        asked.append((self.split, self.samples))
        levels = torch.full((5, 3, 32, 32), 0.5 if self.split == "test" else -0.5)
        return Samples(levels, torch.zeros(5, dtype=torch.int64), image=True)

    monkeypatch.setattr(CIFAR10, "read", published)
    prepare(tmp_path / "data", CIFAR10(name="cifar10", root="nowhere", samples=5), seed=0)
    found = protocol._images(
        open_coupling(tmp_path / "data"), settings(weights, reference="test"), 0
    )
    assert asked == [("train", 5), ("test", None)]
    assert found.shape == (5, 3, 32, 32) and bool((found == 0.5).all())


def test_clean_fids_resize_is_that_of_pillow():
    from PIL import Image

    levels = torch.randint(0, 256, (1, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    wanted = [
        np.asarray(Image.fromarray(c.float().numpy(), mode="F").resize((299, 299), 3))
        for c in levels[0]
    ]
    found = torch.nn.functional.interpolate(
        levels.float(), size=(299, 299), mode="bicubic", antialias=True
    )
    np.testing.assert_allclose(found[0].numpy(), np.stack(wanted), atol=0.02)


class _Absent(ModuleType):
    """A module of torchvision where there is none: torch-fidelity names it, the scores do not."""

    __path__: ClassVar = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return sys.modules.get(f"{self.__name__}.{name}") or type(name, (), {})


@pytest.fixture
def without_torchvision(monkeypatch):
    """Let torch-fidelity be imported without torchvision, which has to fit the build of torch."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in ("", ".datasets", ".transforms", ".transforms.functional", ".models"):
            monkeypatch.setitem(sys.modules, f"torchvision{name}", _Absent(f"torchvision{name}"))


def test_features_are_those_of_torch_fidelity(weights, without_torchvision):
    """On the same images with the same random weights."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    folder, sha = weights
    theirs = FeatureExtractorInceptionV3(
        "inception-v3-compat",
        ["2048", "logits_unbiased"],
        feature_extractor_weights_path=str(folder / "inception.pth"),
    )
    mine = Inception2015(str(folder / "inception.pth"), sha)
    draw = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (3, 3, 32, 32), generator=draw, dtype=torch.uint8)
    with torch.no_grad():
        pooled, logits = theirs(images)
        a, b, _ = mine.outputs(images.float() / 127.5 - 1)
    torch.testing.assert_close(a, pooled, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(b, logits, rtol=1e-4, atol=1e-4)


def test_scores_are_those_of_torch_fidelity(without_torchvision):
    """On the same features and logits."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    draw = torch.Generator().manual_seed(4)
    halves = [torch.randn(50, 24, generator=draw, dtype=torch.float64) + i for i in range(2)]
    stats = [fid_features_to_statistics(half) for half in halves]
    wanted = fid_statistics_to_metric(*stats, False)["frechet_inception_distance"]
    own = [GaussianStats.from_features(half.float()) for half in halves]
    assert frechet_distance(*own) == pytest.approx(wanted, rel=1e-4)
    logits = 3 * torch.randn(100, 1008, generator=draw)
    score = isc_features_to_metric(logits.double(), splits=10, shuffle=False)
    found = inception_score(logits)
    assert found[:2] == pytest.approx(
        (score["inception_score_mean"], score["inception_score_std"]), rel=1e-4
    )
    options = {"kid_subsets": 100, "kid_subset_size": 50, "verbose": False}
    kid = kid_features_to_metric(*halves, **options)["kernel_inception_distance_mean"]
    assert published_kid(*(half.float() for half in halves), seed=0)[0] == pytest.approx(
        kid, rel=1e-4
    )
