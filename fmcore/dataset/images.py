"""A folder of images of the user's own: which files are read, at which size, in which colours."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from fmcore.dataset.captions import METADATA, of_folder
from fmcore.dataset.labels import Classes
from fmcore.dataset.rows import Rows, as_tensor, parsing, unit
from fmcore.dataset.samples import Data, Samples
from fmcore.settings import ReflowError

FORMATS = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".webp": "WEBP",
    ".tif": "TIFF", ".tiff": "TIFF", ".gif": "GIF",
}  # fmt: skip
"""Pillow's decoders by the ending of a file's name; no other one is ever started."""

PIXELS = 64_000_000
"""Most pixels of one image: a small file may unpack to any size."""

ORIENTATION, UPRIGHT = 0x0112, 1
"""The EXIF tag that says how a camera was held, and its value for pixels that lie as seen."""

Side = Annotated[int, Field(ge=1, le=4096)]


class Images(Data):
    """A folder of images; its sub-folders, if any, are the classes, however deep.

    Hidden files and folders are left out. Photos are turned upright by their EXIF orientation.
    Transparent pixels are blended with `background`.
    """

    name: Literal["images"]
    root: str
    """Folder of PNG, JPEG, BMP, WebP, TIFF or GIF files, relative to the project. Sub-folders are
    the classes."""
    resize: Side | Annotated[list[Side], Field(min_length=2, max_length=2)] | None = None
    """Size of all images in pixels: one side, or [width, height]. null keeps the size of the files,
    which must then be the same. The cost of a network grows with the number of pixels."""
    crop: Literal["centre", "none"] = "none"
    """`centre` cuts the largest piece of the proportions of `resize` (a square if it is null) out
    of the middle, before resizing. `none` scales the whole image, which changes its proportions
    where they are not those of `resize`."""
    mode: Literal["rgb", "gray", "as_is"] = "as_is"
    """Colours of all images. `as_is` keeps those of the files, which must then be all gray or all
    RGB."""
    frame: int | None = Field(default=None, ge=0, le=10**6)
    """Which frame of an animation or of a file with several pages is read, from 0. null leaves such
    files, and all GIF files, out."""
    background: Literal["white", "black"] = "white"
    """Colour with which transparent pixels are blended."""

    def read(self, seed: int) -> Samples:
        """Return every image below the root, sorted by name."""
        return _read(self)


def _read(settings: Images) -> Samples:
    """Read every image below the root, sorted by name; one size and one mode for all."""
    root = Path(settings.root)
    if not root.is_dir():
        raise ReflowError(f"data.root: {root}: no such folder; give a folder of PNG or JPEG files")
    skipped: dict[str, list[str]] = {}
    files: list[Path] = []
    turned = 0
    rows = Rows(np.dtype(np.float32))
    for file in _files(root, settings, skipped):
        with parsing(file, "not an image that can be read; remove it"):
            found = _pixels(file, settings)
        if found is None:
            _skip(skipped, "animations or several pages (data.frame)", root, file)
            continue
        pixels, upright = found
        try:
            rows.append(unit(pixels)[None])
        except ValueError:
            raise ReflowError(
                f"{file}: size {_size(pixels.shape)}, but {files[0]} has {_size(rows.shape or ())};"
                " all images must have one size and one colour mode: set data.resize or data.mode"
            ) from None
        files.append(file)
        turned += not upright
    if not files:
        raise ReflowError(
            f"data.root: {root}: no image in it; expected PNG or JPEG files; {_reasons(skipped)}"
        )
    label, names = _folders(root, files)
    left_out = {reason: tuple(found) for reason, found in skipped.items()}
    texts = None
    if settings.conditions:
        texts = of_folder(root, files, settings.conditions.column)
    notes = (f"turned: {turned} images, upright by their EXIF orientation",) if turned else ()
    return Samples(as_tensor(rows.mapped()), label, True, names, notes, left_out, texts)


def _files(root: Path, settings: Images, skipped: dict[str, list[str]]) -> Iterator[Path]:
    """Yield the files to read, sorted by their paths; note the others with a reason."""
    found = []
    for folder, inside, names in os.walk(root):
        for name in sorted(inside):
            if _hidden(name) or (Path(folder) / name).is_symlink():
                inside.remove(name)
                why = "hidden" if _hidden(name) else "links to a folder"
                _skip(skipped, why, root, Path(folder) / name)
        found += [Path(folder) / name for name in names]
    for file in sorted(found):
        kind = FORMATS.get(file.suffix.lower())
        if settings.conditions and (file.suffix == ".txt" or file.name == METADATA):
            continue  # a text of an image
        if _hidden(file.name):
            _skip(skipped, "hidden", root, file)
        elif kind is None:
            _skip(skipped, f"no image by its ending {file.suffix or '(none)'}", root, file)
        elif kind == "GIF" and settings.frame is None:
            _skip(skipped, "GIF (data.frame)", root, file)
        else:
            yield file


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _skip(skipped: dict[str, list[str]], reason: str, root: Path, file: Path) -> None:
    skipped.setdefault(reason, []).append(file.relative_to(root).as_posix())


def _reasons(skipped: dict[str, list[str]]) -> str:
    found = "; ".join(f"{len(files)} {reason}" for reason, files in sorted(skipped.items()))
    return f"left out: {found or 'nothing'}"


def _pixels(file: Path, settings: Images) -> tuple[NDArray[np.uint8], bool] | None:
    """Return the pixels [C, H, W] of a file, and whether they lay upright in it.

    None for an animation of which no frame is chosen.
    """
    from PIL import Image, ImageOps

    with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
        opened = Image.open(file, formats=[FORMATS[file.suffix.lower()]])
    with opened as image:
        if image.width * image.height > PIXELS:
            raise ReflowError(
                f"{file}: {image.width}x{image.height} pixels, more than {PIXELS}; shrink it first"
            )
        # A photo of a phone (MPO) carries a second picture, which is no animation.
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        if frames > 1 and settings.frame is None:
            return None
        if settings.frame is not None and frames > 1:
            if settings.frame >= frames:
                raise ReflowError(
                    f"{file}: {frames} frames, so no frame {settings.frame}; lower data.frame"
                )
            image.seek(settings.frame)
        if image.mode.startswith(("I", "F")):  # Pillow would clip, not scale, these
            raise ReflowError(
                f"{file}: more than 8 bits a pixel (mode {image.mode}); save it with 8"
            )
        upright = orientation(image) == UPRIGHT
        seen = image if upright else ImageOps.exif_transpose(image)
        pixels = np.asarray(_sized(_coloured(seen, settings), settings))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1), upright


def orientation(image: Any) -> int:
    """Return how the pixels of a file lie, by its EXIF: 1 to 8, of which 1 is upright."""
    try:
        said = image.getexif().get(ORIENTATION)
    except Exception:  # bytes that nobody checked: viewers show such a picture as it lies
        return UPRIGHT
    return int(said) if said in range(1, 9) else UPRIGHT


def _coloured(image: Any, settings: Images) -> Any:
    """Return a gray or RGB image, its transparent pixels blended with the background."""
    from PIL import Image

    gray = image.mode in ("1", "L", "LA")  # with transparent pixels too: both grounds are gray
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        ground = Image.new("RGBA", image.size, settings.background)
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    wanted = {"rgb": "RGB", "gray": "L"}.get(settings.mode, "L" if gray else "RGB")
    return image if image.mode == wanted else image.convert(wanted)


def _sized(image: Any, settings: Images) -> Any:
    """Return the image cut and resized as the settings say."""
    from PIL import Image

    size = settings.resize
    width, height = (size, size) if isinstance(size, int) else size or image.size
    if settings.crop == "centre":
        ratio = width / height if size else 1.0
        wide = min(image.width, round(image.height * ratio))
        high = min(image.height, round(image.width / ratio))
        left, top = (image.width - wide) // 2, (image.height - high) // 2
        image = image.crop((left, top, left + max(1, wide), top + max(1, high)))
    if size is None or image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _size(shape: tuple[int, ...]) -> str:
    channels, height, width = shape
    return f"{width}x{height} {'gray' if channels == 1 else 'RGB'}"


def _folders(root: Path, files: list[Path]) -> Classes:
    """Return labels and names of classes from the folders; None if all files are in one folder."""
    names = [(*file.parent.relative_to(root).parts, ".")[0] for file in files]
    if len(set(names)) < 2:
        return None, None
    if "." in names:
        loose = files[names.index(".")]
        raise ReflowError(
            f"{loose}: lies beside class folders; move it into the folder of its class"
        )
    classes = sorted(set(names))
    return torch.tensor([classes.index(name) for name in names]), tuple(classes)
