"""Pairs from outside as a coupling of ours, shard by shard: read, checked, in model units."""

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmcore.checked import folder_digest
from fmcore.conditions.table import Table
from fmcore.coupling.checks import noise_z
from fmcore.coupling.compact import LEVELS, Store
from fmcore.coupling.noise import identities
from fmcore.coupling.read import Coupling, open_coupling
from fmcore.coupling.write import About, packed, table
from fmcore.outside import agreement
from fmcore.outside.chain import ChainRows
from fmcore.outside.kinds import Chain, Files, Import
from fmcore.outside.own import Custom, OwnRows
from fmcore.outside.rows import Block, Rows
from fmcore.settings import BatchSize, Guidance, ReflowError, SampleCount, Settings

SEEN = 4096
"""Pairs of which the ends are compared before any is copied."""
PLACES = 8
"""Places, evenly over all pairs, from which they are taken: pairs may lie sorted by class."""
NOT_NOISE, NOISE = 6.0, 4.0
"""z-scores against N(0, I): above the first an end is no noise, below the second it may be."""


class Imported(Settings):
    """A coupling from outside: its import, how many of its pairs, and how they are stored."""

    of: Import
    pairs: SampleCount | None = None
    """How many pairs are taken, the first ones; null takes all."""
    guidance: Guidance = 1.0
    """The strength of guidance that is in the pairs; 1 is none."""
    shard: BatchSize = 4096
    """Pairs in each Parquet file."""
    store: Store = Store()
    """What of a pair is on disk; its source always is."""
    place: str | None = None
    """Where the pairs of another project were fetched to."""
    digest: str | None = None
    """The hash of the pairs' content, where it is known; null reads all files for it."""

    def ids(self, index: int) -> range:
        """Return the numbers of the pairs in shard `index`; the last shard may have fewer."""
        first = index * self.shard
        return range(first, min(first + self.shard, self.count))

    @property
    def count(self) -> int:
        """How many pairs are taken, once `settled`."""
        assert self.pairs is not None, "settled() counts them"
        return self.pairs

    def settled(self) -> "Imported":
        """Return the settings with the number of pairs that are there.

        Raises ReflowError if there are fewer than asked for, or if the files are not as they say.
        """
        rows = self.of.open(self.place)
        there = rows.count
        if there is None and self.pairs is None:
            raise ReflowError(
                "couplings: this class makes as many pairs as are asked for; give `pairs`"
            )
        if there is not None and self.pairs is not None and self.pairs > there:
            raise ReflowError(f"couplings: {self.pairs} pairs asked for, {there} are there")
        if isinstance(rows, OwnRows):
            rows.check()
        return self.model_copy(update={"pairs": self.pairs or there})


