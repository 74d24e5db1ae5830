"""The wheel, built and installed where no clone is: an environment of its own, and a project."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import SOURCE
from tests.real_chain import Chain


def built(folder: Path, kind: str, source: Path = SOURCE) -> Path:
    """Build a distribution, `wheel` or `sdist`, by the backend that pyproject.toml names."""
    words = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    done = subprocess.run(words, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = folder.glob("reflow_chain-*.whl" if kind == "wheel" else "reflow_chain-*.tar.gz")
    return found


def stranger(folder: Path, name: str) -> Path:
    """Make the wheel of a stranger's package that has the name of one of ours."""
    wheel = folder / f"{name}-9.9-py3-none-any.whl"
    about = f"{name}-9.9.dist-info"
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(wheel, "w") as opened:
        opened.writestr(f"{name}/__init__.py", f"raise ImportError('the {name} of a stranger')\n")
        opened.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n")
        opened.writestr(f"{about}/WHEEL", tags)
        opened.writestr(f"{about}/RECORD", "")
    return wheel


class Environment:
    """A virtual environment with some wheels in it, and the libraries of the tests' own.

    Python reads .pth files in its own site-packages alone, so the editable installation of the
    clone, which is such a file beside the libraries, does not come along.
    """

    def __init__(self, folder: Path, *wheels: Path):
        self.bin = folder / "bin"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        (self.site,) = folder.glob("lib/python*/site-packages")
        (self.site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python")]
        words = ["install", "--quiet", "--no-deps", "--no-index", *map(str, wheels)]
        subprocess.run([*pip, *words], check=True)


@dataclass(frozen=True)
class Installed(Chain):
    """A project outside of any clone, which knows only the command that the wheel installed."""

    place: Environment
    REFLOW = ("reflow",)

    def env(self):
        kept = {k: v for k, v in super().env().items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        return {**kept, "PATH": f"{self.place.bin}{os.pathsep}{kept['PATH']}"}
