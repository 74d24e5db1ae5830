"""Solver auto: the wanted error with few evaluations, by a probe that is the same in any run."""

import json

import pytest
import torch

from fmcore.choices.fitted import Fitted, fitted
from fmcore.choices.multistep import AdamsBashforth
from fmcore.couple import Couple
from fmcore.coupling.read import open_coupling, read
from fmcore.network.store import load
from fmcore.sampling import probe
from fmcore.sampling.flow import Flow
from fmcore.sampling.probe import Auto, along, choose, dense_where_bent
from fmcore.sampling.sampler import sampler_of
from fmcore.settings import ReflowError
from fmcore.solve.solver import Solver, solve
from fmcore.work.compute import Compute
from fmcore.work.work import Work
from tests.fmcore.sampling.test_couple import run, start  # noqa: F401
from tests.oracles import eight_gaussians_velocity

VELOCITY = eight_gaussians_velocity(1.39, 0.174)


@pytest.fixture
def few_probes(monkeypatch):
    monkeypatch.setattr("fmcore.sampling.pairs.probes", lambda dim: 64)


def normal(rows, seed):
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def carry(solver, keep):
    return solve(VELOCITY, normal(256, 0), solver, keep_trajectory=keep)


def inverse(solver, ends):
    return solve(VELOCITY, ends, solver, start=0.0, end=1.0).x


