"""Text encoders: from an installed wheel, from a folder of the user, or a class of one's own.

Nothing is downloaded. An encoder's record, with a digest of its weights, is part of the table that
it makes, hence of the identity of all that is made with it.
"""

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file

from fmcore.checked import sha256
from fmcore.conditions.base import Embedded, TextEncoder
from fmcore.conditions.pretrained import EncoderFolder, EncoderPipeline
from fmcore.conditions.table import Table
from fmcore.own import Own, called, read
from fmcore.settings import ReflowError, Settings

__all__ = [
    "Conditions",
    "CustomEncoder",
    "Embedded",
    "Encoder",
    "EncoderFolder",
    "EncoderPipeline",
    "TextEncoder",
    "WordLlama",
    "beside",
    "table_of",
]


class WordLlama(TextEncoder):
    """Static vectors of tokens, averaged, from the wheel of wordllama: 16 MB, on any CPU.

    A text is the mean of its tokens' vectors, scaled to the length sqrt(dim); the empty one is 0.
    """

    name: Literal["wordllama"]
    dim: int = Field(default=64, ge=8, le=256)
    """Numbers of a text's vector: the first of 256, which were trained to be cut (Matryoshka) at
    64, 128 or 256."""

    def files(self) -> tuple[Path, Path]:
        """Return the files of the vectors and of the tokens; raise ReflowError without them."""
        found = find_spec("wordllama")
        folder = Path(next(iter((found and found.submodule_search_locations) or ["wordllama"])))
        vectors = folder / "weights" / "l2_supercat_256.safetensors"
        tokens = folder / "tokenizers" / "l2_supercat_tokenizer_config.json"
        if not vectors.is_file() or not tokens.is_file():
            raise ReflowError(
                "data.conditions.encoder wordllama: needs the package with its weights; `pip"
                " install 'reflow-chain[text]'`"
            )
        return vectors, tokens

    def digest(self) -> str:
        """Return the hash of both files."""
        return hashlib.sha256("".join(map(sha256, self.files())).encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> Embedded:
        """Return the mean of the vectors of each text's tokens, scaled."""
        from tokenizers import Tokenizer

        weights, tokens = self.files()
        try:
            table = load_file(weights)["embedding.weight"][:, : self.dim].float()
        except (SafetensorError, KeyError) as error:
            raise ReflowError(f"{weights}: cannot be read ({error}); install it again") from error
        split, rows = Tokenizer.from_file(str(tokens)), []
        for text in texts:
            ids = split.encode(text, add_special_tokens=False).ids if text else []
            mean = table[ids].mean(0) if ids else torch.zeros(self.dim)
            rows.append(mean * self.dim**0.5 / mean.norm().clamp(min=1e-6))
        return Embedded(torch.stack(rows))


class CustomEncoder(Own, TextEncoder):
    """A text encoder of the user's own, a subclass of `TextEncoder`."""

    base: ClassVar[type] = TextEncoder

    def encode(self, texts: Sequence[str]) -> Embedded:
        """Return what the user's encoder gives, checked."""
        try:
            found = called(self.path, self.own.encode, list(texts))
        except ValueError as error:
            raise ReflowError(str(error)) from None
        return _checked(found, len(texts), self.path)

    def digest(self) -> str:
        """Return the digest that the user's encoder gives."""
        return str(called(self.path, self.own.digest))


Encoder = Annotated[
    WordLlama | EncoderFolder | EncoderPipeline | CustomEncoder, Field(discriminator="name")
]


class Conditions(Settings):
    """A vector or a text beside each sample: a class whose embedding is given, not learnt."""

    encoder: Encoder | None = None
    """The text encoder, which embeds each text once: `{name: wordllama, dim: 64}`, `{name: folder,
    path: ...}`, `{name: pipeline, path: ...}` or a class of your own. null is for vectors, which
    are taken as they are."""
    column: str | None = None
    """Where an array file has them: the column of Parquet or CSV, the array of .npz; for images the
    key in metadata.jsonl. null takes `text`; vectors need a name."""


def table_of(texts: Sequence[str], encoder: TextEncoder) -> Table:
    """Embed the texts [K] of conditions, and the empty text as the null condition."""
    found = _checked(encoder.encode([*texts, ""]), len(texts) + 1, type(encoder).__name__)
    return Table(found.vectors, found.mask, found.pooled, tuple(texts), encoder.record())


def beside(texts: Sequence[str], known: Table) -> Table:
    """Embed new texts with the encoder of a table; null is that of the table.

    Raises ReflowError if the table has no encoder, or it is no longer the same.
    """
    if known.encoder is None:
        raise ReflowError(
            "--prompt: the conditions of this model are vectors, not texts; name one by --label"
        )
    rows = [known.row(text) for text in texts]
    if all(row is not None for row in rows):  # no encoder is needed
        kept = torch.tensor([*rows, len(known)])
        mask = None if known.mask is None else known.mask[kept]
        pooled = None if known.pooled is None else known.pooled[kept]
        return Table(known.vectors[kept], mask, pooled, tuple(texts), known.encoder)
    said = {key: value for key, value in known.encoder.items() if key != "sha256"}
    encoder: TextEncoder = read(Encoder, said, "the encoder of this model's conditions")
    if (digest := encoder.digest()) != known.encoder["sha256"]:
        raise ReflowError(
            f"--prompt: the text encoder {said['name']} is another one than that of the model"
            f" (sha256 {digest[:12]}, expected {known.encoder['sha256'][:12]}); install the same"
        )
    return table_of(texts, encoder)


def _checked(found: object, count: int, place: str) -> Embedded:
    """Return embeddings of `count` texts; raise ReflowError for anything else."""
    if not isinstance(found, Embedded):
        raise ReflowError(f"{place}: encode must give Embedded, got {type(found).__name__}")
    given = (found.vectors, found.mask, found.pooled)
    if any(x is not None and len(x) != count for x in given) or found.vectors.ndim not in (2, 3):
        raise ReflowError(
            f"{place}: encode must give vectors [{count}, E], or sequences [{count}, L, E] with a"
            f" mask and pooled vectors; got {[list(x.shape) for x in given if x is not None]}"
        )
    if found.vectors.ndim == 3 and (found.mask is None or found.pooled is None):
        raise ReflowError(f"{place}: sequences need a mask [N, L] and pooled vectors [N, P]")
    if not all(bool(x.isfinite().all()) for x in given if x is not None and x.is_floating_point()):
        raise ReflowError(f"{place}: an embedding is not finite; mend the encoder or the texts")
    return found
