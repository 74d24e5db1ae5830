"""Features of the user's own."""

from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from fmcore.own import Own, called
from fmcore.settings import ReflowError, Settings

TAKEN = ("clf", "lite0", "inception", "dinov2", "identity")


class FeatureMap(Settings):
    """The base of features of your own (`name: custom`).

    It has `features` and its settings as fields; a weights file named in them is an input of the
    stage. Images are rounded to the 256 levels of a file. The distance is called fd_ and the class
    name in lower case; distances compare only for the same class, settings and weights.
    """

    @abstractmethod
    def features(self, samples: Tensor) -> Tensor:
        """Return the features [N, d] of samples [N, *D], images in [-1, 1]."""


class Custom(Own):
    """Features of the user's own, a subclass of `FeatureMap`."""

    base: ClassVar[type] = FeatureMap
    epochs: ClassVar[int] = 1

    @property
    def kind(self) -> str:
        """The word for the features in metric names: the class name in lower case."""
        return self.path.partition(":")[2].lower()

    def check(self, own: FeatureMap) -> None:
        """Check that the class name does not give the metric name of other features."""
        if self.kind in TAKEN:
            raise ValueError(f"fd_{self.kind} is the name of another metric; rename the class")


class OwnFeatures(nn.Module):
    """The user's features as a network without weights: called in batches, saved as a config."""

    def __init__(self, settings: Custom) -> None:
        super().__init__()
        self.made_of = settings
        self.config: dict[str, Any] = settings.model_dump(mode="json")

    def features(self, samples: Tensor) -> Tensor:
        """Return the features [N, d] in float32."""
        try:
            found = called(self.made_of.path, self.made_of.own.features, samples)
            wrong = not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(samples)
            if wrong or not bool(found.isfinite().all()):
                shape = list(getattr(found, "shape", ()))
                raise ValueError(
                    f"{self.made_of.path}: features must be finite and [{len(samples)}, d], got"
                    f" {type(found).__name__} {shape}"
                )
        except ValueError as error:
            raise ReflowError(f"yardstick.features: {error}") from None
        features: Tensor = found.float()
        return features
