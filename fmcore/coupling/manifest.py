"""The manifest of a coupling: its name, and what can be read from it without torch."""

import json

MANIFEST = "_manifest.json"
"""The file of a coupling's folder that is written last: a folder without it is not whole."""


def pairs_in(content: bytes) -> int | None:
    """Return how many pairs a manifest says there are; None where it says nothing of them.

    >>> pairs_in(b'{"about": {"pairs": 300}}'), pairs_in(b"[]")
    (300, None)
    """
    try:
        return int(json.loads(content)["about"]["pairs"])
    except (ValueError, KeyError, TypeError):
        return None