@dataclass(frozen=True)
class Importer:
    """The job that turns pairs from outside into shards of ours."""

    rows: Rows
    about: About
    settings: Imported
    data_units: bool
    """Whether targets are in the data's own units, and still to be mapped."""
    table: Table | None = None
    """The conditions of the data, of which a label is a row."""
    device: torch.device = torch.device("cpu")

    def on(self, device: torch.device) -> Callable[[int], tuple[pa.Buffer, int]]:
        """Return `packed`: what a worker runs."""
        return self.packed

    def packed(self, index: int) -> tuple[pa.Buffer, int]:
        """Return a shard as an Arrow stream, and 0: no network was evaluated here."""
        return packed(self.shard(index)), 0

    def shard(self, index: int) -> pa.Table:
        """Return shard `index`, a pure function of the pairs and their settings."""
        pairs = self.settings.ids(index)
        ids: NDArray[np.int64] = np.arange(pairs.start, pairs.stop)
        block = self.rows.read(pairs.start, pairs.stop)
        own, given = self._side(block, "target", ids), self._side(block, "source", ids)
        units = self.about.units
        target = units.forward(own) if self.data_units else own
        real = self.about.source is not None  # real sources are in the units of the targets
        source = units.forward(given) if self.data_units and real else given
        side = getattr(self.settings.of, "real", None)
        real_id = identities(own if side == "target" else given) if side else block.real_id
        extra = {} if block.kind is None else {"kind": block.kind}
        label = self._label(block, ids)
        return table(self.about, ids, target, source, label, block.gap, real_id, extra)

    def check_ends(self, real: Tensor | None) -> None:
        """Raise ReflowError where the target looks like the noise, and the source does not.

        `real` [M, *D] are the samples that the data starts from, in units of the model, if its
        source is no noise: then the sources of the pairs must lie where those do.
        """
        count = self.settings.count
        if real is not None:
            each = count if count <= SEEN else SEEN // PLACES
            firsts = np.unique(np.linspace(0, count - each, PLACES).astype(int)).tolist()
            given = torch.cat([
                self._side(self.rows.read(first, first + each), "source", first + np.arange(each))
                for first in firsts
            ])  # fmt: skip
            own = self.about.units.forward(given) if self.data_units else given
            agreement.of_source(own, real)
            return
        block, ids = self.rows.read(0, min(SEEN, count)), np.arange(SEEN)
        if block.kind is not None:
            return
        z = {s: noise_z(self._side(block, s, ids).flatten(1).numpy()) for s in ("target", "source")}
        if z["source"] > NOT_NOISE and z["target"] < NOISE:
            raise ReflowError(
                f"couplings: the ends are swapped: the target is N(0, I) (largest z-score"
                f" {z['target']:.2g}), the source is not ({z['source']:.3g}); exchange"
                " import.target and import.source"
            )

    def _side(self, block: Block, side: str, ids: NDArray[np.int64]) -> Tensor:
        """Return one end of some pairs [N, *D], float32, finite, in the shape of the data."""
        x, settings, shape = getattr(block, side), self.settings.of, tuple(self.about.shape)
        span = settings.range if isinstance(settings, Files) else None
        if side == "target" and (x.dtype == np.uint8) != (span is not None):
            is_ = "bytes: give import.range, such as [-1, 1]" if span is None else (
                f"{x.dtype}: import.range is for bytes; leave it out"
            )  # fmt: skip
            raise ReflowError(f"couplings: targets are {is_}")
        if x.dtype.kind not in "fiub":
            held = "texts" if x.dtype.kind in "OU" else x.dtype
            raise ReflowError(
                f"couplings: {side} holds {held}, expected numbers; set import.{side} to another"
                " column"
            )
        found = torch.from_numpy(np.ascontiguousarray(x, np.float32))
        if side == "target" and span is not None:
            found = found / (LEVELS / (span[1] - span[0])) + span[0]
        if isinstance(settings, Files) and settings.channels_last:
            if len(shape) != 3:
                raise ReflowError("couplings: import.channels_last is for images; leave it out")
            found = found.reshape(len(x), *shape[1:], shape[0]).movedim(-1, 1).contiguous()
        elif found.ndim == 2 and found[0].numel() == int(np.prod(shape)):
            found = found.reshape(len(x), *shape)
        if tuple(found.shape[1:]) != shape:
            raise ReflowError(
                f"couplings: {side} of a pair has the shape {list(found.shape[1:])}, the data"
                f" {list(shape)}; prepare data of that shape, or give pairs of this one"
            )
        good = found.flatten(1).isfinite().all(1)
        if not bool(good.all()):
            first = int(ids[int((~good).nonzero()[0])])
            raise ReflowError(
                f"couplings: {side} of pair {first} is not finite ({int((~good).sum())} of"
                f" {len(good)} pairs); make those pairs again, or leave them out"
            )
        return found

    def _label(self, block: Block, ids: NDArray[np.int64]) -> Tensor | None:
        """Return the labels [N], whole numbers from 0: a text is the row of its condition."""
        if block.label is None:
            return None
        x = np.asarray(block.label)
        if x.ndim == 1 and x.dtype.kind in "OU":
            if self.table is not None:
                pairs = zip(x, ids, strict=True)
                x = np.array([self._condition(text, pair) for text, pair in pairs])
            elif all(str(text).isdecimal() for text in x):  # classes that are written as text
                x = x.astype(np.int64)
        whole = x.ndim == 1 and x.dtype.kind in "iub" and bool((x.astype(np.int64) >= 0).all())
        if not whole:
            raise ReflowError(
                f"couplings: labels from pair {ids[0]} on are {x.dtype} {list(x.shape[1:])},"
                " expected one whole number from 0 for each pair; number the classes"
            )
        return torch.from_numpy(x.astype(np.int64))

    def _condition(self, text: object, pair: int) -> int:
        """Return the row of a text in the conditions of the data."""
        row = None if self.table is None else self.table.row(str(text))
        if row is None:
            raise ReflowError(
                f"couplings: the label of pair {pair} is {str(text)[:60]!r}, which is no condition"
                " of the data; add it to the texts of data.conditions, or leave the pair out"
            )
        return row


