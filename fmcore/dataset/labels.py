"""Classes from any labels: numbers with gaps, from 1, texts, true and false."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from fmcore.settings import ReflowError

Classes = tuple[Tensor | None, tuple[str, ...] | None]
"""Numbers of classes [N] from 0 up, and the names of the classes where these are needed."""


def classes_of(labels: pa.Array | None, where: str) -> Classes:
    """Number labels from 0 to K - 1 in their order, and keep their names.

    Labels that are these numbers already have no names. Raises ReflowError, beginning with `where`,
    for a row without a label, and for labels that are no classes: fractions, negative numbers, or
    nearly as many as there are rows.
    """
    if labels is None:
        return None, None
    labels = _plain(labels, where)
    values = pc.unique(labels)
    values = values.take(pc.sort_indices(values))
    count, rows = len(values), len(labels)
    if rows >= 20 and count > rows // 2:
        raise ReflowError(
            f"{where} has {count} values in {rows} rows, so it tells no classes apart; name a"
            " column of classes, or leave it out"
        )
    numbers = pc.index_in(labels, values).to_numpy(zero_copy_only=False).astype(np.int64)
    names = tuple(str(name).lower() if name is True or name is False else str(name)
                  for name in values.to_pylist())  # fmt: skip
    plain = pa.types.is_integer(labels.type) and names == tuple(map(str, range(count)))
    return torch.from_numpy(numbers), None if plain else names


def _plain(labels: pa.Array, where: str) -> pa.Array:
    """Return labels as whole numbers, truth values or texts, all present."""
    if pa.types.is_dictionary(labels.type):
        labels = labels.dictionary_decode()
    if pa.types.is_floating(labels.type) and not labels.null_count:
        values = labels.to_numpy(zero_copy_only=False)
        if np.isfinite(values).all() and (values == np.trunc(values)).all():
            labels = labels.cast(pa.int64())
    kind = labels.type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not text and not pa.types.is_integer(kind) and not pa.types.is_boolean(kind):
        raise _wrong(where, f"it holds {kind}")
    bad = pc.is_null(labels)
    if text:
        bad = pc.or_kleene(bad, pc.equal(labels, ""))
    elif pa.types.is_integer(kind):
        bad = pc.or_kleene(bad, pc.less(labels, 0))
    if len(labels) and (first := pc.index(bad, True).as_py()) >= 0:
        value = labels[first].as_py()
        raise _wrong(where, f"row {first} has {'none' if value is None else repr(value)}")
    return labels


def _wrong(where: str, found: str) -> ReflowError:
    return ReflowError(
        f"{where} must hold a whole number from 0 up, a text or true/false in every row; {found}:"
        " mend or remove such rows"
    )
