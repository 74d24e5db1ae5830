"""Several processes that train one network: each takes its part of every batch.

Started by torchrun, which tells a process its rank. All draw the same batch, so the loss and the
gradient are those of one process at the same batch, up to the order of summation.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from fmcore.matching.loss import Batch
from fmcore.settings import ReflowError


@dataclass(frozen=True)
class Group:
    """The rank of this process among those that train; only rank 0, which leads, writes."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process logs, checkpoints and writes the model."""
        return self.rank == 0

    def part(self, batch: Batch) -> Batch:
        """Return this process's rows [B / size] of a batch [B]."""
        if self.size == 1:
            return batch
        given = (batch.target, batch.source, batch.t, batch.label, batch.span)
        cut = (None if x is None else x.tensor_split(self.size)[self.rank] for x in given)
        return Batch(*cut)  # type: ignore[arg-type]

    def average(self, tensors: Iterable[Tensor | None]) -> None:
        """Replace tensors by their mean over the group: one all-reduce of all, flattened."""
        found = [t for t in tensors if t is not None]
        if self.size == 1 or not found:
            return
        flat = torch.cat([t.flatten() for t in found])
        dist.all_reduce(flat)
        flat /= self.size
        for t, mean in zip(found, flat.split([t.numel() for t in found]), strict=True):
            t.copy_(mean.view_as(t))


ALONE = Group()


def started() -> int:
    """Return how many processes torchrun started; 0 when it did not start this one."""
    return int(os.environ.get("WORLD_SIZE", 0)) if "RANK" in os.environ else 0


def rank() -> int:
    """Return the rank that torchrun gave this process, else 0."""
    return int(os.environ.get("RANK", 0))


@contextmanager
def training_group(
    processes: int, batch: int, device: torch.device
) -> Iterator[tuple[Group, torch.device]]:
    """Yield this process's rank in a group of `processes`, and its device (a GPU each).

    Raises ReflowError when torchrun started another number of them, or the batch has no equal
    parts: the mean over the batch would not be the mean over the group.
    """
    if processes == 1 and started() <= 1:
        yield ALONE, device
        return
    if started() != processes:
        raise ReflowError(
            f"train.processes is {processes}, but {started() or 1} were started; set"
            " train.processes to the number that torchrun starts, on all machines together"
        )
    if batch % processes:
        raise ReflowError(f"train.batch {batch} has no {processes} equal parts; make it a multiple")
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Group(rank(), processes), device
    finally:
        dist.destroy_process_group()
