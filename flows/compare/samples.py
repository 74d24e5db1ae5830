"""Samples on a page: images as one sheet, points as SVG; both suit light and dark."""

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcore.verdict.shown import REAL, Shown

COLUMNS = 8
"""Images in a row of a sheet."""
SMALL = 64
"""Pixels of an image's side up to which a page shows each pixel as a square."""


def drawn(shown: Shown, colour: str) -> dict[str, str]:
    """Return the HTML of samples by their titles; points in a colour, over real ones in gray."""
    if shown.images:
        return {title: _sheet(x, title) for title, x in shown.titled.items()}
    real = None if shown.real is None else _places(shown.real, shown.square)
    found = {}
    for title, x in shown.titled.items():
        own = "" if title == REAL else _places(x, shown.square)
        found[title] = _plot(own, real, title, colour)
    return found


def data_uri(content: bytes) -> str:
    """Return a PNG as the address of a picture inside a page."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def laid_out(images: NDArray[Any], columns: int = COLUMNS) -> NDArray[np.uint8]:
    """Lay images [N, H, W, C] out in rows, one clear pixel between; return [h, w, C + 1]."""
    n, height, width, channels = images.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    sheet = np.zeros((rows * (height + 1) - 1, columns * (width + 1) - 1, channels + 1), np.uint8)
    for i, image in enumerate(images):
        y, x = (i // columns) * (height + 1), (i % columns) * (width + 1)
        sheet[y : y + height, x : x + width, :channels] = image
        sheet[y : y + height, x : x + width, channels] = 255
    return sheet


def _sheet(images: NDArray[Any], title: str) -> str:
    from PIL import Image

    sheet = laid_out(images)
    mode = "LA" if sheet.shape[2] == 2 else "RGBA"
    file = io.BytesIO()
    Image.frombytes(mode, (sheet.shape[1], sheet.shape[0]), sheet.tobytes()).save(file, "PNG")
    kind = "pixels" if max(images.shape[1:3]) <= SMALL else "smooth"
    return f'<img class="{kind}" alt="{title}" src="{data_uri(file.getvalue())}">'


def _places(x: NDArray[Any], square: tuple[float, float, float]) -> str:
    """Return points [N, 2] as the path of an SVG 100 wide, y upwards; none beyond the square."""
    middle, half = np.array(square[:2]), square[2]
    at = (x - middle) / half * 50
    inside = at[(np.abs(at) <= 50).all(axis=1)]
    return "".join(f"M{50 + a:.1f} {50 - b:.1f}h0" for a, b in inside.tolist())


def _plot(own: str, real: str | None, title: str, colour: str) -> str:
    behind = f'<path class="real" d="{real}"/>' if real is not None else ""
    points = f'<path d="{own}" stroke="{colour}"/>' if own else ""
    return (
        f'<svg class="points" viewBox="0 0 100 100" role="img" aria-label="{title}">'
        f"{behind}{points}</svg>"
    )


def by_title(
    rounds: Mapping[str, dict[str, str]],
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return for each title the drawings of all rounds side by side; real data once, at the end."""
    titles = sorted({t for found in rounds.values() for t in found}, key=_order)
    found = []
    for title in titles:
        own = [(name, drawings[title]) for name, drawings in rounds.items() if title in drawings]
        found.append((title, own[:1] if title == REAL else own))
    return found


def _order(title: str) -> tuple[bool, int]:
    return title == REAL, 0 if title == REAL else int(title.split()[1])
