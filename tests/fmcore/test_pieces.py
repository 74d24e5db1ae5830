"""Pieces of a path: the states that a coupling keeps, and the rounds that learn from them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fmcore.couple import Couple, couple
from fmcore.coupling.compact import Store
from fmcore.coupling.noise import gaussian_noise
from fmcore.coupling.pairs import Pairs
from fmcore.coupling.read import open_coupling, read
from fmcore.coupling.verify import verify
from fmcore.evaluate import _budget
from fmcore.matching.loss import flow_matching_loss
from fmcore.measure.harness import Evaluate, Harness
from fmcore.network.store import load
from fmcore.sampling.flow import Flow
from fmcore.settings import ReflowError
from fmcore.solve.solver import Solver, solve
from fmcore.train import Train, train
from fmcore.training.batch import BatchRules, draw_batch
from fmcore.training.held_out import held_out_losses, held_out_sides
from fmcore.work.work import Work
from tests.chains import CPU, gaussian_data, scratch_model

SPREAD = 0.3
"""Standard deviation of the target; the source's is 1."""


def length(t):
    """Return |x(t)| / |x(1)| on the paths of the exact flow between two centred Gaussians."""
    t = torch.as_tensor(t, dtype=torch.float64)
    return ((1 - t) ** 2 * SPREAD**2 + t**2).sqrt()


def gaussian_pairs(count=512, pieces=8):
    """Return pairs of the exact flow, with the states at the ends of its pieces."""
    z = gaussian_noise(0, np.arange(count), (1,)).double()
    states = [length(1 - j / pieces) * z for j in range(1, pieces)]
    return Pairs(torch.arange(count), SPREAD * z, z, trajectory=torch.stack(states, 1))


def piecewise(pieces):
    """Return the velocity dx/dt of the exact piecewise straight flow, a function of x and t."""

    def velocity(x, t):
        low = (((1 - t) * pieces).long().clamp(0, pieces - 1) + 1) / pieces
        below, above = length(1 - low), length(1 - low + 1 / pieces)
        slope = (above - below) * pieces
        return (slope / (below + (t - 1 + low) * slope))[:, None] * x

    return velocity


@pytest.mark.parametrize("pieces", [2, 4, 8])
def test_the_exact_piecewise_flow_has_no_loss_and_ends_in_as_many_steps(pieces):
    pairs = gaussian_pairs()
    rules = BatchRules(pieces=pieces)
    batch = draw_batch(pairs, rules, seed=0, step=0, device=torch.device("cpu"))
    batch = replace(batch, t=batch.t.double())
    _, error = flow_matching_loss(piecewise(pieces), batch)
    assert float(error) < 1e-20
    whole = draw_batch(pairs, BatchRules(), seed=0, step=0, device=torch.device("cpu"))
    _, other = flow_matching_loss(piecewise(pieces), replace(whole, t=whole.t.double()))
    assert float(other) > 1e-3
    # Each step ends where the next piece begins: a little above it, in its own piece.
    end = solve(piecewise(pieces), pairs.source, Solver(name="euler", steps=pieces)).x
    torch.testing.assert_close(end, pairs.target, atol=1e-12, rtol=0)


def test_states_lie_on_the_line_through_their_piece():
    pairs = gaussian_pairs(8, pieces=4)
    for high, low in [(1.0, 0.5), (0.5, 0.0)]:
        t = torch.full((8,), (high + low) / 2)
        found = pairs.pieced(t, 2)
        for at in (high, low):
            x = (1 - at) * found.target + at * found.source
            torch.testing.assert_close(x, length(at) * pairs.source)
        assert found.trajectory is None
    for pieces in (2, 4):  # a step begins in the piece below, however t is rounded
        for step in range(pieces):
            t = torch.full((8,), 1 - step / pieces)
            found, high = pairs.pieced(t, pieces), 1 - step / pieces
            slope = (length(high) - length(high - 1 / pieces)) * pieces * pairs.source
            torch.testing.assert_close(found.source - found.target, slope)
    third = gaussian_pairs(8, pieces=3)
    found = third.pieced(torch.full((8,), 2 / 3), 3)
    slope = (length(2 / 3) - length(1 / 3)) * 3 * third.source
    torch.testing.assert_close(found.source - found.target, slope)
    with pytest.raises(ValueError, match="4 pieces cannot be joined to 3"):
        pairs.pieced(torch.ones(8), 3)


@pytest.fixture
def chain(tmp_path):
    torch.set_num_threads(1)
    gaussian_data(tmp_path / "data", mu=[1.0, 0.0], s=[1.0, 2.0], pairs=90)
    scratch_model(tmp_path / "model", dim=2)
    paths = (tmp_path / "first", tmp_path / "c.csv", tmp_path / "m.json")
    work = Work(scratch=tmp_path / "first-scratch")
    train(
        tmp_path / "data", tmp_path / "model", *paths, Train(steps=60, batch=32), name="f",
        work=work,
    )  # fmt: skip
    return tmp_path


