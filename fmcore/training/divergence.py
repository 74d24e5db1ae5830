"""A training that diverged; a loss whose minimum is another value than the mean."""

import math
from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fmcore.coupling.pairs import Pairs
from fmcore.matching.loss import Loss, flow_matching_loss
from fmcore.settings import ReflowError
from fmcore.training.batch import draw_batch
from fmcore.training.checkpoint import State, finite
from fmcore.training.fit import Train, batch_rules

FAR = 1000.0
"""Factor above the larger of two losses, that of the network before its first step and that of
predicting nothing, at which every one of the last steps has diverged.

The least of 20 losses in a row was at most 1.1 times the larger of the two in trainings with all
objectives, interpolants and losses, 5 times in MeanFlow with a rate that is too high (its aim
contains the network itself), and 165 times with lr 10, which even so recovered as the rate fell.
A training that does not recover passes any factor: the loss grows with the square of the weights.
"""
LAST = 20
"""Steps in a row that must be above: single steps were 8,000 times above and recovered."""


@dataclass
class Watch:
    """The losses of the last steps, and two that they are compared with.

    `first` is the loss of the network before its first step, `nothing` that of predicting 0: the
    mean square of the aim. All are mean square errors, whichever loss is minimised, so weights and
    normalisation of the loss play no part.
    """

    first: float
    nothing: float
    recent: deque[Tensor] = field(default_factory=lambda: deque(maxlen=LAST))

    def check(self, step: int, settings: Train, kept_in: str | None = None) -> None:
        """Raise ReflowError if each of the last steps was far above both.

        `kept_in` has the last good checkpoint.
        """
        if len(self.recent) < LAST:
            return
        losses = torch.stack(list(self.recent))
        if not float(losses.min()) > FAR * max(self.first, self.nothing):
            return
        kept = f"; the last good checkpoint is kept in {kept_in}" if kept_in else ""
        raise ReflowError(
            f"training diverged: the loss is {float(losses[-1]):.3g} at step {step}, and was more"
            f" than {FAR:g} times what it began with ({self.first:.3g}) and what predicting nothing"
            f" gives ({self.nothing:.3g}) for {LAST} steps; lower train.lr ({settings.lr:g}), raise"
            f" train.warmup ({settings.warmup}), lower train.clip ({settings.clip:g}), or"
            f" standardise data far from unit scale (data.scale){kept}"
        )


@torch.no_grad()
def watch_of(state: State, pairs: Pairs, settings: Train, *, seed: int) -> Watch:
    """Return the watch of a training whose network is still the one it starts from.

    `pairs` are some training pairs. Nothing is drawn from a global generator, so that no draw of
    the training changes.
    """
    network = state.network
    device = next(network.parameters()).device
    rules = batch_rules(settings, network.settings.classes)
    batch = draw_batch(pairs, rules, seed=seed, step=0, device=device)
    interpolant, objective = settings.interpolant, settings.objective
    network.eval()  # dropout would draw from the global generator
    _, first = flow_matching_loss(network, batch, interpolant, objective, rule=settings.map)
    network.train()
    aim = "velocity" if objective == "mean_flow" else objective  # its aim has the velocity's size
    _, nothing = flow_matching_loss(_nothing, batch, interpolant, aim)
    return Watch(float(first), float(nothing))


def _nothing(x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
    return torch.zeros_like(x)


def advice_on_loss(settings: Train, *, independent: bool) -> str | None:
    """Return a warning if the loss does not learn the mean on pairs whose paths cross.

    None on a coupling that a flow made: its paths hardly cross, so that there is one velocity to
    learn at a point.
    """
    loss = settings.loss
    if loss.learns_mean or not independent:
        return None
    name = "normalised" if isinstance(loss, Loss) and loss.normalised else loss.name
    return (
        f"train.loss {name} on the independent coupling: where paths cross it learns"
        f" {LEARNED.get(name, 'another value')}, not the mean that a flow needs, so its samples"
        " need not follow the data (docs/how-to-add.md: 0.00 learned where 1.20 is right), and it"
        " has no score; use loss mse here, and this one from round 2 on"
    )


LEARNED = {"pseudo_huber": "about the median velocity", "normalised": "the nearest velocity"}
"""What a loss that does not learn the mean learns where paths cross."""


def check_loss(loss: float, state: State, settings: Train, kept_in: str | None = None) -> None:
    """Raise if the loss is not finite or grew too much; `kept_in` has the last good checkpoint."""
    best = min((row["loss"] for row in state.history), default=math.inf)
    kept = f"; the last good checkpoint is kept in {kept_in}" if kept_in else ""
    if not math.isfinite(loss) or not finite(state):
        raise ReflowError(
            f"the loss is {loss} at step {state.step}: training diverged; lower train.lr"
            f" ({settings.lr:g}) or train.clip ({settings.clip:g}){kept}"
        )
    if loss > settings.diverged * best:
        raise ReflowError(
            f"the loss rose to {loss:.3g} at step {state.step}, {loss / best:.0f} times its best"
            f" ({best:.3g}); lower train.lr ({settings.lr:g}){kept}"
        )
