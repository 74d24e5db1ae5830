"""Models and couplings on a hub that speaks the protocol of Hugging Face: sent whole, checked."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from flows.library.handed import INDEX, PAIRS, PULLED, Handed, Index, Kind, check
from fmcore.checked import sealed
from fmcore.settings import ReflowError

ENDPOINT = "HF_ENDPOINT"
TYPES = {"models": "model", "datasets": "dataset"}
"""What may stand before user/name, and the type of repository that it means."""
LOGIN = "`hf auth login`, or HF_TOKEN"


@dataclass(frozen=True)
class Pushed:
    """Where a push went: the address and the id of its commit, and if it is a new one."""

    url: str
    commit: str
    changed: bool


@dataclass(frozen=True)
class Pulled:
    """What was pulled: its kind, the folder, the repository's type and the id of the commit."""

    kind: Kind
    folder: Path
    type: str
    commit: str

    @property
    def data(self) -> Path:
        """The folder that params.yaml names."""
        return self.folder / PAIRS if self.kind == "coupling" else self.folder


def push(handed: Handed, repo: str, *, private: bool, revision: str | None, message: str) -> Pushed:
    """Send files that were checked as one commit; a model or a data set by their kind.

    The repository is made if it is not there, and `revision` as a branch of it. Files of an earlier
    push that are not among these are deleted by the same commit. Raises ReflowError if the hub
    refuses, or somebody else commits meanwhile: nothing has changed then.
    """
    with _answers(repo):
        hub = _client()
        api = _api(hub)
        if hub.get_token() is None:
            raise ReflowError(f"{repo}: no token for {api.endpoint}; {LOGIN} of one that may write")
        of = {"repo_id": repo, "repo_type": "dataset" if handed.kind == "coupling" else "model"}
        api.create_repo(**of, private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(**of, branch=revision, exist_ok=True)
        before = api.repo_info(**of, revision=revision)
        if private and not before.private:
            raise ReflowError(f"{repo} is there and is public; make it private on its page first")
        index = handed.index
        added = {**handed.files, INDEX: index.text.encode()}
        there = {file.rfilename for file in before.siblings or []}
        old = _earlier(hub, api, of, before.sha) if INDEX in there else set[str]()
        operations = [hub.CommitOperationAdd(name, file) for name, file in added.items()]
        operations += [hub.CommitOperationDelete(n) for n in sorted(old & there - added.keys())]
        made = api.create_commit(
            **of, operations=operations, commit_message=message, revision=revision,
            parent_commit=before.sha,
        )  # fmt: skip
    return Pushed(str(made.commit_url), str(made.oid), made.oid != before.sha)


def _earlier(hub: Any, api: Any, of: dict[str, str], commit: str) -> set[str]:
    """Return the files of an earlier push; none if its index is damaged."""
    with tempfile.TemporaryDirectory() as folder:
        file = api.hf_hub_download(**of, filename=INDEX, revision=commit, local_dir=folder)
        try:
            return set(Index.read(Path(file).read_bytes(), INDEX).files)
        except ReflowError:
            return set()


def pull(repo: str, to: Path, *, revision: str | None) -> Pulled:
    """Fetch what `push` sent into the new folder `to`, which appears when every byte is checked.

    `repo` is user/name, or datasets/user/name where a model has the same name. What has arrived
    stays in a hidden folder beside `to` if the connection breaks, and the next call goes on there.
    Raises ReflowError if the hub refuses, there is nothing of ours, or a file is damaged.
    """
    if to.is_symlink() or (to.exists() and (not to.is_dir() or any(to.iterdir()))):
        raise ReflowError(f"--to: {to} is there already; name a new folder")
    with _answers(repo):
        api = _api(_client())
        of, info = _found(api, repo, revision)
        if INDEX not in {file.rfilename for file in info.siblings or []}:
            raise ReflowError(
                f"{repo}: has no {INDEX}, so `reflow push-hub` did not make it; `hf download` it"
            )
        commit = str(info.sha)
        part = to.with_name(f".{to.name}.{commit[:12]}.part")
        with _written(to):
            part.mkdir(parents=True, exist_ok=True)
        with _undamaged(part, repo):
            file = api.hf_hub_download(**of, filename=INDEX, revision=commit, local_dir=part)
            index = Index.read(Path(file).read_bytes(), INDEX)
            api.snapshot_download(
                **of, revision=commit, local_dir=part, allow_patterns=[INDEX, *index.files]
            )
            shutil.rmtree(part / ".cache", ignore_errors=True)  # of huggingface_hub
            check(part, index)
        origin = {"endpoint": api.endpoint, "type": of["repo_type"], "repo": of["repo_id"]}
        with _written(to):
            text = json.dumps(sealed({**origin, "commit": commit}), indent=2) + "\n"
            (part / PULLED).write_text(text)
            if to.is_dir():
                to.rmdir()
            part.rename(to)
    return Pulled(index.kind, to, of["repo_type"], commit)


def _found(api: Any, repo: str, revision: str | None) -> tuple[dict[str, str], Any]:
    """Return the type and the name of a repository, and what the hub says of it."""
    errors: Any = import_module("huggingface_hub.errors")
    first, _, rest = repo.partition("/")
    name = rest if first in TYPES else repo
    asked = [TYPES[first]] if first in TYPES else list(TYPES.values())
    found, missing = list[tuple[dict[str, str], Any]](), []
    for kind in asked:
        of = {"repo_id": name, "repo_type": kind}
        try:
            found.append((of, api.repo_info(**of, revision=revision)))
        except errors.RepositoryNotFoundError as error:
            missing.append(error)
    if not found:
        raise missing[0]
    if len(found) > 1:
        raise ReflowError(f"{repo}: a model and a data set; say models/{name} or datasets/{name}")
    return found[0]


def _client() -> Any:
    """Import huggingface_hub, which takes a while, with its telemetry off unless it was set."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    return import_module("huggingface_hub")


def _api(hub: Any) -> Any:
    """Return the client, of the hub that HF_ENDPOINT names now."""
    return hub.HfApi(endpoint=_endpoint(), library_name="reflow-chain")


def _endpoint() -> str:
    """Return the address of the hub; huggingface_hub itself looks only when it is imported."""
    usual = import_module("huggingface_hub.constants").ENDPOINT
    return (os.environ.get(ENDPOINT) or str(usual)).rstrip("/")


@contextmanager
def _written(to: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ReflowError(
            f"{to}: cannot be written ({error.strerror or error}); name another with --to"
        ) from error


@contextmanager
def _undamaged(part: Path, repo: str) -> Iterator[None]:
    """Remove what arrived if it is damaged; an answer that breaks off leaves it there."""
    try:
        yield
    except ReflowError as error:
        shutil.rmtree(part, ignore_errors=True)
        reason = str(error).replace(f"{part}/", "")
        raise ReflowError(
            f"{repo}: damaged on the hub, nothing was kept: {reason}; ask who pushed it, or name"
            " another commit with --revision"
        ) from error


@contextmanager
def _answers(repo: str) -> Iterator[None]:
    """Say in one line what the hub, or the way to it, refuses."""
    _client()
    errors: Any = import_module("huggingface_hub.errors")
    where = _endpoint()
    try:
        yield
    except errors.GatedRepoError as error:
        raise ReflowError(f"{repo}: gated; ask for access on its page, then {LOGIN}") from error
    except errors.RevisionNotFoundError as error:
        raise ReflowError(
            f"{repo}: has no such --revision; name a branch, tag or commit"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ReflowError(
            f"{repo}: not at {where}, or private; check the name, or give a token that may read it"
            f" ({LOGIN})"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise ReflowError(
            f"{repo}: the download broke off ({_in_one_line(error.__cause__ or error)}); do the"
            " same again, it goes on from what has arrived"
        ) from error
    except errors.HfHubHTTPError as error:
        raise ReflowError(f"{repo}: {_refused(error)}") from error
    except (errors.HTTPError, errors.OfflineModeIsEnabled) as error:
        raise ReflowError(
            f"{where} does not answer ({_in_one_line(error)}); check the network, HF_ENDPOINT and"
            " HF_HUB_OFFLINE, and do the same again"
        ) from error
    except (OSError, ValueError, RuntimeError, LookupError) as error:
        raise ReflowError(f"{repo}: {_in_one_line(error)}") from error


def _refused(error: Any) -> str:
    status = error.response.status_code
    said = error.server_message or _in_one_line(error)
    if status == 401:
        return f"the token is refused ({said}); {LOGIN} of one that is valid"
    if status == 403:
        return f"no right to write there ({said}); use your own name, or a token that may"
    if status in (409, 412):
        return f"somebody committed meanwhile ({said}); nothing was changed, do the same again"
    return f"the hub answers {status} ({said}); do the same again later"


def _in_one_line(error: BaseException) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    cause = error.__cause__ if isinstance(error, RuntimeError) else None  # one that says no reason
    return f"{said[:300]} ({_in_one_line(cause)})" if cause else said[:300]
