"""Texts and vectors beside the user's samples: a column of a table, or files beside images."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from torch import Tensor

from fmcore.dataset.rows import parsing
from fmcore.settings import ReflowError

METADATA = "metadata.jsonl"
"""A file with a line for each image of a folder, as `imagefolder` of datasets reads it."""

USUAL = "text"
"""The column that has the texts where none is named."""

Captions = tuple[str, ...] | Tensor
"""A text for each sample, or vectors [N, E]."""


def of_array(path: Path, name: str) -> Captions:
    """Return the texts or the vectors in a column of a .parquet, .csv or .npz file."""
    kind = path.suffix.lower()
    with parsing(path, f"no texts or vectors can be read from {name!r} (data.conditions.column)"):
        if kind == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return _found(path, name, archive.get(name))
        if kind == ".parquet":
            table = pq.read_table(path, columns=[name])
        elif kind == ".csv":
            types = pa.csv.ConvertOptions(column_types={name: pa.string()}, include_columns=[name])
            table = pa.csv.read_csv(path, convert_options=types)
        else:
            raise ReflowError(
                f"data.conditions: {path} has no column beside its array; save both in a .npz, or"
                " in a .parquet file"
            )
        column_ = table[name].combine_chunks() if name in table.column_names else None
        if column_ is not None and pa.types.is_nested(column_.type):
            return _found(path, name, np.array(column_.to_pylist(), np.float32))
        return _found(path, name, None if column_ is None else np.array(column_.to_pylist()))


def has_texts(path: Path) -> bool:
    """Say whether a .parquet, .csv or .npz file has the column where texts usually are."""
    kind = path.suffix.lower()
    with parsing(path, "its columns cannot be read"):
        if kind == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return USUAL in archive
        if kind == ".parquet":
            return USUAL in pq.read_schema(path).names
        if kind == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as opened:
                return USUAL in next(csv.reader(opened), [])
    return False


def _found(path: Path, name: str, values: np.ndarray | None) -> Captions:
    """Return an array as texts or as vectors; raise ReflowError for any other."""
    if values is not None and values.ndim == 2 and values.dtype.kind in "fiu":
        vectors = torch.from_numpy(values.astype(np.float32))
        if not bool(vectors.isfinite().all()):
            raise ReflowError(f"{path}: {name!r} holds numbers that are not finite; remove them")
        return vectors
    if values is not None and values.ndim == 1 and values.dtype.kind == "U":
        return tuple(str(text) for text in values)
    got = "nothing" if values is None else f"{values.dtype} {list(values.shape)}"
    raise ReflowError(
        f"{path}: {name!r} (data.conditions.column) must hold a text, or as many numbers, in every"
        f" row; found {got}"
    )


def of_folder(root: Path, files: Sequence[Path], column: str | None) -> tuple[str, ...] | None:
    """Return the text of each image: from metadata.jsonl in the root, else from NAME.txt beside it.

    None if no image has any. Raises ReflowError for an image without one.
    """
    known, name = root / METADATA, column or USUAL
    if known.is_file():
        with parsing(known, f"expected a line {{file_name: ..., {name}: ...}} for each image"):
            lines = [json.loads(line) for line in known.read_text().splitlines() if line.strip()]
            texts = {str(line["file_name"]): str(line[name]) for line in lines}
        found = [texts.get(file.relative_to(root).as_posix()) for file in files]
    else:
        beside = [file.with_suffix(".txt") for file in files]
        found = [text.read_text().strip() if text.is_file() else None for text in beside]
    if all(text is None for text in found):
        return None
    if None in found:
        place = f"in {known}" if known.is_file() else "in a .txt file beside it"
        raise ReflowError(f"{files[found.index(None)]}: has no text {place}; add it")
    return tuple(text for text in found if text is not None)
