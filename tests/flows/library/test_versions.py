"""The library of couplings: every version is listed, and any of them comes back, verified."""

import json
import re
import shutil
from pathlib import Path

import pytest

from flows.dag.outputs import store
from flows.library import history, places
from flows.library.fetch import fetch
from fmcore.coupling.read import open_coupling
from fmcore.coupling.verify import verify
from fmcore.settings import ReflowError
from tests import small_library
from tests.real_chain import Chain


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Chain:
    return small_library.start(tmp_path_factory.mktemp("library") / "project")


@pytest.fixture
def library(made, tmp_path, monkeypatch) -> Chain:
    """A copy with its cache and its remotes."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.setenv("HOME", str(tmp_path / "lab" / "home"))
    return small_library.copy(made, tmp_path / "lab")


def listed(library: Chain) -> dict[int, dict]:
    """Return the versions of rf1 by their pairs."""
    found = history.versions(library.root)
    rows = places.rows(found, places.places(library.root, found))
    return {v["pairs"]: v for v in rows if v["coupling"] == "couplings/rf1"}


@pytest.mark.long
def test_every_version_is_listed_with_what_is_known_of_it(library):
    found = listed(library)
    assert sorted(found) == [200, 300]
    old = found[300]
    tagged = library.sh("git", "rev-parse", "first").stdout
    assert tagged.startswith(old["commit"])
    assert old["md5"] != found[200]["md5"]
    assert old["solver"] == {"name": "heun", "steps": 4}
    measured = json.loads(library.sh("git", "show", "first:metrics/couple/rf1.json").stdout)
    for name in ("solver_gap_rms", "solver_gap_rel"):
        assert old[name] == measured[name] > 0
    assert old["files"] == 4 and old["bytes"] > 300 * 2 * 4
    assert old["stored"] == ["cache", "near"]
    assert found[200]["stored"] == ["workspace", "cache", "near"]
    (data,) = [v for v in history.versions(library.root) if v.name == "independent"]
    assert (data.pairs, data.solver, data.solver_gap_rms) == (100, None, None)
    found = json.loads(library.reflow("couplings", "--json", "--offline").stdout)
    assert [v["stored"] for v in found if v["pairs"] == 300] == [["cache"]]
    shown = library.reflow("couplings").stdout
    gap = f"{measured['solver_gap_rms']:.2g}"
    for word in ("gap", "stored in", "heun 4", gap, "workspace, cache, near"):
        assert word in shown


@pytest.mark.long
def test_versions_of_branches_experiments_and_the_workspace_are_listed(library):
    library.sh("git", "checkout", "-q", "-b", "side", "first")
    library.edit("params.yaml", "pairs: 300", "pairs: 150")
    library.repro()
    library.commit("150 pairs")
    library.sh("git", "checkout", "-q", "main")
    library.sh("dvc", "checkout", "-q")
    library.sh("dvc", "exp", "run", "-n", "tiny", "-S", "couplings.rf1.pairs=120")
    found = listed(library)
    assert sorted(found) == [120, 150, 200, 300]
    assert found[120]["experiment"] == "tiny"
    library.edit("params.yaml", "pairs: 120", "pairs: 110")
    library.repro()
    found = listed(library)
    assert sorted(found) == [110, 120, 150, 200, 300]
    assert found[110]["commit"] == "workspace"
    for rev, pairs in (("side", 150), ("tiny", 120), (found[110]["md5"][:8], 110)):
        folder = fetch(library.root, rev, folder=library.root / f"of {rev}").folder
        assert verify(folder).about.pairs == pairs


def test_a_version_in_no_place_is_listed_as_lost(library):
    (md5,) = {v.md5 for v in history.versions(library.root) if v.pairs == 300}
    for folder in (".dvc/cache", "../home/near"):
        (library.root / folder / "files/md5" / md5[:2] / md5[2:]).unlink()
    assert listed(library)[300]["stored"] == []
    with pytest.raises(ReflowError, match="not in the cache, near, far; `dvc push` it"):
        fetch(library.root, "first")


def test_the_cache_has_a_version_only_if_it_has_all_of_its_files(library):
    part = next((library.root / "couplings/rf1").glob("part-*1.parquet"))
    (entry,) = [v for v in history.versions(library.root) if v.pairs == 200]
    tree = library.root / ".dvc/cache/files/md5" / entry.md5[:2] / entry.md5[2:]
    md5 = next(e["md5"] for e in json.loads(tree.read_text()) if e["relpath"] == part.name)
    (library.root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).unlink()
    assert store.held(library.root, "cache", [entry.md5]) == set()
    assert listed(library)[200]["stored"] == ["workspace", "near"]


@pytest.mark.long
@pytest.mark.parametrize("cache", [True, False])
def test_a_version_comes_back_from_the_nearest_place_byte_for_byte(library, cache):
    if not cache:
        shutil.rmtree(library.root / ".dvc/cache")
    found = fetch(library.root, "first")
    assert found.place == ("cache" if cache else "near")
    assert found.folder.parent == library.root / ".reflow/couplings"
    assert open_coupling(found.folder).about.pairs == 300
    library.sh("dvc", "get", "-q", ".", "couplings/rf1", "--rev", "first", "-o", "by_dvc")
    for file in (library.root / "by_dvc").iterdir():
        assert (found.folder / file.name).read_bytes() == file.read_bytes()
    assert fetch(library.root, "first").place == "there"


@pytest.mark.long
def test_data_of_a_revision_is_chosen_by_name(library):
    done = library.reflow("couplings", "get", "HEAD", "--name", "independent", "-o", "data")
    assert "data: whole; couplings/independent of" in done.stdout
    assert verify(library.root / "data").about.kind == "independent"


def test_nothing_is_overwritten(library):
    library.write("mine/notes.txt", "a year of work")
    with pytest.raises(ReflowError, match="mine: exists and is not couplings/rf1"):
        fetch(library.root, "first", folder=library.root / "mine")
    assert (library.root / "mine/notes.txt").read_text() == "a year of work"
    folder = library.root / "couplings/rf1"  # the version of HEAD, not that of first
    with pytest.raises(ReflowError, match="exists and is not"):
        fetch(library.root, "first", folder=folder)
    assert verify(folder).about.pairs == 200


def test_a_damaged_copy_is_refused_and_leaves_nothing(library):
    entry = next(v for v in history.versions(library.root) if v.pairs == 300)
    cache = library.root / ".dvc/cache/files/md5"
    tree = json.loads((cache / entry.md5[:2] / entry.md5[2:]).read_text())
    md5 = next(e["md5"] for e in tree if e["relpath"] == "part-00001.parquet")
    file = cache / md5[:2] / md5[2:]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.chmod(0o644)
    file.write_bytes(data)
    out = library.root / "copies" / "old"
    with pytest.raises(ReflowError, match=r"copy in cache is damaged.*part-00001.parquet: altered"):
        fetch(library.root, "first", folder=out)
    assert list(out.parent.iterdir()) == []
    assert fetch(library.root, "first", folder=out, remote="near").place == "near"


@pytest.mark.long
def test_wrong_input_says_what_there_is(library):
    for words, said in (
        ({"rev": "nowhere"}, "no revision 'nowhere'; expected a commit, branch, tag or experiment"),
        ({"rev": "-rf"}, "no revision '-rf'"),
        ({"rev": "HEAD", "name": "rf9"}, "no coupling 'rf9' in HEAD; it has: independent, rf1"),
        ({"rev": "HEAD", "remote": "far"}, "is not in far; `dvc push` it from a machine"),
        ({"rev": "HEAD", "folder": Path("/proc/a")}, "/proc/a: cannot be written"),
    ):
        with pytest.raises(ReflowError, match=re.escape(said)) as error:
            fetch(library.root, **words)
        assert "\n" not in str(error.value)
    done = library.reflow("couplings", "get", "HEAD", "--remote", "moon", check=False)
    assert done.returncode == 2
    assert "no remote 'moon'; `dvc remote list` has: near, far" in done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_a_commit_without_a_chain_says_so(library):
    library.sh("git", "checkout", "-q", "--orphan", "bare")
    library.sh("git", "rm", "-q", "--cached", "dvc.lock")
    library.sh("git", "commit", "-qm", "no chain")
    with pytest.raises(ReflowError, match="that commit has no dvc.lock"):
        fetch(library.root, "HEAD")


def test_metrics_of_another_version_are_not_shown(library):
    library.write("metrics/couple/rf1.json", '{"solver_gap_rms": 9.0}')
    library.commit("metrics edited by hand")
    library.edit("dvc.lock", "schema: '2.0'", "schema: '2.0'  # touched")
    library.commit("a lock of the same hashes")
    assert listed(library)[200]["solver_gap_rms"] is None
