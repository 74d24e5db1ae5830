"""A hub on loopback that speaks what huggingface_hub asks of the one of Hugging Face.

It keeps commits in memory, checks tokens, has private repositories, and takes files as LFS objects
by their ending. A commit is accepted only if every LFS object arrived with its sha256.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from ruamel.yaml import YAML

WRITE, READ = "hf_writes", "hf_reads"
LARGE = (".parquet", ".safetensors", ".pt2")


@dataclass
class Repo:
    """A repository: its commits, each all files by path, and what its branches point to."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes], parent: str = "") -> str:
        said = [parent, *(f"{n} {hashlib.sha256(c).hexdigest()}" for n, c in sorted(files.items()))]
        sha = hashlib.sha1("\n".join(said).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        return sha

    def sha(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)

    @property
    def head(self) -> dict[str, bytes]:
        return self.commits[self.branches["main"]]


@dataclass
class Hub:
    """Where it listens, its repositories by (type, name), LFS objects, and what it was asked."""

    url: str
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    fails: dict[str, int] = field(default_factory=dict)
    """How many further requests are answered, by a part of their path, before all are refused."""
    before_commit: Callable[[Repo], object] = lambda _: None
    """What happens to a repository just before a commit arrives."""


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve while the block runs; users `lab` and `other` are there, tokens are lab's."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = Hub(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.hub  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Refused(Exception):
    """An answer that is an error: status, X-Error-Code, message."""


class Handler(BaseHTTPRequestHandler):
    """One request; `do_` methods answer it or raise `Refused`."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined]

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    do_GET = do_POST = do_PUT = do_HEAD

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        self.hub.asked.append(f"{self.command} {self.path}")
        try:
            self._fail_if_told()
            headers, content = self._route(parts, body)
            status = 200
        except Refused as refused:
            status, code, message = refused.args
            said = {
                "error": message,
                "errors": [{"message": message}],
                "url": f"{self.hub.url}/lab/it",
            }
            headers, content = {"X-Error-Message": message}, json.dumps(said).encode()
            headers |= {"X-Error-Code": code} if code else {}
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _fail_if_told(self) -> None:
        for part in [part for part in self.hub.fails if part in self.path]:
            self.hub.fails[part] -= 1
            if self.hub.fails[part] < 0:
                raise Refused(410, "", "down for repair")  # which no client tries again

    def _route(self, parts: list[str], body: bytes) -> tuple[dict[str, str], bytes]:
        match parts:
            case ["api", "repos", "create"]:
                return self._json(self._create(json.loads(body)))
            case ["api", "validate-yaml"]:
                return self._json(self._validate(json.loads(body)["content"]))
            case ["lfs", oid]:
                self.hub.objects[oid] = body
                return {}, b""
            case ["api", kinds, user, name, *rest] if kinds in ("models", "datasets"):
                return self._json(self._api(kinds[:-1], f"{user}/{name}", rest, body))
            case ["datasets", user, name, "info", "lfs", "objects", "batch"]:
                return self._json(self._batch("dataset", f"{user}/{name}", json.loads(body)))
            case ["api", "models" | "datasets", _]:
                raise Refused(401, "RepoNotFound", "Repository not found")
            case [user, name, "info", "lfs", "objects", "batch"]:
                return self._json(self._batch("model", f"{user}/{name}", json.loads(body)))
            case ["datasets", user, name, "resolve", revision, *path]:
                return self._resolve("dataset", f"{user}/{name}", revision, "/".join(path))
            case [user, name, "resolve", revision, *path]:
                return self._resolve("model", f"{user}/{name}", revision, "/".join(path))
        raise Refused(404, "", f"no such address: {self.path}")

    def _json(self, content: object) -> tuple[dict[str, str], bytes]:
        return {"Content-Type": "application/json"}, json.dumps(content).encode()

    @property
    def _token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def _may_write(self, name: str) -> None:
        if self._token not in (WRITE, READ):
            raise Refused(401, "", "Invalid credentials in Authorization header")
        if self._token == READ or not name.startswith("lab/"):
            raise Refused(403, "", f"You don't have the rights to write to {name}")

    def _repo(self, kind: str, name: str) -> Repo:
        repo = self.hub.repos.get((kind, name))
        if repo is None or (repo.private and self._token not in (WRITE, READ)):
            raise Refused(401, "RepoNotFound", "Repository not found")
        return repo

    def _at(self, repo: Repo, revision: str) -> str:
        sha = repo.sha(revision)
        if sha is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def _create(self, ask: dict[str, Any]) -> dict[str, Any]:
        name, key = f"{ask['organization']}/{ask['name']}", ask["type"]
        self._may_write(name)
        if (key, name) in self.hub.repos:
            raise Refused(409, "", "You already created this repo")
        repo = Repo(private=ask.get("visibility") == "private")
        repo.commit("main", {".gitattributes": b"*.parquet filter=lfs\n"})
        self.hub.repos[key, name] = repo
        return {"url": f"{self.hub.url}/{'datasets/' if key == 'dataset' else ''}{name}"}

    def _validate(self, text: str) -> dict[str, Any]:
        try:
            found = YAML(typ="safe").load(text.split("---\n")[1])
            assert isinstance(found, dict)
        except Exception as error:
            raise Refused(400, "", f"no YAML: {error}") from None
        return {"errors": [], "warnings": []}

    def _api(self, kind: str, name: str, rest: list[str], body: bytes) -> Any:
        repo = self._repo(kind, name)
        match rest:
            case [] | ["revision", _]:
                return self._info(repo, name, rest[1] if rest else "main")
            case ["branch", branch]:
                self._may_write(name)
                if branch in repo.branches:
                    raise Refused(409, "", "Reference already exists")
                repo.branches[branch] = repo.branches["main"]
                return {}
            case ["preupload", _]:
                self._may_write(name)
                files = json.loads(body)["files"]
                return {"files": [self._mode(file["path"]) for file in files]}
            case ["commit", branch]:
                self._may_write(name)
                return self._commit(repo, kind, name, branch, body)
            case ["tree", revision, *_]:
                files = repo.commits[self._at(repo, revision)]
                return [self._entry(path, content) for path, content in files.items()]
        raise Refused(404, "", f"no such address: {self.path}")

    def _info(self, repo: Repo, name: str, revision: str) -> dict[str, Any]:
        sha = self._at(repo, revision)
        files = [{"rfilename": path} for path in repo.commits[sha]]
        return {"id": name, "sha": sha, "private": repo.private, "siblings": files, "tags": []}

    def _mode(self, path: str) -> dict[str, Any]:
        mode = "lfs" if path.endswith(LARGE) else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": None}

    def _entry(self, path: str, content: bytes) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}
        if path.endswith(LARGE):
            sha = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 100}
        return entry

    def _batch(self, kind: str, name: str, ask: dict[str, Any]) -> dict[str, Any]:
        self._repo(kind, name.removesuffix(".git"))
        self._may_write(name)
        objects = []
        for of in ask["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/lfs/{of['oid']}"}}
            objects.append(of if of["oid"] in self.hub.objects else {**of, "actions": upload})
        return {"transfer": "basic", "objects": objects}

    def _commit(self, repo: Repo, kind: str, name: str, branch: str, body: bytes) -> Any:
        self.hub.before_commit(repo)
        parent = self._at(repo, branch)
        files = dict(repo.commits[parent])
        for line in body.splitlines():
            said = json.loads(line)
            value = said["value"]
            if said["key"] == "header" and value.get("parentCommit", parent) != parent:
                raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
            if said["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if said["key"] == "lfsFile":
                content = self.hub.objects.get(value["oid"], b"")
                if hashlib.sha256(content).hexdigest() != value["oid"]:
                    raise Refused(422, "", f"{value['path']}: its object did not arrive")
                files[value["path"]] = content
            if said["key"] == "deletedFile":
                del files[value["path"]]
        sha = repo.commit(branch, files, parent)
        prefix = "datasets/" if kind == "dataset" else ""
        url = f"{self.hub.url}/{prefix}{name}/commit/{sha}"
        return {"success": True, "commitOid": sha, "commitUrl": url}

    def _resolve(
        self, kind: str, name: str, revision: str, path: str
    ) -> tuple[dict[str, str], bytes]:
        repo = self._repo(kind, name)
        sha = self._at(repo, revision)
        content = repo.commits[sha].get(path)
        if content is None:
            raise Refused(404, "EntryNotFound", f"no {path} at {revision}")
        etag = hashlib.sha256(content).hexdigest() if path.endswith(LARGE) else _blob(content)
        return {"X-Repo-Commit": sha, "ETag": f'"{etag}"'}, content


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
