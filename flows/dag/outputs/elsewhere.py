"""Fetch an output of another DVC project: of a commit, or from behind a URL."""

import hashlib
import os
import shutil
from pathlib import Path

from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.scm import SCMError

from fmcore.coupling.verify import verify
from fmcore.settings import ReflowError


def fetched(root: Path, project: str, path: str, rev: str | None) -> Path:
    """Return the folder to which the coupling `path` of a commit of another project was copied.

    `project` is a folder, from the root of this project or absolute, or a git URL. What was fetched
    before is taken if the commit is the same. Every byte is verified. Raises ReflowError, in one
    line, where there is no such project, commit or coupling.
    """
    url = project if ":" in project else str((root / project).resolve())
    where = f"{project}{f'@{rev}' if rev else ''}"
    try:
        files = DVCFileSystem(url, rev=rev)
        commit = files.repo.get_rev() or ""
        name = hashlib.sha256(f"{url}\n{commit}\n{path}".encode()).hexdigest()[:16]
        folder = root / ".reflow" / "couplings" / f"outside-{name}"
        if folder.exists():
            return folder
        part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            files.get(path, str(part), recursive=True)
            verify(part)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except (DvcException, SCMError, OSError) as error:
        said = " ".join(str(error).split())[:160] or type(error).__name__
        raise ReflowError(
            f"{where}: {path} cannot be fetched ({said}); check path, rev and coupling, and that"
            " the other project has pushed it"
        ) from error
    return folder
