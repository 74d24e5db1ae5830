"""A pretrained teacher of a wheel as a network of one's own: adaptive-terrain-diffusion 0.4.2, MIT.

It ships a denoiser of heights [1, 128, 128] as ONNX, which onnxruntime runs: it can be sampled, and
has no gradients to be trained on.
"""

from functools import lru_cache
from importlib.resources import files
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

from fmcore.network.own import OwnNetwork

FILE = "weights/terrain_consistency_unet_difficulty100.onnx"


@lru_cache(1)
def session(graph: bytes) -> Any:
    """Return what runs a graph, on one thread: the same bytes on any machine's number of cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


class Terrain(OwnNetwork):
    """D(x, sigma) of one difficulty; its graph is its weight, so a model's folder is whole."""

    tile = 4

    def __init__(self, shape: tuple[int, ...], classes: int, difficulty: int = 60) -> None:
        super().__init__(shape, classes)
        self.difficulty = (difficulty - 1) / 99
        graph = files("terrain_diffusion").joinpath(FILE).read_bytes()
        whole = torch.frombuffer(bytearray(graph), dtype=torch.uint8)
        self.graph = nn.Parameter(whole, requires_grad=False)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        difficulty = torch.full_like(t, self.difficulty)
        given = {"noisy": x, "sigma": t, "difficulty": difficulty}
        run = session(self.graph.numpy().tobytes()).run
        return torch.from_numpy(
            run(["denoised"], {n: v.float().numpy() for n, v in given.items()})[0]
        )
