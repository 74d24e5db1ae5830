"""Noto colour emoji from the font file of Debian, with their Unicode names as captions."""

import io
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from fmcore.dataset.public import in_bytes
from fmcore.dataset.samples import Data, Known, Samples
from fmcore.settings import ReflowError

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"

JOINERS = {0x200D, 0xFE0F, 0xE007F}
"""Code points of a sequence that show nothing: the joiner, the selector of colour, the end of a
tag."""


class Emoji(Data):
    """Noto colour emoji on white, RGB: about 3,900 pictures from the font file.

    With `conditions` each picture has its Unicode name as text, `grinning face with smiling eyes`;
    one of a sequence of code points has their names joined by commas.
    """

    name: Literal["emoji"]
    font: str = FONT
    """Path of a font file with colour bitmaps (CBDT). The default is where Debian's
    fonts-noto-color-emoji puts it."""
    size: int = Field(default=32, ge=8, le=128)
    """Side of the square images, in pixels. The cost of a network grows with its square."""
    words: Annotated[tuple[str, ...] | None, Field(min_length=1, max_length=1000)] = Field(
        default=None, strict=False, exclude_if=lambda words: words is None
    )
    """Only pictures whose Unicode name has one of these words, in lower case: `[man, woman, adult,
    face]` are 1,170 of people and faces. null is all of them."""

    def known(self) -> Known:
        """Return the shape of the pictures, which have no labels but, with `conditions`, texts."""
        return Known((3, self.size, self.size), image=True, classes=0)

    def read(self, seed: int) -> Samples:
        """Return the pictures in [-1, 1], made square; with `conditions`, their names."""
        return _emoji(self)


def _emoji(settings: Emoji) -> Samples:
    """Return the bitmaps of a colour font, made square on white, in [-1, 1], and their names."""
    from PIL import Image

    pictures, names = [], []
    wanted = None if settings.words is None else set(settings.words)
    for name, bitmap in _bitmaps(Path(settings.font)):
        if settings.conditions and not name:
            continue
        if wanted is not None and wanted.isdisjoint(name.replace(",", "").split()):
            continue
        image = bitmap.convert("RGBA")
        side = max(image.size)
        canvas = Image.new("RGBA", (side, side), "white")
        corner = ((side - image.width) // 2, (side - image.height) // 2)
        canvas.alpha_composite(image, corner)
        small = canvas.convert("RGB").resize((settings.size,) * 2, Image.Resampling.LANCZOS)
        names.append(name)
        pictures.append(np.asarray(small).transpose(2, 0, 1))
    if not pictures:
        raise ReflowError(
            f"data.words: expected words of Unicode names in lower case, such as face, got"
            f" {', '.join(settings.words or ())}: no name in {settings.font} has one of them"
        )
    found = in_bytes(np.stack(pictures), None, None)
    return replace(found, captions=tuple(names)) if settings.conditions else found


def _bitmaps(font: Path) -> Iterator[tuple[str, Any]]:
    """Yield the captions and pictures of a font in the order of its glyphs' names."""
    from fontTools.ttLib import TTFont, TTLibError
    from PIL import Image

    try:
        opened = TTFont(font, lazy=True)
        strike, codes = opened["CBDT"].strikeData[0], _codes(opened)
    except FileNotFoundError:
        raise ReflowError(
            f"data emoji: no font {font}; `apt-get install fonts-noto-color-emoji`, or set"
            " data.font"
        ) from None
    except (TTLibError, KeyError, OSError) as error:
        raise ReflowError(f"data.font: {font}: no colour bitmaps (CBDT) in it ({error})") from None
    for name in sorted(strike):
        if data := getattr(strike[name], "imageData", b""):
            yield caption(codes.get(name, ())), Image.open(io.BytesIO(data), formats=["PNG"])


def _codes(font: Any) -> dict[str, tuple[int, ...]]:
    """Return the code points of each glyph: one, or those of the sequence that it stands for."""
    found: dict[str, tuple[int, ...]] = {}
    for code, glyph in sorted(font.getBestCmap().items()):
        found.setdefault(glyph, (code,))
    parts: dict[str, list[str]] = {}
    lookups = font["GSUB"].table.LookupList.Lookup if "GSUB" in font else ()
    for table in (table for lookup in lookups for table in lookup.SubTable):
        inner = getattr(table, "ExtSubTable", table)
        for first, ligatures in getattr(inner, "ligatures", {}).items():
            for ligature in ligatures:
                parts.setdefault(ligature.LigGlyph, [first, *ligature.Component])

    def codes(glyph: str, deep: int = 0) -> tuple[int, ...]:
        if glyph in found or glyph not in parts or deep > len(parts):
            return found.get(glyph, ())
        return tuple(code for part in parts[glyph] for code in codes(part, deep + 1))

    return found | {glyph: codes(glyph) for glyph in parts}


def caption(codes: tuple[int, ...]) -> str:
    """Return the Unicode names of code points in lower case, joined by commas.

    >>> caption((0x1F600,)), caption((0x1F469, 0x200D, 0x1F52C))
    ('grinning face', 'woman, microscope')
    """
    names = [unicodedata.name(chr(code), "") for code in codes if code not in JOINERS]
    return ", ".join(name.lower() for name in names if name)
