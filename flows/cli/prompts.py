"""A sheet of prompts: a row for each text, a column for each NFE."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fmcore.settings import ReflowError, derive_seed

if TYPE_CHECKING:
    from flows.cli.sample import Draw

Within = Annotated[
    tuple[float, float] | None,
    typer.Option(help="Times between which there is guidance: 0 is data, 1 noise."),
]
Prompt = Annotated[str | None, typer.Option(help="The text, for a round with texts as conditions.")]
Prompts = Annotated[
    Path | None, typer.Option(help="File of texts, one a line: a sheet, a row for each.")
]
STEPS = (1, 4, 16)
"""Steps of the columns, where no number of evaluations is given."""
MOST = 200
"""Texts of a sheet, at most."""


def texts_in(file: Path) -> list[str]:
    """Return the lines of a file that hold a text. Raises ReflowError for none or too many."""
    try:
        found = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ReflowError(f"--prompts: {file}: cannot be read as text ({error})") from None
    if not 1 <= len(found) <= MOST:
        raise ReflowError(f"--prompts: {file}: expected 1 to {MOST} texts, found {len(found)}")
    return found


def sheet(root: Path, round_: str, file: Path, wanted: "Draw", prompts: Path) -> tuple[int, int]:
    """Draw each text of a file at several NFE, from one noise; return how many, and the last NFE.

    With --nfe there is one column.
    """
    texts = texts_in(prompts)
    if file.suffix != ".png" or wanted.label or wanted.prompt or wanted.churn or wanted.count:
        raise ReflowError(
            "--prompts draws a sheet of texts: expected a .png, without --label, --prompt, -n and"
            " --churn"
        )
    import torch

    from flows.cli.sample import check_wanted, place_of
    from fmcore.choices import budget
    from fmcore.coupling.noise import gaussian_noise
    from fmcore.coupling.read import open_coupling
    from fmcore.network.build import take
    from fmcore.network.store import load, weights_of
    from fmcore.sampling.flow import Flow
    from fmcore.sampling.prompts import prompted
    from fmcore.verdict.drawing import data_name, titled
    from fmcore.verdict.pictures import sheet_of_prompts

    check_wanted(file, replace(wanted, label="any"))  # guidance is of the texts
    place = place_of(root, round_, wanted)
    loaded = load(place.model, weights=weights_of(wanted.weights))
    known, called = None, ""
    if place.data is not None and place.data.exists():
        opened = open_coupling(place.data)
        known, called = opened.conditions, data_name(opened.about.data)
    take(loaded.network, known)
    if len(loaded.shape) != 3:
        raise ReflowError("--prompts draws images; this round makes vectors, use --prompt")
    flow = prompted(Flow.of(loaded), texts)
    seed = derive_seed(wanted.seed, "sample")
    noise = gaussian_noise(seed, torch.arange(len(texts)).numpy(), loaded.shape)
    grids = [wanted.chosen()] if wanted.nfe else [
        budget.named(wanted.solver, steps=steps) for steps in STEPS
    ]  # fmt: skip
    columns, spent, label = {}, 0, torch.arange(len(texts))
    for solver in grids:
        found = flow.sample(noise, solver, label=label, guidance=wanted.pull)
        columns[f"NFE {found.nfe}"], spent = loaded.units.inverse(found.x), found.nfe
    title = titled("Samples by text and NFE", called, place.name)
    sheet_of_prompts(file, texts, columns, title=title)
    return len(texts) * len(columns), spent
