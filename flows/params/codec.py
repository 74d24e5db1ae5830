"""A codec of the data: what flows then learn, and what else may not be said."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from fmcore.dataset.kinds import Noise
from fmcore.dataset.samples import Known

if TYPE_CHECKING:
    from flows.params.load import Params


def learned(params: "Params", known: Known) -> Known:
    """Return what is known of the samples that flows learn: of latents neither shape nor image."""
    return known if params.data.codec is None else replace(known, shape=None, image=False)


def no_images(params: "Params") -> str:
    """Say why flows learn no images: their data has none, or a codec makes latents of them."""
    if params.data.codec is None:
        return "this data has none"
    return "flows learn the latents of data.codec"


def impossible_codec(params: "Params", known: Known) -> Iterator[tuple[tuple[str, ...], str]]:
    """A codec for samples that are no images; a codec or conditions of the source."""
    codec, source = params.data.codec, params.source
    if codec is not None and codec.name != "custom" and known.image is False:
        yield (
            ("data", "codec"),
            f"{codec.name} is for images, and this data has none; leave it out",
        )
    if not isinstance(source, Noise) and source.conditions is not None:
        yield ("source", "conditions"), "conditions are of targets, data.conditions; leave it out"
    if not isinstance(source, Noise) and source.codec is not None:
        yield ("source", "codec"), "both sides are encoded by data.codec; remove source.codec"
