"""`reflow sample`: pictures with the data behind, films, solvers, models of other commits."""

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from flows.cli.main import app
from flows.library.models import model_at
from fmcore.network.store import load
from fmcore.settings import ReflowError
from fmcore.verdict import film
from tests import tiny_chain


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A chain of one round, committed; then its training is changed, and nothing else."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        project = tiny_chain.build(root)
    project.sh("git", "add", "-A")
    project.sh("git", "commit", "-q", "-m", "first")
    return project


@pytest.fixture
def reflow(tiny, monkeypatch):
    monkeypatch.chdir(tiny.root)
    monkeypatch.setattr("flows.cli.console.out.width", 200)
    return lambda *words: CliRunner().invoke(app, ["sample", *words])


def test_points_are_drawn_over_the_data_in_the_colour_of_the_round(reflow, tiny, monkeypatch):
    seen = []

    def kept(figure, path):
        seen.append(figure.axes[0])
        path.touch()

    monkeypatch.setattr(film, "save", kept)
    done = reflow("rf1", "a.png", "--nfe", "8", "--solver", "heun")
    assert done.exit_code == 0, done.output
    assert "1,000 samples of rf1 at NFE 8: a.png" in done.stdout
    behind, dots = seen[0].collections
    assert len(behind.get_offsets()) == 200 and len(dots.get_offsets()) == 1000
    assert seen[0].get_title(loc="left") == "gaussian, rf1: samples at NFE 8 (heun)"
    assert seen[0].get_aspect() == 1 and seen[0].get_xlabel() == "dimension 1"


@pytest.mark.parametrize(("solver", "nfe"), [("euler", 5), ("ab4", 6), ("heun", 6), ("rk4", 8)])
def test_the_budget_is_spent_as_the_solver_can(reflow, solver, nfe):
    done = reflow("rf1", "a.npy", "--nfe", str(nfe), "--solver", solver, "-n", "9")
    assert f"9 samples of rf1 at NFE {nfe}: a.npy" in done.stdout


def test_an_adaptive_solver_takes_what_it_needs_or_says_so(reflow, tiny):
    assert reflow("rf1", "a.npy", "--solver", "dopri5", "-n", "9").exit_code == 0
    fine = np.load(tiny.root / "a.npy")
    assert reflow("rf1", "b.npy", "--solver", "rk4", "--nfe", "128", "-n", "9").exit_code == 0
    np.testing.assert_allclose(np.load(tiny.root / "b.npy"), fine, atol=5e-3)
    few = reflow("rf1", "a.npy", "--solver", "dopri5", "--nfe", "20")
    assert few.exit_code == 2 and "needs more than 20 evaluations" in few.stderr


def test_a_film_goes_from_the_noise_to_the_samples(reflow, tiny):
    done = reflow("rf1", "film.gif", "-n", "50")
    assert done.exit_code == 0 and "50 samples of rf1 at NFE 32" in done.stdout, done.output
    with Image.open(tiny.root / "film.gif") as image:
        assert image.n_frames == 33
    reflow("rf1", "short.gif", "--nfe", "8", "--solver", "heun")
    with Image.open(tiny.root / "short.gif") as image:
        assert image.n_frames == 5


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["a.jpg"], "a.jpg: expected a name that ends in .png, .npy, .gif, .mp4"),
        (["a.gif", "--solver", "dopri5"], "a film needs a solver on a grid"),
        (["a.gif", "--churn", "0.5"], "a film shows the ODE"),
        (["a.png", "--churn", "0.5", "--solver", "heun"], "--churn is the reverse SDE"),
        (["a.png", "--solver", "rk45"], "no solver 'rk45'"),
        (["a.png", "--solver", "rk4", "--nfe", "3"], "one step takes more than 3"),
        (["a.png", "--guidance", "2"], "say which by --label"),
        (["a.png", "--class", "cat"], "class"),
        (["a.png", "--rev", "nowhere"], "no revision 'nowhere'"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(reflow, words, says):
    done = reflow("rf1", *words)
    assert done.exit_code == 2, done.output
    assert says in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_model_of_another_commit_comes_from_the_cache(reflow, tiny):
    assert reflow("rf1", "now.npy", "--nfe", "4").exit_code == 0
    model = tiny.root / "models" / "rf1"
    old = load(model).digest
    kept = model.with_name("moved")
    model.rename(kept)  # the workspace has no model
    try:
        done = reflow("rf1", "then.npy", "--nfe", "4", "--rev", "HEAD")
        assert done.exit_code == 0 and "rf1 at HEAD" in done.stdout, done.output
        assert reflow("rf1", "then.png", "--rev", "HEAD").exit_code == 0
    finally:
        kept.rename(model)
    found = [np.load(tiny.root / name) for name in ("now.npy", "then.npy")]
    np.testing.assert_array_equal(*found)
    at = model_at(tiny.root, "HEAD", "rf1")
    assert load(at.folder).digest == old and at.data == "independent"
    (at.folder / "config.json").write_text("{}")  # a damaged copy is fetched again
    assert load(model_at(tiny.root, "HEAD", "rf1").folder).digest == old
    with pytest.raises(ReflowError, match="no round 'rf9' in HEAD; it has: rf1"):
        model_at(tiny.root, "HEAD", "rf9")
