"""The manifest of a coupling, and the pointer to shards elsewhere: readers that need no torch."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmcore.checked import read_json
from fmcore.settings import ReflowError

MANIFEST = "_manifest.json"
"""The file of a coupling's folder that is written last: a folder without it is incomplete."""

POINTER = "_remote.json"
"""The file of a folder whose shards are not in it: it says where in S3 they are."""

SCHEMA_VERSION = 1


def check(manifest: Mapping[str, Any], file: Path) -> None:
    """Raise ReflowError for a manifest of another version, or with a shard of another folder."""
    version = manifest["about"].get("schema_version")
    if version != SCHEMA_VERSION:
        raise ReflowError(
            f"{file}: schema version {version}, this program reads {SCHEMA_VERSION};"
            " sample the coupling again or use the version that wrote it"
        )
    for shard in manifest["shards"]:
        if Path(shard["file"]).name != shard["file"]:
            raise ReflowError(
                f"{file}: the shard {shard['file']!r} is no file of this folder; sample the"
                " coupling again, or get it from where it came"
            )


def pairs_in(content: bytes) -> int | None:
    """Return the number of pairs in the content of a manifest; None where it is not given.

    >>> pairs_in(b'{"about": {"pairs": 300}}'), pairs_in(b"[]")
    (300, None)
    """
    try:
        return int(json.loads(content)["about"]["pairs"])
    except (ValueError, KeyError, TypeError):
        return None


def recorded(manifest: Path) -> dict[str, str]:
    """Return the sha256 of each shard that a manifest names; none from a damaged manifest."""
    try:
        shards = json.loads(manifest.read_bytes())["shards"]
        return {str(shard["file"]): str(shard["sha256"]) for shard in shards}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def md5_elsewhere(folder: Path) -> str | None:
    """Return DVC's hash of the coupling whose shards a folder names in S3; None without a pointer.

    Raises ReflowError if the manifest in the folder is not that of the coupling.
    """
    if not (folder / POINTER).is_file():
        return None
    said = read_json(folder / POINTER)
    manifest = hashlib.md5((folder / MANIFEST).read_bytes(), usedforsecurity=False).hexdigest()
    if said.get("manifest") != manifest or not said.get("md5"):
        raise ReflowError(f"{folder}: {MANIFEST} and {POINTER} are of two couplings; get it again")
    return str(said["md5"])
