"""A training whose loss is finite and yet far above where it began."""

from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fmcore.coupling.pairs import Pairs
from fmcore.matching.loss import flow_matching_loss
from fmcore.settings import ReflowError
from fmcore.training.batch import draw_batch
from fmcore.training.checkpoint import State
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
    _, first = flow_matching_loss(network, batch, interpolant, objective)
    network.train()
    aim = "velocity" if objective == "mean_flow" else objective  # its aim has the velocity's size
    _, nothing = flow_matching_loss(_nothing, batch, interpolant, aim)
    return Watch(float(first), float(nothing))


def _nothing(x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
    return torch.zeros_like(x)
