"""Events for Prefect: a gate that warned or failed, an alias of the registered model that moved.

Automations answer them (`flows/servers/automations.py`). In a flow run Prefect adds to each event
what it belongs to: the run, its deployment, its tags.
"""

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from prefect.events import emit_event

from flows.project.events import GateEvent
from flows.servers.automations import ALIAS, GATE

if TYPE_CHECKING:
    from flows.tracking.promotion import Score
    from flows.tracking.registry import Moved


def gates(stage: str, judged: Iterable[GateEvent]) -> None:
    """Tell Prefect which gates warned or failed at a stage: `reflow.gate.warn`, `.fail`."""
    verb, _, name = stage.partition("@")
    for found in judged:
        resource = {
            "prefect.resource.id": f"{GATE}.{stage}.{found.gate}",
            "prefect.resource.name": f"{found.gate} at {stage}",
            "reflow.stage": stage,
            "reflow.gate": found.gate,
            "reflow.coupling" if verb == "couple" else "reflow.round": name,
        }
        payload = {"stage": stage, "round": name, **asdict(found)}
        emit_event(f"{GATE}.{found.state}", resource=resource, payload=payload)


def aliases(moved: "Iterable[Moved]") -> None:
    """Tell Prefect which aliases moved to which version, and both distances: `ALIAS`."""
    for found in moved:
        resource = {
            "prefect.resource.id": f"reflow.model.{found.model}@{found.use}",
            "prefect.resource.name": f"{found.model}@{found.use}",
            "reflow.use": found.use,
            "reflow.round": found.round,
        }
        payload = {
            "model": found.model, "use": found.use, "version": found.version,
            "round": found.round, "now": _numbers(found.now), "before": _numbers(found.before),
            "says": _words(found),
        }  # fmt: skip
        emit_event(ALIAS, resource=resource, payload=payload)


def _numbers(score: "Score | None") -> dict[str, Any] | None:
    return asdict(score) if score else None


def _words(found: "Moved") -> str:
    return f"{found.says}: {found.now or '-'}; before {found.before or 'none'}"
