"""`reflow estimate --compute`: settings measured side by side, and the line that it advises."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from rich.console import Console

import fmcore.work.compute
from flows.cli.variants import Comparison, Variant, compare, variant_table, worth_trying
from flows.params.load import Params
from flows.params.tree import parse, plain
from fmcore.network.build import build
from fmcore.network.images import UNet
from fmcore.network.store import load, save
from tests.flows.cli.test_estimate import chain  # noqa: F401

CPU = torch.device("cpu")


def test_what_cannot_run_here_is_said_and_never_advised(chain, monkeypatch):  # noqa: F811
    def none(*inputs):
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setattr(fmcore.work.compute, "_compiled", lambda network: none)
    told = []
    found = compare(chain.root, seconds=0.05, begin=lambda *words: told.append(words))
    by_name = {v.name: v for v in found.variants}
    assert list(by_name) == ["plain fp32", "bf16", "compile", "bf16 + compile"]
    assert by_name["compile"].refused == "RuntimeError: no C++ compiler"
    plain, half = by_name["plain fp32"], by_name["bf16"]
    assert plain.change == 0 and 1e-4 < half.change < 0.05
    assert all(v.step > 0 and v.call > 0 and v.hours > 0 for v in (plain, half))
    assert found.best(1e-9).name == "plain fp32"
    assert [done for _, done, _ in told] == list(range(told[0][2]))
    console = Console(record=True, width=200)
    console.print(variant_table(found))
    assert "no C++ compiler" in console.export_text()
    assert found.model.endswith("untrained")
    rows = json.loads(json.dumps(found.record(1e-3), allow_nan=False))["variants"]
    assert rows[2]["hours"] is None and rows[1]["settings"] == {"precision": "bf16"}


PLAIN = Variant({}, start=0.0, step=1.0, call=1.0, change=0.0, hours=10.0)


def measured(*variants, **given):
    return Comparison(given, "cpu", "rf1, as trained", [PLAIN, *variants])


def test_the_fastest_within_the_bound_is_advised():
    last = replace(PLAIN, settings={"channels_last": True}, change=1e-6, hours=8.0)
    half = replace(PLAIN, settings={"precision": "bf16"}, change=4e-3, hours=3.0)
    found = measured(last, half, threads=4, precision="auto")
    assert found.best(1e-3) is last and found.best(1e-2) is half
    assert found.line(last) == "compute: {threads: 4, channels_last: true}"
    assert found.line(half) == "compute: {threads: 4, precision: bf16}"
    assert list(found.advice(1e-3))[-1] == found.line(last)
    for variant in (last, half):  # the line is one that params.yaml can have
        read = plain(parse(found.line(variant), "params.yaml"))["compute"]
        Params.model_fields["compute"].annotation.model_validate(read)


@pytest.mark.parametrize(
    "changed", [{"hours": 9.9}, {"change": 0.1}, {"change": math.nan}, {"refused": "no"}]
)
def test_nothing_is_advised_for_little_or_for_another_answer(changed):
    other = replace(PLAIN, settings={"compile": True}, change=0.0, hours=5.0)
    assert measured(other).best(1e-3) is other
    found = measured(replace(other, **changed))
    assert found.best(1e-3) is PLAIN and found.line(PLAIN) == "compute: {}"


def test_a_layout_is_tried_for_convolutions_and_graphs_on_a_gpu(tmp_path):
    network = build(UNet(name="unet", channels=(8, 8)), (1, 8, 8), seed=0)
    save(tmp_path / "m", network.eval(), about={"round": "rf1"})
    model = load(tmp_path / "m")
    names = [Variant(s).name for s in worth_trying(model, CPU)]
    assert names[-2:] == ["channels_last", "bf16 + channels_last"]
    assert Variant(worth_trying(model, torch.device("cuda"))[-1]).name.endswith("cuda_graphs")


def test_the_command_prints_json(chain):  # noqa: F811
    command = [sys.executable, "-m", "flows.cli", "estimate", "--compute", "--json"]
    env = {**chain.env(), "TORCHDYNAMO_DISABLE": "1"}  # compile compiles nothing: it takes a minute
    done = subprocess.run(
        command, cwd=chain.root, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bound"] == 1e-3 and found["advice"] in {v["name"] for v in found["variants"]}
    assert found["line"].startswith("compute: {")
