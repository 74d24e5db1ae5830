"""The files of a new project: those of this repository, or the copies that the wheel keeps."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from flows.project.environment import code_folder, installed
from fmcore.settings import ReflowError

RECORD = ".reflow-project.json"
"""The file of a project that says of which version its files are copies."""

KEPT = ("dvc.yaml", "prefect.yaml", "params.schema.json", ".dvcignore", ".gitignore")
"""Files that `reflow upgrade` replaces if they are unchanged copies; so are those of PLOTS."""
PLOTS = ".dvc/plots"
ONCE = (".dvc/config", ".dvc/.gitignore")
"""Files that a project gets when it is made and owns from then on."""


@dataclass(frozen=True)
class Record:
    """The version that wrote a project's files, and the hash of each as it was written."""

    version: str
    files: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, root: Path) -> "Record":
        """Return the record of a project. Raises ReflowError if it has none that can be read."""
        try:
            found = json.loads((root / RECORD).read_text())
            files = {str(k): str(v) for k, v in found["files"].items()}
            if foreign := [name for name in files if not _of_a_project(name)]:
                raise ValueError(f"it names {foreign[0]!r}, which is no file of a project")
            return cls(str(found["version"]), files)
        except FileNotFoundError:
            raise ReflowError(
                f"no {RECORD} in {root}: this project was not made by `reflow init`, so its files"
                " are yours to move; in a clone of the repository `git pull` does that"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ReflowError(
                f"{RECORD}: cannot be read ({error}); get it back: git checkout {RECORD}"
            ) from None

    def write(self, root: Path) -> None:
        """Write the record into a project."""
        text = json.dumps({"version": self.version, "files": dict(self.files)}, indent=1)
        (root / RECORD).write_text(text + "\n")


def _of_a_project(name: str) -> bool:
    """Whether a name is one of those that `reflow upgrade` may replace: a record is not trusted."""
    return name in KEPT or re.fullmatch(re.escape(PLOTS) + r"/\w[\w.-]*\.json", name) is not None


def installed_version() -> str:
    """Return the version of the distribution."""
    try:
        return version("reflow-chain")
    except PackageNotFoundError:
        return "unknown"


def hashed(text: str) -> str:
    """Return the hash of a text, by which a copy is known."""
    return hashlib.sha256(text.encode()).hexdigest()


def kept() -> dict[str, str]:
    """Return the text of each file that `reflow upgrade` replaces, by its path in a project."""
    plots = sorted(_place(PLOTS).glob("*.json"))
    return {name: text(name) for name in [*KEPT, *(f"{PLOTS}/{plot.name}" for plot in plots)]}


def text(name: str) -> str:
    """Return the text of a file, named by its path in a project."""
    try:
        return _place(name).read_text()
    except OSError as error:
        raise ReflowError(
            f"{error.filename}: missing, so the installation is not whole; install it again:"
            " pip install --force-reinstall --no-deps WHEEL"
        ) from None


def parameter_files() -> dict[str, Path]:
    """Return the parameter files of all data sets by their names."""
    return {file.stem: file for file in sorted(_place("params").glob("*.yaml"))}


def named(file: Path, root: Path) -> Path:
    """Return the file meant by a path, or by `NAME` or `params/NAME.yaml`.

    What is there comes first, then the project's own params/NAME.yaml, then the shipped one.
    """
    if file.is_file() or str(file) not in (file.stem, f"params/{file.stem}.yaml"):
        return file
    own = root / "params" / f"{file.stem}.yaml"
    return own if own.is_file() else parameter_files().get(file.stem, file)


def parameter_file(name: str) -> Path:
    """Return the parameter file of a data set by its name. Raises ReflowError with all names."""
    files = parameter_files()
    if name not in files:
        raise ReflowError(f"--from: no {name!r}; there are: {', '.join(files)}")
    return files[name]


def _place(name: str) -> Path:
    """Return where a file or folder of a project is kept; the wheel has no names with dots."""
    if not installed():
        return code_folder() / name
    parts = [part.removeprefix(".") for part in Path(name).parts]
    return code_folder().parent.joinpath("project", *parts)
