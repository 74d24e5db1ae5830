"""Remotes: a folder and a real S3 server; another machine; the run cache; what goes wrong."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.dag import lineage
from flows.dag.outputs import store
from flows.library import history, places
from flows.library.fetch import fetch, point_to
from fmcore.coupling.verify import verify
from fmcore.settings import ReflowError
from tests import s3, small_library
from tests.real_chain import OUTPUTS, Chain

SITE = "DVC_SITE_CACHE_DIR"


@pytest.fixture(scope="module")
def server() -> Iterator[s3.S3]:
    with s3.serving() as serving:
        yield serving


@pytest.fixture(scope="module")
def pushed(tmp_path_factory, server) -> Chain:
    """A small library that is in the bucket, too, and whose cache is gone."""
    library = small_library.start(tmp_path_factory.mktemp("remote") / "project")
    add(library, "bucket", f"s3://{s3.BUCKET}/small", server.url)
    library.sh("env", *words(server), "dvc", "push", "-q", "--all-commits", "-r", "bucket")
    shutil.rmtree(library.root / ".dvc/cache")
    return library


@pytest.fixture
def library(pushed, tmp_path, monkeypatch) -> Chain:
    monkeypatch.setenv(SITE, str(tmp_path / "site"))
    monkeypatch.setenv("HOME", str(tmp_path / "lab" / "home"))
    return small_library.copy(pushed, tmp_path / "lab")


def words(server: s3.S3) -> list[str]:
    return [f"{name}={value}" for name, value in server.env().items()]


def add(library: Chain, name: str, url: str, endpoint: str) -> None:
    """Add a remote by settings of this machine alone, so that older commits know it too."""
    library.sh("dvc", "remote", "add", "-q", "--local", name, url)
    library.sh("dvc", "remote", "modify", "-q", "--local", name, "endpointurl", endpoint)


@pytest.mark.long
def test_a_coupling_comes_back_from_s3(library, server, monkeypatch):
    for name, value in server.env().items():
        monkeypatch.setenv(name, value)
    found = history.versions(library.root)
    by_name = {p.name: p for p in places.places(library.root, found)}
    assert list(by_name) == ["workspace", "cache", "near", "far", "bucket"]
    assert by_name["bucket"].md5s == by_name["near"].md5s == {v.md5 for v in found}
    assert not by_name["cache"].md5s | by_name["far"].md5s
    fetched = fetch(library.root, "first", folder=library.root / "a", remote="bucket")
    assert fetched.place == "bucket"
    assert verify(library.root / "a").about.pairs == 300
    shutil.rmtree(library.root.parent / "home/near")
    assert fetch(library.root, "first").place == "bucket"


TRAIN = """
  train:
    foreach: [rf2]
    do:
      cmd: >-
        python -m flows.stage train rf2 coupling=couplings/rf1 init=models/rf1 out=models/rf2
        curve=curves/train/rf2.csv metrics=metrics/train/rf2.json
      params: [seed, rounds.rf2]
      deps: [couplings/rf1, models/rf1]
      outs: [models/rf2, curves/train/rf2.csv, metrics/train/rf2.json]
