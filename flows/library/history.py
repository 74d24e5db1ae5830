"""Every version of every coupling that git has: of all branches, tags and experiments."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows.dag import store
from flows.dag.chain import arguments, settings_of
from flows.project.git import file_at, git
from fmcore.settings import ReflowError


@dataclass(frozen=True)
class Version:
    """A version of a coupling: `md5` is DVC's hash, `commit` the newest that has it.

    `solver_gap_rms` and `solver_gap_rel` come from the metrics of that commit, `pairs` of prepared
    data from its manifest; None where the record is not there.
    """

    coupling: str
    commit: str
    date: str
    experiment: str
    md5: str
    pairs: int | None
    solver: dict[str, Any] | None
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
    """A commit that changed dvc.lock; `ref` is what git knows it by."""

    ref: str
    short: str
    date: str
    experiment: str


def versions(root: Path) -> list[Version]:
    """Return every version of every coupling, the newest first.

    A version is told from another by DVC's hash. It is listed with the newest commit of a branch
    or tag that has it, else with that of an experiment, else as `workspace`.
    """
    found: dict[tuple[str, str], Version] = {}
    seen: set[str] = set()
    for commit in commits(root):
        text = lock(root, commit)
        if text and text not in seen:
            seen.add(text)
            for version in read(root, commit, text):
                found.setdefault((version.coupling, version.md5), version)
    return [*_uncommitted(root, set(found)), *found.values()]


def _uncommitted(root: Path, known: set[tuple[str, str]]) -> Iterator[Version]:
    file = root / "dvc.lock"
    if file.exists():
        for version in read(root, Commit("", store.WORKSPACE, "", ""), file.read_text()):
            if (version.coupling, version.md5) not in known:
                yield version


def commits(root: Path) -> list[Commit]:
    """Return the commits that changed dvc.lock: those of branches and tags, then the rest."""
    log = ["log", "--full-history", "--format=%H%x09%h%x09%cs%x09%D"]
    log += ["--decorate=full", "--decorate-refs=refs/exps/"]
    lines: list[str] = []
    for refs in (["--branches", "--tags", "--remotes"], ["--all"]):
        lines += git(root, *log, *refs, "--", "dvc.lock").splitlines()
    found: dict[str, Commit] = {}
    for line in lines:
        ref, short, date, names = line.split("\t")
        experiment = re.search(r"refs/exps/\w\w/\w{38}/([^, ]+)", names)
        found.setdefault(ref, Commit(ref, short, date, experiment[1] if experiment else ""))
    return list(found.values())


def lock(root: Path, commit: Commit) -> str:
    """Return the dvc.lock of a commit, empty if it has none."""
    if not git(root, "ls-tree", commit.ref, "--", "dvc.lock"):
        return ""
    return file_at(root, commit.ref, "dvc.lock")


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


def read(root: Path, commit: Commit, text: str) -> list[Version]:
    """Return the couplings that a dvc.lock records; a broken one records none."""
    try:
        stages = (YAML(typ="safe").load(text) or {}).get("stages", {})
    except YAMLError:
        return []  # a merge conflict committed by mistake is no version of anything
    return [
        _version(root, commit, name, entry)
        for name, entry in stages.items()
        if name.startswith("couple@") or name == "prepare"
    ]


def _version(root: Path, commit: Commit, name: str, entry: dict[str, Any]) -> Version:
    words = arguments(entry["cmd"])
    made = {out["path"]: out for out in entry["outs"]}
    coupling = made[words["out"]]
    settings = settings_of(entry).get(f"couplings.{name.removeprefix('couple@')}", {})
    metrics = _metrics(root, commit, made.get(words.get("metrics", "")))
    pairs = settings.get("pairs")
    return Version(
        coupling=coupling["path"],
        commit=commit.short,
        date=commit.date,
        experiment=commit.experiment,
        md5=coupling["md5"],
        pairs=_pairs(root, coupling["md5"]) if pairs is None else pairs,
        solver=settings.get("solver"),
        solver_gap_rms=metrics.get("solver_gap_rms"),
        solver_gap_rel=metrics.get("solver_gap_rel"),
        bytes=coupling.get("size"),
        files=coupling.get("nfiles"),
    )


def _metrics(root: Path, commit: Commit, out: dict[str, Any] | None) -> dict[str, float]:
    """Read a metrics file of a commit, if it is the one that its dvc.lock speaks of."""
    if out is None:
        return {}
    try:
        text = file_at(root, commit.ref, out["path"]) if commit.ref else ""
        data = text.encode() if commit.ref else (root / out["path"]).read_bytes()
    except (ReflowError, OSError):
        return {}
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != out["md5"]:
        return {}
    found: dict[str, float] = json.loads(data)
    return found


def _pairs(root: Path, md5: str) -> int | None:
    """Read from its manifest how many pairs a coupling has, if the cache has it."""
    manifest = store.cached_file(root, md5, "_manifest.json")
    return None if manifest is None else int(json.loads(manifest)["about"]["pairs"])
