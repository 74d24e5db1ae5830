"""A coupling by many jobs is the directory that one process writes, and DVC records one stage."""

import hashlib
import re
import subprocess
import sys

import pytest
import torch

from flows.dag import inputs, plan
from flows.params.load import load
from flows.stage.guard import shared
from flows.stage.shards import parse, ranges
from fmcore.couple import couple
from fmcore.coupling.verify import verify
from fmcore.settings import ReflowError, derive_seed
from fmcore.work.work import Work
from tests.chains import gaussian_data, scratch_model
from tests.real_chain import PARAMS, real_stages


@pytest.fixture
def chain(empty):
    """A project whose data and first model are there, with the real stage `couple`."""
    real_stages(empty, "inputs", "couple")
    text = PARAMS.replace("pairs: 2000, shard: 512", "pairs: 700, shard: 200")
    untrained = "gates: {endpoint_shift: {warn: null, fail: null}}"
    empty.write("params.yaml", text.replace("gates: {}", untrained))
    torch.set_num_threads(1)
    gaussian_data(empty.root / "couplings/independent", mu=[2.0, -1.0], s=[1.0, 1.0], pairs=100)
    scratch_model(empty.root / "models/rf1", dim=2)
    inputs.write(empty.root)
    return empty


def reflow(chain, *words, check=True):
    return chain.sh("python", "-m", "flows.cli", *words, check=check)


def one_process(chain):
    """What one call of the verb writes: the bytes to hold the jobs to."""
    root, params = chain.root, load(chain.root / "params.yaml")
    params.compute.start()
    couple(
        root / "models/rf1",
        root / "couplings/independent",
        root / "expected/coupling",
        root / "expected/metrics.json",
        params.couplings["rf1"],
        Work(scratch=root / "expected/scratch", seed=derive_seed(params.seed, "couple", "rf1")),
    )
    return {p.name: p.read_bytes() for p in (root / "expected/coupling").iterdir()}


@pytest.mark.long
def test_two_jobs_and_a_finalize_are_one_process(chain):
    expected = one_process(chain)
    jobs = [
        subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "couple", "rf1", "--shards", shards],
            cwd=chain.root,
            env=chain.env(),
        )
        for shards in ("0:2", "2:3")
    ]
    assert [job.wait() for job in jobs] == [0, 0]
    early = reflow(chain, "couple", "rf1", "--finalize", check=False)
    assert early.returncode == 2
    assert "3 of 4 shards are there; missing 3;" in early.stderr
    assert "Traceback" not in early.stderr
    reflow(chain, "couple", "rf1", "--shards", "3:")
    folder = next((chain.root / ".reflow/scratch/couple@rf1").iterdir()) / "shards"
    done = reflow(chain, "couple", "rf1", "--finalize")
    assert "couple@rf1: done" in done.stdout
    coupling = chain.root / "couplings/rf1"
    assert {p.name: p.read_bytes() for p in coupling.iterdir()} == expected
    assert re.findall(r"couple@rf1 (\d+)/700", done.stdout) == ["700"], "sampled again"
    assert verify(coupling).about.pairs == 700
    assert plan.changed(chain.root, "couple@rf1") == []
    assert not folder.exists()


@pytest.mark.long
def test_a_damaged_shard_is_named_and_sampled_again(chain):
    expected = one_process(chain)
    reflow(chain, "couple", "rf1", "--shards", ":4")
    folder = next((chain.root / ".reflow/scratch/couple@rf1").iterdir()) / "shards"
    victim = folder / "part-00001.parquet"
    bytes_ = bytearray(victim.read_bytes())
    bytes_[len(bytes_) // 2] ^= 1
    victim.write_bytes(bytes_)
    assert "missing 1" in reflow(chain, "couple", "rf1").stdout
    chain.repro("couple@rf1")  # plain DVC finds the shards as well
    coupling = chain.root / "couplings/rf1"
    assert {p.name: p.read_bytes() for p in coupling.iterdir()} == expected


def test_jobs_share_the_stage_and_keep_it_from_running(chain):
    with shared(chain.root, "couple@rf1") as one, shared(chain.root, "couple@rf1") as other:
        assert one == other
        stage = chain.repro("couple@rf1", check=False)
        assert stage.returncode != 0
        assert "stage couple@rf1 is already running" in stage.stderr
        assert "exited with 75" in stage.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rf1", "--shards", "9:12"], "no shard; this coupling has the shards 0 to 3"),
        (["rf1", "--shards", "a:b"], "expected a:b, or a for one, got 'a:b'"),
        (["rf9", "--shards", "0:1"], "no coupling 'rf9'; params.yaml has: rf1"),
        (["rf1", "--shards", "0:1", "--finalize"], "one at a time"),
    ],
)
def test_a_mistake_is_one_line(chain, words, said):
    found = reflow(chain, "couple", *words, check=False)
    assert found.returncode == 2
    assert said in found.stderr
    assert len(found.stderr.splitlines()) == 1


@pytest.mark.parametrize("text", ["", ":", "1:2:3", "-1", "1.5", "2:2"])
def test_a_range_that_is_none_is_refused(text):
    with pytest.raises(ReflowError, match="^--shards"):
        parse(text, 10)


def test_ranges_read_back():
    numbers = [0, 1, 2, 5, 7, 8]
    read = [i for text in ranges(numbers).split() for i in parse(text, 10)]
    assert read == numbers


@pytest.mark.long
def test_through_dvc_a_larger_coupling_keeps_its_full_shards_unless_it_is_forced(chain):
    """Dvc deletes the old output before the stage runs; its cache still has the shards."""

    def shards():
        folder = chain.root / "couplings/rf1"
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("part-*")}

    def said(*words):
        return chain.repro("couple@rf1", *words).stdout.splitlines()

    def first(lines):
        return next(line for line in lines if line.startswith("couple@rf1 "))

    assert first(said()).startswith("couple@rf1 200/700")
    small = shards()
    chain.edit("params.yaml", "pairs: 700", "pairs: 1000")
    assert first(said()).startswith("couple@rf1 600/1000"), "three of four shards were full"
    large = shards()
    assert {k: v for k, v in small.items() if large[k] == v} == {
        k: small[k] for k in sorted(small)[:3]
    }
    assert verify(chain.root / "couplings/rf1").about.pairs == 1000
    chain.edit("params.yaml", "pairs: 1000", "pairs: 900")
    assert first(said()).startswith("couple@rf1 800/900")
    chain.edit("params.yaml", "steps: 8", "steps: 7")
    assert first(said()).startswith("couple@rf1 200/900"), "another solver: nothing to keep"
    assert first(said("-f")).startswith("couple@rf1 200/900"), "what is forced is done"
