"""Trainings in several processes of this machine, which read and send as those of many would."""

import csv
import json
import os
import socket

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.multiprocessing.spawn import spawn

from fmcore.coupling.noise import gaussian_noise
from fmcore.coupling.write import About, finish, table, write_shard
from fmcore.train import train
from fmcore.work.work import Work
from tests.chains import scratch_model

SHARDS = 8


@pytest.fixture
def start(tmp_path):
    """Two couplings in eight files, one of them without sources, and a model."""
    torch.set_num_threads(1)
    for name, kind in (("prepared", "independent"), ("pairs", "imported")):
        about = About(kind=kind, shape=[2], pairs=SHARDS * 100, seed=0)
        for i in range(SHARDS):
            ids = np.arange(100 * i, 100 * (i + 1))
            drawn = gaussian_noise(7, ids, (2, 2))
            given = {} if kind == "independent" else {"source": drawn[:, 1]}
            write_shard(tmp_path / name, i, table(about, ids, 2 + drawn[:, 0], **given))
        finish(tmp_path / name, about, SHARDS)
    scratch_model(tmp_path / "init", dim=2)
    return tmp_path


def trained(folder, out, data, settings, said=None, resumed=None):
    """Train in this process; return the losses of the curve, and note the step it resumed at."""
    said, resumed = [] if said is None else said, [] if resumed is None else resumed
    files = (folder / data, folder / "init", *(out / n for n in ("model", "c.csv", "m.json")))
    log = lambda values, step: None if values else resumed.append(step)
    work = Work(scratch=out / "scratch", warn=said.append, log=log)
    train(*files, settings, name="r", work=work)
    if not (out / "c.csv").exists():
        return None
    with (out / "c.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def train_as(rank, size, port, folder, jobs):
    """Do the jobs as one process of a group; write the bytes of the row groups that it reads."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    read, group_of = [], pq.ParquetFile.read_row_group
    groups_of = pq.ParquetFile.read_row_groups
    pq.ParquetFile.read_row_group = lambda f, i, *a, **k: _noted(read, f, [i], group_of, i, a, k)
    pq.ParquetFile.read_row_groups = lambda f, i, *a, **k: _noted(read, f, i, groups_of, i, a, k)
    for job, (name, data, settings) in enumerate(jobs):
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port + job)}
        read.clear()
        out, said, resumed = folder / f"{name}-{size}", [], []
        trained(folder, out, data, settings, said, resumed)
        out.mkdir(exist_ok=True)
        note = {"bytes": sum(read), "said": said, "resumed": resumed}
        (out / f"read-{rank}.json").write_text(json.dumps(note))


def _size(file, numbers, columns):
    """Return the bytes that some columns (None: all) of some row groups take on the disk."""
    groups = [file.metadata.row_group(i) for i in numbers]
    found = [group.column(c) for group in groups for c in range(group.num_columns)]
    wanted = [c for c in found if columns is None or c.path_in_schema.split(".")[0] in columns]
    return sum(c.total_compressed_size for c in wanted)


def stored(folder, columns):
    """Return the bytes that some columns of a coupling take on the disk."""
    files = [pq.ParquetFile(path) for path in sorted(folder.glob("*.parquet"))]
    return sum(_size(file, range(file.num_row_groups), columns) for file in files)


def _noted(read, file, numbers, how, given, words, options):
    read.append(_size(file, numbers, options.get("columns")))
    return how(file, given, *words, **options)


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def together(folder, size, jobs):
    """Train (name, data, settings) in `size` processes each; return {name: (losses, notes)}."""
    given = [(name, data, s.model_copy(update={"processes": size})) for name, data, s in jobs]
    for name, *_ in jobs:
        (folder / f"{name}-{size}").mkdir(exist_ok=True)
    spawn(train_as, (size, free_port(), folder, given), nprocs=size)
    found = {}
    for name, *_ in jobs:
        out = folder / f"{name}-{size}"
        with (out / "c.csv").open() as file:
            losses = [float(row["loss"]) for row in csv.DictReader(file)]
        notes = [json.loads((out / f"read-{r}.json").read_text()) for r in range(size)]
        found[name] = losses, notes
    return found
