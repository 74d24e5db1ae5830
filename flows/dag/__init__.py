"""What DVC knows about the chain: its stages, why one would run, and the hash of its inputs.

The only package that uses `dvc.repo`, which is not a public API (`tests/test_dag.py` is its
contract). Every call opens a `Repo` of its own (6 ms): one shared between threads breaks DVC.
Nothing here takes DVC's lock, so all of it works while a stage runs.
"""

from flows.dag.files import files_at
from flows.dag.inputs import Inputs, again, fingerprint, inputs
from flows.dag.lineage import digest, entries, lineage, lock_entries
from flows.dag.plan import Planned, State, changed, plan
from flows.dag.project import Params, Stage, read
from flows.dag.store import (
    CACHE,
    WORKSPACE,
    bring,
    cached_file,
    default_remote,
    hash_of,
    held,
    in_workspace,
    push_runs,
    remotes,
)

__all__ = [
    "CACHE",
    "WORKSPACE",
    "Inputs",
    "Params",
    "Planned",
    "Stage",
    "State",
    "again",
    "bring",
    "cached_file",
    "changed",
    "default_remote",
    "digest",
    "entries",
    "files_at",
    "fingerprint",
    "hash_of",
    "held",
    "in_workspace",
    "inputs",
    "lineage",
    "lock_entries",
    "plan",
    "push_runs",
    "read",
    "remotes",
]
