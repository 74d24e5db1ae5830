"""`reflow init`: a project of one's own, with a git repository and a first commit."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from flows.params.load import FILE
from flows.params.reduce import fitted
from flows.project.git import git
from flows.start import templates
from flows.start.templates import Record
from fmcore.settings import ReflowError

REFLOW = ("-c", "user.name=reflow", "-c", "user.email=reflow@localhost")
"""The author of a first commit where git knows nobody."""


@dataclass(frozen=True)
class Made:
    """A new project: its commit ("" without one), and lines that a person should know."""

    commit: str
    notes: tuple[str, ...]


def init(folder: Path, data: str) -> Made:
    """Make a project in a new or empty folder, with the parameters of a data set by its name.

    Raises ReflowError, before anything is written, if the folder is not empty.
    """
    if shutil.which("git") is None:
        raise ReflowError("git: not installed; a project needs it: apt install git, or git-scm.com")
    _check_empty(folder)
    text, reduced = fitted(templates.parameter_file(data))
    above = _repository(folder)
    try:
        _write(folder, data, text)
    except OSError as error:
        raise ReflowError(
            f"{folder}: cannot be written ({error.strerror}); choose another"
        ) from None
    notes = [reduced] if reduced else []
    if above is not None:
        notes.append(
            f"it lies in the git repository {above}: no other was made and nothing was committed;"
            f" commit it there: git add {folder}. What looks at commits (`reflow deploy`, `reflow"
            " couplings`, `--rev`) needs a project at the top of its repository"
        )
        return Made("", tuple(notes))
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    known = _known_author(folder)
    words = ("commit", "-q", "--no-verify", "--no-gpg-sign", "-m", f"A reflow chain of {data}")
    try:
        git(folder, *([] if known else REFLOW), *words)
    except ReflowError as error:
        return Made("", (*notes, f"nothing was committed ({error}); git commit it yourself"))
    if not known:
        notes.append(
            "git knows no author: the first commit is by reflow <reflow@localhost>; name yourself"
            " for the next: git config user.name NAME && git config user.email ADDRESS"
        )
    return Made(git(folder, "rev-parse", "--short", "HEAD"), tuple(notes))


def _check_empty(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ReflowError(f"{folder}: is a file; name a new or an empty folder")
    if folder.is_dir() and (found := sorted(folder.iterdir())):
        names = ", ".join(file.name for file in found[:3]) + (", ..." if len(found) > 3 else "")
        raise ReflowError(f"{folder}: not empty ({names}); name a new or an empty folder")


def _write(folder: Path, data: str, params: str) -> None:
    """Write all files of a project; `params` is the text of its params.yaml."""
    kept = templates.kept()
    readme = (Path(__file__).with_name("project.md")).read_text()
    name = folder.resolve().name
    texts = {
        **kept,
        **{file: templates.text(file) for file in templates.ONCE},
        FILE: params,
        "README.md": readme.replace("NAME", name, 1).replace("DATA", f"`{data}`", 1),
    }
    for path, text in texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    hashes = {path: templates.hashed(text) for path, text in kept.items()}
    Record(templates.installed_version(), hashes).write(folder)


def _repository(folder: Path) -> str | None:
    """Return the git repository that a folder, which may not exist yet, would lie in."""
    near = next(place for place in (folder.resolve(), *folder.resolve().parents) if place.is_dir())
    try:
        return git(near, "rev-parse", "--show-toplevel")
    except ReflowError:
        return None


def _known_author(folder: Path) -> bool:
    """Whether git knows who commits here: from its settings or from the environment."""
    try:
        return all(git(folder, "var", f"GIT_{who}_IDENT") for who in ("AUTHOR", "COMMITTER"))
    except ReflowError:
        return False
