"""Ends, states and labels of some pairs from outside as tensors: numbers, shape, finite."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmcore.conditions.table import Table
from fmcore.coupling.compact import LEVELS
from fmcore.outside.kinds import Files, Import
from fmcore.settings import ReflowError


def end(
    x: NDArray[np.generic], side: str, of: Import, shape: tuple[int, ...], ids: NDArray[np.int64]
) -> Tensor:
    """Return one end of the pairs `ids` [N, *D], float32, in the `shape` [*D] of the data.

    Raises ReflowError for what is no number, not finite or of another shape.
    """
    span = of.range if isinstance(of, Files) else None
    if side == "target" and (x.dtype == np.uint8) != (span is not None):
        is_ = "bytes: give import.range, such as [-1, 1]" if span is None else (
            f"{x.dtype}: import.range is for bytes; leave it out"
        )  # fmt: skip
        raise ReflowError(f"couplings: targets are {is_}")
    if x.dtype.kind not in "fiub":
        held = "texts" if x.dtype.kind in "OU" else x.dtype
        raise ReflowError(
            f"couplings: {side} holds {held}, expected numbers; set import.{side} to another column"
        )
    found = torch.from_numpy(np.ascontiguousarray(x, np.float32))
    if side == "target" and span is not None:
        found = found / (LEVELS / (span[1] - span[0])) + span[0]
    if isinstance(of, Files) and of.channels_last:
        if len(shape) != 3:
            raise ReflowError("couplings: import.channels_last is for images; leave it out")
        found = found.reshape(len(x), *shape[1:], shape[0]).movedim(-1, 1).contiguous()
    elif found.ndim == 2 and found[0].numel() == int(np.prod(shape)):
        found = found.reshape(len(x), *shape)
    if tuple(found.shape[1:]) != shape:
        raise ReflowError(
            f"couplings: {side} of a pair has the shape {list(found.shape[1:])}, the data"
            f" {list(shape)}; prepare data of that shape, or give pairs of this one"
        )
    good = found.flatten(1).isfinite().all(1)
    if not bool(good.all()):
        first = int(ids[int((~good).nonzero()[0])])
        raise ReflowError(
            f"couplings: {side} of pair {first} is not finite ({int((~good).sum())} of"
            f" {len(good)} pairs); make those pairs again, or leave them out"
        )
    return found


def states(
    x: NDArray[np.generic], of: Import, shape: tuple[int, ...], ids: NDArray[np.int64]
) -> Tensor:
    """Return states [N, S, ...] of the pairs `ids` [N] as [N, S, *D], each checked as an end is."""
    if x.dtype.kind != "f":
        raise ReflowError(
            f"couplings: states hold {x.dtype}, expected floats; give import.states.name"
        )
    each = [end(x[:, place], "states", of, shape, ids) for place in range(x.shape[1])]
    return torch.stack(each, dim=1)


def label(x: object, known: Table | None, ids: NDArray[np.int64]) -> Tensor | None:
    """Return the labels [N], whole numbers from 0: a text is the row of its condition in `known`.

    None stays None. Raises ReflowError for any other label.
    """
    if x is None:
        return None
    x = np.asarray(x)
    if x.ndim == 1 and x.dtype.kind in "OU":
        if known is not None:
            x = np.array([_row(known, text, pair) for text, pair in zip(x, ids, strict=True)])
        elif all(str(text).isdecimal() for text in x):  # classes that are written as text
            x = x.astype(np.int64)
    whole = x.ndim == 1 and x.dtype.kind in "iub" and bool((x.astype(np.int64) >= 0).all())
    if not whole:
        raise ReflowError(
            f"couplings: labels from pair {ids[0]} on are {x.dtype} {list(x.shape[1:])},"
            " expected one whole number from 0 for each pair; number the classes"
        )
    return torch.from_numpy(x.astype(np.int64))


def _row(known: Table, text: object, pair: int) -> int:
    """Return the row of a text in the conditions of the data."""
    row = known.row(str(text))
    if row is None:
        raise ReflowError(
            f"couplings: the label of pair {pair} is {str(text)[:60]!r}, which is no condition"
            " of the data; add it to the texts of data.conditions, or leave the pair out"
        )
    return row
