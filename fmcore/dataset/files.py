"""The user's own data: folders of images, arrays."""

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor

from fmcore.dataset.samples import Data, Samples
from fmcore.settings import ReflowError


class Images(Data):
    """A folder of images of one size; its sub-folders, if any, are the classes, however deep.

    Transparent pixels are blended with the colour `background`.
    """

    name: Literal["images"]
    root: str
    """Folder of PNG, JPEG, BMP or WebP files, relative to the project. Sub-folders are the
    classes."""
    background: Literal["white", "black"] = "white"
    """Colour with which transparent pixels are blended."""

    def read(self, seed: int) -> Samples:
        """Return every image below the root, sorted by name."""
        return _read_images(self)


class Array(Data):
    """An array file of the user: .npy [N, *D], or Parquet with a `target` (and `label`) column.

    Values must lie in [low, high]; if neither is given, images [N, 1 or 3, H, W] in [-1, 1].
    """

    name: Literal["array"]
    path: str
    """The file, relative to the project: .npy of shape [N, *D], or Parquet with a column `target`
    and perhaps `label`."""
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
        """Return the array of the file."""
        return _read_array(self)


def _read_images(settings: Images) -> Samples:
    """Read every image below the root, sorted by name; one size and one mode for all."""
    from PIL import Image

    root = Path(settings.root)
    if not root.is_dir():
        raise ReflowError(f"data.root: {root}: no such folder; give a folder of PNG or JPEG files")
    kinds = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in kinds)
    if not files:
        raise ReflowError(f"data.root: {root}: no image in it; expected PNG or JPEG files")
    arrays: list[np.ndarray] = []
    for file in files:
        try:
            with Image.open(file) as image:
                if image.mode.startswith(("I", "F")):  # Pillow would clip, not scale, these
                    raise ReflowError(
                        f"{file}: more than 8 bits a pixel (mode {image.mode}); save it with 8"
                    )
                pixels = np.asarray(_opaque(image, settings.background))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ReflowError(
                f"{file}: not an image that can be read ({error}); remove it"
            ) from error
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        if arrays and pixels.shape != arrays[0].shape:
            raise ReflowError(
                f"{file}: size {_size(pixels)}, but {files[0]} has {_size(arrays[0])};"
                " all images must have one size and one colour mode: resize them first"
            )
        arrays.append(pixels)
    target = torch.tensor(np.stack(arrays), dtype=torch.float32) / 127.5 - 1
    label, names = _folders(root, files)
    return Samples(target, label, image=True, names=names)


def _opaque(image: Any, background: str) -> Any:
    """Return a gray or RGB image, its transparent pixels blended with the background."""
    from PIL import Image

    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        ground = Image.new("RGBA", image.size, background)
        gray = image.mode == "LA"
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("L" if gray else "RGB")
    return image if image.mode == "L" else image.convert("RGB")


def _size(pixels: np.ndarray) -> str:
    channels, height, width = pixels.shape
    return f"{width}x{height} {'gray' if channels == 1 else 'RGB'}"


def _folders(root: Path, files: list[Path]) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """Return labels and names of classes from the folders; None if all files are in one folder."""
    names = [(*file.parent.relative_to(root).parts, ".")[0] for file in files]
    classes = sorted(set(names))
    if len(classes) < 2:
        return None, None
    if "." in classes:
        loose = files[names.index(".")]
        raise ReflowError(
            f"{loose}: lies beside class folders; move it into the folder of its class"
        )
    return torch.tensor([classes.index(name) for name in names]), tuple(classes)


def _read_array(settings: Array) -> Samples:
    """Read a .npy or Parquet file; it must hold finite numbers within the range."""
    path = Path(settings.path)
    try:
        target, label = _parquet(path) if path.suffix == ".parquet" else (_npy(path), None)
    except FileNotFoundError:
        raise ReflowError(f"data.path: {path}: no such file") from None
    except OSError as error:
        raise ReflowError(
            f"data.path: {path}: cannot be read ({error.strerror}); give a .npy or .parquet file"
        ) from None
    if target.ndim < 2 or not target.size:
        raise ReflowError(
            f"{path}: shape {list(target.shape)}; expected [N, ...] with N > 0 samples"
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold is reported as not finite
        values = target.astype(np.float32)
    if not np.isfinite(values).all():
        bad = int(np.argwhere(~np.isfinite(values))[0][0])
        raise ReflowError(f"{path}: sample {bad} is not finite in float32; remove it")
    image = values.ndim == 4 and values.shape[1] in (1, 3)
    _in_range(settings, target, image)
    return Samples(torch.from_numpy(values), label, image)


def _in_range(settings: Array, target: np.ndarray, image: bool) -> None:
    """Raise ReflowError for values outside the range: images of 0 to 255 would train badly."""
    low, high, hint = settings.low, settings.high, "remove them"
    if image and low is None and high is None:
        low, high, hint = -1.0, 1.0, "rescale these images, or set data.low and data.high"
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    least, most = target.min(), target.max()
    if least < low or most > high:
        raise ReflowError(
            f"{settings.path}: values from {least:g} to {most:g}, expected {low:g} to {high:g};"
            f" {hint}"
        )


def _npy(path: Path) -> np.ndarray:
    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        reason = "no numpy header, or pickled objects" if "pickle" in str(error) else str(error)
        raise ReflowError(
            f"{path}: not a plain .npy array ({reason}); write it with numpy.save, without objects"
        ) from None
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiu":
        raise ReflowError(f"{path}: expected one array of numbers")
    return found


def _parquet(path: Path) -> tuple[np.ndarray, Tensor | None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        reason = str(error).splitlines()[0][:120]
        raise ReflowError(f"{path}: not a Parquet file that can be read ({reason})") from None
    if "target" not in table.column_names:
        have = ", ".join(table.column_names)
        raise ReflowError(f"{path}: no column 'target' with lists of numbers; it has: {have}")
    try:
        with np.errstate(over="ignore"):
            target = np.array(table["target"].to_pylist(), dtype=np.float32)
    except (TypeError, ValueError):
        raise ReflowError(
            f"{path}: column 'target' must hold lists of numbers of one length"
        ) from None
    if "label" not in table.column_names:
        return target, None
    label = table["label"].to_numpy()
    if label.dtype.kind not in "iu" or (label < 0).any():  # nulls would make it float
        raise ReflowError(
            f"{path}: column 'label' must hold a whole number from 0 up in every row; renumber it"
        )
    if label.max() >= 2 * len(np.unique(label)) + 10:  # a class for each number up to the largest
        raise ReflowError(
            f"{path}: column 'label' has {len(np.unique(label))} classes and numbers up to"
            f" {label.max()}; number them from 0"
        )
    return target, torch.tensor(label.astype(np.int64))
