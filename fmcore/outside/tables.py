"""Pairs in columns: Parquet, Arrow files and streams, folders of Hugging Face `datasets`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fmcore.dataset import tables
from fmcore.dataset.rows import BLOCK_BYTES, parsing
from fmcore.outside.rows import Arrays, Piece
from fmcore.settings import ReflowError

FILE = b"ARROW1"
"""How an Arrow file begins; a stream, as `datasets` writes it, has no such mark."""
END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""How an Arrow stream ends."""


class ParquetPiece(Piece):
    """A Parquet file, read by row groups; a large group is read in batches."""

    def __init__(self, place: Path) -> None:
        self.place = place
        with parsing(place, "not a Parquet file that can be read"):
            meta = pq.read_metadata(place)
        self.groups = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
        first = meta.row_group(0).total_byte_size if self.groups else 0  # an empty part has none
        self.width = first // max([1, *self.groups[:1]])
        self.count = meta.num_rows

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of its columns."""
        return tuple(pq.read_schema(self.place).names)

    def read(self, names: Sequence[str], first: int, last: int) -> Arrays:
        """Return the rows `first` to `last` - 1 of some columns."""
        start = 0
        parts: list[pa.RecordBatch] = []
        file = pq.ParquetFile(self.place, memory_map=True, page_checksum_verification=True)
        rows = max(1, BLOCK_BYTES // max(1, self.width))
        for index, size in enumerate(self.groups):
            if first < start + size and start < last:
                columns = _and_forms(names, self.names)
                batches = file.iter_batches(
                    rows, row_groups=[index], columns=columns, use_threads=False
                )
                parts += _cut(batches, first - start, last - start)
            start += size
        return _decoded(self.place, parts, names)


class ArrowPiece(Piece):
    """An Arrow file or stream, mapped into memory."""

    def __init__(self, place: Path) -> None:
        self.place = place
        with parsing(place, "not an Arrow file that can be read"):
            with place.open("rb") as opened:
                self.stream = not opened.read(len(FILE)).startswith(FILE)
                opened.seek(-min(len(END), place.stat().st_size), 2)
                if self.stream and opened.read() != END:
                    raise ValueError("truncated: its end is missing")
            with self._opened() as (schema, batches):
                self.columns = tuple(schema.names)
                self.count = sum(batch.num_rows for batch in batches)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its columns."""
        return self.columns

    def read(self, names: Sequence[str], first: int, last: int) -> Arrays:
        """Return the rows `first` to `last` - 1 of some columns."""
        with self._opened() as (_, batches):
            columns = _and_forms(names, self.names)
            parts = [part.select(columns) for part in _cut(batches, first, last)]
            return _decoded(self.place, parts, names)

    @contextmanager
    def _opened(self) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
        with pa.memory_map(str(self.place)) as mapped:
            if self.stream:
                stream = pa.ipc.open_stream(mapped)
                yield stream.schema, iter(stream)
            else:
                file = pa.ipc.open_file(mapped)
                yield file.schema, (file.get_batch(i) for i in range(file.num_record_batches))


def _cut(batches: Iterator[pa.RecordBatch], first: int, last: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows `first` to `last` - 1 of some batches."""
    start = 0
    for batch in batches:
        a, b = max(first - start, 0), min(last - start, batch.num_rows)
        if a < b:
            yield batch.slice(a, b - a)
        start += batch.num_rows
        if start >= last:
            return


def _decoded(place: Path, parts: Sequence[pa.RecordBatch], names: Sequence[str]) -> Arrays:
    table = pa.Table.from_batches(parts)
    return {
        name: _of_bytes(place, name, table)
        if _form(name, table.column_names) and pa.types.is_binary(table[name].type)
        else numbers(place, name, table[name].combine_chunks())
        for name in names
    }


def _form(name: str, having: Sequence[str]) -> tuple[str, str] | None:
    """Return the columns of shape and type beside one of raw bytes, as FastVideo names them."""
    stem = name.removesuffix("_bytes")
    form = f"{stem}_shape", f"{stem}_dtype"
    return form if stem != name and set(form) <= set(having) else None


def _and_forms(names: Sequence[str], having: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*names, *(f for n in names for f in _form(n, having) or ())]))


def _of_bytes(place: Path, name: str, table: pa.Table) -> NDArray[Any]:
    """Return a column of raw bytes as an array [N, *D], by the columns of its shape and type."""
    form = _form(name, table.column_names) or ()
    shapes, types = (table[column].to_pylist() for column in form)
    found = []
    for content, shape, kind in zip(table[name].to_pylist(), shapes, types, strict=True):
        try:
            row = np.frombuffer(content, np.dtype(kind)).reshape(shape)
        except (TypeError, ValueError):
            size = len(content or b"")
            raise ReflowError(
                f"{place}: {name} has {size} bytes in a row, which are no {kind} of the shape"
                f" {shape}; write plain numbers of numpy"
            ) from None
        found.append(row)
    if len({row.shape for row in found}) > 1:
        raise ReflowError(f"{place}: rows of {name} differ in shape; give pairs of one shape")
    return np.stack(found)


def numbers(place: Path, name: str, column: Any) -> NDArray[Any]:
    """Return a column as an array [N, *D]: of numbers, or of lists of one length, however deep.

    Texts [N] stay texts: a label may be one.
    """
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return np.asarray(column.to_pylist(), dtype=object)
    return tables.numbers(place, name, column, "name another column")
