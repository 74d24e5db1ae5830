"""A flow and its Euler steps as one module, which torch and ONNX write to a file."""

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fmcore.network.field import Field, interpolant_of, maps_to_end
from fmcore.network.store import Model
from fmcore.sampling.flow import Flow
from fmcore.settings import ReflowError
from fmcore.solve.solver import Solver

SCRIPT = Path(__file__).with_name("sample.py")
"""The script that samples from an exported graph with torch alone; it runs where it lies."""
TEXTS = "texts.json"
"""The file beside a graph that lists the texts of its labels."""
AGREES = 1e-4
"""Largest difference of a written graph from the network itself, relative to the samples' RMS."""
ROWS = (1, 3)
"""Numbers of rows with which a written graph is compared: it has to take any number."""


class Whole(nn.Module):
    """Noise [B, *D], and labels [B] where there are classes, to samples [B, *D] in own units.

    Where the source is real samples (`of_samples`), they are the input, in own units too.

    Steps of Euler on the grid of `solver` from t = 1 to t = 0: x <- x - h v(x, t). Samples of a
    flow on latents (`of_latents`) are latents, not decoded.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Model, solver: Solver, guidance: float = 1.0) -> None:
        super().__init__()
        self.network = model.network
        about, classes = model.config, model.network.settings.classes
        interpolant = interpolant_of(about)
        self.field = Field(self.network, interpolant, about.get("objective", "velocity"), classes)
        self.solver, self.guidance, self.classes = solver, guidance, classes
        self.to_end = maps_to_end(about)
        self.of_latents = bool(about.get("codec"))
        self.of_samples = about.get("source") is not None
        self.noise_scale = interpolant.noise_scale
        wide = (-1, *[1] * (len(model.shape) - 1))
        self.register_buffer("mean", torch.tensor(model.scale.mean).reshape(wide))
        self.register_buffer("std", torch.tensor(model.scale.std).reshape(wide))

    def forward(self, noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the samples [B, *D]."""
        x = (noise - self.mean) / self.std if self.of_samples else noise
        x = self.noise_scale * x
        for begin, end in pairwise(self.solver.grid(1.0, 0.0).tolist()):
            span = (lambda t: t) if self.to_end else begin - end
            v = self.field.velocity(label, guidance=self.guidance, span=span)
            t = torch.full((1,), begin, device=x.device).expand(x.shape[0])
            x = x - (begin - end) * v(x, t)
        return x * self.std + self.mean


def example(model: Model, rows: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Return inputs of the graph: noise [rows, *D] and, where there are classes, labels [rows]."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, *model.shape, generator=draw)
    classes = model.network.settings.classes
    return (noise, torch.arange(rows) % classes) if classes else (noise,)


def write_export(whole: Whole, model: Model, file: Path) -> None:
    """Write the graph with its weights for `torch.export.load`; any number of rows.

    Raises ReflowError if it cannot be traced, or gives other samples than the flow.
    """
    with _in_one_line("--export"):
        program = _program(whole, model)
        torch.export.save(program, file)
        loaded = torch.export.load(file).module()
    _compare(model, whole, loaded, f"{file}")


def write_onnx(whole: Whole, model: Model, file: Path) -> None:
    """Write the graph with its weights as ONNX: inputs by `names`, output samples.

    Raises ReflowError if the packages are missing, it cannot be traced, or onnxruntime gives other
    samples than the flow.
    """
    if missing := [n for n in ("onnx", "onnxruntime", "onnxscript") if not _is_there(n)]:
        raise ReflowError(
            f"--onnx: needs {', '.join(missing)}; pip install 'reflow-chain[onnx]', or leave it out"
        )
    import onnxruntime

    given = names(whole)
    with _in_one_line("--onnx"):
        program = torch.onnx.export(
            _program(whole, model), (), input_names=given, output_names=["samples"], dynamo=True,
            verbose=False,
        )  # fmt: skip
        assert program is not None
        program.save(file)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Tensor:
        named = {name: x.numpy() for name, x in zip(given, inputs, strict=True)}
        return torch.from_numpy(session.run(None, named)[0])

    _compare(model, whole, run, f"{file}")


def names(whole: Whole) -> list[str]:
    """Return the names of the graph's inputs."""
    return ["source" if whole.of_samples else "noise", *["label"][: bool(whole.classes)]]


def texts_of(model: Model) -> tuple[str, ...]:
    """Return the texts of which a label is a row; empty for classes and for given vectors."""
    given = getattr(model.network, "given", None)
    return () if given is None or given.table is None else given.table.texts


def _program(whole: Whole, model: Model) -> torch.export.ExportedProgram:
    inputs = example(model, 2)
    rows = torch.export.Dim("rows")
    with _any_rows(whole):
        return torch.export.export(whole, inputs, dynamic_shapes=tuple({0: rows} for _ in inputs))


@contextmanager
def _any_rows(whole: Whole) -> Iterator[None]:
    """Let upsampling of diffusers take any number of rows: it treats 64 and more another way.

    That way is a copy in memory, which changes no number and forbids one graph for all.
    """
    blocks = [m for m in whole.modules() if type(m).__name__ == "Upsample2D" and _is_plain(m)]
    for block in blocks:
        block.forward = partial(_upsampled, block)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _is_plain(block: Any) -> bool:
    return block.norm is None and block.interpolate and not block.use_conv_transpose


def _upsampled(block: Any, x: Tensor, output_size: Any = None, *_: Any, **__: Any) -> Tensor:
    factor = 2.0 if output_size is None else None
    wide = nn.functional.interpolate(x, size=output_size, scale_factor=factor, mode="nearest")
    conv = block.conv if block.name == "conv" else block.Conv2d_0
    return cast(Tensor, conv(wide) if block.use_conv else wide)


def _compare(model: Model, whole: Whole, call: Callable[..., Tensor], place: str) -> None:
    """Raise ReflowError unless a written graph gives the samples of `Flow.sample`."""
    flow, solver = Flow.of(model), whole.solver
    for rows in ROWS:
        noise, *label = example(model, rows, seed=rows)
        begin = model.scale.forward(noise) if whole.of_samples else noise
        own = flow.sample(begin, solver, label=label[0] if label else None, guidance=whole.guidance)
        wanted, got = model.scale.inverse(own.x), call(noise, *label)
        apart = float((got - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())
        if not apart <= AGREES:
            raise ReflowError(
                f"{place}: its samples are {apart:.1e} (relative RMS) from those of the round,"
                f" {AGREES:g} at most were expected; do not use it"
            )


def _is_there(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


@contextmanager
def _in_one_line(what: str) -> Iterator[None]:
    """Say in one line why a network cannot be traced; without the notes of the tracer."""
    quiet, level = logging.getLogger("torch.onnx"), logging.getLogger("torch.onnx").level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            yield
    except ReflowError:
        raise
    except OSError:
        raise
    except Exception as error:  # of torch.export, of the converter, of onnxruntime
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ReflowError(
            f"{what}: this network cannot be written as one graph ({type(error).__name__}:"
            f" {first[:200]}); ship it without"
        ) from error
    finally:
        quiet.setLevel(level)
