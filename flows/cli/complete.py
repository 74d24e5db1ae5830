"""Values that the shell completes: rounds, couplings, stages, parameter files; imports no torch.

They are read from params.yaml as it is, right or wrong. Without a project, or with a file that is
no YAML, there is nothing to complete.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.params.tree import parse, plain, read_text
from flows.project.environment import find_root
from fmcore.settings import ReflowError

PREPARED = "independent"
ONCE = ("inputs", "prepare", "initialise", "calibrate", "compare")
"""The stages of dvc.yaml that have no round and no coupling."""


def rounds(incomplete: str) -> list[str]:
    """Complete the name of a round."""
    return _beginning(incomplete, _keys("rounds"))


def couplings(incomplete: str) -> list[str]:
    """Complete the name of a coupling that a round makes."""
    return _beginning(incomplete, _keys("couplings"))


def versions(incomplete: str) -> list[str]:
    """Complete the name of any coupling, the prepared data included."""
    return _beginning(incomplete, [PREPARED, *_keys("couplings")])


def handed(incomplete: str) -> list[str]:
    """Complete a model or a coupling by its folder: a round and its coupling have one name."""
    models, pairs = _keys("rounds"), _keys("couplings")
    folders = [*(f"models/{key}" for key in models), *(f"couplings/{key}" for key in pairs)]
    return _beginning(incomplete, folders)


def stages(incomplete: str) -> list[str]:
    """Complete a stage, such as train@rf1, or a verb for all of its stages."""
    each = (("train", "rounds"), ("couple", "couplings"), ("evaluate", "rounds"))
    keyed = [name for verb, of in each for name in (verb, *(f"{verb}@{k}" for k in _keys(of)))]
    return _beginning(incomplete, [*ONCE, *keyed])


def parameter_files(incomplete: str) -> list[str]:
    """Complete a parameter file: those of params/, else files and folders as they are typed."""
    typed = Path(incomplete)
    folder = typed if incomplete.endswith("/") else typed.parent
    found = [f"{f}/" if f.is_dir() else str(f) for f in sorted(_inside(folder))]
    files = [f for f in found if f.endswith((".yaml", ".yml", "/"))]
    return _beginning(incomplete, [*map(str, sorted(Path("params").glob("*.yaml"))), *files])


def _inside(folder: Path) -> list[Path]:
    try:
        return [f for f in folder.iterdir() if not f.name.startswith(".")]
    except OSError:
        return []


def _keys(section: str) -> list[str]:
    """Return the keys of a section of params.yaml; none where it cannot be read."""
    try:
        file = find_root(Path.cwd()) / "params.yaml"
        params: Any = plain(parse(read_text(file), file.name))
    except (ReflowError, OSError):
        return []
    found = params.get(section) if isinstance(params, Mapping) else None
    return [str(key) for key in found] if isinstance(found, Mapping) else []


def _beginning(incomplete: str, values: list[str]) -> list[str]:
    return [value for value in dict.fromkeys(values) if value.startswith(incomplete)]
