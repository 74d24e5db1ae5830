"""A dvc.lock of another pipeline in the history stops nothing: what is ours is listed."""

import json

import pytest

from flows.dag.lock import read_lock
from flows.library import history
from tests.conftest import SOURCE, Project
from tests.real_chain import Chain

OURS = """\
schema: '2.0'
stages:
  prepare:
    cmd: python -m flows.stage prepare out=couplings/independent
    outs:
    - {path: couplings/independent, hash: md5, md5: 0a.dir, size: 10, nfiles: 2}
  couple@rf1:
    cmd: python -m flows.stage couple rf1 model=models/rf1 out=couplings/rf1 metrics=m.json
    params:
      params.yaml:
        couplings.rf1: {pairs: 300, solver: {name: heun, steps: 4}}
    outs:
    - {path: couplings/rf1, hash: md5, md5: 1b.dir, size: 20, nfiles: 4}
    - {path: m.json, hash: md5, md5: 2c, size: 3}
"""
FOREIGN = {
    "another pipeline": "schema: '2.0'\nstages:\n  prepare:\n    cmd: python prep.py\n    outs:\n"
    "    - {path: data/prepared, md5: 3d.dir}\n",
    "several commands": "stages:\n  prepare: {cmd: [python a.py, python b.py]}\n",
    "no outs": "stages:\n  prepare: {cmd: python -m flows.stage prepare out=a}\n",
    "no path": "stages:\n  couple@x: {cmd: python -m flows.stage couple x model=m}\n",
    "no hash": "stages:\n  prepare:\n    cmd: python -m flows.stage prepare out=a\n"
    "    outs: [{path: a, etag: x}]\n",
    "another out": "stages:\n  prepare:\n    cmd: python -m flows.stage prepare out=a\n"
    "    outs: [{path: b, md5: x}]\n",
    "outs are a mapping": "stages:\n  prepare:\n    cmd: python -m flows.stage prepare out=a\n"
    "    outs: {a: x}\n",
    "outs are words": "stages:\n  prepare:\n    cmd: python -m flows.stage prepare out=a\n"
    "    outs: [a]\n",
    "params are a list": "stages:\n  couple@x:\n    cmd: python -m flows.stage couple x out=a\n"
    "    params: [a]\n",
    "a number as the command": "stages:\n  prepare: {cmd: 3}\n",
    "an entry that is a list": "stages:\n  prepare: [a, b]\n",
    "integer names": "stages:\n  1: {cmd: python x.py}\n  2:\n",
    "stages are a list": "stages: [prepare, train]\n",
    "stages are empty": "stages:\n",
    "a list": "- a\n- b\n",
    "a word": "nothing\n",
    "empty": "\n",
    "a merge conflict": f"<<<<<<< HEAD\n{OURS}=======\n>>>>>>> other\n",
}


@pytest.fixture
def repository(empty: Project) -> Chain:
    """A branch for each foreign dvc.lock, and one with a lock of ours."""
    chain = Chain(empty.root)
    chain.write("dvc.yaml", "stages: {}\n")
    chain.write("params.yaml", (SOURCE / "params.yaml").read_text())
    chain.commit("start")
    for number, text in enumerate(FOREIGN.values()):
        chain.sh("git", "checkout", "-q", "-b", f"b{number}")
        chain.write("dvc.lock", text)
        chain.commit("foreign")
    chain.sh("git", "checkout", "-q", "-b", "bytes")
    (chain.root / "dvc.lock").write_bytes(b"\xff\xfe\x00")
    chain.commit("no text")
    chain.sh("git", "checkout", "-q", "-b", "ours")
    chain.write("dvc.lock", OURS)
    chain.commit("ours")
    chain.sh("git", "checkout", "-q", "bytes")
    return chain


@pytest.mark.long
def test_the_versions_of_ours_are_listed_beside_foreign_locks(repository):
    found = history.versions(repository.root)
    assert {(v.coupling, v.md5, v.pairs, v.bytes, v.files) for v in found} == {
        ("couplings/independent", "0a.dir", None, 10, 2),
        ("couplings/rf1", "1b.dir", 300, 20, 4),
    }
    repository.sh("git", "checkout", "-q", "b0")
    done = repository.sh("python", "-m", "flows.cli", "couplings", "--json", "--offline")
    assert {v["coupling"] for v in json.loads(done.stdout)} == {v.coupling for v in found}


@pytest.mark.parametrize("name", FOREIGN)
def test_no_entry_of_a_foreign_lock_makes_a_version(empty, name):
    commit = history.Commit("", "workspace", "", "")
    assert history.versions_in(empty.root, commit, FOREIGN[name]) == []


def test_a_foreign_stage_is_an_entry_without_a_verb():
    (entry,) = read_lock(FOREIGN["another pipeline"]).values()
    assert (entry.verb, entry.key, entry.paths) == ("", "", {})
    assert entry.md5("data/prepared") == "3d.dir"
