"""An array of the user's own: .npy, .npz, Parquet or CSV; vectors, or images in any layout."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fmcore.dataset.captions import USUAL, has_texts, of_array
from fmcore.dataset.labels import classes_of
from fmcore.dataset.numpy_files import npy, npz
from fmcore.dataset.rows import Rows, as_tensor, blocks, unit
from fmcore.dataset.samples import Data, Samples
from fmcore.dataset.tables import Raw, parquet, table_of_text
from fmcore.settings import ReflowError

Layout = Literal["auto", "vectors", "nhw", "nhwc", "nchw"]

KINDS = (".npy", ".npz", ".parquet", ".csv")

SIDE = 8
"""Least side of bytes [N, H, W] that are taken for images without being asked for."""


EXACT = 1 << 24
"""The number up to which float32 holds every whole one."""


class Array(Data):
    """An array file of the user: .npy, .npz, Parquet or CSV, perhaps with labels.

    Images of bytes, 0 to 255, are scaled to [-1, 1]. Other values must lie in [low, high]; if
    neither is given, images in [-1, 1].
    """

    name: Literal["array"]
    path: str
    """The file, relative to the project: .npy or .npz with an array [N, *D], .parquet with a column
    of lists (`target`) or columns of numbers, or .csv whose first line names its columns."""
    key: str | None = None
    """Name of the array in a .npz file. null takes `target`, or the only array besides `label`."""
    columns: list[str] | None = Field(default=None, min_length=1)
    """Columns of a .parquet or .csv file that hold the data: one column of lists, or several of
    numbers. null takes the column `target` of Parquet, and every column of a CSV file but
    `label` and, with `conditions`, `text`."""
    label: str | None = None
    """Column of a .parquet or .csv file, or array of a .npz file, that holds the classes: numbers,
    texts or true/false. null takes `label` if there is one, else there are no classes."""
    layout: Layout = "auto"
    """What the axes mean: `vectors` takes samples of any shape as they are; `nhw`, `nhwc` and
    `nchw` are images (N samples, H high, W wide, C = 1 or 3 channels). `auto` finds this where only
    one answer is possible, says so, and asks otherwise."""
    low: float | None = None
    """Smallest value allowed in the file. null means no bound; for images it means -1 if `high` is
    null too."""
    high: float | None = None
    """Largest value allowed in the file. null means no bound; for images it means 1 if `low` is
    null too."""

    @model_validator(mode="after")
    def _ordered(self) -> "Array":
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low is {self.low:g}, above high, {self.high:g}")
        return self

    def read(self, seed: int) -> Samples:
        """Return the array of the file, mapped from it where its numbers need no conversion."""
        return _read(self)


@dataclass(frozen=True)
class _Values:
    """The range of an array's values, and whether they are whole numbers from 0 to 255."""

    least: float
    most: float
    bytes: bool


def _read(settings: Array) -> Samples:
    """Read the file, find what its axes mean, check the range, convert to float32."""
    path = Path(settings.path)
    raw, labels = _open(settings, path)
    if raw.ndim < 2 or not raw.size:
        raise ReflowError(f"{path}: shape {list(raw.shape)}; expected [N, ...] with N > 0 samples")
    if labels is not None and len(labels) != len(raw):
        raise ReflowError(f"{path}: {len(raw)} samples, but {len(labels)} labels")
    values = _look(path, raw)
    bounded = settings.low is not None or settings.high is not None
    is_bytes = values.bytes and (raw.dtype == np.uint8 or not bounded)
    layout = _found(raw, is_bytes) if settings.layout == "auto" else settings.layout
    if layout == "auto":
        raise ReflowError(_ambiguous(path, raw, is_bytes))
    channels = {"nhw": 1, "nhwc": raw.shape[-1], "nchw": raw.shape[1]}.get(layout, 1)
    if raw.ndim != {"nhw": 3, "nhwc": 4, "nchw": 4}.get(layout, raw.ndim) or channels not in (1, 3):
        raise ReflowError(
            f"{path}: shape {list(raw.shape)} is no {layout} (N samples, H high, W wide, C = 1 or 3"
            " channels); change data.layout"
        )
    image = layout != "vectors"
    _in_range(settings, values, image and not is_bytes)
    target = _converted(raw, layout, scaled=image and is_bytes)
    label, names = classes_of(labels, f"{path}: column {settings.label or 'label'!r}")
    notes = _notes(raw, layout, values, is_bytes)
    texts, given, column = None, settings.conditions, _beside(settings)
    if given and column and (given.column or label is None or has_texts(path)):
        texts = of_array(path, column)
        if len(texts) != len(raw):
            raise ReflowError(
                f"{path}: {len(raw)} samples, but {len(texts)} texts or vectors in {column!r}"
                " (data.conditions.column); give one for each sample"
            )
        notes = (*notes, f"conditions: {column!r} (data.conditions.column)")
    return Samples(as_tensor(target), label, image, names, notes, captions=texts)


def _beside(settings: Array) -> str | None:
    """Return the column of conditions, which is none of the samples; None without conditions."""
    if settings.conditions is None:
        return None
    usual = USUAL not in (settings.key, *(settings.columns or ()))
    return settings.conditions.column or (USUAL if usual else None)


