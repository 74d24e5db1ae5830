"""A solver by its name, with as many steps as a budget of evaluations allows."""

from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter

from fmcore.choices.solvers import OdeSolver
from fmcore.settings import ReflowError

STEPS: dict[str, Callable[[int], int]] = {
    "euler": lambda nfe: nfe,
    "midpoint": lambda nfe: nfe // 2,
    "heun": lambda nfe: nfe // 2,
    "heun_to_euler": lambda nfe: (nfe + 1) // 2,
    "rk4": lambda nfe: nfe // 4,
    "ab2": lambda nfe: nfe - 1,
    "ab3": lambda nfe: nfe - 1,
    "ab4": lambda nfe: nfe - 1,
}
"""The steps that a number of evaluations pays for, of each solver on a grid."""

ADAPTIVE = "dopri5"
"""The solver that chooses its steps itself: two evaluations before the first, six for each."""

_SOLVER: TypeAdapter[OdeSolver] = TypeAdapter(OdeSolver)


def named(name: str, *, steps: int | None = None) -> OdeSolver:
    """Return the solver `name`, with its default settings but for the steps."""
    if name not in (*STEPS, ADAPTIVE):
        raise ReflowError(f"no solver {name!r}; expected one of {', '.join([*STEPS, ADAPTIVE])}")
    given: dict[str, Any] = {"name": name}
    if steps is not None:
        given["max_steps" if name == ADAPTIVE else "steps"] = steps
    return _SOLVER.validate_python(given)


def within(name: str, nfe: int) -> OdeSolver:
    """Return the solver `name` that takes at most `nfe` evaluations for a sample.

    >>> within("heun", 9).steps, within("ab4", 9).steps, within("dopri5", 20).max_steps
    (4, 8, 3)
    """
    named(name)
    steps = (nfe - 2) // 6 if name == ADAPTIVE else STEPS[name](nfe)
    if steps < 1:
        raise ReflowError(f"{name}: one step takes more than {nfe} evaluations; raise --nfe")
    return named(name, steps=steps)
