"""What a text encoder is: it embeds texts, and its digest says which one it is."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fmcore.settings import Settings


@dataclass(frozen=True)
class Embedded:
    """Texts as vectors [N, E], or as sequences [N, L, E] with a mask [N, L] and pooled [N, P]."""

    vectors: Tensor
    mask: Tensor | None = None
    pooled: Tensor | None = None


class TextEncoder(Settings):
    """The base of every text encoder.

    One of your own (`name: custom`) has `encode`, its settings as fields, and `digest`, which
    changes when its weights do. A file or folder named in its settings is an input of `prepare`.
    """

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Embedded:
        """Embed some texts [N]; the embedding of one depends on it alone. "" is no condition."""

    @abstractmethod
    def digest(self) -> str:
        """Return a hash of the weights and the vocabulary."""

    def record(self) -> dict[str, Any]:
        """Return the settings and the digest, as a table keeps them."""
        return {**self.model_dump(mode="json"), "sha256": self.digest()}
