"""Reference statistics of others: every layout gives back what was written, damage is one line."""

import hashlib
import re

import numpy as np
import pytest
import torch

from fmcore.measure.reference_file import POOLED, SPATIAL, read_reference
from fmcore.settings import ReflowError


def statistics(size, seed):
    draw = np.random.default_rng(seed)
    return draw.normal(size=size), np.diag(draw.uniform(0.5, 2, size=size))


@pytest.fixture(scope="module")
def known():
    return {"pooled": statistics(POOLED, 0), "spatial": statistics(SPATIAL, 1)}


def write(folder, known):
    """The four layouts, each as its own project writes it."""
    (mu, sigma), (mu_s, sigma_s) = known["pooled"], known["spatial"]
    np.savez(folder / "edm.npz", mu=mu, sigma=sigma)
    images = np.zeros((3, 4, 4, 3), np.uint8)
    np.savez(folder / "adm.npz", arr_0=images, mu=mu, sigma=sigma, mu_s=mu_s, sigma_s=sigma_s)
    np.savez_compressed(folder / "clean.npz", mu=mu, sigma=sigma)
    torch.save({"mu": mu.astype(np.float32), "sigma": sigma}, folder / "fidelity.pt")
    torch.save({"mu": torch.tensor(mu), "sigma": torch.tensor(sigma)}, folder / "tensors.pt")


def test_every_layout_gives_back_mean_and_covariance(tmp_path, known):
    write(tmp_path, known)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 5
    for file in files:
        found = read_reference(file)
        mu, sigma = known["pooled"]
        tolerance = 1e-6 if file.name == "fidelity.pt" else 0
        np.testing.assert_allclose(found.pooled.mean.numpy(), mu, rtol=tolerance, atol=tolerance)
        np.testing.assert_array_equal(found.pooled.covariance.numpy(), sigma)
        assert found.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        assert (found.spatial is not None) == (file.name == "adm.npz")
    spatial = read_reference(tmp_path / "adm.npz").spatial
    np.testing.assert_array_equal(spatial.covariance.numpy(), known["spatial"][1])


def test_what_is_no_statistics_is_refused_with_what_was_expected_and_got(tmp_path, known):
    mu, sigma = known["pooled"]
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((2, 8, 8, 3), np.uint8))
    np.savez(tmp_path / "small.npz", mu=mu[:64], sigma=sigma[:64, :64])
    np.savez(tmp_path / "nan.npz", mu=mu * np.nan, sigma=sigma)
    np.savez(tmp_path / "skew.npz", mu=mu, sigma=sigma + np.triu(np.ones_like(sigma), 1))
    np.savez(tmp_path / "pickle.npz", mu=np.array([object()]), sigma=sigma)
    np.save(tmp_path / "one.npy", mu)
    (tmp_path / "text.npz").write_text("<html>not found</html>")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, got in (
        ("images.npz", "the arrays arr_0"),
        ("small.npz", "mu [64] and sigma [64, 64]"),
        ("nan.npz", "not finite"),
        ("skew.npz", "not symmetric"),
        ("pickle.npz", "allow_pickle"),
        ("one.npy", "no .npz archive"),
        ("text.npz", "no .npz archive"),
        ("list.pt", "a list without mu and sigma"),
    ):
        with pytest.raises(ReflowError, match=re.escape(got)) as caught:
            read_reference(tmp_path / name)
        assert "expected statistics of the Inception of 2015" in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ReflowError, match="cannot be read"):
        read_reference(tmp_path / "missing.npz")


class Trap:
    """An object whose unpickling writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_no_code_in_a_file_is_run(tmp_path):
    path = tmp_path / "written"
    torch.save({"mu": Trap(path), "sigma": Trap(path)}, tmp_path / "trap.pt")
    with pytest.raises(ReflowError, match="expected statistics"):
        read_reference(tmp_path / "trap.pt")
    np.savez(tmp_path / "trap.npz", mu=np.array([Trap(path)]), sigma=np.zeros(1))
    path.unlink(missing_ok=True)
    with pytest.raises(ReflowError, match="expected statistics"):
        read_reference(tmp_path / "trap.npz")
    assert not path.exists()
