"""What a run is about, for its page in Prefect: name, parameters, tags, the rounds so far."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.dag.identity import whole_chain
from flows.dag.lineage import entries, lock_entries
from flows.dag.lock import Entry
from flows.dag.receipts import metrics
from flows.run.schedule import ChainRun
from fmcore.compare import YARDSTICK
from fmcore.verdict import keys
from fmcore.verdict.errors import with_error


@dataclass(frozen=True)
class About:
    """The name of a run, what chain it is of, and the stages that were not up to date."""

    name: str
    data: str
    seed: int
    rounds: list[str]
    to_run: list[str]

    @property
    def tags(self) -> list[str]:
        """Words by which the runs in the UI can be chosen."""
        return ["reflow", f"data: {self.data}", f"seed: {self.seed}", *self.rounds]


def about(chain_run: ChainRun) -> About:
    """Say what a run is about, before any of its stages begins."""
    whole = whole_chain(chain_run.root, entries(chain_run.root), {})
    seed = whole.settings.get("seed")
    return About(
        name=whole.title,
        data=whole.name,
        seed=seed if isinstance(seed, int) else 0,
        rounds=[r.name for r in whole.rounds if not r.replicate_of],
        to_run=[name for name in chain_run.stages if name not in chain_run.unchanged],
    )


def rounds_so_far(chain_run: ChainRun) -> list[dict[str, Any]]:
    """Return a row for each round: the state of its stages, and its numbers once it is measured."""
    locked = lock_entries(chain_run.root)
    rows: list[dict[str, Any]] = []
    for stage in chain_run.stages:
        verb, _, name = stage.partition("@")
        if verb == "train":
            rows.append({"round": name, "trained": _state(chain_run, stage)})
            scored = f"evaluate@{name}"
            rows[-1]["measured"] = _state(chain_run, scored)
            if rows[-1]["measured"] in ("done", "cached") and scored in locked:
                values = metrics(chain_run.root, locked[scored])
                rows[-1] |= _numbers(_metric(chain_run.root, locked), values)
    return rows


def _state(chain_run: ChainRun, stage: str) -> str:
    found = chain_run.results.get(stage)
    return found.state if found else "-"


def _metric(root: Path, locked: Mapping[str, Entry]) -> str:
    """Return the distance that judges the rounds, as `calibrate` chose it."""
    out = locked["calibrate"].path("out")
    return str(json.loads((root / out / YARDSTICK).read_text())["metric"])


def _numbers(metric: str, values: Mapping[str, float]) -> dict[str, str]:
    """Return the distances at the least and the largest NFE, and the straightness, with errors."""
    nfes = sorted(nfe for name, nfe, _ in keys.measured(values) if name == metric)
    ends = dict.fromkeys((*nfes[:1], *nfes[-1:]))
    named = {f"{metric} at NFE {nfe}": keys.at_nfe(metric, nfe) for nfe in ends}
    named["straightness_rel"] = "straightness_rel"
    found = {shown: (values.get(key), values.get(keys.error(key))) for shown, key in named.items()}
    return {shown: with_error(v, se) for shown, (v, se) in found.items() if v is not None}
