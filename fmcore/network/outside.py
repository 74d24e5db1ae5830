"""A network that others trained, as a velocity of the linear interpolant."""

from contextlib import nullcontext
from typing import Annotated, Any, Literal, cast

from pydantic import Field
from torch import Tensor, nn

from fmcore.network.diffusers_class import DiffusersClass, DiffusersNetwork
from fmcore.network.given import Given
from fmcore.network.own import Custom, OwnNetwork
from fmcore.network.predictions import AnyPrediction
from fmcore.network.spans import SpanInput, Spans
from fmcore.settings import ReflowError, Settings


class Outside(Settings):
    """A network of diffusers, or of one's own, and what it predicts."""

    name: Literal["outside"]
    """A network that predicts something else than our velocity, in times of its own."""
    network: Annotated[DiffusersClass | Custom, Field(discriminator="name")]
    """The network: a class of diffusers, or a class of one's own, called with its own times."""
    prediction: AnyPrediction
    """What the network predicts, at which times."""
    spans: Spans = False
    """Whether a network of diffusers has an added input for spans, from a round of mean_flow."""

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
    """v(x, t): x [B, *D], t [B] in [0, 1], label [B] or None -> dx/dt [B, *D].

    With `settings.spans` also of the span [B], whose embedding is added to those of the time, with
    weights that are 0 before training. A network of the user's own takes it as an argument. What
    the network predicts is turned into the average velocity as it is into the velocity.
    """

    tile: int
    """Rows of a network call on the CPU."""

    def __init__(self, settings: Outside, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.settings, self.shape = settings, shape
        self.net: DiffusersNetwork | OwnNetwork = settings.network.build(shape)
        pixels = shape[1] * shape[2] if len(shape) == 3 else 1
        own = self.net.tile if isinstance(self.net, OwnNetwork) else 32
        self.tile = min(own, max(1, 32**3 // pixels))
        if settings.spans:
            self.span = SpanInput(self.net)
        self.register_buffer("nodes", settings.prediction.nodes(), persistent=False)

    @property
    def given(self) -> Given | None:
        """The table of conditions that the network takes; None if it takes none."""
        return getattr(self.net, "given", None)

    def forward(
        self, x: Tensor, t: Tensor, label: Tensor | None = None, span: Tensor | None = None
    ) -> Tensor:
        """Return the velocity of the linear interpolant; of a span its mean over [t - span, t]."""
        own = span is not None and isinstance(self.net, OwnNetwork)
        if span is not None and not (own or self.settings.spans):
            raise ValueError("this network has no input for spans; use with_spans")
        more = (span,) if own else ()

        def predict(x: Tensor, time: Tensor) -> Tensor:
            return cast(Tensor, self.net(x, time, label, *more))

        nodes = cast(Tensor, self.nodes)
        with nullcontext() if own or span is None else self.span.added(span):
            return self.settings.prediction.velocity(predict, x, t, nodes)


def check_null(settings: Any, what: str) -> None:
    """Raise ReflowError if `what`, such as guidance, needs a class for no label that is missing."""
    if isinstance(settings, Outside) and settings.classes and not settings.null:
        raise ReflowError(
            f"{what} needs a class for no label, and this network has none; if its last class is"
            " that, set model.classes to one less than it embeds and adopt it again"
        )
