"""Samples as a page shows them: the pixels of images, the places of all others in a plane.

Only numpy reads them: what shows a run while it trains does not import torch.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fmcore.checked import MEND
from fmcore.settings import ReflowError

if TYPE_CHECKING:
    from torch import Tensor

    from fmcore.verdict.plane import Plane

FILE = "samples.safetensors"
"""The name of such a file in the folder of a round's pictures."""

POINTS = 500
"""Points of each kind that are kept: more hide each other on a page."""
SIDE = 128
"""Pixels of the longer side of an image that is kept, at most."""
REAL = "real data"


@dataclass(frozen=True)
class Shown:
    """Samples by the number of Euler steps (NFE), of real data last; one row is one noise.

    Images are uint8 [N, H, W, C], all others places float32 [N, 2]. `square` is the middle (x, y)
    and half the side of the square in which points are drawn. `step` is the step of a training
    after which they were drawn, 0 at its end.
    """

    samples: dict[int, NDArray[Any]]
    real: NDArray[Any] | None = None
    square: tuple[float, float, float] = (0.0, 0.0, 1.0)
    step: int = 0

    @property
    def images(self) -> bool:
        """Whether the samples are images."""
        return next(iter(self.samples.values())).dtype == np.uint8

    @property
    def titled(self) -> dict[str, NDArray[Any]]:
        """All samples by their titles, the least NFE first."""
        found = {f"NFE {nfe}": self.samples[nfe] for nfe in sorted(self.samples)}
        return found if self.real is None else {**found, REAL: self.real}

    def content(self) -> bytes:
        """Return the bytes of the file; equal samples give equal bytes."""
        from safetensors.numpy import save

        arrays = {f"nfe_{nfe}": x for nfe, x in self.samples.items()}
        if self.real is not None:
            arrays["real"] = self.real
        arrays = {name: np.ascontiguousarray(x) for name, x in sorted(arrays.items())}
        return bytes(save(arrays, {"about": json.dumps([*self.square, self.step])}))

    @classmethod
    def read(cls, content: bytes, where: str) -> "Shown":
        """Read what `content` returned; `where` names the file in errors.

        Raises ReflowError for a file that is damaged, or holds no samples.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            arrays = load(content)
            real = arrays.pop("real", None)
            samples = {int(name.removeprefix("nfe_")): x for name, x in arrays.items()}
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            x, y, half, step = json.loads(header["__metadata__"]["about"])
            found = cls(samples, real, (float(x), float(y), float(half)), int(step))
            kind = (np.dtype(np.uint8), 4) if found.images else (np.dtype(np.float32), 2)
            every = [*samples.values(), *([] if real is None else [real])]
            if any((a.dtype, a.ndim) != kind or not a.size for a in every):
                raise ValueError("neither images nor points")
        except (SafetensorError, ValueError, KeyError, TypeError, StopIteration) as error:
            raise ReflowError(f"{where}: damaged, no samples ({error}); {MEND}") from None
        return found


def to_show(
    samples: Mapping[int, "Tensor"],
    real: "Tensor | None",
    plane: "Plane | None",
    *,
    step: int = 0,
) -> Shown:
    """Return samples [N, *D] in the data's own units as a page shows them, by NFE.

    Without a `plane` they are images [N, C, H, W] in [-1, 1].
    """
    if plane is None:
        pixels = {nfe: _pixels(x) for nfe, x in samples.items()}
        return Shown(pixels, None if real is None else _pixels(real), step=step)
    places = {nfe: plane.project(x[:POINTS]).float().numpy() for nfe, x in samples.items()}
    own = None if real is None else plane.project(real[:POINTS]).float().numpy()
    return Shown(places, own, (*plane.middle, plane.half), step)


def _pixels(x: "Tensor") -> NDArray[np.uint8]:
    """Return images [N, C, H, W] in [-1, 1] as pixels [N, h, w, 1 or 3], none beyond `SIDE`."""
    longest = max(x.shape[2:])
    if longest > SIDE:
        from torch.nn.functional import adaptive_avg_pool2d

        height, width = (max(1, n * SIDE // longest) for n in x.shape[2:])
        x = adaptive_avg_pool2d(x, (height, width))
    bright = ((x.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    found: NDArray[np.uint8] = bright[..., : 1 if bright.shape[-1] < 3 else 3].cpu().numpy()
    return found
