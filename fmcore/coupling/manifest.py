"""The manifest of a coupling: its file name, and a reader that does not need torch."""

import json
from pathlib import Path

MANIFEST = "_manifest.json"
"""The file of a coupling's folder that is written last: a folder without it is incomplete."""


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
