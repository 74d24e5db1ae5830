"""Rot is noticed: no flipped bit and no cut of any file is silent, and none is a traceback."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from flows.dag import plan
from flows.dag.outputs import mend, verify
from flows.dag.outputs.content import md5_of
from flows.project import environment
from flows.project.locks import EX_DATAERR
from flows.stage.__main__ import main
from tests import bit_flips, tiny_chain
from tests.conftest import Project


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Project:
    """The tiny chain, built once; a test puts back what it changes."""
    root = tmp_path_factory.mktemp("rot") / "chain"
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("DVC_SITE_CACHE_DIR", raising=False)
        environment.configure(root)
        return tiny_chain.build(root)


@pytest.fixture
def place(tiny, monkeypatch) -> bit_flips.Place:
    monkeypatch.chdir(tiny.root)
    for name in ("DVC_SITE_CACHE_DIR", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")  # so that what configure sets is undone after the test
        monkeypatch.delenv(name)
    environment.configure(tiny.root)
    return bit_flips.Place(tiny.root)


def test_a_sample_of_flips_in_every_kind_of_file(place):
    total: Counter[str] = Counter()
    for kind in place.kinds():
        found = bit_flips.tried(kind, 1 if kind.slow else 8, seed=1)
        assert not found["silent"] and not found["traceback"], kind.name
        total += found
    assert total["caught"] > 200


def test_the_test_can_fail(tmp_path):
    """A reader that checks nothing takes a flipped bit in silence."""
    file = tmp_path / "numbers"
    file.write_bytes(bytes(range(100)))
    kind = bit_flips.Kind("unchecked", file, file.read_bytes)
    before = file.stat()
    assert bit_flips.tried(kind, 5)["silent"] == 8
    after = file.stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)


@pytest.mark.long
def test_every_byte_of_every_kind_of_file(place, capsys):
    rows = list(bit_flips.counts(place, 4000, 200))
    with capsys.disabled():
        print("\n".join(rows))
    assert rows[-1].endswith("| 0 | 0 |")


def test_the_files_are_found_again_where_they_are(place):
    assert all(isinstance(kind.file, Path) and kind.file.is_file() for kind in place.kinds())


def flip(file: Path, place: int = 300) -> None:
    """Flip one bit of a file; its times, inode and size stay."""
    content = bytearray(file.read_bytes())
    content[place % len(content)] ^= 4
    bit_flips._put(file, bytes(content), file.stat())


def objects(root: Path, file: Path) -> Path:
    """Return the object of DVC's cache that has the content of a file."""
    oid = md5_of(file)
    return root / ".dvc/cache/files/md5" / oid[:2] / oid[2:]


def test_a_stage_refuses_a_damaged_input_whose_time_is_kept(place, capsys):
    """The numbers of a metrics file have no hash of their own: dvc.lock has it."""
    words = (
        "compare metrics=metrics fd=curves/fd curves=curves/straightness yardstick=yardstick"
        " out=comparison"
    )
    file = place.root / "metrics/evaluate/rf1.json"
    good = file.read_bytes()
    content = good.replace(b'"straightness_rel": 0.', b'"straightness_rel": 1.')
    assert content != good
    bit_flips._put(file, content, file.stat())
    try:
        assert plan.changed(place.root, "compare") == [], "DVC sees nothing"
        assert main(words.split()) == EX_DATAERR
    finally:
        bit_flips._put(file, good, file.stat())
    said = capsys.readouterr().err
    assert "metrics/evaluate/rf1.json: damaged" in said and said.count("\n") == 1


