"""A failing gate stops the chain: the stage is refused, and nothing that depends on it runs."""

import shutil

import pytest

from flows.params.load import load
from flows.project.events import Reader, beside
from flows.stage.progress import Reporter
from flows.stage.work import gated, work_of
from fmcore.settings import ReflowError
from tests.conftest import SOURCE
from tests.real_chain import Chain


def params(tmp_path, gates):
    text = (SOURCE / "params" / "gaussian.yaml").read_text()
    head, _, tail = text.partition("gates:")
    rest = tail[tail.index("\n\n") :]
    (tmp_path / "params.yaml").write_text(f"{head}gates: {gates}{rest}")
    return load(tmp_path / "params.yaml")


def test_a_value_above_its_fail_level_is_refused_with_its_reason(tmp_path, capsys):
    chosen = params(tmp_path, "{endpoint_shift: {warn: 0.1, fail: 0.2}}")
    with pytest.raises(ReflowError, match=r"of the endpoints differ.*0\.3.*fail level 0\.2"):
        gated(chosen, {"endpoint_shift": 0.3})
    gated(chosen, {"endpoint_shift": 0.15})
    assert "warning: mean and spread of the endpoints" in capsys.readouterr().out
    gated(chosen, {"endpoint_shift": 0.05, "loss": 7.0})
    assert capsys.readouterr().out == ""


def test_gates_that_warn_or_fail_are_events_with_value_and_level(tmp_path):
    chosen = params(tmp_path, "{endpoint_shift: {warn: 0.1, fail: 0.2}}")
    scratch = tmp_path / "couple@rf1" / "a fingerprint"
    reader = Reader(beside(scratch))
    with Reporter("couple@rf1", 100, scratch) as log:
        log({"loss": 1.0}, 90)
        accept = work_of(chosen, scratch, log).accept
        accept({"endpoint_shift": 0.15})
        with pytest.raises(ReflowError):
            accept({"endpoint_shift": 0.3, "held_out_ratio": 1.1})
    begun, progress, *found = reader.read()
    assert begun.gates == progress.gates == ()
    assert {(e.stage, e.step, *e.values) for e in found} == {("couple@rf1", 90)}
    first, second = ([(g.gate, g.state, g.value, g.level) for g in e.gates] for e in found)
    assert first == [("endpoint_shift", "warn", 0.15, 0.1)]
    assert ("endpoint_shift", "fail", 0.3, 0.2) in second
    assert ("held_out_ratio", "ok", 1.1, None) in second
    assert any("fail level 0.2" in g.says for g in found[1].gates)


@pytest.mark.slow
@pytest.mark.long
def test_a_failing_gate_stops_the_chain_and_a_looser_level_lets_it_go_on(finished):
    root = finished.parent / "gated"
    shutil.copytree(finished, root, symlinks=True)
    chain = Chain(root)
    chain.edit("params.yaml", "pairs: 2000", "pairs: 600")
    chain.edit("params.yaml", "gates: {}", "gates: {endpoint_shift: {warn: 0, fail: 0}}")
    before = chain.lock()
    done = chain.reflow("run", "--no-prefect", "--no-mlflow", check=False)
    assert done.returncode == 1
    assert "failed couple@rf1" in done.stdout and "of the endpoints differ" in done.stdout
    assert "blocked train@rf2" in done.stdout and "blocked compare" in done.stdout
    assert chain.lock() == before, "nothing of it is recorded"
    chain.edit("params.yaml", "{warn: 0, fail: 0}", "{warn: null, fail: null}")
    done = chain.reflow("run", "--no-prefect", "--no-mlflow")
    assert "done couple@rf1" in done.stdout and "done train@rf2" in done.stdout
