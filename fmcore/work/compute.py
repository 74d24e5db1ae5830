"""Where the arithmetic runs: device, threads, and the fixed size of a network call."""

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from fmcore.settings import ReflowError, Settings, WorkerCount
from fmcore.work.graphs import Graphed

TILE = 256
"""Rows of a network call on the CPU, unless the network has a `tile` of its own."""
GPU_ROWS = 1024
"""Rows of a network call on a GPU, at least, and at most 32 tiles: a GPU is filled by more rows."""


class Compute(Settings):
    """Device, CPU threads and precision: they change rounding, hence results; so they are settings.

    `bf16` computes the network in bfloat16 (weights and ODE state stay float32), `auto` only on a
    GPU: most CPUs emulate it, slowly. `compile` is torch.compile. `reflow estimate --compute`
    measures which of them pay. The package accelerate is not used: autocast is one line, and
    bfloat16 needs no loss scaling.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of training and sampling. `auto` takes a GPU where torch sees one, else the CPU."""
    threads: WorkerCount = 2
    """CPU threads of a stage. Stages that run at the same time share the cores by this number.
    It changes rounding, hence results."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """Number format of the network: `bf16` is autocast to bfloat16, `auto` does so on a GPU only.
    Weights and ODE state stay float32. Take bf16 where `reflow estimate --compute` finds it
    faster."""
    compile: bool = False
    """Whether the network runs through torch.compile. Set it for long trainings; each stage then
    begins with a compilation of a minute, which needs a C++ compiler on the CPU."""
    channels_last: bool = False
    """Whether convolutions run with the channels of a pixel side by side in memory. Set it where
    `reflow estimate --compute` finds it faster. `compile` chooses a layout by itself."""
    cuda_graphs: bool = False
    """Whether a GPU records a network call, and a training step's two passes, and replays them:
    where kernels take longer to start than to run. Steps with dropout, mean_flow, another loss than
    mse or pseudo_huber, pieces or processes are not replayed."""

    def start(self) -> torch.device:
        """Set the thread count and return the device; `auto` takes a GPU when there is one."""
        torch.set_num_threads(self.threads)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ReflowError(
                "compute.device: cuda asked for, but torch sees no GPU; use auto or cpu, or install"
                " a CUDA build of torch"
            )
        gpu = self.device != "cpu" and torch.cuda.is_available()
        if gpu:
            _in_one_order()
        return torch.device("cuda" if gpu else "cpu")

    def running(self, network: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return the network as it is to be called: compiled, in its precision, float32 out."""
        call = _in_channels_last(network) if self.channels_last else network
        call = _compiled(call) if self.compile else call
        if self.precision == "fp32":
            return call

        def half(*inputs: Tensor | None) -> Tensor:
            device = "cpu" if inputs[0] is None else inputs[0].device.type
            if self.precision == "auto" and device == "cpu":
                return call(*inputs)
            with torch.autocast(device, torch.bfloat16):
                return call(*inputs).float()

        return half

    def sampling(self, network: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return the network as sampling calls it: as it runs, replayed on a GPU if so set."""
        call = self.running(network)
        return Graphed(call) if self.cuda_graphs else call

    def training(self, network: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return the network as training calls it: attention whose gradient repeats on a GPU.

        The gradients of torch's faster attention kernels add in any order. Sampling needs no
        gradient and keeps them.
        """
        call = self.running(network)

        def in_one_order(*inputs: Tensor | None) -> Tensor:
            if inputs[0] is None or inputs[0].device.type != "cuda":
                return call(*inputs)
            with sdpa_kernel(SDPBackend.MATH):
                return call(*inputs)

        return in_one_order


def _in_channels_last(network: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let the convolutions of a network compute on channels-last weights; they decide the layout.

    The parameters themselves stay as they are: optimiser, averages and files know one layout.
    """
    if not isinstance(network, nn.Module):
        return network
    kernels = {name: p for name, p in network.named_parameters() if p.ndim == 4}

    def call(*inputs: Tensor | None) -> Tensor:
        last = {n: p.contiguous(memory_format=torch.channels_last) for n, p in kernels.items()}
        out: Tensor = functional_call(network, last, inputs)
        return out.contiguous()

    return call if kernels else network


def _compiled(network: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compile a network, without the advice to multiply in TF32: it is off on purpose."""
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
    return torch.compile(network)


def _in_one_order() -> None:
    """Let a GPU give the same bytes each time: sums in one order, float32 products in float32.

    By default torch takes the fastest kernel, whose atomic additions come in any order, and rounds
    what convolutions multiply to 10 bits (TF32).
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def numerics(device: torch.device, compute: Compute, tile: int = TILE) -> dict[str, Any]:
    """Return what decides rounding: results have equal bytes only where these values are equal."""
    where: dict[str, Any] = {"device": device.type, "torch": str(torch.__version__).split("+")[0]}
    where |= {"precision": compute.precision, "compile": compute.compile}
    # Only where they are set: couplings that were made without them keep their bytes.
    where |= {n: True for n in ("channels_last", "cuda_graphs") if getattr(compute, n)}
    rows = rows_of_call(tile, device)
    if device.type == "cuda":
        return {**where, "gpu": torch.cuda.get_device_name(device), "tile": rows}
    return {
        **where,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "tile": rows,
    }


def rows_of_call(tile: int, device: torch.device) -> int:
    """Return the rows of a network call when sampling, for a network of this tile."""
    if device.type != "cuda":
        return tile
    return min(32 * tile, max(GPU_ROWS, 4 * tile))


def to_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors on the CPU; from a GPU through pinned memory, waiting once for all."""
    there = [x.to("cpu", non_blocking=True) for x in tensors]
    if any(x.device.type == "cuda" for x in tensors):
        torch.cuda.synchronize()
    return there


def in_tiles(network: Callable[..., Tensor], tile: int = TILE) -> Callable[..., Tensor]:
    """Wrap a network so that each call has `rows_of_call(tile)` rows, the last one padded.

    The kernel of a matrix product, and with it the rounding, depends on the number of rows. With
    calls of one size a row's result does not depend on the other rows, so a coupling has the same
    bytes for any batch.
    """

    def tiled(*inputs: Tensor | None) -> Tensor:
        x = inputs[0]
        if x is None:
            return network(*inputs)
        size = rows_of_call(tile, x.device)
        rows, count = len(x), -(-len(x) // size)
        whole = [None if a is None else _padded(a, count * size) for a in inputs]
        parts = zip(*([None] * count if a is None else a.split(size) for a in whole), strict=True)
        return torch.cat([network(*part) for part in parts])[:rows]

    return tiled


def _padded(x: Tensor, rows: int) -> Tensor:
    if x.stride(0) == 0:  # one time for all rows stays one
        return x[:1].expand(rows, *x.shape[1:])
    return x if len(x) == rows else torch.cat([x, x.new_zeros(rows - len(x), *x.shape[1:])])
