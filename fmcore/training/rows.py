"""The pairs of a coupling held by several processes: each reads and keeps its own row groups only.

Row group g belongs to process g mod N. The rows of a batch are those that one process would take:
each process gets the rows of its part of the batch from those that hold them. So a process reads
1/N of the bytes and holds 1/N of the pairs, and the batches do not depend on N.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fmcore.coupling.pairs import Pairs
from fmcore.training.processes import Group


@dataclass(frozen=True)
class SharedPairs:
    """Pairs of which each process holds some: `own` [M].

    `owner` [N] is the process that holds each pair, `place` [N] its position there. Where the
    `whole` batch is needed by each process (its pairs are paired anew), it gets all rows.
    """

    own: Pairs
    owner: Tensor
    place: Tensor
    group: Group
    whole: bool = False

    @classmethod
    def of(
        cls, own: Pairs, counts: Sequence[int], owners: Sequence[int], group: Group, whole: bool
    ) -> "SharedPairs":
        """Return the pairs of row groups with `counts` pairs each that belong to `owners`."""
        each = torch.tensor(counts)
        owner = torch.tensor(owners, dtype=torch.int16).repeat_interleave(each)
        place = torch.empty(len(owner), dtype=torch.int32)
        for process in range(group.size):
            mine = (owner == process).nonzero()[:, 0]
            place[mine] = torch.arange(len(mine), dtype=torch.int32)
        return cls(own, owner, place, group, whole)

    def __len__(self) -> int:
        return len(self.owner)

    def rows(self, index: Tensor) -> Pairs:
        """Return the pairs at the positions `index` [B]: this process's part of them, the rest 0.

        All processes call it with the same index; each sends the rows that others need.
        """
        size, rank = self.group.size, self.group.rank
        owner, place = self.owner[index], self.place[index]
        parts = [torch.arange(len(index))] * size
        if not self.whole:
            parts = list(parts[0].tensor_split(size))
        sent = [place[part][owner[part] == rank] for part in parts]
        come = [parts[rank][owner[parts[rank]] == process] for process in range(size)]
        own = self.own.tensors()
        if self.own.independent:  # each step draws sources
            del own["source"]
        found: dict[str, Any] = {}
        for name, value in own.items():
            rows = value.new_empty(sum(map(len, come)), *value.shape[1:])
            given = value.index_select(0, torch.cat(sent))
            dist.all_to_all_single(rows, given, [len(c) for c in come], [len(s) for s in sent])
            found[name] = value.new_zeros(len(index), *value.shape[1:])
            found[name][torch.cat(come)] = rows
        return replace(self.own, **{"source": found["target"], **found})
