"""Sampling a coupling: the same bytes whatever the batch or an interruption."""

import errno
import json
import os

import numpy as np
import pandas as pd
import pytest
import torch

from fmcore.couple import Couple, couple
from fmcore.coupling import checks
from fmcore.coupling.noise import gaussian_noise
from fmcore.coupling.read import open_coupling, read
from fmcore.coupling.verify import verify
from fmcore.network.mlp import MLP
from fmcore.network.store import load, save
from fmcore.settings import ReflowError
from fmcore.solve.solver import Solver
from fmcore.work.compute import in_tiles
from fmcore.work.work import Work
from tests.chains import gaussian_data, scratch_model, silent


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.fixture
def start(tmp_path):
    torch.set_num_threads(1)
    gaussian_data(tmp_path / "data", mu=[0.0, 0.0], s=[1.0, 1.0], pairs=50)
    folder = scratch_model(tmp_path / "model", dim=2, network=MLP(width=256, depth=1))
    model = load(folder).network
    generator = torch.Generator().manual_seed(3)
    for p in model.parameters():
        p += 0.2 * torch.randn(p.shape, generator=generator)
    save(folder, model, about={"round": "rf1"})
    return tmp_path


def run(start, name, settings, *, log=silent, seed=11):
    out = start / name / "coupling"
    couple(
        start / "model",
        start / "data",
        out,
        start / name / "metrics.json",
        settings,
        Work(scratch=start / name / "scratch", seed=seed, log=log),
    )
    return {p.name: p.read_bytes() for p in out.iterdir()}


SETTINGS = Couple(pairs=700, shard=300, solver=Solver(name="heun", steps=4), audit_every=10)


@pytest.mark.parametrize("batch", [1, 7, 100, 255, 257, 1000])
def test_the_batch_does_not_change_a_byte(start, batch):
    whole = run(start, "whole", SETTINGS)
    other = run(start, f"batch{batch}", SETTINGS.model_copy(update={"batch": batch}))
    assert other == whole


def test_without_tiles_the_batch_would_change_bytes(start):
    """Why tiles exist: a plain network call rounds differently for some batch sizes."""
    network = load(start / "model").network
    x, t = gaussian_noise(0, torch.arange(512).numpy(), (2,)), torch.full((512,), 0.5)
    whole = network(x, t)
    sizes = [1, 2, 3, 5, 7, 9, 15, 17, 100]

    def same(v):
        calls = [torch.cat([v(a, b) for a, b in zip(x.split(n), t.split(n))]) for n in sizes]
        return all(torch.equal(c, v(x, t)) for c in calls)

    assert same(in_tiles(network)) and not same(network)
    assert torch.allclose(in_tiles(network)(x, t), whole, atol=1e-5)


