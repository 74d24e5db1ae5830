"""The table of unique conditions: a class whose embedding is given, not learnt.

The label of a pair is the row of its condition, 0 to K - 1; row K is the null condition, which
guidance takes for no condition. The table is one file, `_conditions.safetensors`, beside the pairs
and in a model's folder. Its sha256 is part of the identity of both.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load as tensors_in
from safetensors.torch import save as bytes_of
from torch import Tensor

from fmcore.settings import ClassCount, ReflowError, Settings

FILE = "_conditions.safetensors"
"""The table's file, in a coupling's folder and in a model's."""

KEPT = 256 << 20
"""Bytes of a table, at most, that a model keeps in its own folder."""


class ConditionInput(Settings):
    """Takes the conditions of the data as input, each by its given embedding; `{}` in params.yaml.

    The numbers are those of the data's table, which `initialise` fills in.
    """

    count: ClassCount = 0
    """Number of conditions without the null one. Leave it out: `initialise` fills it in."""
    features: int = Field(default=0, ge=0, le=10**5)
    """Numbers of a vector, or of each token of a sequence. Leave it out: `initialise` fills it
    in."""
    length: int = Field(default=0, ge=0, le=10**5)
    """Tokens of a sequence, 0 for vectors. Leave it out: `initialise` fills it in."""
    pooled: int = Field(default=0, ge=0, le=10**5)
    """Numbers of the vector that sums up a sequence, 0 for vectors. Leave it out: `initialise`
    fills it in."""

    @property
    def vector(self) -> int:
        """Numbers of the one vector of a condition."""
        return self.pooled if self.length else self.features


@dataclass(frozen=True, eq=False)
class Table:
    """K conditions and, last, the null one, which may be none of them.

    `vectors` [K + 1, E], or sequences [K + 1, L, E] of which `mask` [K + 1, L] says which tokens
    are there and `pooled` [K + 1, P] sums up each. `texts` are those of the K conditions, empty for
    vectors that the data gave; `encoder` is its record, with a digest of its weights.
    """

    vectors: Tensor
    mask: Tensor | None = None
    pooled: Tensor | None = None
    texts: tuple[str, ...] = ()
    encoder: Mapping[str, Any] | None = None

    def __len__(self) -> int:
        """Return K."""
        return len(self.vectors) - 1

    def __deepcopy__(self, memo: dict[int, Any]) -> "Table":
        """Return the table itself, which nothing changes."""
        return self

    @property
    def sizes(self) -> ConditionInput:
        """The sizes of the input that a network needs for this table."""
        sequences = self.vectors.ndim == 3
        return ConditionInput(
            count=len(self),
            features=self.vectors.shape[-1],
            length=self.vectors.shape[1] if sequences else 0,
            pooled=0 if self.pooled is None else self.pooled.shape[1],
        )

    @cached_property
    def content(self) -> bytes:
        """The bytes of the file, a function of the table alone."""
        tensors = {"vectors": self.vectors, "mask": self.mask, "pooled": self.pooled}
        kept = {name: x.contiguous().clone() for name, x in tensors.items() if x is not None}
        said = json.dumps({"texts": self.texts, "encoder": self.encoder}, sort_keys=True)
        return bytes(bytes_of(kept, {"about": said}))  # one entry: safetensors does not sort them

    @cached_property
    def sha256(self) -> str:
        """The hash of the file."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def about(self) -> dict[str, Any]:
        """What the manifest of a coupling and the config of a model say of the table."""
        encoder = {} if self.encoder is None else {"encoder": dict(self.encoder)}
        return {"sha256": self.sha256, **self.sizes.model_dump(), **encoder}

    def row(self, text: str) -> int | None:
        """Return the number of the condition with a text; None if it is not in the table."""
        return self._rows.get(text)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {text: i for i, text in enumerate(self.texts)}

    def name(self, row: int) -> str:
        """Return what a condition is called: its text, or its number."""
        return self.texts[row] if self.texts else str(row)


def zeros(sizes: ConditionInput) -> Table:
    """Return a table of these sizes with one condition and the null one, all of zeros."""
    if not sizes.length:
        return Table(torch.zeros(2, sizes.features))
    mask = torch.ones(2, sizes.length, dtype=torch.bool)
    return Table(torch.zeros(2, sizes.length, sizes.features), mask, torch.zeros(2, sizes.pooled))


def of_vectors(given: Tensor) -> tuple[Table, Tensor]:
    """Return the table of the unique rows of vectors [N, E], and the row of each [N].

    The null condition is a vector of zeros.
    """
    unique, label = torch.unique(given.float(), dim=0, return_inverse=True)
    return Table(torch.cat([unique, torch.zeros_like(unique[:1])])), label


def unique_texts(texts: Sequence[str]) -> tuple[tuple[str, ...], Tensor]:
    """Return the unique texts in their order, and the number of each text [N]."""
    unique = tuple(sorted(set(texts)))
    rows = {text: i for i, text in enumerate(unique)}
    return unique, torch.tensor([rows[text] for text in texts])


def write(folder: Path, table: Table) -> None:
    """Write the table into a folder, atomically."""
    put(folder, table.content)


def put(folder: Path, content: bytes) -> None:
    """Write the content of a table's file into a folder, atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{FILE}.tmp"
    try:
        part.write_bytes(content)
        part.replace(folder / FILE)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ReflowError(
            f"{folder / FILE}: cannot be written ({error.strerror}); free some space and start"
            " again"
        ) from error


def parse(content: bytes, about: Mapping[str, Any], place: Path) -> Table:
    """Return the table in the content of a file; `about` is what the manifest says of it.

    Raises ReflowError for another content than the recorded one.
    """
    if hashlib.sha256(content).hexdigest() != about.get("sha256"):
        raise ReflowError(
            f"{place}: damaged, its sha256 is not the one recorded beside it; get it again, or run"
            " the stage that makes it"
        )
    try:
        tensors = tensors_in(content)
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])["__metadata__"]["about"]
        said = json.loads(header)
        texts, encoder = tuple(said["texts"]), said["encoder"]
        return Table(tensors["vectors"], tensors.get("mask"), tensors.get("pooled"), texts, encoder)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ReflowError(f"{place}: no table of conditions ({reason}); make it again") from error


def read(folder: Path, about: Mapping[str, Any]) -> Table:
    """Return the table in a folder. Raises ReflowError if it is missing or another one."""
    try:
        content = (folder / FILE).read_bytes()
    except OSError as error:
        raise ReflowError(
            f"{folder / FILE}: the table of conditions is missing ({error.strerror}); run the stage"
            " that makes the folder, or get it from the prepared data"
        ) from error
    return parse(content, about, folder / FILE)
