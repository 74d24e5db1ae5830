"""Every version of every coupling that git has: of all branches, tags and experiments."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flows.dag.description import read_file
from flows.dag.lock import Entry, File, read_lock
from flows.dag.outputs import store
from flows.project.git import file_at, git
from fmcore.coupling.manifest import MANIFEST, pairs_in
from fmcore.settings import ReflowError

LOCK = "dvc.lock"


@dataclass(frozen=True)
class Version:
    """A version of a coupling: `md5` is DVC's hash, `commit` the newest that has it.

    `solver_gap_rms` and `solver_gap_rel` come from the metrics of that commit, `pairs` of prepared
    data from its manifest; None if the record is not there.
    """

    coupling: str
    commit: str
    date: str
    experiment: str
    md5: str
    pairs: int | None
    solver: dict[str, object] | None
    solver_gap_rms: float | None
    solver_gap_rel: float | None
    bytes: int | None
    files: int | None

    @property
    def name(self) -> str:
        """The coupling's name: `rf1` for `couplings/rf1`."""
        return self.coupling.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Commit:
    """A commit that changed dvc.lock; `ref` is its full hash, "" for the workspace."""

    ref: str
    short: str
    date: str
    experiment: str


def versions(root: Path) -> list[Version]:
    """Return every version of every coupling, the newest first.

    DVC's hash identifies a version. It is listed with the newest commit of a branch or tag that
    has it, else with that of an experiment, else as `workspace`.
    """
    found: dict[tuple[str, str], Version] = {}
    seen: set[str] = set()
    for commit in commits_of_lock(root):
        text = lock_at(root, commit)
        if text and text not in seen:
            seen.add(text)
            for version in versions_in(root, commit, text):
                found.setdefault((version.coupling, version.md5), version)
    return [*_uncommitted(root, set(found)), *found.values()]


def _uncommitted(root: Path, known: set[tuple[str, str]]) -> Iterator[Version]:
    text = (read_file(root, LOCK) or b"").decode(errors="replace")
    if text:
        for version in versions_in(root, Commit("", store.WORKSPACE, "", ""), text):
            if (version.coupling, version.md5) not in known:
                yield version


def commits_of_lock(root: Path) -> list[Commit]:
    """Return the commits that changed dvc.lock: those of branches and tags, then the rest."""
    log = ["log", "--full-history", "--format=%H%x09%h%x09%cs%x09%D"]
    log += ["--decorate=full", "--decorate-refs=refs/exps/"]
    lines: list[str] = []
    for refs in (["--branches", "--tags", "--remotes"], ["--all"]):
        lines += git(root, *log, *refs, "--", LOCK).splitlines()
    found: dict[str, Commit] = {}
    for line in lines:
        ref, short, date, names = line.split("\t")
        experiment = re.search(r"refs/exps/\w\w/\w{38}/([^, ]+)", names)
        found.setdefault(ref, Commit(ref, short, date, experiment[1] if experiment else ""))
    return list(found.values())


def lock_at(root: Path, commit: Commit) -> str:
    """Return the text of a commit's dvc.lock, empty if it has none."""
    if not git(root, "ls-tree", commit.ref, "--", LOCK):
        return ""
    try:
        return file_at(root, commit.ref, LOCK)
    except UnicodeDecodeError:
        return ""  # it is not text, so it is not a dvc.lock


def resolve(root: Path, rev: str) -> Commit:
    """Return the commit that a branch, a tag, a hash, HEAD or an experiment's name stands for."""
    names = [rev, *git(root, "for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{rev}").split()]
    for name in names:
        try:
            line = git(
                root, "log", "-1", "--format=%H%x09%h%x09%cs", "--end-of-options", name, "--"
            )
        except ReflowError:
            continue
        ref, short, date = line.strip().split("\t")
        return Commit(ref, short, date, rev if name != rev else "")
    raise ReflowError(
        f"no revision {rev!r}; expected a commit, branch, tag or experiment of this repository, or"
        " a hash that `reflow couplings` lists"
    )


def versions_in(root: Path, commit: Commit, text: str) -> list[Version]:
    """Return the couplings that the text of a dvc.lock records.

    Stages of another pipeline are left out, whatever their names are.
    """
    found = []
    for entry in read_lock(text).values():
        if entry.runs("prepare", "out") or entry.runs("couple", "out"):
            made = entry.outs.get(entry.paths["out"], File())
            if made.md5 is not None:
                found.append(_version(root, commit, entry, made, made.md5))
    return found


def _version(root: Path, commit: Commit, entry: Entry, made: File, md5: str) -> Version:
    metrics = _metrics(root, commit, entry)
    settings = f"couplings.{entry.key}"
    pairs, solver = entry.setting(settings, "pairs"), entry.setting(settings, "solver")
    return Version(
        coupling=entry.paths["out"],
        commit=commit.short,
        date=commit.date,
        experiment=commit.experiment,
        md5=md5,
        pairs=pairs if isinstance(pairs, int) else _pairs(root, md5),
        solver=dict(solver) if isinstance(solver, Mapping) else None,
        solver_gap_rms=metrics.get("solver_gap_rms"),
        solver_gap_rel=metrics.get("solver_gap_rel"),
        bytes=made.size,
        files=made.nfiles,
    )


def _metrics(root: Path, commit: Commit, entry: Entry) -> dict[str, float]:
    """Read a metrics file of a commit, if it has the hash in the dvc.lock of that commit."""
    path = entry.paths.get("metrics")
    if path is None or path not in entry.outs:
        return {}
    try:
        text = file_at(root, commit.ref, path) if commit.ref else ""
        data = text.encode() if commit.ref else (root / path).read_bytes()
    except (ReflowError, OSError, UnicodeDecodeError):
        return {}
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != entry.outs[path].md5:
        return {}
    found = json.loads(data)
    return found if isinstance(found, dict) else {}


def _pairs(root: Path, md5: str) -> int | None:
    """Read the number of pairs of a coupling from its manifest, if the cache has it."""
    manifest = store.cached_file(root, md5, MANIFEST)
    return None if manifest is None else pairs_in(manifest)