"""
RF2 = "  rf2: {coupling: rf1, init: rf1, train: {steps: 5, lr: 1.0e-3, batch: 32}}\n"


@pytest.mark.long
def test_a_stage_trains_on_shards_in_the_bucket_and_dvc_records_the_whole(
    library, server, monkeypatch
):
    for name, value in server.env().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(library.root)
    folder = library.root / "couplings/rf1"
    library.edit("params.yaml", "couplings:\n", f"{RF2}couplings:\n")
    library.edit("dvc.yaml", "stages:\n", f"stages:{TRAIN}")
    shutil.rmtree(folder)
    command = ["python", "-m", "flows.cli", "couplings", "get", "HEAD", "--in-place"]
    done = library.sh(*command, "-o", "couplings/rf1", "--remote", "bucket")
    assert done.stdout == f"couplings/rf1: reads couplings/rf1 of {head(library)} in bucket\n"
    assert {f.name for f in folder.iterdir()} == {"_manifest.json", "_remote.json"}
    words = TRAIN.split("python -m flows.stage ")[1].split("params:")[0].split()
    library.sh("python", "-m", "flows.stage", *words)
    made = (library.root / "models/rf2/model.safetensors").read_bytes()
    assert list((library.root / ".reflow/cache/shards").iterdir()), "the shards of the cache"
    # On the machine that has the coupling, DVC records what was trained elsewhere.
    for name in ("couplings/rf1", "models/rf2"):
        shutil.rmtree(library.root / name)
    library.sh("dvc", "pull", "-q", "-r", "near", "couplings/rf1")
    said = library.repro("--single-item", "train@rf2").stdout
    assert "its outputs are taken as they are" in said
    assert (library.root / "models/rf2/model.safetensors").read_bytes() == made
    entry = lineage.lock_entries(library.root)["train@rf2"]
    assert entry.md5("couplings/rf1") == store.hash_of(library.root, folder)
    shutil.rmtree(library.root / "models/rf2")
    said = library.repro("--single-item", "-f", "train@rf2").stdout
    assert "taken as they are" not in said
    assert (library.root / "models/rf2/model.safetensors").read_bytes() == made


def head(library: Chain) -> str:
    return next(v.commit for v in history.versions(library.root) if v.pairs == 200)


def test_only_shards_in_s3_are_read_in_place(library, server, tmp_path):
    with pytest.raises(ReflowError, match="remote near: shards are read in place from S3 alone"):
        point_to(library.root, "first", folder=tmp_path / "a", remote="near")
    with pytest.raises(ReflowError, match="is not in far"):
        point_to(library.root, "first", folder=tmp_path / "a", remote="far")
    assert not (tmp_path / "a").exists()


def test_credentials_that_are_wrong_get_one_line(library, server, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANOBODY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    with pytest.raises(ReflowError, match="remote bucket .s3://couplings/small.*credentials") as e:
        fetch(library.root, "first", remote="bucket")
    assert "\n" not in str(e.value)
    assert fetch(library.root, "first").place == "near", "the others are not held up"


def test_no_credentials_get_one_line(library, server, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ReflowError, match="remote bucket .*credentials"):
        store.held(library.root, "bucket", ["0" * 32 + ".dir"])


def test_a_bucket_that_does_not_exist_is_not_taken_for_an_empty_one(library, server, monkeypatch):
    for name, value in server.env().items():
        monkeypatch.setenv(name, value)
    add(library, "typo", "s3://copulings/small", server.url)
    with pytest.raises(ReflowError, match="remote typo .*bucket"):
        store.held(library.root, "typo", ["0" * 32 + ".dir"])


@pytest.mark.long
def test_a_remote_that_is_away_is_a_note_in_the_list_and_an_error_in_get(library, server):
    library.sh("dvc", "remote", "modify", "--local", "bucket", "endpointurl", "http://127.0.0.1:9")
    env = ["env", *words(server), "python", "-m", "flows.cli", "couplings"]
    done = library.sh(*env, "--json")
    assert [v["stored"] for v in json.loads(done.stdout) if v["pairs"] == 300] == [["near"]]
    assert done.stderr.startswith("note: remote bucket (s3://couplings/small): ")
    assert "check that it is up" in done.stderr
    done = library.sh(*env, "get", "first", "--remote", "bucket", check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: remote bucket (s3://couplings/small): ")
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def lab(finished, server) -> Chain:
    """A finished chain, committed and pushed with a bucket as the default remote."""
    root = finished.parent / "first machine" / "project"
    shutil.copytree(finished, root, symlinks=True)
    first = Chain(root)
    first.sh("dvc", "remote", "add", "-q", "-d", "--force", "store", f"s3://{s3.BUCKET}/lab")
    first.sh("dvc", "remote", "modify", "-q", "store", "endpointurl", server.url)
    first.commit("couplings are kept in the bucket")
    first.sh("env", *words(server), "dvc", "push", "-q", "--all-commits")
    return first


def second_machine(lab: Chain, server: s3.S3, folder: Path) -> Chain:
    """Clone the repository to a place that shares nothing with the first but the bucket."""
    folder.mkdir()
    lab.sh("git", "clone", "-q", str(lab.root), str(folder / "project"))
    clone = Chain(folder / "project")
    assert not any((clone.root / name).exists() for name in ("models/rf1", "couplings/rf1"))
    for key, value in zip(("access_key_id", "secret_access_key"), (server.key, server.secret)):
        clone.sh("dvc", "remote", "modify", "-q", "--local", "store", key, value)
    return clone


def outputs(root: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(root)): file.read_bytes()
        for name in OUTPUTS
        for file in sorted((root / name).rglob("*"))
        if file.is_file() and file.name != ".gitignore"
    }


@pytest.mark.slow
@pytest.mark.long
def test_what_anyone_ran_is_not_run_again_on_another_machine(lab, finished, server, tmp_path):
    done = lab.sh("env", *words(server), "python", "-m", "flows.cli", "push")
    assert "stages that ran" in done.stdout and "store" in done.stdout
    clone = second_machine(lab, server, tmp_path / "third")
    (clone.root / "dvc.lock").unlink()
    shutil.rmtree(clone.root / "metrics")
    done = clone.reflow("run", "--pull", "--no-prefect", "--no-mlflow").stdout
    ran = {line.split()[1] for line in done.splitlines() if line.strip().startswith("done")}
    assert ran <= {"inputs"}, done  # it runs on every machine, in half a second
    assert outputs(clone.root) == outputs(finished)
    assert lineage.lock_entries(clone.root) == lineage.lock_entries(finished)


@pytest.mark.long
def test_pulling_without_an_answer_is_one_line_before_anything_runs(library, server):
    library.sh("dvc", "remote", "default", "-q", "bucket", "--local")
    library.sh("dvc", "remote", "modify", "--local", "bucket", "endpointurl", "http://127.0.0.1:9")
    env = ["env", *words(server), "python", "-m", "flows.cli", "run", "--pull"]
    done = library.sh(*env, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: remote bucket (s3://couplings/small): ")
    assert done.stderr.count("\n") == 1
    library.sh("dvc", "remote", "default", "-q", "--unset", "--local")
    library.sh("dvc", "remote", "default", "-q", "--unset")
    done = library.reflow("run", "--pull", check=False)
    assert done.stderr == "error: no default remote; `dvc remote add -d NAME URL` makes one\n"


@pytest.mark.slow
@pytest.mark.long
def test_a_clone_on_a_second_machine_evaluates_without_training(lab, finished, server, tmp_path):
    clone = second_machine(lab, server, tmp_path / "second")
    clone.sh("dvc", "pull", "-q")
    assert outputs(clone.root) == outputs(finished)
    assert set(clone.plan().values()) == {"unchanged"}
    assert verify(clone.root / "couplings/rf1").about.pairs == 2000
    clone.edit("params.yaml", "nfe: [1, 4, 16]", "nfe: [1, 2]")
    done = clone.reflow("run", "--no-prefect", "--no-mlflow").stdout
    ran = {line.split()[1] for line in done.splitlines() if line.strip().startswith("done")}
    assert ran == {"evaluate@rf1", "evaluate@rf2", "compare"}
    assert "energy by NFE" in done
