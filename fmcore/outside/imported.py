"""Pairs from outside as a coupling of ours, shard by shard: read, checked, in model units."""

import hashlib
import math
import sys
from collections.abc import Callable, Sequence
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
from fmcore.coupling.compact import Store
from fmcore.coupling.read import Coupling, open_coupling
from fmcore.coupling.write import About, packed, table
from fmcore.outside import agreement, sides, states
from fmcore.outside.chain import ChainRows
from fmcore.outside.kinds import Chain, Import
from fmcore.outside.own import Custom, OwnRows
from fmcore.outside.real import Real, real_of
from fmcore.outside.rows import Block, Rows
from fmcore.settings import BatchSize, Guidance, ReflowError, SampleCount, Settings

SEEN = 4096
"""Pairs of which the ends are compared before any is copied."""
PLACES = 8
"""Places, evenly over all pairs, from which they are taken: pairs may lie sorted by class."""
FEW = 256
"""Pairs of which the states are compared with the ends, at most."""
AT_ONCE = 1 << 26
"""Numbers of their states that are in memory for that."""
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
        """Return the settings with the number of pairs, and of pieces of a path, that are there.

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
        store = states.settled(self.store, rows.times)
        return self.model_copy(update={"pairs": self.pairs or there, "store": store})


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
    real: Real | None = None
    """The prepared samples that are among the pairs, where a side is said to hold real ones."""
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
        pieces = self.settings.store.pieces
        block = self.rows.read(pairs.start, pairs.stop, states=pieces > 1)
        own, given = self._side(block, "target", ids), self._side(block, "source", ids)
        target, source = self._mapped(own, "target"), self._mapped(given, "source")
        ends = {"target": (target, own), "source": (source, given)}
        real_id = block.real_id if self.real is None else self.real.identities(ends)
        extra = {} if block.kind is None else {"kind": block.kind}
        if pieces > 1:
            kept = states.places(self.rows.times, pieces)
            extra["trajectory"] = self._states(block, kept, ids).numpy()
        label = sides.label(block.label, self.table, ids)
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
            agreement.of_source(self._mapped(given, "source"), real)
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

    def check_states(self) -> None:
        """Raise ReflowError where the states of some pairs lie on no path between their ends."""
        times, size = self.rows.times, math.prod(self.about.shape)
        few = max(agreement.SOME, min(FEW, AT_ONCE // (size * len(times))))
        count = min(few, self.settings.count)
        block, ids = self.rows.read(0, count, states=True), np.arange(count)
        path = self._states(block, range(len(times)), ids)
        ends = (self._mapped(self._side(block, s, ids), s) for s in ("target", "source"))
        agreement.of_states(path, times, *ends)

    def _side(self, block: Block, side: str, ids: NDArray[np.int64]) -> Tensor:
        """Return one end of some pairs [N, *D], in the units in which it is given."""
        return sides.end(getattr(block, side), side, self.settings.of, tuple(self.about.shape), ids)

    def _states(self, block: Block, kept: Sequence[int], ids: NDArray[np.int64]) -> Tensor:
        """Return the states [N, S, *D] at the places `kept` [S] of those that there are."""
        assert block.states is not None, "they were asked for"
        shape = tuple(self.about.shape)
        found = sides.states(block.states[:, list(kept)], self.settings.of, shape, ids)
        return torch.stack([self._mapped(x, "source") for x in found.unbind(1)], dim=1)

    def _mapped(self, x: Tensor, side: str) -> Tensor:
        """Return an end [N, *D] in the units of the model: noise is in them, targets may not be."""
        of_data = side == "target" or self.about.source is not None
        return self.about.units.forward(x) if self.data_units and of_data else x


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
    known = real_of(real, getattr(settings.of, "real", None))
    if kind in ("mixed", "inverted") and known is None:
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
    importer = Importer(rows, about, settings, data_units, real.conditions, known)
    if compared:
        importer.check_ends(real.source.samples)
    return _with_states(importer, compared)


def _of_chain(real: Coupling, rows: ChainRows, settings: Imported, compared: bool) -> Importer:
    other = rows.about
    if compared:
        agreement.of_chain(other, real.about, rows.place)
    strength = agreement.guidance(settings.guidance, other.guidance)
    about = _about(real, settings, rows, strength, other.guided)
    importer = Importer(rows, about, settings, False, real.conditions)
    if compared and real.source.samples is not None:
        importer.check_ends(real.source.samples)
    return _with_states(importer, compared)


def _with_states(importer: Importer, compared: bool) -> Importer:
    """Return the importer; raise ReflowError if states are kept that do not suit their pairs."""
    if importer.settings.store.pieces > 1:
        about = importer.about
        if importer.data_units and about.source is None and not about.units.identity:
            raise ReflowError(
                "couplings: states are between noise and targets, so in the units of the noise:"
                " give targets in them too (import.units: model), or leave the states out (store:"
                " {pieces: 1})"
            )
        if compared:
            importer.check_states()
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
        **({"times": list(rows.times)} if settings.store.pieces > 1 else {}),
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