def _open(settings: Array, path: Path) -> Raw:
    """Open the file by the ending of its name; raw values as the file has them."""
    kind = path.suffix.lower()
    allowed = {"key": (".npz",), "columns": KINDS[2:], "label": KINDS[1:]}
    for name, kinds in allowed.items():
        if getattr(settings, name) is not None and kind in KINDS and kind not in kinds:
            raise ReflowError(f"data.{name}: is for {', '.join(kinds)}, not for {path}; remove it")
    try:
        if not path.is_file():
            path.read_bytes()  # raises what is wrong with it
        if kind == ".parquet":
            return parquet(path, settings.columns, settings.label)
        beside = _beside(settings)
        if kind == ".csv":
            return table_of_text(path, settings.columns, settings.label, beside)
        if kind == ".npz":
            return npz(path, settings.key, settings.label, beside)
        if kind == ".npy":
            return npy(path)
    except FileNotFoundError:
        raise ReflowError(f"data.path: {path}: no such file") from None
    except OSError as error:
        raise ReflowError(
            f"data.path: {path}: cannot be read ({error.strerror}); give a {', '.join(KINDS)} file"
        ) from None
    raise ReflowError(f"data.path: {path}: expected a {', '.join(KINDS)} file; convert it to one")


def _look(path: Path, raw: np.ndarray) -> _Values:
    """Return the range of all values. Raises ReflowError for one that float32 cannot hold."""
    least, most, whole, first = math.inf, -math.inf, True, 0
    for block in blocks(raw):
        if raw.dtype.kind == "f":
            with np.errstate(over="ignore"):
                finite = np.isfinite(block.astype(np.float32, copy=False))
            if not finite.all():
                bad = first + int(np.argwhere(~finite)[0][0])
                raise ReflowError(f"{path}: sample {bad} is not finite in float32; remove it")
        least, most = min(least, float(block.min())), max(most, float(block.max()))
        whole = whole and least >= 0 and most <= 255 and bool((np.trunc(block) == block).all())
        first += len(block)
    # Small whole numbers are counts or zeros and ones; bytes of images reach the upper half.
    return _Values(least, most, whole and most > (1 if raw.dtype == np.uint8 else 127))


def _found(raw: np.ndarray, is_bytes: bool) -> Layout:
    """Return the layout that the shape and the values leave; `auto` if there are several."""
    last, first = raw.shape[-1] in (1, 3), raw.shape[1] in (1, 3)
    if raw.ndim == 4 and first != last:
        # Numbers that are no bytes: channels last could as well be any tensor.
        return "nchw" if first else "nhwc" if is_bytes else "auto"
    if raw.ndim == 4 and first:
        return "auto"
    if raw.ndim == 3 and is_bytes and min(raw.shape[1:]) >= SIDE:
        return "nhw"
    return "auto" if is_bytes and raw.ndim > 2 else "vectors"


def _ambiguous(path: Path, raw: np.ndarray, is_bytes: bool) -> str:
    kind = "whole numbers from 0 to 255, " if is_bytes else ""
    return (
        f"{path}: {kind}shape {list(raw.shape)}: images or vectors, and which axis is which? Set"
        " data.layout to nhw, nhwc or nchw for images of 1 or 3 channels, or to vectors to take"
        " samples as they are"
    )


def _in_range(settings: Array, values: _Values, unit_images: bool) -> None:
    """Raise ReflowError for values outside the range: images of 0 to 65535 would train badly."""
    low, high, hint = settings.low, settings.high, "remove them"
    if unit_images and low is None and high is None:
        low, high, hint = (
            -1.0,
            1.0,
            "rescale these images, or set data.low, data.high and data.scale: range",
        )
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    if values.least < low or values.most > high:
        raise ReflowError(
            f"{settings.path}: values from {values.least:g} to {values.most:g}, expected {low:g}"
            f" to {high:g}; {hint}"
        )


def _converted(raw: np.ndarray, layout: Layout, *, scaled: bool) -> NDArray[np.float32]:
    """Return float32 [N, *D], images as [N, C, H, W], bytes scaled; the file itself if it fits."""
    same = raw.dtype == np.float32 and raw.dtype.isnative and raw.flags.c_contiguous
    if same and layout in ("vectors", "nchw") and not scaled:
        return raw
    rows = Rows(np.dtype(np.float32))
    for block in blocks(raw):
        moved = np.moveaxis(block, -1, 1) if layout == "nhwc" else block
        moved = moved[:, None] if layout == "nhw" else moved
        rows.append(unit(moved) if scaled else moved.astype(np.float32))
    return rows.mapped()


def _notes(raw: np.ndarray, layout: Layout, values: _Values, is_bytes: bool) -> tuple[str, ...]:
    """Say what was found about the file and done to its values."""
    said = [f"layout: {layout}, from {raw.dtype} {list(raw.shape)} (data.layout)"]
    if is_bytes and layout != "vectors":
        said.append("bytes: 0 to 255 were scaled to [-1, 1]")
    elif is_bytes and raw.dtype == np.uint8:
        said.append("bytes: taken as they are, not scaled (data.layout: images are)")
    elif layout != "vectors" and values.least >= 0:
        said.append(f"values of these images begin at {values.least:g}; they were not scaled")
    if (largest := max(-values.least, values.most)) > EXACT:
        said.append(
            f"values of up to {largest:.4g} were rounded to float32, which holds whole numbers to"
            f" {EXACT}"
        )
    return tuple(said)
