"""The gradient of a step: of one process or several, of a whole batch or of pieces of it.

Several processes average by torch's DistributedDataParallel, which sends the gradients of the last
layers while those of the first are computed. It passes no forward-mode product, which MeanFlow
needs (pytorch#102197): there the gradients are averaged after the backward pass. Divided weights
(`fmcore.training.divided`) bring their own exchange.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parallel import DistributedDataParallel

from fmcore.matching.loss import Loss, flow_matching_loss
from fmcore.matching.maps import Batch
from fmcore.network.build import VelocityNetwork
from fmcore.network.ema import here, trained
from fmcore.network.outside import OutsideNetwork
from fmcore.network.own import OwnNetwork
from fmcore.settings import ReflowError
from fmcore.training.processes import Group
from fmcore.training.recompute import recompute_blocks
from fmcore.work.compute import Compute
from fmcore.work.graphs import GraphedGradient

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

    from fmcore.training.fit import Train


@dataclass(frozen=True)
class Shared:
    """A network whose gradient the processes of a group share.

    `call` is the network as a step calls it; `kept` is the context of a piece whose gradient is not
    sent yet; `after` says that gradients are averaged after the backward pass; `whole` is the
    gradient of a whole batch as a GPU replays it.
    """

    call: Callable[..., Tensor]
    weights: list[nn.Parameter]
    settings: "Train"
    group: Group
    kept: Callable[[], AbstractContextManager[object]]
    after: bool
    whole: Callable[..., Tensor] | None = None

    def gradients(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Return the mean square error [] of a batch, and the gradients of its mean loss."""
        if self.whole is not None:
            found = self.whole(batch.target, batch.source, batch.t, batch.label, batch.span)
            return found, [w.grad for w in self.weights if w.grad is not None]
        for weight in self.weights:
            weight.grad = None
        own = self.group.part(batch)
        # 1 unless the rows of a batch have no equal parts: a data set smaller than a batch.
        share = len(own.t) * self.group.size / len(batch.t)
        pieces = cut(own, self.settings.accumulate)
        error = None
        for piece in pieces:
            weight_of = share * len(piece.t) / len(own.t)
            with nullcontext() if piece is pieces[-1] else self.kept():
                found = self._backward(piece, weight_of)
            error = found if error is None else error + found
        assert error is not None  # a part has a row at least
        gradients = here(w.grad for w in self.weights if w.grad is not None)
        self.group.average([error, *gradients] if self.after else [error])
        return error, gradients

    def of_batch(self, *given: Tensor) -> Tensor:
        """Add the gradient of the mean loss of a batch, given by its tensors; return the error."""
        return self._backward(Batch(*given), 1.0)

    def _backward(self, piece: Batch, share: float) -> Tensor:
        """Add the gradient of `share` times the mean loss; return as much of the error []."""
        given = self.settings
        per_sample, error = flow_matching_loss(
            self.call, piece, given.interpolant, given.objective, given.loss, given.map
        )
        if share == 1:
            per_sample.mean().backward()
            return error
        (per_sample.mean() * share).backward()
        return error * share


def network_of(
    network: VelocityNetwork, settings: "Train", compute: Compute, group: Group
) -> Shared:
    """Return the network of a training, ready for the gradient of its steps."""
    weights = trained(network)
    if settings.recompute and settings.objective == "mean_flow":
        raise ReflowError(
            "train.recompute: torch.utils.checkpoint passes no forward-mode product, which"
            " objective mean_flow needs; use train.accumulate to save memory"
        )
    if settings.recompute:
        recompute_blocks(network)
    if group.divided:
        if compute.channels_last:
            raise ReflowError(
                "compute.channels_last: with train.shard full no process has whole weights; leave"
                " it out"
            )
        call = compute.training(network)
        return Shared(call, weights, settings, group, partial(_unsent, network), after=False)
    if group.size == 1 or settings.objective == "mean_flow":
        call = compute.training(network)
        found = Shared(call, weights, settings, group, nullcontext, after=group.size > 1)
        if compute.cuda_graphs and _can_be_replayed(network, settings, group):
            return replace(found, whole=GraphedGradient(found.of_batch, weights))
        return found
    with warnings.catch_warnings():  # the argument that takes its place is not in torch 2.11
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        replica = DistributedDataParallel(
            _Replica(network, compute),
            broadcast_buffers=False,
            find_unused_parameters=True,
            gradient_as_bucket_view=True,
        )
    return Shared(replica, weights, settings, group, replica.no_sync, after=False)


def _can_be_replayed(network: nn.Module, settings: "Train", group: Group) -> bool:
    """Whether a step is the same kernels each time: one process, one piece, no random numbers.

    Forward-mode products were never recorded, and a loss of another class may look at its values.
    """
    whole = group.size == settings.accumulate == 1 and not settings.recompute
    plain = settings.objective != "mean_flow" and type(settings.loss) is Loss
    return whole and plain and not drops(network)


def drops(network: nn.Module) -> bool:
    """Whether a network in training drops some of its features at random."""
    return any(isinstance(m, _DropoutNd) and m.p > 0 for m in network.modules())


def draws(network: nn.Module) -> bool:
    """Whether a network in training draws random numbers; one of a class not known here may."""
    return isinstance(network, OwnNetwork | OutsideNetwork) or drops(network)


class _Replica(nn.Module):
    """A network as DDP gets it, which looks for weights without a gradient in each step.

    Only then its buckets keep the order of the weights: those that it otherwise makes anew after
    its first step would sum in another order after a resumption. Where it finds none, each process
    prints a warning; so there is one.
    """

    def __init__(self, network: nn.Module, compute: Compute) -> None:
        super().__init__()
        self.network, self.unused = network, nn.Parameter(next(network.parameters()).new_zeros(1))
        self._call = compute.training(network)

    def forward(self, *inputs: Tensor | None) -> Tensor:
        """Return the velocity."""
        return self._call(*inputs)


@contextmanager
def _unsent(network: nn.Module) -> Iterator[None]:
    """Let a divided network add up the gradient of a piece without sending it."""
    divided = cast("FSDPModule", network)
    divided.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        divided.set_requires_gradient_sync(True)


def cut(batch: Batch, count: int) -> list[Batch]:
    """Return a batch [B] in `count` pieces, as equal as possible; fewer if it has fewer rows."""
    count = min(count, len(batch.t))
    if count == 1:
        return [batch]
    given = (batch.target, batch.source, batch.t, batch.label, batch.span)
    cuts = ([None] * count if x is None else x.tensor_split(count) for x in given)
    return [Batch(*piece) for piece in zip(*cuts, strict=True)]
