"""Which states of a path a coupling keeps: those at the ends of pieces of one length in t."""

from fmcore.choices.solvers import OdeSolver
from fmcore.settings import ReflowError
from fmcore.solve.adaptive import Adaptive


def steps_at(solver: OdeSolver, pieces: int, *, back: bool) -> tuple[int, ...]:
    """Return after how many steps a solver is at t = 1 - 1/pieces, 1 - 2/pieces, ..., 1/pieces.

    `back` is for pairs that are solved from the target on. Raises ReflowError if its grid passes
    one of these times by.
    """
    if pieces == 1:
        return ()
    why = "has times of its own for each pair"
    if not isinstance(solver, Adaptive):
        grid = (solver.grid(0.0, 1.0) if back else solver.grid(1.0, 0.0)).tolist()
        wanted = [1 - j / pieces for j in range(1, pieces)]
        near = [min(range(len(grid)), key=lambda i: abs(grid[i] - t)) for t in wanted]
        off = [t for i, t in zip(near, wanted, strict=True) if abs(grid[i] - t) > 1e-6]
        if not off:
            return tuple(near)
        why = f"does not stop at t = {off[0]:g}"
    raise ReflowError(
        f"store.pieces {pieces} keeps states at multiples of 1/{pieces}, and the solver {why}; use"
        f" a fixed solver whose steps are a multiple of {pieces}, without shift, or with those"
        " `times`"
    )
