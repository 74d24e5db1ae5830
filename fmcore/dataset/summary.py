"""What a data set holds, in numbers for a receipt and in lines for people."""

import math
from itertools import islice

import torch

from fmcore.dataset.rows import BLOCK_BYTES
from fmcore.dataset.samples import Samples

CLASSES = 100
"""Most classes whose counts are listed one by one."""

SHOWN = 3
"""How many names of left-out files are shown for each reason."""


def summary(samples: Samples) -> dict[str, float]:
    """Return the numbers of a data set: rows, range, mean and spread of all values, classes.

    `mean` and `std` are those of all values together, in float64. `class_<i>` is the number of
    samples of class i; beyond 100 classes only the smallest and the largest count are given.
    """
    target, label = samples.target, samples.label
    least, most, mean, squares, count = math.inf, -math.inf, 0.0, 0.0, 0
    step = max(1, BLOCK_BYTES // max(1, 4 * target[0].numel()))
    for rows in target.split(step):
        part = rows.to(torch.float64, copy=True)
        least, most = min(least, float(part.min())), max(most, float(part.max()))
        # Chan, Golub and LeVeque's update: sums of squares of large means would cancel.
        size, centre = part.numel(), float(part.mean())
        shift, total = centre - mean, count + size
        squares += float(part.sub_(centre).square_().sum()) + shift**2 * count * size / total
        mean, count = mean + shift * size / total, total
    found: dict[str, float] = {
        "samples": len(target),
        "features": target[0].numel(),
        "min": least,
        "max": most,
        "mean": mean,
        "std": math.sqrt(squares / count),
        "classes": 0,
        "skipped": sum(len(files) for files in samples.skipped.values()),
    }
    if label is not None:
        counts = label.bincount(minlength=len(samples.names or ())).tolist()
        found |= {"classes": len(counts), "class_least": min(counts), "class_most": max(counts)}
        if len(counts) <= CLASSES:
            found |= {f"class_{i}": n for i, n in enumerate(counts)}
    return found


def lines(samples: Samples, found: dict[str, float]) -> list[str]:
    """Return the lines that `prepare` prints: what was read, how, and what was left out."""
    shape = "x".join(str(side) for side in samples.target.shape[1:])
    kind = "images" if samples.image else "samples"
    said = [
        f"data: {len(samples.target)} {kind} of shape {shape}, values from {found['min']:.4g} to"
        f" {found['max']:.4g}, mean {found['mean']:.4g}, std {found['std']:.4g}",
        *(f"data: {note}" for note in samples.notes),
    ]
    if count := int(found["classes"]):
        names = samples.names or [str(i) for i in range(count)]
        each = [f"{names[i]} {int(found.get(f'class_{i}', 0))}" for i in range(min(count, 10))]
        few, most = int(found["class_least"]), int(found["class_most"])
        listed = ", ".join(each) + (", ..." if count > 10 else "") if count <= CLASSES else ""
        said.append(
            f"data: {count} classes of {few} to {most} samples" + f": {listed}" * (listed != "")
        )
    for reason, files in sorted(samples.skipped.items()):
        more = ", ..." if len(files) > SHOWN else ""
        said.append(
            f"data: left out {len(files)} {reason}: {', '.join(islice(files, SHOWN))}{more}"
        )
    return said
