"""Fetch one version of a coupling: complete and verified, without overwriting anything."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from flows.dag.outputs import store
from flows.library.history import Version, lock_at, resolve, versions, versions_in
from fmcore.coupling.read import open_coupling
from fmcore.coupling.verify import verify
from fmcore.settings import ReflowError

HASH = re.compile(r"[0-9a-f]{6,32}(\.dir)?")


@dataclass(frozen=True)
class Fetched:
    """A version of a coupling in a folder, and its source (`there`: the folder already existed)."""

    version: Version
    folder: Path
    place: str


def fetch(
    root: Path,
    rev: str,
    *,
    name: str | None = None,
    folder: Path | None = None,
    remote: str | None = None,
) -> Fetched:
    """Copy the coupling `name` of a revision to `folder`, from the nearest place that has it.

    `rev` is a commit, branch, tag, experiment, or a hash that `versions` lists. The cache is asked
    first, then each remote; with `remote`, only that one. The copy is verified byte by byte before
    `folder` is made. A folder that exists is verified too, and never overwritten.

    Raises ReflowError if there is no such version, no place has it, or the folder has other
    content.
    """
    version = _choose(root, rev, name)
    folder = folder or root / ".reflow" / "couplings" / f"{version.name}-{version.md5[:12]}"
    if folder.exists() or folder.is_symlink():
        _same(root, folder, version)
        return Fetched(version, folder, "there")
    place = nearest(root, version.md5, f"{version.coupling} of {version.commit}", remote)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        store.bring(root, place, version.md5, part)
        _verified(root, part, place, version)
        part.rename(folder)
    except OSError as error:
        raise ReflowError(
            f"{folder}: cannot be written ({error.strerror}); name another with -o"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Fetched(version, folder, place)


def point_to(
    root: Path, rev: str, *, name: str | None = None, folder: Path, remote: str | None = None
) -> Fetched:
    """Make a folder that reads the coupling `name` of a revision in place, from an S3 remote.

    It holds the manifest and the places of the shards; the default remote is asked, or `remote`.
    """
    version, place = _choose(root, rev, name), remote or store.default_remote(root)
    if folder.exists() or folder.is_symlink():
        raise ReflowError(f"{folder}: exists; name another with -o, or remove it")
    if not store.held(root, place, [version.md5]):
        raise ReflowError(
            f"{version.coupling} of {version.commit} is not in {place}; `dvc push` it"
        )
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        store.point_to(root, place, version.md5, part)
        open_coupling(part)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Fetched(version, folder, place)


def _choose(root: Path, rev: str, name: str | None) -> Version:
    found = _of_hash(root, rev) or _of_revision(root, rev)
    chosen = [v for v in found if v.name == name] if name else found
    if name is None and len(found) > 1:
        chosen = [v for v in found if v.solver is not None]  # not the prepared data
    if len(chosen) == 1:
        return chosen[0]
    known = ", ".join(v.name for v in found) or "none"
    what = f"no coupling {name!r} in" if name else f"{len(chosen)} couplings to choose from in"
    raise ReflowError(f"{what} {rev}; it has: {known}; choose with --name")


def _of_hash(root: Path, rev: str) -> list[Version]:
    if not HASH.fullmatch(rev):
        return []
    found = [v for v in versions(root) if v.md5.startswith(rev)]
    if len({v.md5 for v in found}) > 1:
        raise ReflowError(
            f"{rev}: several couplings have a hash with this beginning; give more digits"
        )
    return found


def _of_revision(root: Path, rev: str) -> list[Version]:
    commit = resolve(root, rev)
    text = lock_at(root, commit)
    if not text:
        raise ReflowError(
            f"{rev}: that commit has no dvc.lock; `reflow couplings` lists those that have"
        )
    return versions_in(root, commit, text)


def nearest(root: Path, md5: str, what: str, remote: str | None = None) -> str:
    """Return the first place that has the folder `md5`: the cache, then the remotes.

    With `remote` that one alone is asked. Raises ReflowError if none has it, with `what` it is and
    with the errors of the remotes.
    """
    known = store.remotes(root)
    said: list[str] = []
    for place in [remote] if remote else [store.CACHE, *known]:
        try:
            if store.held(root, place, [md5]):
                return place
        except ReflowError as error:
            if remote:
                raise
            said.append(str(error))
    asked = remote or ", ".join(["the cache", *known])
    raise ReflowError(
        f"{what} ({md5[:12]}) is not in {asked};"
        + "".join(f" {text};" for text in said)
        + " `dvc push` it from a machine that has it, or check that commit out and `reflow run`"
    )


def _verified(root: Path, part: Path, place: str, version: Version) -> None:
    try:
        verify(part)
        if store.hash_of(root, part) != version.md5:
            raise ReflowError("its files are not those of its hash")
    except ReflowError as error:
        reason = str(error).split(";")[0].replace(f"{part}/", "")
        raise ReflowError(
            f"the copy in {place} is damaged, nothing was kept: {reason};"
            " fetch it from another place with --remote"
        ) from error


def _same(root: Path, folder: Path, version: Version) -> None:
    if not folder.is_dir() or store.hash_of(root, folder) != version.md5:
        raise ReflowError(
            f"{folder}: exists and is not {version.coupling} of {version.md5[:12]};"
            " name another folder with -o, or remove that one"
        )
