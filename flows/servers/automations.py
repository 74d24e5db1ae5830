"""Automations of Prefect that tell of a gate that failed, and of a better one-step model.

The events come from `flows/run/notices.py`. Whom an automation tells is a notification block of
the user's; without one it fires and does nothing, until an action is added in the Prefect UI.
"""

from datetime import timedelta
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.events.actions import DoNothing, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound

from fmcore.settings import ReflowError

GATE = "reflow.gate"
"""Begins the event of a gate: `reflow.gate.warn`, `reflow.gate.fail`."""
ALIAS = "reflow.alias.moved"
BODY = "{{ event.payload.says }}\n{{ flow_run.name }}: {{ flow_run | ui_url | default('', true) }}"


def block(client: SyncPrefectClient, named: str) -> UUID:
    """Return the notification block `TYPE/NAME`. Raises ReflowError if there is none."""
    kind, _, name = named.partition("/")
    try:
        return client.read_block_document_by_name(name, kind).id
    except ObjectNotFound:
        raise ReflowError(
            f"--notify: expected TYPE/NAME of a notification block of the Prefect server, such as"
            f" slack-webhook/team, got {named!r}; make one in its UI, under Blocks"
        ) from None


def register(client: SyncPrefectClient, notify: UUID | None = None) -> None:
    """Register the two automations; `notify` is the notification block that they send to.

    Without it an automation that is there keeps its actions, and whether it is enabled.
    """
    for automation, subject in (_gate_failed(), _better_model()):
        known = client.read_automations_by_name(automation.name)
        if notify is not None:
            send = SendNotification(block_document_id=notify, subject=subject, body=BODY)
            automation.actions = [send]
        elif known:
            automation.actions, automation.enabled = known[0].actions, known[0].enabled
        if known:
            client.update_automation(known[0].id, automation)
        else:
            client.create_automation(automation)


def _gate_failed() -> tuple[AutomationCore, str]:
    """Return the automation of a gate that failed, and the subject of its message."""
    match = {"prefect.resource.id": f"{GATE}.*"}
    about = "The stage was refused; what depends on it did not run."
    subject = "reflow: gate {{ event.payload.gate }} failed at {{ event.payload.stage }}"
    return _automation("reflow: a gate failed", about, match, f"{GATE}.fail"), subject


def _better_model() -> tuple[AutomationCore, str]:
    """Return the automation of a better one-step model, and the subject of its message."""
    match = {"prefect.resource.id": "reflow.model.*", "reflow.use": "one_step"}
    about = "The alias one_step of a registered model moved, by the rule of promotion."
    subject = "reflow: {{ event.payload.round }} is the one-step model of {{ event.payload.model }}"
    return _automation("reflow: a better one-step model", about, match, ALIAS), subject


def _automation(name: str, about: str, match: dict[str, str], event: str) -> AutomationCore:
    return AutomationCore(
        name=name,
        description=about,
        trigger=EventTrigger(
            match=ResourceSpecification(match),
            for_each={"prefect.resource.id"},
            expect={event},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[DoNothing()],
    )
