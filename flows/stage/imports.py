"""What a coupling is made from: a round's model, or pairs from outside, fetched if need be."""

import hashlib
import json
from pathlib import Path

from flows.dag.inputs import FOLDER
from flows.dag.outputs.elsewhere import fetched
from flows.params.load import Params
from fmcore.outside.imported import Imported
from fmcore.outside.kinds import Chain
from fmcore.sampling.pairs import Couple
from fmcore.settings import ReflowError


def pairs_of(root: Path, params: Params, key: str) -> Couple | Imported:
    """Return the settings of the pairs of a coupling; those of an import are counted.

    A coupling in a commit of another project is fetched first, once. Raises ReflowError for pairs
    that are missing or damaged, or fewer than wanted.
    """
    coupling = params.couplings[key]
    if coupling.import_ is None:
        return coupling
    try:
        return coupling.imported(
            _place(root, coupling.import_), _digest(root, key, coupling.import_)
        ).settled()
    except ReflowError as error:
        raise ReflowError(f"couplings.{key}: {str(error).removeprefix('couplings: ')}") from error


def _place(root: Path, of: object) -> str | None:
    if not isinstance(of, Chain) or not of.elsewhere:
        return None
    if of.coupling is None:
        raise ReflowError("import.coupling: is missing; name the coupling of that project")
    return str(fetched(root, of.path, f"couplings/{of.coupling}", of.rev))


def _digest(root: Path, key: str, of: object) -> str | None:
    """Return the hash of an import's files, or of a class's meaning, as `inputs` recorded it."""
    if isinstance(of, Chain):
        return None
    try:
        said = json.loads((root / FOLDER / "couple" / f"{key}.json").read_text())
        files = {k: v for k, v in said["files"].items() if "import." in k}
        own = said["own"]
    except (OSError, ValueError, KeyError):
        return None
    whole = files.get("import.path", {}).get("sha256")
    if whole:
        return str(whole)
    text = json.dumps([own, files], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest() if own else None