def importer_of(data: Path, settings: Imported, *, compared: bool = True) -> Importer:
    """Return the importer of pairs for the prepared data in the folder `data`.

    Raises ReflowError for pairs of another kind, unless they are not `compared`: noise that stands
    for data before any was prepared has no source, classes or scale.
    """
    real, rows = open_coupling(data), settings.of.open(settings.place)
    if not settings.store.source:
        raise ReflowError(
            "couplings: store.source false draws noise again from a seed, which pairs from outside"
            " do not have; leave it out"
        )
    if isinstance(rows, ChainRows):
        return _of_chain(real, rows, settings, compared)
    stated = rows.stated
    kind = stated.get("kind")
    if kind in ("mixed", "inverted") and getattr(settings.of, "real", None) is None:
        raise ReflowError(
            f"couplings: the pairs are of a {kind} coupling, made from real samples of which"
            " some are held out; import it by kind reflow, or set import.real to target"
        )
    data_units = (settings.of.units or stated.get("units") or "data") == "data"  # type: ignore[union-attr]
    if compared:
        agreement.of_statement(stated, real, model_units=not data_units)
    strength = agreement.guidance(settings.guidance, stated.get("guidance"))
    guided = strength if strength != 1 else agreement.guided(stated)
    about = _about(real, settings, rows, strength, guided)
    importer = Importer(rows, about, settings, data_units, real.conditions)
    if compared:
        importer.check_ends(real.source.samples)
    return importer


def _of_chain(real: Coupling, rows: ChainRows, settings: Imported, compared: bool) -> Importer:
    other = rows.about
    if compared:
        agreement.of_chain(other, real.about, rows.place)
    strength = agreement.guidance(settings.guidance, other.guidance)
    about = _about(real, settings, rows, strength, other.guided)
    importer = Importer(rows, about, settings, False, real.conditions)
    if compared and real.source.samples is not None:
        importer.check_ends(real.source.samples)
    return importer


def _about(
    real: Coupling, settings: Imported, rows: Rows, guidance: float, guided: float | None
) -> About:
    of = settings.of
    shown = {"units", "real", "range", "channels_last", "source_at"}
    chosen = of.model_dump(include=shown, exclude_none=True, exclude_defaults=True)
    stated = {key: value for key, value in rows.stated.items() if key != "files"}
    origin = {
        "kind": of.name,
        "digest": rows.digest or settings.digest or _digest(of),
        **{key: value for key, value in rows.origin.items() if value is not None},
        **chosen,
        **({"stated": stated} if stated else {}),
    }
    return About(
        kind="imported",
        shape=real.about.shape,
        image=real.about.image,
        pairs=settings.count,
        seed=0,
        guidance=guidance if guidance != 1 else None,
        guided=guided,
        classes=real.about.classes,
        scale=real.about.scale,
        source=real.about.source,
        store=settings.store.settled(image=real.about.image),
        origin=origin,
        conditions=real.about.conditions,
        codec=real.about.codec,
    )


def _digest(of: Import) -> str:
    """Return the hash of the files of an import, or of the file of a class of the user's own."""
    if isinstance(of, Custom):
        file = sys.modules[type(of.own).__module__].__file__
        return hashlib.sha256(Path(file or "").read_bytes()).hexdigest()
    assert not isinstance(of, Chain), "its manifest has the hashes"
    return str(folder_digest(Path(of.path))["sha256"])
