"""The library of couplings: every version in git, where DVC keeps it, and how one comes back."""

from flows.versions.fetch import Fetched, fetch
from flows.versions.history import Version, git, versions
from flows.versions.params import use_params
from flows.versions.places import Place, places, rows, versions_table

__all__ = [
    "Fetched",
    "Place",
    "Version",
    "fetch",
    "git",
    "places",
    "rows",
    "use_params",
    "versions",
    "versions_table",
]