def test_damage_is_named_and_mended_from_each_place_that_has_a_good_copy(place, tmp_path):
    root, lines = place.root, []
    model, table = root / "models/rf1/model.safetensors", root / "curves/fd/rf1.csv"
    numbers, coupling = root / "metrics/train/rf1.json", root / "couplings/rf1"
    files = [model, table, numbers, *sorted(coupling.iterdir())]
    good = {file: file.read_bytes() for file in files}
    project = Project(root)
    project.sh("dvc", "remote", "add", "-q", "--force", "near", str(tmp_path / "near"))
    project.sh("dvc", "push", "-q", "-r", "near")
    assert not verify.check(root, remotes=["near"]).faults
    stored = objects(root, table)
    remote = tmp_path / "near/files/md5" / stored.parent.name / stored.name
    flip(model)  # the cache has it
    flip(stored)
    flip(table)  # only the remote has it
    flip(objects(root, files[-1]))  # the workspace has it
    flip(numbers)  # a metrics file, which is not in the cache by its stage, but by `repo.commit`
    (coupling / "extra").write_text("foreign")
    found = verify.check(root)
    assert sorted(fault.place for fault in found.faults) == ["cache"] * 2 + ["workspace"] * 4
    mend.mend_cache(root, found, lines.append)
    done = mend.mend(root, None, lines.append)
    assert not done.remake and not verify.check(root, remotes=["near"]).faults, lines
    assert all(file.read_bytes() == content for file, content in good.items())
    flip(remote)
    found = verify.check(root, cache=False, remotes=["near"])
    assert [fault.file for fault in found.faults] == [str(remote)]
    mend.mend_remote(root, "near", found, lines.append)
    assert not verify.check(root, remotes=["near"]).faults
    project.sh("dvc", "remote", "remove", "near")


def test_what_has_no_good_copy_is_made_again_by_its_stage(place):
    """The mark for DVC is a new time: it then sees that the output changed."""
    file = place.root / "curves/straightness/rf1.csv"
    good, stored = file.read_bytes(), objects(place.root, file)
    flip(file)
    flip(stored)
    assert plan.changed(place.root, "evaluate@rf1") == []
    lines: list[str] = []
    done = mend.mend(place.root, ["curves/straightness"], lines.append)
    removed, reasons = not stored.exists(), plan.changed(place.root, "evaluate@rf1")
    file.write_bytes(good)
    stored.write_bytes(good)
    stored.chmod(0o444)
    assert done.remake == ["evaluate@rf1"] and removed, lines
    assert [reason.split()[1] for reason in reasons] == ["curves/straightness/rf1.csv"]
    assert plan.changed(place.root, "evaluate@rf1") == []


def test_verify_names_the_damage_and_says_what_mends_it(place):
    project, file = Project(place.root), place.root / "yardstick/reference.safetensors"
    flip(file)
    words = ["python", "-m", "flows.cli", "verify"]
    done = project.sh(*words, "--no-cache", check=False)
    assert done.returncode == 1 and "--heal" in done.stdout
    assert "damaged  workspace: yardstick/reference.safetensors" in done.stdout
    healed = project.sh(*words, "--no-cache", "--heal", check=False)
    assert healed.returncode == 0 and "all of it is mended" in healed.stdout


@pytest.mark.long
def test_reflow_run_restores_or_remakes_what_its_stages_read(place, tmp_path):
    """No good copy of the model is left: it is trained again, with the same bytes."""
    root = tmp_path / "chain"
    shutil.copytree(place.root, root)
    project, model = Project(root), root / "models/rf1/model.safetensors"
    project.sh("dvc", "status", "-q", check=False)  # DVC learns the new inodes
    good, lock = model.read_bytes(), (root / "dvc.lock").read_text()
    stored = objects(root, model)
    flip(model)
    flip(stored)
    project.edit("params.yaml", "trajectories: 50", "trajectories: 40")
    done = project.sh(
        "python", "-m", "flows.cli", "run", "--no-prefect", "--no-mlflow", check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train@rf1 runs again" in done.stdout and model.read_bytes() == good
    md5s = [line for line in lock.splitlines() if "md5: " in line]
    assert md5s[0] in (root / "dvc.lock").read_text()
    assert project.sh("python", "-m", "flows.cli", "verify").returncode == 0
