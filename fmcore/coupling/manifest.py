"""The manifest of a coupling: its file name, and a reader that does not need torch."""

import json

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
