"""A network that others trained, as a velocity of the linear interpolant."""

from typing import Annotated, Any, Literal, cast

from pydantic import Field
from torch import Tensor, nn

from fmcore.network.diffusers_class import DiffusersClass, DiffusersNetwork
from fmcore.network.given import Given
from fmcore.network.own import Custom, OwnNetwork
from fmcore.network.predictions import AnyPrediction
from fmcore.settings import ReflowError, Settings


class Outside(Settings):
    """A network of diffusers, or of one's own, and what it predicts."""

    name: Literal["outside"]
    """A network that predicts something else than our velocity, in times of its own."""
    network: Annotated[DiffusersClass | Custom, Field(discriminator="name")]
    """The network: a class of diffusers, or a class of one's own, called with its own times."""
    prediction: AnyPrediction
    """What the network predicts, at which times."""

    @property
    def classes(self) -> int:
        """Number of classes of the label."""
        return self.network.classes

    @property
    def null(self) -> bool:
        """Whether the network has a class for no label."""
        return not isinstance(self.network, DiffusersClass) or self.network.null

    def build(self, shape: tuple[int, ...]) -> "OutsideNetwork":
        """Make the network for samples of `shape`."""
        return OutsideNetwork(self, shape)


class OutsideNetwork(nn.Module):
    """v(x, t): x [B, *D], t [B] in [0, 1], label [B] or None -> dx/dt [B, *D]."""

    tile: int
    """Rows of a network call on the CPU."""

    def __init__(self, settings: Outside, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.settings, self.shape = settings, shape
        self.net: DiffusersNetwork | OwnNetwork = settings.network.build(shape)
        pixels = shape[1] * shape[2] if len(shape) == 3 else 1
        own = self.net.tile if isinstance(self.net, OwnNetwork) else 32
        self.tile = min(own, max(1, 32**3 // pixels))
        self.register_buffer("nodes", settings.prediction.nodes(), persistent=False)

    @property
    def given(self) -> Given | None:
        """The table of conditions that the network takes; None if it takes none."""
        return getattr(self.net, "given", None)

    def forward(
        self, x: Tensor, t: Tensor, label: Tensor | None = None, span: Tensor | None = None
    ) -> Tensor:
        """Return the velocity of the linear interpolant."""
        if span is not None:
            raise ValueError("a network of others has no input for spans")

        def predict(x: Tensor, own: Tensor) -> Tensor:
            return cast(Tensor, self.net(x, own, label))

        nodes = cast(Tensor, self.nodes)
        return self.settings.prediction.velocity(predict, x, t, nodes)


def check_null(settings: Any, what: str) -> None:
    """Raise ReflowError if `what`, such as guidance, needs a class for no label that is missing."""
    if isinstance(settings, Outside) and settings.classes and not settings.null:
        raise ReflowError(
            f"{what} needs a class for no label, and this network has none; if its last class is"
            " that, set model.classes to one less than it embeds and adopt it again"
        )
