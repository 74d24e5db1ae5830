"""Pairs from outside as a stage like any other: plan, shards, lineage, verify, way back."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from flows.cli.main import app
from flows.dag import lineage
from flows.dag import plan as plans
from flows.dag.chain import chain as chain_of
from flows.dag.description import describe, read_file
from flows.dag.outputs.elsewhere import fetched
from flows.params.load import load
from flows.stage import shards
from flows.stage.__main__ import main
from flows.stage.imports import pairs_of
from fmcore.couple import couple
from fmcore.coupling.read import open_coupling, read
from fmcore.coupling.verify import verify
from fmcore.outside.imported import Imported
from fmcore.outside.kinds import Chain
from fmcore.settings import ReflowError
from fmcore.work.work import Work
from tests import tiny_chain

NPZ = "kind: npz, path: teacher, target: images, source: noise"
STATES = ", states: {name: path, times: [0.75, 0.5, 0.25]}"
TEACHER = f"""
  teacher:
    round: scratch
    import: {{{NPZ}{STATES}}}
    shard: 60
"""
STUDENT = """
  student:
    coupling: teacher
    init: scratch
    train: {steps: 20, batch: 32, lr: 1.0e-3, warmup: 2, log_every: 10, pieces: 2}
couplings:"""


def pairs(count, seed=0):
    z = np.random.default_rng(seed).standard_normal((count, 2), dtype=np.float32)
    x = z + np.array([2.0, -1.0], np.float32)
    path = np.stack([t * z + (1 - t) * x for t in (0.75, 0.5, 0.25)], axis=1)
    return {"images": x, "noise": z, "path": path.astype(np.float32)}


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    root = tmp_path_factory.mktemp("imports")
    params = tiny_chain.PARAMS.replace("couplings:", STUDENT[1:]) + TEACHER[1:]
    (root / "teacher").mkdir()
    np.savez(root / "teacher/a-0-of-2.npz", **pairs(100))
    np.savez(root / "teacher/a-1-of-2.npz", **pairs(50, seed=1))
    with tiny_chain.in_this_process(root, params) as project:
        yield project


def test_a_chain_trains_on_pairs_from_outside(chain):
    found = open_coupling(chain.root / "couplings/teacher")
    assert found.about.kind == "imported" and found.about.pairs == 150
    assert len(found.shards) == 3 and found.about.origin["kind"] == "npz"
    assert verify(found.path)
    kept = read(found)
    assert np.array_equal(kept.source[100:], pairs(50, seed=1)["noise"])
    assert np.array_equal(kept.trajectory[100:], pairs(50, seed=1)["path"])
    student = json.loads((chain.root / "models/student/config.json").read_text())
    assert student["pieces"] == 2 and found.about.form.store.pieces == 4
    assert "solver_gap_rel" not in json.loads(
        (chain.root / "metrics/couple/teacher.json").read_text()
    )
    said = (chain.root / "comparison/rounds.json").read_text()
    assert "solver_gap_rel was not measured" in said and '"student"' in said


def test_the_plan_is_empty_and_says_what_changed_in_the_files(chain):
    assert all(p.state == "unchanged" for p in plans.plan(chain.root))
    file = chain.root / "teacher/a-1-of-2.npz"
    before = file.read_bytes()
    np.savez(file, **pairs(50, seed=2))
    try:
        planned = {p.stage: p for p in plans.plan(chain.root)}
        assert planned["couple@teacher"].state == "run"
        assert "import.path: its content changed" in " ".join(planned["couple@teacher"].reasons)
        assert planned["train@student"].state == "downstream"
        assert planned["couple@rf1"].state == "unchanged"
    finally:
        file.write_bytes(before)


def test_lineage_names_the_coupling_of_each_round(chain):
    made = lineage.lock_entries(chain.root)
    found = describe(
        chain_of(lineage.entries(chain.root), made), partial(read_file, chain.root), ""
    )
    own = {c.coupling: c for c in found.couplings}
    assert own["teacher"].trains == ["student"] and own["teacher"].round == "scratch"
    assert own["teacher"].pairs == 150 and own["teacher"].nfe is None


def test_it_is_made_by_several_jobs_with_the_bytes_of_one(chain, tmp_path):
    params = (chain.root / "params.yaml").read_text()
    chain.edit("params.yaml", "shard: 60", "shard: 50")
    try:
        assert main(["inputs", "out=inputs"]) == 0
        assert shards.state(chain.root, "teacher").missing == [0, 1, 2]
        assert list(shards.sample(chain.root, "teacher", "1:3")) == [1, 2]
        assert shards.state(chain.root, "teacher").missing == [0]
        shards.sample(chain.root, "teacher", "0")
        assert not shards.state(chain.root, "teacher").missing
        made = next((chain.root / ".reflow/scratch/couple@teacher").rglob("part-00000.parquet"))
        alone = pairs_of(chain.root, load(chain.root / "params.yaml"), "teacher")
        data = chain.root / "couplings/independent"
        here = Work(scratch=tmp_path)
        couple(tmp_path, data, tmp_path / "out", tmp_path / "m.json", alone, here)
        parts = sorted((tmp_path / "out").glob("part-*"))
        assert len(parts) == 3
        assert all(p.read_bytes() == (made.parent / p.name).read_bytes() for p in parts)
    finally:
        chain.write("params.yaml", params)
        assert main(["inputs", "out=inputs"]) == 0


@pytest.mark.parametrize("command", [["plan"], ["couplings", "--offline"], ["estimate"]])
def test_commands_know_it(chain, command):
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    assert "teacher" in done.stdout


def test_it_goes_out_and_comes_in_again(chain, tmp_path):
    done = CliRunner().invoke(app, ["export", "teacher", "--to", str(tmp_path / "out")])
    assert done.exit_code == 0 and "150 pairs as parquet" in done.output, done.output
    again = CliRunner().invoke(app, ["export", "teacher", "--to", str(tmp_path / "out")])
    assert again.exit_code and "exists" in again.output
    wrong = CliRunner().invoke(
        app, ["export", "teacher", "--to", str(tmp_path / "x"), "--kind", "q"]
    )
    assert wrong.exit_code and "expected one of parquet" in wrong.output


def test_a_coupling_of_a_commit_of_another_project_comes_in_exactly(chain, tmp_path):
    folder = fetched(tmp_path, str(chain.root), "couplings/rf1", "HEAD")
    assert fetched(tmp_path, str(chain.root), "couplings/rf1", "main") == folder  # one commit
    settings = Imported(of=Chain(kind="reflow", path=str(folder)), shard=30).settled()
    data = chain.root / "couplings/independent"
    couple(tmp_path, data, tmp_path / "out", tmp_path / "m.json", settings, Work(scratch=tmp_path))
    ours, theirs = (read(open_coupling(f)) for f in (tmp_path / "out", folder))
    for name in ("target", "source", "pair_id"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    about = open_coupling(tmp_path / "out").about
    assert about.origin["about"]["model"] == open_coupling(folder).about.model
    assert "solver_gap_rel" in json.loads((tmp_path / "m.json").read_text())  # it came along


def test_a_coupling_comes_from_behind_a_git_url_with_a_remote_of_dvc(chain, tmp_path):
    """The repository is bare and has no cache: `dvc get` clones it, and asks its remote."""
    own, bare, remote = (tmp_path / name for name in ("own", "bare.git", "remote"))
    chain.sh("git", "clone", "-q", str(chain.root), str(own))
    shutil.copytree(chain.root / ".dvc/cache", remote)  # what `dvc push` writes
    config = f"[core]\n    remote = store\n['remote \"store\"']\n    url = {remote}\n"
    (own / ".dvc/config").write_text(config)
    for words in (["commit", "-qam", "a remote"], ["tag", "v1"]):
        chain.sh("git", "-C", str(own), *words)
    chain.sh("git", "clone", "-q", "--bare", str(own), str(bare))
    given = (
        TEACHER.partition("{")[0]
        + f"{{kind: reflow, path: 'file://{bare}', coupling: rf1, rev: v1}}\n"
    )
    file = tmp_path / "params.yaml"
    file.write_text(tiny_chain.PARAMS + given[1:])
    found = pairs_of(tmp_path, load(file), "teacher")
    assert found.pairs == 100 and found.place
    data, work = chain.root / "couplings/independent", Work(scratch=tmp_path / "s")
    couple(tmp_path, data, tmp_path / "out", tmp_path / "m.json", found, work)
    ours, theirs = (
        read(open_coupling(f)) for f in (tmp_path / "out", chain.root / "couplings/rf1")
    )
    assert torch.equal(ours.target, theirs.target) and torch.equal(ours.source, theirs.source)
    with pytest.raises(ReflowError, match="no.git: couplings/rf1 cannot be fetched") as error:
        fetched(tmp_path, f"file://{tmp_path}/no.git", "couplings/rf1", None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("path", "rev"), [("couplings/none", "HEAD"), ("couplings/rf1", "nope")])
def test_what_another_project_does_not_have_is_one_line(chain, tmp_path, path, rev):
    with pytest.raises(ReflowError, match="cannot be fetched") as error:
        fetched(tmp_path, str(chain.root), path, rev)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_mlflow_shows_the_data_set_that_the_round_trained_on(chain):
    done = chain.sh("python", "-W", "ignore", "-m", "flows.cli", "publish", "--json")
    assert "train@student" in json.loads(done.stdout)["logged"]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("round: scratch\n    import", "round: nobody\n    import", "no round 'nobody'"),
        ("shard: 60", "shard: 60\n    solver: {name: heun}", "solver has no effect on imported"),
        ("shard: 60", "store: {source: false}", "imported pairs do not have"),
        ("kind: npz", "kind: zip", "import.kind: expected one of"),
        ("path: teacher", "path: 's3://b/pairs'", "copy them first, as by `dvc import-url`"),
        (
            NPZ + STATES,
            "kind: reflow, path: 's3://b', coupling: rf1, rev: v1",
            "which has no commits",
        ),
        ("0.75, 0.5", "0.5, 0.5", "expected different times from 1 to 0, or from 0 to 1, got [0.5"),
        ("shard: 60", "store: {pieces: 3}", "keeps the ends of 3 pieces, which cannot be joined"),
        ("kind: npz, ", "", "its kind is missing; add `kind: ...`"),
        ("{round: rf1, pairs: 100,", "{round: rf1,", "pairs: is missing; add it"),
    ],
)
def test_params_that_make_no_sense_are_one_line(chain, tmp_path, old, new, says):
    text = (chain.root / "params.yaml").read_text()
    assert old in text
    file = tmp_path / "params.yaml"
    file.write_text(text.replace(old, new))
    with pytest.raises(ReflowError) as error:
        load(file)
    assert says in str(error.value) and "\n" not in str(error.value)
