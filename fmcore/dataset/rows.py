"""Rows of a data set of any size: gathered in a file, mapped into memory, read block by block."""

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmcore.settings import ReflowError

BLOCK_BYTES = 4 << 20
"""Bytes of a data set, as float32, that are in memory at a time while it is read and checked."""


class Rows:
    """Rows of one shape, appended to a temporary file without a name, then mapped into memory.

    The system keeps of a mapped file in memory what fits, so its size is no limit.
    """

    def __init__(self, dtype: np.dtype) -> None:
        """Open the file, in $TMPDIR or else /var/tmp: /tmp may itself lie in memory."""
        self.dtype, self.count = dtype, 0
        self.shape: tuple[int, ...] | None = None
        disk = Path("/var/tmp")
        self.folder = None if os.environ.get("TMPDIR") or not disk.is_dir() else disk
        with self._room():
            self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115

    def append(self, block: np.ndarray) -> None:
        """Append rows [n, *D]. Raises ValueError if D is not that of the rows before."""
        if self.shape not in (None, block.shape[1:]):
            raise ValueError(f"row {self.count}: shape {block.shape[1:]}, before {self.shape}")
        self.shape = block.shape[1:]
        self.count += len(block)
        with self._room():
            self._file.write(np.ascontiguousarray(block, self.dtype).data)

    def mapped(self) -> np.ndarray:
        """Return all rows [N, *D], mapped from the file; it vanishes with the array."""
        with self._room():
            self._file.flush()
        shape = (self.count, *(self.shape or ()))
        if not self._file.tell():
            return np.empty(shape, self.dtype)
        return np.frombuffer(mmap.mmap(self._file.fileno(), 0), self.dtype).reshape(shape)

    @contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ReflowError(
                f"{self.folder or tempfile.gettempdir()}: no room for the data while they are read"
                f" ({error.strerror}); free some space, or set TMPDIR to a folder of a larger disk"
            ) from None


def blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows of an array, about BLOCK_BYTES at a time."""
    step = max(1, BLOCK_BYTES // max(1, 4 * array[:1].size))
    for start in range(0, len(array), step):
        yield array[start : start + step]


def unit(pixels: np.ndarray) -> NDArray[np.float32]:
    """Scale bytes, 0 to 255, to [-1, 1]."""
    return (torch.tensor(pixels, dtype=torch.float32) / 127.5 - 1).numpy()


def as_tensor(array: np.ndarray) -> Tensor:
    """Return an array as a tensor without a copy; one mapped from the user's file is read-only."""
    import warnings

    with warnings.catch_warnings(action="ignore", category=UserWarning):
        return torch.from_numpy(array)  # it warns that a read-only array must not be written to


@contextmanager
def parsing(path: Path, expected: str) -> Iterator[None]:
    """Turn whatever the parser of a damaged file raises into one line: `path: expected (why)`.

    Errors of the file system, which have a number, pass: they say nothing of the content.
    """
    try:
        yield
    except ReflowError:
        raise
    except Exception as error:  # bytes that nobody checked may raise anything in a parser
        if isinstance(error, OSError) and error.errno is not None:
            raise
        why = (" ".join(str(error).split()) or type(error).__name__)[:120]
        raise ReflowError(f"{path}: {expected} ({why})") from None
