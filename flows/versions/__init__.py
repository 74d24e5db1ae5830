"""The library of couplings: every version in git, where DVC keeps it, and how one comes back."""

from flows.versions.fetch import Fetched, fetch
from flows.versions.history import Version, git, resolve, versions
from flows.versions.params import use_params
from flows.versions.places import Place, places, pull_what_others_ran, rows, versions_table

__all__ = [
    "Fetched",
    "Place",
    "Version",
    "fetch",
    "git",
    "places",
    "pull_what_others_ran",
    "resolve",
    "rows",
    "use_params",
    "versions",
    "versions_table",
]