def coupled(chain, name, pieces=4, **more):
    given = {"pairs": 100, "shard": 64, "solver": Solver(name="heun", steps=8), **more}
    settings = Couple(store=Store(pieces=pieces, **given.pop("store", {})), **given)
    work = Work(scratch=chain / f"{name}-scratch", seed=5)
    couple(chain / "first", chain / "data", chain / name, chain / f"{name}.json", settings, work)
    return chain / name


@pytest.mark.parametrize("mix", [{"generated": 1.0}, {"generated": 0.5, "inverted": 0.5}])
def test_a_coupling_keeps_the_states_of_its_solver(chain, mix):
    folder = coupled(chain, "pairs", mix=mix)
    pairs = read(verify(folder))
    assert pairs.trajectory.shape == (100, 3, 2)
    whole = read(open_coupling(coupled(chain, "whole", pieces=1, mix=mix)))
    assert torch.equal(pairs.target, whole.target) and torch.equal(pairs.source, whole.source)
    flow, solver = Flow.of(load(chain / "first")), Solver(name="heun", steps=8)
    made = flow.sample(pairs.source, solver, keep_trajectory=True)
    back = flow.invert(pairs.target, solver, keep_trajectory=True)
    ours = (made.trajectory[[2, 4, 6]], back.trajectory[[6, 4, 2]])
    same = [(x.transpose(0, 1) - pairs.trajectory).abs().amax((1, 2)) < 1e-5 for x in ours]
    assert bool((same[0] | same[1]).all())
    assert len(mix) == 1 or 20 < int((same[1] & ~same[0]).sum()) < 80
    other = coupled(chain, "other", mix=mix, batch=32)
    for file in sorted(folder.glob("*.parquet")):
        assert file.read_bytes() == (other / file.name).read_bytes()
    assert "pieces" not in open_coupling(chain / "whole").about.model_dump_json()


@pytest.mark.parametrize("target", ["float16", "uint8"])
def test_compact_states_have_two_bytes(chain, target):
    store = {"target": target} | ({"low": -9, "high": 9} if target == "uint8" else {})
    folder = coupled(chain, "compact", store=store)
    found, whole = (read(open_coupling(f)).trajectory for f in (folder, coupled(chain, "whole")))
    torch.testing.assert_close(found, whole, rtol=2.0**-11, atol=1e-6)
    assert Store(pieces=4, **store).width(2) == 2 * ((2 if target == "float16" else 1) + 4 + 6)


def test_a_student_of_pieces_learns_the_states_and_others_the_ends(chain):
    folder = coupled(chain, "pairs")
    settings = Train(steps=40, batch=32, pieces=2)

    def run(name, settings, folder=folder):
        paths = (chain / name, chain / f"{name}.csv", chain / f"{name}.json")
        work = Work(scratch=chain / f"{name}-scratch", seed=1)
        train(folder, chain / "first", *paths, settings, name="s", work=work)
        return load(chain / name)

    student = run("student", settings)
    assert student.config["pieces"] == 2
    metrics = json.loads((chain / "student.json").read_text())
    assert metrics["held_out_loss"] > 0 and "held_out_rel" not in metrics
    plain = run("plain", settings.model_copy(update={"pieces": 1}))
    assert "pieces" not in plain.config and plain.digest != student.digest
    whole = coupled(chain, "ends", pieces=1)
    assert (chain / "plain" / "model.safetensors").read_bytes() == (
        run("of_ends", settings.model_copy(update={"pieces": 1}), whole)
        and (chain / "of_ends" / "model.safetensors").read_bytes()
    )
    with pytest.raises(ReflowError, match="keeps 4 pieces of each path"):
        run("three", settings.model_copy(update={"pieces": 3}))
    with pytest.raises(ReflowError, match="keeps 1 pieces of each path"):
        run("none", settings, chain / "data")


def test_a_round_of_pieces_is_measured_on_its_pieces(chain):
    folder, flow = coupled(chain, "pairs"), Flow.of(load(chain / "first"))
    settings = Evaluate(trajectories=100, solver=Solver(name="heun", steps=4))
    harness = Harness(flow, torch.randn(100, 2), None, settings, 0, CPU)
    path = harness.samples(settings.solver, keep=True).trajectory
    sides = held_out_sides(open_coupling(folder), 200)
    found = {k: _budget(harness, {"pieces": k}, folder, path) for k in (1, 2)}
    for pieces, values in found.items():
        wanted = held_out_losses(flow, sides, seed=0, device=CPU, limit=200, pieces=pieces)
        assert wanted.items() <= values.items() and "cost_rise" in values
    assert found[1]["held_out_loss"] != found[2]["held_out_loss"]
    assert "budget_defect" in found[1] and "budget_defect" not in found[2]


@pytest.mark.parametrize(
    ("solver", "says"),
    [
        (Solver(name="heun", steps=6), "does not stop at t = 0.75"),
        (Solver(name="heun", steps=8, shift=0.5), "does not stop at t = 0.75"),
        ({"name": "dopri5"}, "has times of its own for each pair"),
    ],
)
def test_a_solver_that_passes_the_states_by_is_told(chain, solver, says):
    with pytest.raises((ReflowError, ValidationError), match=says):
        coupled(chain, "pairs", solver=solver)
