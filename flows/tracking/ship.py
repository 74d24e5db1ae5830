"""`reflow ship`: move aliases of the registered model by hand, or give them back to the rule."""

from collections.abc import Sequence
from pathlib import Path

from flows.dag.chain import chain
from flows.dag.lineage import lock_entries
from flows.project.locks import locked
from flows.tracking.client import Tracker, answers
from flows.tracking.promotion import USES
from flows.tracking.registry import SHIPPED, Registered, offer, register
from fmcore.settings import ReflowError


def ship(root: Path, round_: str | None, uses: Sequence[str] = USES) -> list[str]:
    """Point the aliases of `uses` at a round of the chain in dvc.lock, and say what changed.

    They stay there whatever is published later. Without a round they follow the rule again.

    Raises ReflowError if the round is not there, not measured at that use, or not published.
    """
    for use in uses:
        if use not in USES:
            raise ReflowError(f"--as: expected one of {', '.join(USES)}, got {use!r}")
    held = "a `reflow publish`, or the end of a run, is writing to MLflow"
    mend = "wait for it to end, then ship again"
    with locked(root, "publish", held, mend, patience=10), answers():
        entries = lock_entries(root)
        whole = chain(entries, entries)
        given = offer(root, whole)
        if round_ is not None and round_ not in given.distances:
            known = ", ".join(given.distances)
            raise ReflowError(f"no round {round_!r} in the comparison; it has: {known}")
        tracker = Tracker(root)
        model = Registered(tracker, whole)
        if round_ is None:
            for use in uses:
                model.set_tag(f"{SHIPPED}{use}", None)
            return [str(moved) for moved in register(tracker, whole, given)[0]]
        version, said = model.add(round_, given), []
        for use in uses:
            model.set_tag(f"{SHIPPED}{use}", version)
            model.point(use, version, given.yardstick)
            said.append(f"models:/{model.name}@{use} is {model.describe(version)}, shipped by hand")
        return said
