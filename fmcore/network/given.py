"""Conditions as the input of a network: the rows of a table that is given, not learnt."""

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fmcore.conditions.table import ConditionInput, Table
from fmcore.settings import ClassCount, ReflowError, Settings


class Labelled(Settings):
    """What networks have in common that take a label or a condition."""

    classes: ClassCount = 0
    """Number of classes of the label, an input of the network; 0 ignores labels. Labels of the data
    must be below it. Guidance needs it."""
    conditions: ConditionInput | None = Field(default=None, exclude_if=lambda given: given is None)
    """`{}` takes the conditions of the data (`data.conditions`) as input, in place of classes: each
    has its given embedding, the null one included. null takes none."""

    @model_validator(mode="after")
    def _one_of_both(self) -> "Labelled":
        if self.conditions and self.classes not in (0, self.conditions.count):
            raise ValueError("classes: conditions number themselves; leave classes out")
        return self

    @property
    def learnt(self) -> int:
        """Number of classes whose embedding is learnt; 0 for conditions."""
        return 0 if self.conditions else self.classes

    def sized(self, table: Table | None) -> Self:
        """Return the settings with the sizes of the data's conditions, where they take them.

        Raises ReflowError if the data has none.
        """
        if self.conditions is None:
            return self
        if table is None:
            raise ReflowError(
                "network.conditions: the data has no conditions; set data.conditions, or remove it"
            )
        return self.model_copy(update={"classes": len(table), "conditions": table.sizes})


class Given(nn.Module):
    """The table of conditions on the device of the network, and its rows by label.

    The table is no weight: it is not in the state of the network but in a file of its own.
    """

    vectors: Tensor
    mask: Tensor
    pooled: Tensor

    def __init__(self, sizes: ConditionInput) -> None:
        super().__init__()
        self.sizes = sizes
        self.table: Table | None = None
        for name in ("vectors", "mask", "pooled"):
            self.register_buffer(name, torch.zeros(0), persistent=False)

    def take(self, table: Table) -> None:
        """Use a table, with any number of conditions, of the sizes that the network was made for.

        Raises ReflowError for other sizes.
        """
        found, wanted = table.sizes, self.sizes.model_copy(update={"count": len(table)})
        if found != wanted:
            raise ReflowError(
                f"conditions of {found.model_dump()}, but the network takes {wanted.model_dump()};"
                " embed them with the encoder that it was made with"
            )
        self.table, device = table, self.vectors.device
        for name in ("vectors", "mask", "pooled"):
            given = getattr(table, name)
            setattr(self, name, torch.zeros(0) if given is None else given.to(device))

    def forget(self) -> None:
        """Have no table, as at first."""
        self.table, none = None, self.vectors.new_zeros(0)
        self.vectors = self.mask = self.pooled = none

    def rows(self, label: Tensor | None, like: Tensor) -> Tensor:
        """Return the rows of labels [B]; those of the null condition for None, as many as t [B]."""
        count = len(self.vectors) - 1
        if count < 0:
            raise ReflowError(
                "this model's folder has no table of conditions, which is too large for it: sample"
                " it where its prepared data is (couplings/independent), or by a stage"
            )
        return torch.full_like(like, count, dtype=torch.int64) if label is None else label

    def vector(self, label: Tensor | None, like: Tensor) -> Tensor:
        """Return a vector for each row [B, E]: that of the condition, or of a sequence's sum."""
        table = self.pooled if self.sizes.length else self.vectors
        return table[self.rows(label, like)].float()

    def sequence(self, label: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tokens [B, L, E], which of them are there [B, L], and their sum [B, P]."""
        rows = self.rows(label, like)
        return self.vectors[rows].float(), self.mask[rows], self.pooled[rows].float()


def zeroed(features: int, width: int) -> nn.Linear:
    """Return a linear map that gives 0 before training."""
    found = nn.Linear(features, width, bias=False)
    nn.init.zeros_(found.weight)
    return found
