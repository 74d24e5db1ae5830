"""A coupling with more pairs, or with fewer, keeps the shards of another, and samples the rest."""

import json
from collections import Counter

import pyarrow.parquet as pq
import pytest
import torch

from fmcore.couple import couple
from fmcore.coupling.read import open_coupling, read
from fmcore.coupling.verify import verify
from fmcore.coupling.write import shard_name
from fmcore.network.mlp import ResidualMLP
from fmcore.sampling.pairs import Couple
from fmcore.settings import ReflowError
from fmcore.solve.solver import Solver
from fmcore.work.work import Work
from tests.chains import gaussian_data, scratch_model


@pytest.fixture
def calls():
    """Count the calls of the network in this process."""
    found: Counter[str] = Counter()

    def count(module, *_):
        found["network"] += isinstance(module, ResidualMLP)

    hook = torch.nn.modules.module.register_module_forward_hook(count)
    yield found
    hook.remove()


@pytest.fixture
def sample(tmp_path, calls):
    """Sample a coupling; return its files and how often the network was called."""
    torch.set_num_threads(1)
    data = gaussian_data(tmp_path / "data", mu=[1.0, 0.0], s=[1.0, 2.0], pairs=90)
    model = scratch_model(tmp_path / "model", dim=2)

    def run(name, pairs, *earlier, seed=5, **settings):
        chosen = Couple(pairs=pairs, **{"shard": 64, "solver": Solver(steps=3), **settings})
        work = Work(scratch=tmp_path / "scratch" / name, seed=seed)
        calls.clear()
        out, metrics = tmp_path / name, tmp_path / f"{name}.json"
        given = [{p.name: p for p in folder.iterdir()} for folder in earlier]
        couple(model, data, out, metrics, chosen, work, given)
        return out, calls["network"] - 1  # one call counts the operations of an evaluation

    return run


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_larger_coupling_keeps_the_full_shards_and_is_what_sampling_anew_gives(sample):
    small, for_two = sample("small", 100)  # shards of 64 and 36 pairs
    grown, for_three = sample("grown", 200, small)  # 64, 64, 64 and 8
    fresh, for_four = sample("fresh", 200)
    assert contents(grown) == contents(fresh)
    first = shard_name(0)
    assert contents(grown)[first] == contents(small)[first]
    assert (for_two, for_three) == (for_four // 2, 3 * for_four // 4)
    assert verify(grown).about.pairs == 200
    assert json.loads((grown.parent / "grown.json").read_text())["pairs"] == 200


def test_a_smaller_coupling_keeps_what_it_can(sample):
    large, _ = sample("large", 200)
    cut, for_one = sample("cut", 100, large)
    fresh, for_two = sample("fresh", 100)
    assert contents(cut) == contents(fresh)
    assert for_one == for_two // 2, "the last shard has 36 pairs, not 64"


@pytest.mark.parametrize("change", [{"seed": 6}, {"solver": Solver(steps=4)}, {"shard": 50}])
def test_shards_of_another_origin_or_other_pairs_are_not_kept(sample, change):
    other, _ = sample("other", 200, **change)
    found, calls = sample("found", 200, other)
    fresh, of_fresh = sample("fresh", 200)
    assert (contents(found), calls) == (contents(fresh), of_fresh)


def test_a_damaged_shard_is_passed_over_for_a_whole_one(sample, tmp_path):
    whole, _ = sample("whole", 128)
    damaged, _ = sample("damaged", 128)
    file = damaged / shard_name(0)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    (damaged / shard_name(1)).write_bytes(b"PAR1")
    assert sample("a", 128, damaged, whole)[1] == 0
    found, calls = sample("b", 128, damaged)
    assert calls > 0 and contents(found) == contents(whole)


def test_a_shard_does_not_hold_the_total_and_one_of_an_earlier_version_is_read(sample):
    folder, _ = sample("new", 100)
    stated = json.loads(pq.read_schema(folder / shard_name(1)).metadata[b"fm"])
    assert "pairs" not in stated and stated["seed"] == 5
    pairs = read(open_coupling(folder))
    for total in (100, 101):
        for file in folder.glob("part-*"):
            rows = pq.read_table(file)
            metadata = {"fm": json.dumps({**stated, "pairs": total}, sort_keys=True)}
            pq.write_table(rows.replace_schema_metadata(metadata), file)
        if total == 100:
            assert torch.equal(read(open_coupling(folder)).target, pairs.target)
        else:
            with pytest.raises(ReflowError, match="belongs to another coupling"):
                read(open_coupling(folder))
