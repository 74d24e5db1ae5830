"""A coupling of params.yaml: sampled from a round, or imported."""

from pydantic import Field, model_validator

from fmcore.outside.imported import Imported
from fmcore.outside.kinds import Import
from fmcore.sampling.pairs import Couple
from fmcore.settings import GuidanceWithin, Seed, strength

BESIDE_IMPORT = {"import_", "round", "pairs", "shard", "store", "guidance"}
"""The settings that a coupling may have beside an import."""


class CouplingOf(Couple):
    """A coupling: the round whose ODE produces it and how it is sampled, or where it comes from."""

    round: str
    """The round whose ODE makes the pairs. Of imported pairs: the round that made them, or
    `scratch` where that model is not in the chain."""
    seed: Seed | None = None
    """Seed of the pairs itself; `seed` in a coupling's manifest repeats that coupling. null derives
    it from the chain's seed and the number of rounds before `round`."""
    pairs: int = Field(default=0, ge=0, le=10**9)
    """How many pairs are sampled, or taken from an import; 0, for an import alone, takes all. Raise
    it when held_out_ratio warns on the round that trains on them."""
    import_: Import | None = Field(default=None, alias="import")
    """Where the pairs come from, if somebody else made them: they are copied, checked and versioned
    as ours are. Beside it only round, pairs, shard, store, and the guidance that is in them."""

    @model_validator(mode="after")
    def _sampled_or_imported(self) -> "CouplingOf":
        if self.import_ is None:
            if not self.pairs:
                raise ValueError("pairs: is missing; add it")
            return self
        if idle := sorted(self.model_fields_set - BESIDE_IMPORT):
            raise ValueError(f"{idle[0]} has no effect on imported pairs; leave it out")
        if isinstance(self.guidance, GuidanceWithin):
            raise ValueError("guidance of imported pairs is one number, the strength in them")
        if not self.store.source:
            raise ValueError(
                "store.source false draws noise again from a seed, which imported pairs do not"
                " have; leave it out"
            )
        return self

    def imported(self, place: str | None, digest: str | None) -> Imported:
        """Return the settings of the import; `place` is where it was fetched to, if it was."""
        assert self.import_ is not None
        return Imported(
            of=self.import_,
            pairs=self.pairs or None,
            guidance=strength(self.guidance),
            shard=self.shard,
            store=self.store,
            place=place,
            digest=digest,
        )
