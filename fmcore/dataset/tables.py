"""Tables of the user, Parquet and CSV, read in batches by their columns."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from fmcore.dataset.rows import BLOCK_BYTES, Rows, parsing
from fmcore.settings import ReflowError

Raw = tuple[np.ndarray, pa.Array | None]
"""Values [N, *D] as the file has them, mapped, and a label for each row where there are labels."""


def parquet(path: Path, columns: list[str] | None, label: str | None) -> Raw:
    """Read columns of a Parquet file: one of lists, or several of numbers; `target` if None."""
    with parsing(path, "not a Parquet file that can be read"):
        # Mapped, because Arrow otherwise reads a whole row group, and a file may be a single one.
        file = pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)
        wanted, label = _chosen(path, file.schema_arrow.names, columns or ["target"], label)
        names = [*wanted, *([label] if label else [])]
        rows = max(1, BLOCK_BYTES // (4 * _width(file.metadata, wanted)))
        batches = file.iter_batches(min(rows, 65536), columns=names, use_threads=False)
        return _gathered(path, batches, wanted, label)


def _width(meta: pq.FileMetaData, columns: list[str]) -> int:
    """Return the average number of values in a row; sizes in bytes are those after encoding."""
    groups = (meta.row_group(i) for i in range(meta.num_row_groups))
    chunks = (group.column(j) for group in groups for j in range(group.num_columns))
    values: int = sum(c.num_values for c in chunks if c.path_in_schema.split(".")[0] in columns)
    return max(1, values // max(1, int(meta.num_rows)))


def table_of_text(
    path: Path, columns: list[str] | None, label: str | None, beside: str | None = None
) -> Raw:
    """Read columns of a CSV file with a header.

    None takes each column but that of the labels, and `beside`, that of the texts.
    """
    with parsing(path, "not a CSV file of numbers, its columns named in the first line"):
        with path.open(newline="", encoding="utf-8-sig") as opened:
            header = next(csv.reader(opened), [])
        if not columns:
            _check_names(path, header)
        if not columns and label is None and "label" in header:
            label = "label"
        wanted = columns or [name for name in header if name not in (label, beside)]
        wanted, label = _chosen(path, header, wanted, label)
        # Texts are never empty cells: a class may be called NA.
        types = {**dict.fromkeys(wanted, pa.float64()), **({label: pa.string()} if label else {})}
        batches = pyarrow.csv.open_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=4 << 20),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=types, include_columns=list(types), strings_can_be_null=False
            ),
        )
        array, labels = _gathered(path, batches, wanted, label)
        return array, _numbers_in_text(labels)


def _check_names(path: Path, header: list[str]) -> None:
    """Raise ReflowError for a first line that may hold no names, or not one for each column."""
    if numbers := [name for name in header if _is_number(name)]:
        raise ReflowError(
            f"{path}: its first line holds numbers ({', '.join(numbers[:3])}), expected the names"
            " of the columns: add such a line, or list these in data.columns if they are names"
        )
    if "" in header:
        raise ReflowError(
            f"{path}: column {header.index('') + 1} has no name, as the index that pandas writes;"
            " write the file with index=False, or list the columns in data.columns"
        )


def _chosen(
    path: Path, has: list[str], columns: list[str], label: str | None
) -> tuple[list[str], str | None]:
    """Check the names of columns; the label is the column `label` where none is named."""
    if label is None and "label" in has and "label" not in columns:
        label = "label"
    for name in [*columns, *([label] if label else [])]:
        if has.count(name) != 1:
            many = "two columns" if name in has else "no column"
            some = ", ".join(has[:12]) + (f" and {len(has) - 12} more" if len(has) > 12 else "")
            cure = "give the columns of numbers in data.columns, that of classes in data.label"
            raise ReflowError(f"{path}: {many} {name!r}; it has: {some}; {cure}")
    if not columns or label in columns or len(set(columns)) < len(columns):
        raise ReflowError(
            f"{path}: data.columns must name each column of numbers once, and not that of the"
            f" labels; got {', '.join(columns) or 'none'}"
        )
    return columns, label


def _gathered(
    path: Path, batches: Iterable[pa.RecordBatch], columns: list[str], label: str | None
) -> Raw:
    """Gather the batches of a table in a mapped file."""
    rows: Rows | None = None
    labels: list[pa.Array] = []
    for batch in batches:
        block = _block(path, batch, columns)
        rows = rows or Rows(block.dtype)
        try:
            rows.append(block)
        except ValueError:
            raise _no_lists(path, columns[0]) from None
        if label:
            labels.append(batch[batch.schema.get_field_index(label)])
    if rows is None:
        return np.empty((0, 1), np.float32), None
    return rows.mapped(), pa.chunked_array(labels).combine_chunks() if labels else None


def _block(path: Path, batch: pa.RecordBatch, columns: list[str]) -> np.ndarray:
    """Return the columns of a batch as one block: [n, *D] of one of lists, else [n, columns]."""
    arrays = []
    for name in columns:
        found = _values(path, name, batch[batch.schema.get_field_index(name)])
        if found.ndim > 1 and len(columns) > 1:
            raise ReflowError(
                f"{path}: column {name!r} holds lists; name it alone in data.columns, or only"
                " columns of numbers"
            )
        arrays.append(found)
    return arrays[0] if arrays[0].ndim > 1 else np.stack(arrays, axis=1)


def _values(path: Path, name: str, column: Any) -> np.ndarray:
    """Return the numbers of a column [n], or of its lists [n, *D], however deep."""
    found = numbers(path, name, column, "name the columns of numbers in data.columns")
    with np.errstate(over="ignore"):  # what float32 cannot hold is reported as not finite
        return found if found.dtype == np.uint8 else found.astype(np.float32)


def numbers(path: Path, name: str, column: Any, mend: str) -> np.ndarray:
    """Return a column as an array [n, *D] of its own type: numbers, or lists of one length.

    Raises ReflowError, with how to mend it, for anything else and for empty cells.
    """
    if isinstance(column, pa.FixedShapeTensorArray) and not column.null_count:
        return np.asarray(column.to_numpy_ndarray())  # its type alone has the shape
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    shape: list[int] = [len(column)]
    while isinstance(column, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        lengths = set(column.value_lengths().unique().to_pylist())
        if column.null_count or len(lengths) > 1:
            raise _no_lists(path, name)
        shape.append(lengths.pop() if lengths else 0)
        column = column.flatten()
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise ReflowError(
            f"{path}: column {name!r} holds {kind}, expected numbers or lists of numbers of one"
            f" length; {mend}"
        )
    if column.null_count:
        raise ReflowError(f"{path}: column {name!r} has empty cells; fill them or remove the rows")
    return np.asarray(column.to_numpy(zero_copy_only=False)).reshape(shape)


def _no_lists(path: Path, name: str) -> ReflowError:
    return ReflowError(f"{path}: column {name!r} must hold lists of numbers of one length")


def _numbers_in_text(labels: pa.Array | None) -> pa.Array | None:
    """Return labels of a CSV file as numbers if each of them is one, written in one way.

    01 and 1 are two classes, and 01 alone keeps its name.
    """
    if labels is not None:
        for kind in (pa.int64(), pa.float64(), pa.bool_()):
            try:
                found = labels.cast(kind)
            except pa.ArrowInvalid:
                continue
            if pa.types.is_integer(kind):
                same = found.cast(labels.type).equals(labels)
            else:  # a fraction may be written in several ways
                same = len(found.unique()) == len(labels.unique())
            return found if same else labels
    return labels


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