@pytest.mark.parametrize("error", [1e-2, 1e-3])
def test_the_chosen_solver_has_the_wanted_error_on_other_sources(error):
    solver, receipt = choose(Auto(name="auto", error=error), carry)
    fresh = normal(1024, 1)
    exact = solve(VELOCITY, fresh, Solver(name="rk4", steps=200)).x

    def off(solver):
        gap = (solve(VELOCITY, fresh, solver).x - exact).square().mean().sqrt()
        return float(gap / exact.std())

    assert off(solver) < 1.2 * error
    assert receipt["wanted"] == error and 0 < receipt["error"] <= error
    assert receipt["probes"] == 256
    assert off(Solver(name="heun", steps=(solver.steps + 1) // 2)) > 2 * error
    assert choose(Auto(name="auto", error=error), carry) == (solver, receipt)
    fits, told = choose(Auto(name="auto", error=error), carry, VELOCITY)
    assert fits.name == "fitted" and fits.steps < 0.9 * (solver.steps + 1)  # a step, an evaluation
    assert off(fits) < 1.3 * error and told["error"] <= error
    assert choose(Auto(name="auto", error=error), carry, VELOCITY) == (fits, told)


@pytest.mark.parametrize("error", [1e-2, 1e-3])
def test_with_inverted_pairs_the_error_is_the_worse_of_both_ways(error):
    auto = Auto(name="auto", error=error)
    solver, receipt = choose(auto, carry, back=(normal(256, 0), inverse))
    fresh = normal(1024, 1)
    exact = solve(VELOCITY, fresh, Solver(name="rk4", steps=200)).x
    there = (solve(VELOCITY, fresh, solver).x - exact).square().mean().sqrt() / exact.std()
    back = (inverse(solver, exact) - fresh).square().mean().sqrt() / fresh.std()
    assert max(float(there), float(back)) < 1.3 * error and receipt["error"] <= error
    one_way, _ = choose(auto, carry)
    off = (inverse(one_way, exact) - fresh).square().mean().sqrt() / fresh.std()
    assert off > 1.1 * error, "a solver for the way to the target alone would not do"


def test_an_error_that_no_grid_reaches_is_a_line(monkeypatch):
    monkeypatch.setattr(probe, "MOST", 10)
    with pytest.raises(ReflowError, match=r"no grid of up to 10 steps with an error of 0\.001"):
        choose(Auto(name="auto"), carry)

    def rough(solver, keep):
        v = lambda x, t: torch.where(x > 0, -1.0, 1.0) * 30 * (1 + (1000 * t).sin()[:, None])
        return solve(v, normal(64, 0), solver, keep_trajectory=keep)

    with pytest.raises(ReflowError, match="rk4 of 512 steps is still off by"):
        choose(Auto(name="auto", error=1e-5), rough)


def test_times_are_dense_where_paths_bend():
    t = torch.linspace(1, 0, 33, dtype=torch.float64)
    path = torch.tanh((t - 0.25) * 20)[:, None, None].expand(33, 5, 1)
    times = dense_where_bent(path, 24, 0.35)
    assert len(times) == 25 and times[0] == 1 and times[-1] == 0
    steps = torch.tensor(times).diff().abs()
    assert 0.15 < times[int(steps.argmin())] < 0.35
    assert steps.max() > 3 * steps.min()
    AdamsBashforth(name="ab3", times=times)  # falls


def test_a_path_is_known_between_its_times():
    t = torch.linspace(1, 0, 33, dtype=torch.float64)
    path = torch.stack([t**5 - t, t**2], dim=1)[:, None]
    for at in (1.0, 0.999, 0.51, 0.013, 0.0):
        expected = torch.tensor([[at**5 - at, at**2]], dtype=torch.float64)
        torch.testing.assert_close(along(path, at), expected, rtol=0, atol=1e-12)


def test_weights_that_are_fitted_end_nearer_than_those_of_polynomials():
    x, fresh = normal(256, 0), normal(512, 1)
    path = solve(VELOCITY, x, Solver(name="rk4", steps=128), keep_trajectory=True).trajectory
    exact = solve(VELOCITY, fresh, Solver(name="rk4", steps=128)).x
    times = tuple(Solver(name="euler", steps=12, shift=0.7).grid(1.0, 0.0).tolist())
    found = fitted(VELOCITY, lambda t: along(path, t), times)
    adams = [
        AdamsBashforth(name=name, steps=11, shift=s)
        for name in ("ab2", "ab3")
        for s in (0.5, 0.7, 1)
    ]
    off = [float((solve(VELOCITY, fresh, s).x - exact).square().mean()) ** 0.5 for s in adams]
    own = solve(VELOCITY, fresh, found)
    assert own.nfe == 12 and max(map(len, found.weights)) == 8
    assert float((own.x - exact).square().mean()) ** 0.5 < 0.6 * min(off)
    finer = solve(VELOCITY, fresh, found.refined())
    assert finer.nfe == 25
    assert 0.9 < float((finer.x - own.x).norm() / (own.x - exact).norm()) < 1.5  # the gap tells it
    with pytest.raises(ValueError, match="from source to target only"):
        solve(VELOCITY, fresh, found, start=0.0, end=1.0)


@pytest.mark.parametrize(
    "change", [{"times": None}, {"weights": ((1.0,),)}, {"weights": ((1.0,),) * 2}]
)
def test_fitted_weights_need_a_row_for_each_step(change):
    given = {"name": "fitted", "times": (1.0, 0.5, 0.0), "weights": ((-0.5,), (0.1, -0.6))}
    assert Fitted.model_validate(given).steps == 2
    with pytest.raises(ValueError, match="row for each step|has 1 weights, not 2"):
        Fitted.model_validate({**given, **change})


def test_pairs_that_are_inverted_too_take_a_solver_of_both_ways(start, few_probes):  # noqa: F811
    mix = {"generated": 0.75, "inverted": 0.25}
    run(start, "mixed", Couple(pairs=128, shard=64, solver=Auto(name="auto"), mix=mix))
    about = open_coupling(start / "mixed" / "coupling").about
    assert about.solver["name"] in {"ab3", "ab4"}
    flow = Flow.of(load(start / "model"), Compute())
    solver = AdamsBashforth.model_validate(about.solver)
    source = torch.randn(512, 2, generator=torch.Generator().manual_seed(1))
    ends = flow.sample(source, Solver(name="rk4", steps=128)).x
    off = (flow.invert(ends, solver).x - source).square().mean().sqrt() / source.std()
    assert off < 1.3 * about.probe["wanted"]


def test_a_coupling_records_what_was_chosen_and_its_bytes_are_those_of_any_run(start, few_probes):  # noqa: F811
    settings = Couple(pairs=600, shard=300, solver=Auto(name="auto", error=1e-3))
    whole = run(start, "whole", settings)
    assert run(start, "other", settings.model_copy(update={"batch": 77})) == whole
    about = open_coupling(start / "whole" / "coupling").about
    chosen = about.solver
    assert chosen["name"] == "fitted" and about.nfe == chosen["steps"]
    assert about.probe["error"] <= about.probe["wanted"] == 1e-3
    metrics = json.loads((start / "whole" / "metrics.json").read_text())
    assert metrics["solver_error"] == about.probe["error"] and metrics["nfe"] == about.nfe
    named = Couple(pairs=600, shard=300, solver=Fitted.model_validate(chosen))
    run(start, "named", named)
    pairs = [read(open_coupling(start / name / "coupling")).target for name in ("whole", "named")]
    assert torch.equal(*pairs)


def test_the_probe_is_made_once_for_all_processes_of_a_coupling(start, few_probes, monkeypatch):  # noqa: F811
    settings = Couple(pairs=64, shard=64, solver=Auto(name="auto", error=1e-3))
    work = Work(scratch=start / "scratch", seed=11)
    first = sampler_of(start / "model", start / "data", settings, work).about
    with monkeypatch.context() as patched:
        patched.setattr(probe.Probe, "choose", None)
        assert sampler_of(start / "model", start / "data", settings, work).about == first
        with pytest.raises(TypeError):  # another error is another probe
            tighter = settings.model_copy(update={"solver": Auto(name="auto", error=1e-4)})
            sampler_of(start / "model", start / "data", tighter, work)
    file = work.scratch / probe.RECEIPT
    file.write_text(file.read_text().replace("fitted", "ftited"))  # damaged: probed again
    assert sampler_of(start / "model", start / "data", settings, work).about == first
