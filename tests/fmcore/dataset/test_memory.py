"""Data larger than the memory a process may take are prepared."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fmcore.coupling.read import open_coupling, open_shard

PREPARE = """
import resource, sys
from pathlib import Path
from pydantic import TypeAdapter
from fmcore.dataset.kinds import Dataset
from fmcore.prepare import prepare

sys.modules["fmcore.prepare"].SHARD_ROWS = 2048

def run(path, out):
    settings = TypeAdapter(Dataset).validate_python({"name": "array", "path": path})
    prepare(Path(out), settings, seed=0)

few, many, out, mega = sys.argv[1:]
run(few, out + "-few")  # libraries are loaded and their pools of memory are made
taken = int(next(s for s in open("/proc/self/status") if s.startswith("VmData")).split()[1]) << 10
limit = taken + (int(mega) << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
run(many, out)
"""

WIDTH = 3 * 32 * 32


def npy(folder, rows):
    path = folder / f"{rows}.npy"
    values = np.lib.format.open_memmap(path, "w+", "float32", (rows, WIDTH))
    values[:] = np.arange(rows, dtype="float32")[:, None]
    return path


def bytes_npy(folder, rows):
    path = folder / f"{rows}.npy"
    values = np.lib.format.open_memmap(path, "w+", "uint8", (rows, 32, 32, 3))
    values[:] = (np.arange(rows) % 256).astype("uint8")[:, None, None, None]
    return path


def parquet(folder, rows):
    """One row group, compressed and encoded by a dictionary, as pandas writes it."""
    path = folder / f"{rows}.parquet"
    part = np.repeat(np.arange(rows, dtype="float32"), WIDTH)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(part), WIDTH)
    pq.write_table(pa.table({"target": lists}), path, row_group_size=rows)
    return path


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA is Linux's")
@pytest.mark.parametrize("write", [npy, bytes_npy, parquet])
def test_a_data_set_needs_less_memory_than_its_own_size(tmp_path, write, monkeypatch):
    """As float32 the rows take 160 MB; a shard of 2,048 rows, 25 MB, is in memory as a whole."""
    few, many = write(tmp_path, 400), write(tmp_path, 13_000)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    arguments = [str(few), str(many), str(tmp_path / "out"), "100"]
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    coupling = open_coupling(tmp_path / "out")
    assert coupling.about.pairs == 13_000
    rows = open_shard(coupling, "part-00006.parquet").read()
    assert len(rows) == 13_000 - 6 * 2048
