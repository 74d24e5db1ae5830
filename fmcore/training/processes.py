"""Several processes that train one network: each takes its part of every batch.

Started by torchrun, which tells a process its rank. All draw the same batch, so the loss and the
gradient are those of one process at the same batch, up to the order of summation.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fmcore.matching.maps import Batch
from fmcore.settings import ReflowError

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """The rank of this process among those that train; only rank 0, which leads, writes.

    The state is `divided` if each process has its share of the weights only.
    """

    rank: int = 0
    size: int = 1
    divided: bool = False

    @property
    def leads(self) -> bool:
        """Whether this process logs, checkpoints and writes the model."""
        return self.rank == 0

    def part(self, batch: Batch) -> Batch:
        """Return this process's rows [B / size] of a batch [B]."""
        if self.size == 1:
            return batch
        if len(batch.t) < self.size:
            raise ReflowError(
                f"{len(batch.t)} training pairs for {self.size} processes; lower train.processes"
            )
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

    def added(self, numbers: Tensor) -> Tensor:
        """Return the sum [N] over the group of numbers [N] that each process has."""
        if self.size > 1:
            dist.all_reduce(numbers)
        return numbers

    def gathered(self, numbers: Tensor) -> Tensor:
        """Return the numbers [M] of all processes, which each have some [N], one behind another."""
        if self.size == 1:
            return numbers
        counts = torch.zeros(self.size, dtype=torch.int64)
        counts[self.rank] = len(numbers)
        most = int(self.added(counts).max())
        padded = numbers.new_zeros(most)
        padded[: len(numbers)] = numbers
        found = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(found, padded)
        return torch.cat([f[:n] for f, n in zip(found, counts.tolist(), strict=True)])

    def told(self, value: T) -> list[T]:
        """Return what each process of the group says, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def agreed(self, value: T) -> T:
        """Return what the process that leads says, when all have come here."""
        return self.told(value)[0]


ALONE = Group()


def started() -> int:
    """Return how many processes torchrun started; 0 when it did not start this one."""
    return int(os.environ.get("WORLD_SIZE", 0)) if "RANK" in os.environ else 0


def rank() -> int:
    """Return the rank that torchrun gave this process, else 0."""
    return int(os.environ.get("RANK", 0))


@contextmanager
def training_group(
    processes: int, batch: int, device: torch.device, *, divided: bool = False
) -> Iterator[tuple[Group, torch.device]]:
    """Yield this process's rank in a group of `processes`, and its device (a GPU each).

    The group is to be `divided` if it has more than one.

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
    # Pairs lie in the memory of the CPU, on a GPU's machine too.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield Group(rank(), processes, divided and processes > 1), device
    finally:
        dist.destroy_process_group()
