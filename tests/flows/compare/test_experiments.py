"""DVC's experiments on a chain: one at once, several from the queue side by side."""

import json
import shutil

import pytest

from tests.real_chain import Chain

pytestmark = [pytest.mark.slow, pytest.mark.servers]


@pytest.fixture(scope="module")
def chain(finished):
    root = finished.parent / "experiments"
    shutil.copytree(finished, root, symlinks=True)
    return Chain(root)


def steps(chain, experiment, round_):
    text = chain.sh("git", "show", f"{experiment}:metrics/train/{round_}.json").stdout
    return json.loads(text)["steps"]


def test_queued_experiments_run_side_by_side_and_leave_the_workspace_alone(chain):
    before = chain.lock()
    setting = "rounds.rf2.train.steps"
    for number in (120, 150):
        queue = ("--queue", "-n", f"steps-{number}", "-S", f"{setting}={number}")
        chain.sh("dvc", "exp", "run", *queue)
    chain.sh("dvc", "exp", "run", "--run-all", "-j", "2")
    status = chain.sh("dvc", "queue", "status").stdout
    assert status.count("Success") == 2, status
    listed = chain.sh("dvc", "exp", "list", "--name-only").stdout.split()
    assert sorted(listed) == ["steps-120", "steps-150"]
    refs = chain.sh("git", "for-each-ref", "--format=%(refname)", "refs/exps").stdout.split()
    for number in (120, 150):
        ref = next(ref for ref in refs if ref.endswith(f"steps-{number}"))
        assert steps(chain, ref, "rf2") == number and steps(chain, ref, "rf1") == 500
    assert chain.lock() == before and not chain.sh("git", "status", "--porcelain").stdout


def test_experiments_are_compared_like_commits(chain):
    words = ("compare", "--rev", "steps-120", "--rev", "steps-150", "--json")
    found = json.loads(chain.reflow(*words).stdout)
    assert "steps-120" in json.dumps(found) and "steps-150" in json.dumps(found)


def test_an_experiment_in_the_workspace_runs_what_changed(chain):
    chain.sh("dvc", "exp", "run", "-n", "here", "-S", "rounds.rf2.train.steps=130")
    assert json.loads((chain.root / "metrics/train/rf2.json").read_text())["steps"] == 130
    assert set(chain.plan().values()) == {"unchanged"}
    chain.reflow("publish")
