"""Piecewise straight rounds, and the couplings whose states they learn from."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fmcore.choices.solvers import solver_of_pairs
from fmcore.matching.interpolant import Linear
from fmcore.matching.times import Grid
from fmcore.sampling.probe import Auto
from fmcore.sampling.states import steps_at
from fmcore.settings import ReflowError
from fmcore.training.fit import Train

if TYPE_CHECKING:
    from flows.params.load import Params

Mistakes = Iterator[tuple[tuple[str, ...], str]]


def impossible_pieces(params: "Params") -> Mistakes:
    """Pieces of a round that its coupling does not keep, and of a coupling that it cannot keep."""
    for name, round_ in params.rounds.items():
        if round_.train is not None and round_.train.pieces > 1:
            yield from _of_round(params, round_.coupling, round_.train, ("rounds", name, "train"))
    for key, coupling in params.couplings.items():
        if coupling.store.pieces == 1:
            continue
        if coupling.import_ is not None:
            continue  # which states there are is known when the pairs are opened
        place = ("couplings", key, "store", "pieces")
        train = params.rounds[coupling.round].train
        solver = coupling.solver or solver_of_pairs(train.interpolant if train else Linear())
        if isinstance(solver, Auto):
            what = "auto chooses a grid that need not stop where pieces end; name a solver"
            yield ("couplings", key, "solver"), what
            continue
        for back in {kind == "inverted" for kind in coupling.mix}:
            try:
                steps_at(solver, coupling.store.pieces, back=back)
            except ReflowError as error:
                yield place, str(error).removeprefix("store.pieces ")


def _of_round(params: "Params", name: str, train: Train, place: tuple[str, ...]) -> Mistakes:
    at, coupling = (*place, "pieces"), params.couplings.get(name)
    if coupling is None:
        yield at, "independent pairs have no path through states; name a sampled coupling"
    elif coupling.import_ is not None and "pieces" not in coupling.store.model_fields_set:
        pass  # as many as the imported states allow
    elif coupling.store.pieces % train.pieces:
        what = (
            f"coupling {name!r} keeps the ends of {coupling.store.pieces} pieces, which cannot be"
            f" joined to {train.pieces}; set its store.pieces to a multiple"
        )
        yield at, what
    if not isinstance(train.interpolant, Linear):
        yield at, f"the pieces of a path are straight, {train.interpolant.name} is not; use linear"
    if train.student and not (isinstance(train.time, Grid) and train.time.steps == train.pieces):
        what = f"the steps of the student {train.time.name} do not begin where the pieces do; use"
        yield at, f"{what} {{name: grid, steps: {train.pieces}}}, or leave one of both out"
    if train.objective == "mean_flow":
        yield at, "mean_flow learns spans across the ends of pieces; leave one of both out"
