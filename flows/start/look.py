"""Look at data of the user's own: what they are, how many, of which size and spread."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmcore.dataset.arrays import Array
from fmcore.dataset.images import FORMATS, Images, orientation
from fmcore.dataset.rows import parsing
from fmcore.dataset.samples import Data, Samples
from fmcore.dataset.summary import lines, summary
from fmcore.settings import ReflowError

FEWEST = 40
"""Samples without which nothing can be held out and compared."""

TEXTS = ("string", "large_string", "string_view")
"""Arrow's types of a column of texts."""

Sizes = Counter[tuple[int, int, str]]
"""How many files have which width, height and mode of Pillow."""


@dataclass(frozen=True)
class Seen:
    """Data as they were read: the settings that read them, and what was seen.

    `why` says for a setting why it has its value; `numbers` are those of `summary`.
    """

    settings: dict[str, Any]
    why: dict[str, str]
    samples: Samples
    numbers: dict[str, float]
    lines: list[str]

    @property
    def count(self) -> int:
        """How many samples there are."""
        return len(self.samples.target)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.samples.target.shape[1:])


def images(folder: Path, *, gpu: bool) -> Seen:
    """Look at a folder of images; choose one size and one number of channels for all.

    Raises ReflowError if there is no image, or one that cannot be read.
    """
    sizes = _sizes(folder)
    gray = sum(count for (_, _, mode), count in sizes.items() if mode in ("L", "LA", "1"))
    settings: dict[str, Any] = {"name": "images", "root": str(folder)}
    why = {
        "root": "sub-folders are classes" if any(_folders(folder)) else "no sub-folders",
        "mode": f"{gray} of {sizes.total()} files are gray",
    }
    if sizes:
        _resize(sizes, settings, why, gpu)
    settings["mode"] = "gray" if gray and gray == sizes.total() else "rgb"
    return _seen(Images.model_validate(settings), settings, why, str(folder))


def _resize(sizes: Sizes, settings: dict[str, Any], why: dict[str, str], gpu: bool) -> None:
    """Add the size to which images are brought, where the files do not have one that suits."""
    wide = sorted({width for width, _, _ in sizes})
    high = sorted({height for _, height, _ in sizes})
    least = min(*wide, *high)
    square = all(width == height for width, height, _ in sizes)
    found = f"{_range(wide)} wide and {_range(high)} high"
    if len(wide) == 1 and square and (least <= 16 or (least <= 64 and not least % 4)):
        why["root"] += f"; all files are {found}"
        return
    side = 64 if gpu and least >= 64 else 32 if least >= 24 else 16
    settings["resize"] = side
    need = "a network needs one square size that can be halved"
    other = "64 because there is a GPU" if side == 64 else "64 is for a GPU"
    why["resize"] = f"the files are {found}; {need}, {other}"
    if not square:
        settings["crop"] = "centre"
        why["crop"] = "they are not square; none would change their proportions"


def array(path: Path, *, label: str | None = None, layout: str | None = None) -> Seen:
    """Look at an array file or a table; choose the columns of a table.

    Raises ReflowError if it cannot be read, or does not hold finite numbers.
    """
    settings: dict[str, Any] = {"name": "array", "path": str(path)}
    why: dict[str, str] = {}
    if path.suffix.lower() == ".parquet" and path.is_file():
        columns, left, found = _columns(path, label)
        label = label or found
        if columns:
            settings["columns"] = columns
            why["columns"] = f"{len(columns)} columns of numbers, one feature each"
            why["columns"] += f"; left out: {', '.join(left)}" if left else ""
    if label is not None:
        settings["label"] = label
        why["label"] = "the column of classes"
    if layout is not None:
        settings["layout"] = layout
        why["layout"] = "as asked for"
    return _seen(Array.model_validate(settings), settings, why, str(path))


def _seen(data: Data, settings: dict[str, Any], why: dict[str, str], where: str) -> Seen:
    """Read the samples; raise ReflowError if no chain can be made of them."""
    samples = data.read(0)
    count = len(samples.target)
    if count < FEWEST:
        raise ReflowError(
            f"{where}: {count} sample{'s' * (count != 1)}; expected at least {FEWEST}, since some"
            " are held out and two halves are compared: add more"
        )
    numbers = summary(samples)
    first = samples.target[0]
    if all(bool((rows == first).all()) for rows in samples.target.split(1024)):
        every = f"every number is {numbers['min']:g}"
        alike = every if numbers["min"] == numbers["max"] else f"all {count} samples are alike"
        raise ReflowError(
            f"{where}: {alike}; expected samples that differ: give another file or column"
        )
    return Seen(settings, why, samples, numbers, lines(samples, numbers))


def _range(numbers: list[int]) -> str:
    """Return the range of sorted numbers in words."""
    return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _sizes(folder: Path) -> Sizes:
    """Count the sizes and modes of the images in a folder, from their headers alone."""
    from PIL import Image

    found: Sizes = Counter()
    for file, kind in _files(folder):
        with (
            parsing(file, "not an image that can be read; remove it"),
            Image.open(file, formats=[kind]) as image,
        ):
            lying = orientation(image) >= 5 and kind != "TIFF"  # Pillow turns those itself
            width, height = image.size[::-1] if lying else image.size
            found[width, height, image.mode] += 1
    return found


def _files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield the image files that `Images` reads, and their formats."""
    for place, inside, names in os.walk(folder):
        inside[:] = [name for name in inside if not _hidden(name)]
        for name in sorted(names):
            kind = FORMATS.get(Path(name).suffix.lower())
            if kind and kind != "GIF" and not _hidden(name):
                yield Path(place) / name, kind


def _folders(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        inside = (place for place in folder.iterdir() if place.is_dir())
        yield from (place for place in inside if not _hidden(place.name))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _columns(path: Path, label: str | None) -> tuple[list[str], list[str], str | None]:
    """Return the columns of numbers of a table, those left out, and the column of classes.

    No columns where `target` holds the samples, which `Array` takes by itself.
    """
    import pyarrow.parquet as pq
    import pyarrow.types as types

    with parsing(path, "not a Parquet file that can be read"):
        schema = pq.ParquetFile(path).schema_arrow
    kinds = dict(zip(schema.names, schema.types, strict=True))
    if label is not None and label not in kinds:
        raise ReflowError(f"--label: no column {label!r} in {path}; it has: {', '.join(kinds)}")
    lists = [name for name, kind in kinds.items() if types.is_nested(kind)]
    texts = [n for n, kind in kinds.items() if str(kind) in TEXTS or types.is_dictionary(kind)]
    named = [name for name in ("label", "class", "target_name") if name in kinds]
    found = label or next(iter([*named, *(texts if len(texts) == 1 else [])]), None)
    if "target" in lists:
        return [], [], found if found != "label" else None
    numbers = [n for n, k in kinds.items() if types.is_integer(k) or types.is_floating(k)]
    chosen = lists if len(lists) == 1 else [n for n in numbers if n != found and not _is_id(n)]
    if not chosen:
        raise ReflowError(
            f"{path}: no column of numbers or of lists of numbers; it has: {', '.join(kinds)}"
        )
    left = [name for name in kinds if name not in chosen and name != found]
    return chosen, left, found if found != "label" else None


def _is_id(name: str) -> bool:
    return name.lower() in ("id", "index") or name.startswith("__index_level_")
