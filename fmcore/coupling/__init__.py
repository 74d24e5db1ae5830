"""The coupling data set: joint samples (target, source) as sharded Parquet with a manifest.

A coupling is a directory of `part-00000.parquet`, ... and `_manifest.json`, which is written last:
a directory without it is not a coupling. pandas, pyarrow, DuckDB or Spark open the directory as it
is, because they ignore names that begin with an underscore.
"""

from fmcore.coupling.noise import gaussian_noise, is_held_out
from fmcore.coupling.read import Coupling, Pairs, open_coupling, read, verify
from fmcore.coupling.stream import batches, longest
from fmcore.coupling.write import About, finish, table, write_shard

__all__ = [
    "About",
    "Coupling",
    "Pairs",
    "batches",
    "finish",
    "gaussian_noise",
    "is_held_out",
    "longest",
    "open_coupling",
    "read",
    "table",
    "verify",
    "write_shard",
]