def test_only_a_file_system_without_links_has_its_shards_moved(start, monkeypatch):
    """On a full disk they stay in the scratch folder: DVC deletes the outputs of a failed stage."""
    whole, kept = run(start, "whole", SETTINGS), start / "full" / "scratch" / "shards"

    def link(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", link)
    code = errno.ENOSPC
    with pytest.raises(OSError, match="No space left"):
        run(start, "full", SETTINGS)
    assert len(list(kept.glob("part-*"))) == 3
    code = errno.ENOTSUP
    assert run(start, "full", SETTINGS) == whole
    assert not kept.exists()


def test_the_shard_size_changes_files_but_no_pair(start):
    one = run(start, "one", SETTINGS)
    run(start, "two", SETTINGS.model_copy(update={"shard": 64}))
    a, b = (pd.read_parquet(start / n / "coupling") for n in ("one", "two"))
    assert len(one) == 4
    pd.testing.assert_frame_equal(a, b)


@pytest.mark.parametrize("kill_after", [300, 600])
def test_a_killed_sampling_goes_on_to_the_same_bytes(start, kill_after):
    whole = run(start, "whole", SETTINGS)

    def kill(values, step):
        if step >= kill_after:
            raise Killed

    with pytest.raises(Killed):
        run(start, "killed", SETTINGS, log=kill)
    shards = start / "killed" / "scratch" / "shards"
    kept = {p.name: p.stat().st_mtime_ns for p in shards.glob("part-*")}
    assert len(kept) == kill_after // 300
    stamps = {}

    def note(values, step):
        stamps.update({p.name: p.stat().st_mtime_ns for p in shards.glob("part-*")})

    assert run(start, "killed", SETTINGS, log=note) == whole
    assert {n: stamps[n] for n in kept} == kept, "a finished shard was sampled again"
    metrics = [(start / name / "metrics.json").read_bytes() for name in ("whole", "killed")]
    assert metrics[0] == metrics[1]


def test_a_shard_is_measured_once_as_it_is_written_and_as_it_is_on_disk(start, monkeypatch):
    seen, once = [], checks.measured

    def measured(file, about):
        seen.append((file.name, len(list(file.parent.glob("part-*")))))
        return once(file, about)

    monkeypatch.setattr("fmcore.couple.measured", measured)
    monkeypatch.setattr(checks, "measured", measured)  # what `measure` reads by itself
    run(start, "a", SETTINGS)
    assert seen == [(f"part-0000{i}.parquet", i + 1) for i in range(3)]
    monkeypatch.undo()
    out = start / "a" / "coupling"
    read_again = checks.measure(out, start / "data", open_coupling(out).about)
    metrics = json.loads((start / "a" / "metrics.json").read_text())
    assert {name: metrics[name] for name in read_again} == read_again


def test_a_torn_or_foreign_shard_in_the_scratch_is_sampled_again(start):
    whole = run(start, "whole", SETTINGS)
    shards = start / "torn" / "scratch" / "shards"
    shards.mkdir(parents=True)
    (shards / "part-00000.parquet").write_bytes(whole["part-00000.parquet"][:-9])
    other = run(start, "other", SETTINGS, seed=12)
    (shards / "part-00001.parquet").write_bytes(other["part-00001.parquet"])
    assert run(start, "torn", SETTINGS) == whole


def test_the_coupling_describes_itself(start):
    run(start, "a", SETTINGS)
    coupling = verify(start / "a" / "coupling")
    about = coupling.about
    assert about.nfe == 8 and about.solver == {"name": "heun", "steps": 4, "shift": 1.0}
    assert about.model == load(start / "model").digest
    assert about.numerics["device"] == "cpu"
    pairs = read(open_coupling(start / "a" / "coupling"))
    noise = gaussian_noise(11, pairs.pair_id.numpy(), (2,))
    assert torch.equal(pairs.source, noise)


def test_the_solver_gap_is_audited_and_falls_with_the_step(start):
    run(start, "coarse", SETTINGS)
    run(start, "fine", SETTINGS.model_copy(update={"solver": Solver(name="heun", steps=32)}))
    frame, rows = pd.read_parquet(start / "coarse" / "coupling"), load(start / "model").network.tile
    assert rows < len(frame)
    assert (frame.solver_gap.notna() == (frame.pair_id < rows)).all()
    gaps = [
        json.loads((start / n / "metrics.json").read_text())["solver_gap_rms"]
        for n in ("coarse", "fine")
    ]
    assert gaps[0] > 2 * gaps[1] > 0


def test_audited_pairs_fill_whole_calls_and_one_at_least():
    settings = Couple(pairs=10_000, audit_every=4)
    found = settings.audited(np.arange(10_000), 256).nonzero()[0]
    assert found.tolist() == [i for i in range(10_000) if i // 256 in range(0, 40, 4)]
    assert settings.audited(np.arange(100), 256).all()


def test_a_velocity_that_diverges_is_refused(start):
    model = load(start / "model").network
    model.leave.weight.fill_(float("inf"))
    save(start / "model", model, about={"round": "rf1"})
    with pytest.raises(ReflowError, match="not finite"):
        run(start, "a", SETTINGS)
