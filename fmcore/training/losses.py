"""Losses and rules of flow maps by their name; the perceptual loss, of a pretrained network."""

from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from fmcore.features.layers import Layers, distance, layers_of
from fmcore.matching.conversions import to_target
from fmcore.matching.interpolant import Linear, Objective, Schedule
from fmcore.matching.loss import Loss, SampleLoss
from fmcore.matching.maps import Batch, FlowMaps
from fmcore.own import Own
from fmcore.settings import ReflowError, Share, by_name


class Perceptual(SampleLoss):
    """Distance of predicted and true image in the features of a pretrained network (LPIPS-like).

    The predicted target is that of the velocity at (x_t, t): for a one-step student x - v. Lee et
    al. 2024 train a second round with such a loss. It does not learn the mean.
    """

    name: Literal["perceptual"]
    """Compares images as a pretrained network sees them; for students, and rounds from 2 on."""
    weights: str | None = None
    """Path of the weights of a VGG in torchvision's layout (.pth or .safetensors); nothing is
    downloaded. null takes EfficientNet-Lite0, from the extra `lite0`."""
    mse: Share = 0.1
    """Share of the mean square error in the loss; the rest is the perceptual distance. Raise it
    when colours or positions go astray."""

    def per_sample(
        self, gap: Tensor, t: Tensor, interpolant: Schedule, objective: Objective
    ) -> Tensor:
        """Raise: gaps alone show no image."""
        raise NotImplementedError("the perceptual loss needs the images: call of_batch")

    def of_batch(
        self, gap: Tensor, batch: Batch, t: Tensor, interpolant: Schedule, objective: Objective
    ) -> Tensor:
        """Return the loss [B] of predictions whose gaps to their aim are [B, C, H, W]."""
        off = (
            gap if objective == "target" else to_target(interpolant, gap, torch.zeros_like(gap), t)
        )
        far = distance(_layers(self.weights, str(gap.device)), batch.target + off, batch.target)
        return self.mse * gap.square().flatten(1).mean(dim=1) + (1 - self.mse) * far

    def refusal(self, objective: Objective, shape: tuple[int, ...] | None) -> str | None:
        """Return why it cannot train samples of `shape` [*D] (None: not known), None if it can."""
        if shape is not None and (len(shape) != 3 or shape[0] not in (1, 3)):
            return (
                f"perceptual compares images [1 or 3, H, W], samples are {list(shape)}; use mse or"
                " pseudo_huber"
            )
        if objective in ("noise", "mean_flow"):
            return (
                f"perceptual needs the target that is predicted, which objective {objective} does"
                " not give; use velocity or target"
            )
        return None

    def ready(self, objective: Objective, shape: tuple[int, ...], *, scaled: bool) -> None:
        """Load the network; raise ReflowError if it or the samples do not allow the loss."""
        why = self.refusal(objective, shape)
        if why is None and scaled:
            why = "perceptual compares images in [-1, 1]: leave data.scale out, or set it to range"
        if why is not None:
            raise ReflowError(f"train.loss: {why}")
        _layers(self.weights, "cpu")


@lru_cache(maxsize=2)
def _layers(weights: str | None, device: str) -> Layers:
    return layers_of(weights, torch.device(device))


class Custom(Own, SampleLoss):
    """A loss of the user's own, a subclass of `SampleLoss`."""

    base: ClassVar[type] = SampleLoss

    def check(self, own: SampleLoss) -> None:
        """Check that there is one loss for each sample, and that it has a gradient."""
        gap = torch.linspace(-1, 1, 12).reshape(4, 3).requires_grad_(True)
        value = own.per_sample(gap, torch.linspace(0.1, 0.9, 4), Linear(), "velocity")
        if value.shape != (4,) or not value.requires_grad:
            raise ValueError("per_sample must return [B] losses of gaps [B, *D], with gradient")

    @property
    def learns_mean(self) -> bool:  # type: ignore[override]
        """Whether the user's loss says that it learns the mean."""
        return bool(self.own.learns_mean)

    def per_sample(
        self, gap: Tensor, t: Tensor, interpolant: Schedule, objective: Objective
    ) -> Tensor:
        """Return the user's loss [B]."""
        return cast(Tensor, self.own.per_sample(gap, t, interpolant, objective))

    def of_batch(
        self, gap: Tensor, batch: Batch, t: Tensor, interpolant: Schedule, objective: Objective
    ) -> Tensor:
        """Return the user's loss [B] of a batch."""
        return cast(Tensor, self.own.of_batch(gap, batch, t, interpolant, objective))


def _mse_unless_named(value: Any) -> Any:
    return {"name": "mse", **value} if isinstance(value, dict) else value


LossOfRound = Annotated[
    Loss | Perceptual | Custom, Field(discriminator="name"), BeforeValidator(_mse_unless_named)
]
RuleOfMap = Annotated[FlowMaps, Field(discriminator="name"), BeforeValidator(by_name)]
