"""Rows of numbers as Arrow columns: lists of float32, or the bytes of any type."""

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmcore.settings import ReflowError


def lists(flat: NDArray[np.float32]) -> pa.Array:
    """Return rows [N, D] as a column of lists."""
    item = pa.field("item", pa.float32(), nullable=False)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(flat.reshape(-1)), type=pa.list_(item, flat.shape[1])
    )


def finite(x: Tensor, name: str, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return rows [N, D]; raise ReflowError for a value that is not finite."""
    flat = x.detach().to("cpu", torch.float32).flatten(1).contiguous()
    bad = torch.cat([(~torch.isfinite(rows)).any(dim=1) for rows in flat.split(1024)])
    if bool(bad.any()):
        first = int(ids[int(bad.nonzero()[0])])
        raise ReflowError(
            f"{name} of pair {first} is not finite ({int(bad.sum())} of {len(bad)} pairs);"
            " the velocity diverges: train longer, lower its lr, or take more solver steps"
        )
    return np.asarray(flat.numpy())


def floats(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """Return the numbers [N * D] of a column of lists."""
    flat = column.combine_chunks()
    flat = flat.flatten() if isinstance(flat, pa.FixedSizeListArray) else flat
    return np.asarray(flat.to_numpy(zero_copy_only=False)).astype(np.float32, copy=False)


def packed(rows: NDArray[Any], kept: NDArray[np.bool_] | None = None) -> pa.Array:
    """Return rows [N, D] as a column of bytes, null where they are not `kept` [N]."""
    valid = None if kept is None else pa.py_buffer(np.packbits(kept, bitorder="little"))
    data = pa.py_buffer(np.ascontiguousarray(rows))
    kind = pa.binary(rows.shape[1] * rows.itemsize)
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(rows), [valid, data])


def unpacked(column: pa.ChunkedArray, dtype: str, size: int) -> NDArray[Any]:
    """Return the rows [N, D] of a column of bytes; those that are null have any content."""
    array = column.combine_chunks()
    data = array.buffers()[1]
    if data is None or not len(array):
        return np.zeros((len(array), size), dtype)
    first = array.offset * size
    return np.frombuffer(data, dtype)[first : first + len(array) * size].reshape(-1, size)
