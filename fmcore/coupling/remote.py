"""Couplings in S3: shards are fetched when they are read, into a local cache of bounded size.

A shard is checked against its sha256 in the manifest when it arrives, and when a process first
takes it from the cache. The cache belongs to this machine; any number of processes and couplings
share it.
"""

import hashlib
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs

from fmcore.checked import read_json, sha256
from fmcore.coupling.manifest import POINTER
from fmcore.settings import ReflowError

SCHEME = "s3://"
CACHE, CACHE_MB = "REFLOW_CACHE", "REFLOW_CACHE_MB"
"""Environment variables: the folder of the cache, and the most megabytes in it."""

SHA256 = re.compile("[0-9a-f]{64}")
MOST_MB = 4096
CHUNK = 4 << 20
SECONDS = 10
"""How long a connection may take."""
ABANDONED = 3600
"""Age in seconds of a file that is half fetched from which on nobody fetches it any more."""


@dataclass(frozen=True)
class Remote:
    """The files of a coupling in S3.

    `files` has the place of each below `url` by its name; empty where the names are the places.
    """

    url: str
    endpoint: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    ahead: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, "shards"), repr=False
    )
    checked: set[str] = field(default_factory=set, repr=False)
    """The shards of the cache whose content this process has compared with their sha256."""

    @classmethod
    def of(cls, folder: Path) -> "Remote | None":
        """Return where the shards of a coupling lie whose folder has a pointer; None without."""
        if not (folder / POINTER).exists():
            return None
        said = read_json(folder / POINTER)
        try:
            files = {str(name): str(place) for name, place in said["files"].items()}
            return cls(str(said["url"]), said.get("endpoint"), files)
        except (KeyError, AttributeError) as error:
            raise ReflowError(f"{folder / POINTER}: names no files; fetch it again") from error

    def below(self, folder: str) -> "Remote":
        """Return the files of a folder inside."""
        if not self.files:
            return Remote(f"{self.url}/{folder}", self.endpoint)
        inside = {n.removeprefix(f"{folder}/"): p for n, p in self.files.items() if "/" in n}
        return Remote(self.url, self.endpoint, inside)

    def peek(self, name: str) -> pa.NativeFile:
        """Open a file in S3: only what is read is fetched, and nothing is kept."""
        with self._answers(name):
            return self._system.open_input_file(self._place(name))

    def read(self, name: str) -> bytes:
        """Return the content of a small file."""
        with self._answers(name), self.peek(name) as file:
            return bytes(file.read())

    def open(self, shard: Mapping[str, Any]) -> pa.NativeFile:
        """Open the shard that a manifest describes so, fetched whole and checked."""
        while True:
            with self.lock:
                path = self._fetched(shard)
                with suppress(FileNotFoundError):  # another process needed the room
                    return pa.OSFile(str(path))

    def fetch_ahead(self, shard: Mapping[str, Any]) -> None:
        """Fetch a shard in the background, if the cache has room for it beside another."""
        if 2 * shard["bytes"] <= _most():
            self.ahead.submit(self._quietly, shard)

    def _quietly(self, shard: Mapping[str, Any]) -> None:
        with suppress(ReflowError), self.lock:  # whoever opens it is told
            self._fetched(shard)

    def _fetched(self, shard: Mapping[str, Any]) -> Path:
        """Return the path of a shard in the cache, where it is put if it is not there."""
        folder, size, digest = _folder(), int(shard["bytes"]), str(shard["sha256"])
        path, name = folder / digest, str(shard["file"])
        if not SHA256.fullmatch(digest):  # it names a file of this machine
            raise ReflowError(f"{self.url}: the manifest has no sha256 of {name}; get it again")
        with suppress(FileNotFoundError):
            if digest not in self.checked and sha256(path) != digest:
                path.unlink()  # damaged here, or cut short by a power cut: fetched again
            os.utime(path)
            self.checked.add(digest)
            return path
        if size > _most():
            raise ReflowError(
                f"{self.url}: a shard has {size / 1e6:.0f} MB, the cache {_most() / 1e6:.0f}; raise"
                f" {CACHE_MB}, or write smaller shards"
            )
        folder.mkdir(parents=True, exist_ok=True)
        _make_room(folder, _most() - size)
        part, hashed = folder / f".{digest}.{os.getpid()}.tmp", hashlib.sha256()
        try:
            with self._answers(name), self.peek(name) as file, part.open("wb") as to:
                while chunk := file.read(CHUNK):
                    hashed.update(chunk)
                    to.write(chunk)
                to.flush()
                os.fsync(to.fileno())
            if hashed.hexdigest() != digest:
                raise ReflowError(
                    f"{self.url}: {name} arrived damaged: its sha256 is not the one in the"
                    " manifest; send a good copy there"
                )
            part.replace(path)
            self.checked.add(digest)
        finally:
            part.unlink(missing_ok=True)
        return path

    def _place(self, name: str) -> str:
        if self.files and name not in self.files:
            raise ReflowError(f"{self.url}: no file {name} is named in {POINTER}; fetch it again")
        return f"{self.url.removeprefix(SCHEME)}/{self.files.get(name, name)}"

    @cached_property
    def _system(self) -> pyarrow.fs.S3FileSystem:
        endpoint = self.endpoint or os.environ.get("AWS_ENDPOINT_URL")
        given: dict[str, Any] = {"connect_timeout": SECONDS, "request_timeout": SECONDS}
        if endpoint:
            scheme, _, host = endpoint.rpartition("://")
            given |= {"endpoint_override": host, "scheme": scheme or "https"}
            given["region"] = os.environ.get("AWS_DEFAULT_REGION", "us-east-1")
        return pyarrow.fs.S3FileSystem(**given)

    @contextmanager
    def _answers(self, name: str) -> Iterator[None]:
        """Turn what S3 says into a ReflowError of one line."""
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
            raise ReflowError(
                f"{self.url}: {name} cannot be fetched ({reason}); check the endpoint"
                " (AWS_ENDPOINT_URL), AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and free space"
            ) from error


def _folder() -> Path:
    """Return the folder of the cache: the project's, or that of the user."""
    if given := os.environ.get(CACHE):
        return Path(given)
    state = Path(".reflow")
    return (state if state.is_dir() else Path.home() / ".cache" / "reflow") / "cache" / "shards"


def _most() -> int:
    """Return the most bytes in the cache."""
    given = os.environ.get(CACHE_MB, str(MOST_MB))
    if not given.isdecimal() or not int(given):
        raise ReflowError(f"{CACHE_MB}: expected megabytes, a whole number above 0, got {given!r}")
    return int(given) * 10**6


def _make_room(folder: Path, most: int) -> None:
    """Remove the files that were read longest ago until those of the folder have `most` bytes."""
    found = []
    for file in folder.iterdir():
        with suppress(FileNotFoundError):
            found.append((file.stat().st_mtime, file.stat().st_size, file))
    used = sum(size for _, size, _ in found)
    for stamp, size, file in sorted(found):
        if used <= most:
            return
        if file.suffix == ".tmp" and time.time() - stamp < ABANDONED:
            continue
        file.unlink(missing_ok=True)
        used -= size
