"""What a person does to a deployment in Prefect's pages, by clicks in Chromium."""

from datetime import datetime, timedelta

import pytest

from tests import browser, servers
from tests.browser import shot
from tests.flows.deploy.test_deployed import registered, resumed, trained, working_in
from tests.servers import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.servers, browser.needed]
LONG = '{"overrides": {"rounds.rf2.train.steps": 12000}}'
"""The order of the deployment, so that Quick run has something to suspend."""


@pytest.fixture(scope="module")
def ui(finished):
    with servers.running(servers.copy(finished, "pages")) as ui:
        yield ui


@pytest.fixture(scope="module")
def deployment(ui):
    """A served deployment with a schedule that does not fire meanwhile."""
    then = datetime.now() + timedelta(days=20)
    words = ("deploy", "--order", LONG, "--cron", f"0 0 {then.day} {then.month} *")
    process = ui.start("deploy.log", "reflow", *words)
    yield registered(ui, "chain", process)["id"]
    process.terminate()
    process.wait(60)


@pytest.fixture
def tab(ui):
    with browser.opened(ui) as tab:
        yield tab


def click(tab, words):
    tab.get_by_role("button", name=words, exact=True).click()


def test_a_run_is_started_suspended_resumed_cancelled_and_retried(ui, deployment, tab):
    tab.goto(f"{ui.urls['prefect']}/deployments/deployment/{deployment}")
    tab.locator(".run-menu__run-button").click()
    tab.get_by_text("Quick run").click()
    which = {"deployments": {"id": {"any_": [deployment]}}}

    def started():
        found = ui.ask("/flow_runs/filter", which)
        return next((r for r in found if not r["auto_scheduled"]), None)

    run = wait_for(started)
    number, name = run["id"], f"{run['name']}-{run['id'][:8]}"
    folder = ui.chain.root / ".reflow/worktrees" / name
    tab.goto(f"{ui.urls['prefect']}/runs/flow-run/{number}")
    wait_for(lambda: trained(ui, number, 1500), 240)

    click(tab, "Suspend")
    tab.get_by_text("Do you want to suspend").wait_for()
    click(tab, "Submit")
    wait_for(lambda: ui.state(number) == "PAUSED", 30)
    wait_for(lambda: not working_in(folder), 30)
    wait_for(lambda: ui.tasks(number)["train@rf2"] == "Suspended", 30)
    assert not trained(ui, number, 12000)
    tab.get_by_role("button", name="Resume", exact=True).wait_for()
    shot(tab, "prefect_suspended")

    click(tab, "Resume")
    tab.get_by_text("Do you want to resume").wait_for()
    click(tab, "Submit")
    wait_for(lambda: resumed(ui, number), 240)

    click(tab, "Cancel")
    tab.get_by_text("This will put flow run").wait_for()
    click(tab, "Confirm")
    wait_for(lambda: ui.state(number) == "CANCELLED", 120)
    wait_for(lambda: not working_in(folder), 30)
    assert not trained(ui, number, 12000)

    click(tab, "Retry")
    tab.get_by_text("This will retry flow run").wait_for()
    tab.get_by_role("button", name="Retry", exact=True).last.click()
    wait_for(lambda: ui.state(number) == "RUNNING", 60)
    assert ui.ended(number, 600) == "COMPLETED", "\n".join(ui.logs(number))
    assert "steps: 12000" in ui.chain.sh("git", "show", f"reflow/{name}:params.yaml").stdout
    tab.get_by_text("Completed").first.wait_for()
    tab.wait_for_timeout(3000)
    shot(tab, "prefect_retried")


def test_a_paused_schedule_starts_nothing_until_it_is_switched_on(ui, deployment, tab):
    which = {
        "deployments": {"id": {"any_": [deployment]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }

    def waiting():
        return [r for r in ui.ask("/flow_runs/filter", which) if r["auto_scheduled"]]

    wait_for(waiting)
    tab.goto(f"{ui.urls['prefect']}/deployments/deployment/{deployment}")
    switch = tab.get_by_role("switch")
    switch.wait_for()
    shot(tab, "prefect_schedule")
    for on in (False, True):
        switch.click()
        wait_for(lambda on=on: bool(waiting()) is on, 60)
        (schedule,) = ui.ask(f"/deployments/{deployment}")["schedules"]
        assert schedule["active"] is on
