"""Rectified flows as a library: interpolants, losses, solvers, couplings, measures, on tensors.

    import fmcore

Each name below is loaded when it is first used. The modules `fmcore.train`, `fmcore.couple` and so
on are the stages of a project. Nothing in this package imports Prefect, MLflow or DVC.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmcore.choices.laws import Beta as Beta
    from fmcore.choices.laws import LogitNormal as LogitNormal
    from fmcore.choices.laws import Mode as Mode
    from fmcore.coupling.pairs import Pairs as Pairs
    from fmcore.coupling.read import open_coupling as open_coupling
    from fmcore.kept import write_coupling as write_coupling
    from fmcore.matching.conversions import to_score as to_score
    from fmcore.matching.conversions import to_source as to_source
    from fmcore.matching.conversions import to_target as to_target
    from fmcore.matching.interpolant import Cosine as Cosine
    from fmcore.matching.interpolant import Linear as Linear
    from fmcore.matching.interpolant import Polynomial as Polynomial
    from fmcore.matching.interpolant import Schedule as Schedule
    from fmcore.matching.interpolant import VarianceExploding as VarianceExploding
    from fmcore.matching.interpolant import VariancePreserving as VariancePreserving
    from fmcore.matching.interpolant import interpolate as interpolate
    from fmcore.matching.loss import Loss as Loss
    from fmcore.matching.loss import flow_matching_loss as flow_matching_loss
    from fmcore.matching.maps import Batch as Batch
    from fmcore.matching.times import Grid as Grid
    from fmcore.matching.times import Point as Point
    from fmcore.matching.times import Uniform as Uniform
    from fmcore.matching.times import UShaped as UShaped
    from fmcore.measure.straightness import straightness as straightness
    from fmcore.measure.straightness import straightness_rel as straightness_rel
    from fmcore.measure.transport import transport_cost as transport_cost
    from fmcore.network.images import DiT as DiT
    from fmcore.network.images import UNet as UNet
    from fmcore.network.mlp import MLP as MLP
    from fmcore.sampling.flow import Flow as Flow
    from fmcore.settings import ReflowError as ReflowError
    from fmcore.solve.adaptive import Adaptive as Adaptive
    from fmcore.solve.solver import Solution as Solution
    from fmcore.solve.solver import Solver as Solver
    from fmcore.tensors import coupled as coupled
    from fmcore.tensors import fit_flow as fit_flow
    from fmcore.tensors import independent as independent
    from fmcore.tensors import load_flow as load_flow
    from fmcore.tensors import read_coupling as read_coupling
    from fmcore.tensors import rectify as rectify
    from fmcore.training.batch import BatchRules as BatchRules
    from fmcore.training.batch import draw_batch as draw_batch
    from fmcore.training.batches import batches as batches
    from fmcore.training.batches import shuffled_batches as shuffled_batches
    from fmcore.training.fit import Train as Train

_HOMES = {
    "fmcore.choices.laws": ("Beta", "LogitNormal", "Mode"),
    "fmcore.coupling.pairs": ("Pairs",),
    "fmcore.coupling.read": ("open_coupling",),
    "fmcore.kept": ("write_coupling",),
    "fmcore.matching.conversions": ("to_score", "to_source", "to_target"),
    "fmcore.matching.interpolant": (
        "Cosine", "Linear", "Polynomial", "Schedule", "VarianceExploding", "VariancePreserving",
        "interpolate",
    ),
    "fmcore.matching.loss": ("Loss", "flow_matching_loss"),
    "fmcore.matching.maps": ("Batch",),
    "fmcore.matching.times": ("Grid", "Point", "UShaped", "Uniform"),
    "fmcore.measure.straightness": ("straightness", "straightness_rel"),
    "fmcore.measure.transport": ("transport_cost",),
    "fmcore.network.images": ("DiT", "UNet"),
    "fmcore.network.mlp": ("MLP",),
    "fmcore.sampling.flow": ("Flow",),
    "fmcore.settings": ("ReflowError",),
    "fmcore.solve.adaptive": ("Adaptive",),
    "fmcore.solve.solver": ("Solution", "Solver"),
    "fmcore.tensors": (
        "coupled", "fit_flow", "independent", "load_flow", "read_coupling", "rectify",
    ),
    "fmcore.training.batch": ("BatchRules", "draw_batch"),
    "fmcore.training.batches": ("batches", "shuffled_batches"),
    "fmcore.training.fit": ("Train",),
}  # fmt: skip
"""Which module defines each public name."""

_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    """Load a public name from its module (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module 'fmcore' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
