"""A round in one of the forms that diffusers samples: what is written, how it is called, a check.

Nothing is kept that does not give the round's own samples: the folder is loaded by diffusers, and
draws from the noise that the round draws from.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmcore.network.store import Model
from fmcore.sampling.flow import Flow
from fmcore.settings import ReflowError
from fmcore.ship.schedule import Schedule
from fmcore.solve.solver import Solver
from fmcore.work.of_diffusers import diffusers

AGREES = 1e-4
"""Largest difference of samples from those of the round itself, relative to their RMS."""
ROWS = 2
"""Samples of each comparison."""


@dataclass(frozen=True)
class Case:
    """Samples that are compared: the noise [N, *D] of a seed, labels [N] or None, guidance."""

    noise: Tensor
    seed: int
    label: Tensor | None = None
    guidance: float = 1.0

    @property
    def generator(self) -> torch.Generator:
        """What draws the noise again."""
        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True)
class Form(ABC):
    """A round as a pipeline of diffusers: Euler on the grid of `solver`, by a scheduler."""

    model: Model
    solver: Solver
    schedule: Schedule

    own_code = False
    """Whether the folder comes with a pipeline of its own, which is trusted when it is loaded."""

    @abstractmethod
    def write(self, out: Path) -> None:
        """Write network, scheduler, index and what else the pipeline needs to the folder `out`."""

    @abstractmethod
    def drawn(self, pipe: Any, case: Case) -> Tensor:
        """Return what the loaded pipeline draws."""

    @abstractmethod
    def seen(self, x: Tensor) -> Tensor:
        """Return samples x [N, *D] in model units as `drawn` has them."""

    @abstractmethod
    def call(self, folder: str) -> list[str]:
        """Return the lines that draw images with `pipe`, loaded from `folder`."""

    def compare(self, pipe: Any, case: Case, found: Tensor) -> None:
        """Raise ReflowError unless the loaded pipeline gives samples [N, *D] that a flow found."""
        compare(self.seen(found), self.drawn(pipe, case), f"guidance {case.guidance:g}")

    @property
    def flow(self) -> Flow:
        """The round as a flow."""
        return Flow.of(self.model)

    def load(self, out: Path) -> dict[str, Any]:
        """Return what diffusers has to be told to load the folder `out`, beside its path."""
        here = {"custom_pipeline": out.as_posix(), "trust_remote_code": True}
        return here if self.own_code else {}

    def notes(self) -> list[str]:
        """Return paragraphs for the card: what a caller has to know."""
        return []

    @property
    def guides(self) -> bool:
        """Whether the pipeline may guide: there is a class for no label, and no guidance yet."""
        return has_null(self.model) and self.model.config.get("guided", 1.0) == 1

    def cases(self) -> list[Case]:
        """Return what is compared: samples without a label, or of some labels, guided too."""
        classes = self.model.network.settings.classes
        label = torch.arange(ROWS) % classes if classes else None
        each = [1.0, 2.0] if self.guides else [1.0]
        noise = torch.randn(ROWS, *self.model.shape, generator=torch.Generator().manual_seed(1))
        return [Case(noise, 1, label, guidance) for guidance in each]

    def lines(self, folder: str) -> list[str]:
        """Return the lines of Python that load `folder` with diffusers, and draw images."""
        given = "".join(
            f", {name}={_word(value)}" for name, value in self.load(Path(folder)).items()
        )
        return [
            "from diffusers import DiffusionPipeline",
            f'pipe = DiffusionPipeline.from_pretrained("{folder}"{given})',
            *self.call(folder),
        ]

    def checked(self, out: Path) -> "Form":
        """Return the form if the written folder gives the samples of the round.

        Raises ReflowError if it gives others, or diffusers cannot load or call it.
        """
        flow = self.flow
        try:
            pipe = diffusers().DiffusionPipeline.from_pretrained(
                out, local_files_only=True, **self.load(out)
            )
            pipe.set_progress_bar_config(disable=True)
            for case in self.cases():
                found = flow.sample(
                    case.noise, self.solver, label=case.label, guidance=case.guidance
                )
                self.compare(pipe, case, found.x)
        except ReflowError:
            raise
        except Exception as error:  # of diffusers, whatever it raises
            first = (str(error).strip() or "no reason given").splitlines()[0]
            raise ReflowError(
                f"--to: diffusers cannot sample this round ({type(error).__name__}: {first[:200]});"
                " ship it with --export alone"
            ) from error
        return self


def has_null(model: Model) -> bool:
    """Whether a network takes labels and has a class for no label."""
    settings = model.network.settings
    return bool(settings.classes) and bool(getattr(settings, "null", True))


def compare(wanted: Tensor, got: Tensor, what: str, agrees: float = AGREES) -> None:
    """Raise ReflowError unless samples are those of the round."""
    apart = float((got - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())
    if not apart <= agrees:
        raise ReflowError(
            f"--to: diffusers' samples ({what}) are {apart:.1e} (relative RMS) from those of the"
            f" round, {agrees:g} at most were expected; ship it with --export, or on another grid"
        )


def said(**given: Any) -> str:
    """Return arguments as Python writes them.

    >>> said(steps=4, name="a")
    'steps=4, name="a"'
    """
    return ", ".join(f"{name}={_word(value)}" for name, value in given.items())


def _word(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_word, value)) + "]"
    if isinstance(value, float):
        return f"{value:.9g}" if value % 1 else f"{value:.1f}"
    return f'"{value}"' if isinstance(value, str) else str(value)
