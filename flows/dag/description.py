"""The full description of a chain, as JSON: settings, commit, couplings, paths of files.

MLflow stores the description of each chain as chain.json, so that a chain can be compared without
its dvc.lock.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from flows.dag.chain import Chain
from flows.dag.lock import Entry, File
from fmcore.checked import MEND, opened, sealed
from fmcore.expected import mistake
from fmcore.settings import ReflowError
from fmcore.verdict.comparison import FILE

Read = Callable[[str], bytes | None]
"""Reads a file of the project by its path; returns None if there is none."""

Number = int | float

AGAIN = "delete that run in MLflow, and `reflow publish` in that project writes it again"


@dataclass(frozen=True)
class CouplingRecord:
    """A coupling: the round that made it (None: prepared data), its users, hash and metrics."""

    coupling: str
    path: str
    round: str | None
    trains: list[str]
    md5: str
    bytes: int | None
    files: int | None
    solver: dict[str, object] | None
    pairs: Number | None
    nfe: Number | None
    solver_gap_rms: Number | None
    transport_cost: Number | None


@dataclass(frozen=True)
class RoundFiles:
    """The paths of a round's pictures (a folder), of its straightness curve and of its losses."""

    pictures: str
    straightness: str
    losses: str = ""


@dataclass(frozen=True)
class Files:
    """The paths in dvc.yaml of the comparison, and of each round's pictures and curve."""

    comparison: str | None
    rounds: dict[str, RoundFiles]


@dataclass(frozen=True)
class Description:
    """What identifies a chain, and where its couplings come from.

    Chains with the same `recipe` differ only in the seed.
    """

    key: str
    recipe: str
    data: str
    seed: int | None
    commit: str
    settings: dict[str, object]
    couplings: list[CouplingRecord]
    files: Files

    def as_dict(self) -> dict[str, object]:
        """Return all of it as JSON holds it."""
        return asdict(self)

    def as_json(self) -> dict[str, object]:
        """Return the content of chain.json, with its hash."""
        return sealed(self.as_dict())

    @classmethod
    def read(cls, content: bytes, where: str) -> "Description":
        """Read a chain.json, which `where` names. Raises ReflowError if it is damaged."""
        try:
            # Earlier versions wrote no hash.
            found = opened(content, where, required=False, mend=AGAIN)
            return _WHOLE.validate_python(found)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the file"
            raise ReflowError(
                f"{where}: no description of a chain ({place}: {mistake(first)}); {AGAIN}"
            ) from None


_WHOLE = TypeAdapter(Description)


def read_file(root: Path, path: str) -> bytes | None:
    """Read a file of the workspace; None if there is none, or if the path leads out of it."""
    if Path(path).is_absolute() or ".." in Path(path).parts:
        return None
    file = root / path
    return file.read_bytes() if file.is_file() else None


def describe(whole: Chain, read: Read, commit: str) -> Description:
    """Describe a chain; `read` returns the metrics files of its stages."""
    settings = dict(whole.settings)
    seed = settings.pop("seed", None)
    return Description(
        key=whole.key,
        recipe=whole.recipe,
        data=whole.name,
        seed=seed if isinstance(seed, int) else None,
        commit=commit,
        settings=settings,
        couplings=_couplings(whole, read),
        files=_files(whole),
    )


def _measured(read: Read, path: str | None) -> dict[str, Any]:
    """Return the metrics of a coupling; empty where there are none."""
    try:
        return dict(json.loads((read(path) if path else None) or b"{}"))
    except (ValueError, TypeError) as error:
        raise ReflowError(f"{path}: damaged, no metrics ({error}); {MEND}") from None


def _files(whole: Chain) -> Files:
    rounds = {
        r.name: RoundFiles(
            r.evaluate.paths["out"],
            r.evaluate.paths["straightness"],
            r.train.paths.get("curve", "") if r.train else "",
        )
        for r in whole.rounds
        if r.evaluate
    }
    return Files(f"{whole.compare.paths['out']}/{FILE}" if whole.compare else None, rounds)


def _couplings(whole: Chain, read: Read) -> list[CouplingRecord]:
    return [
        _coupling(whole, entry, read)
        for entry in whole.entries.values()
        if entry.runs("prepare", "out") or entry.runs("couple", "out")
    ]


def _coupling(whole: Chain, entry: Entry, read: Read) -> CouplingRecord:
    path, settings = entry.paths["out"], f"couplings.{entry.key}"
    made, metrics = entry.outs.get(path, File()), entry.paths.get("metrics")
    measured = _measured(read, metrics)
    round_, solver = entry.setting(settings, "round"), entry.setting(settings, "solver")
    return CouplingRecord(
        coupling=path.rsplit("/", 1)[-1],
        path=path,
        round=round_ if isinstance(round_, str) else None,
        trains=[r.name for r in whole.rounds if r.train and r.train.paths.get("coupling") == path],
        md5=entry.md5(path),
        bytes=made.size,
        files=made.nfiles,
        solver=dict(solver) if isinstance(solver, Mapping) else None,
        pairs=measured.get("pairs"),
        nfe=measured.get("nfe"),
        solver_gap_rms=measured.get("solver_gap_rms"),
        transport_cost=measured.get("transport_cost"),
    )
