"""Automations of a real Prefect server tell of a gate that failed and of a better model."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests import servers
from tests.servers import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.servers]
BLOCK = """
import sys
from prefect.blocks.notifications import CustomWebhookNotificationBlock as Webhook
words = {"subject": "{{subject}}", "body": "{{body}}"}
Webhook(name="team", url=sys.argv[1], json_data=words).save("team")
"""


@pytest.fixture(scope="module")
def ui(finished):
    chain = servers.copy(finished, "notices")
    shutil.rmtree(chain.root / ".reflow" / "mlflow")  # so that the first alias is set here
    with servers.running(chain) as ui:
        yield ui


@pytest.fixture(scope="module")
def told():
    """The messages that a webhook gets, and its address."""
    found = []

    class Webhook(BaseHTTPRequestHandler):
        def do_POST(self):
            found.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Webhook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield found, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def automations(ui):
    found = ui.ask("/automations/filter", {})
    return {a["name"]: a for a in found if a["name"] in (FAILED, BETTER)}


FAILED, BETTER = "reflow: a gate failed", "reflow: a better one-step model"


def test_the_servers_have_the_automations_and_one_option_says_whom_they_tell(ui, told):
    assert {a["actions"][0]["type"] for a in automations(ui).values()} == {"do-nothing"}
    words = ui.chain.reflow("env").stdout.splitlines()
    known = [w.removeprefix("export ").replace("'", "") for w in words if w.startswith("export ")]
    ui.chain.sh("env", *known, "python", "-W", "ignore", "-c", BLOCK, told[1])
    deploy = ("deploy", "--name", "told", "--pool", "gpus")
    wrong = ui.chain.reflow(*deploy, "--notify", "slack-webhook/none", check=False)
    assert wrong.returncode == 2 and "--notify: expected TYPE/NAME" in wrong.stderr
    ui.chain.reflow(*deploy, "--notify", "custom-webhook/team")
    ui.chain.reflow(*deploy)  # an action that is there stays
    found = automations(ui)
    assert set(found) == {FAILED, BETTER}
    assert {a["actions"][0]["type"] for a in found.values()} == {"send-notification"}


def test_a_gate_that_fails_is_told_with_its_stage_and_its_reason(ui, told):
    ui.chain.edit("params.yaml", "pairs: 2000", "pairs: 600")
    ui.chain.edit("params.yaml", "gates: {}", "gates: {endpoint_shift: {warn: 0, fail: 0}}")
    assert ui.chain.reflow("run", "--no-mlflow", check=False).returncode == 1
    (message,) = wait_for(lambda: told[0], 30)
    assert message["subject"] == "reflow: gate endpoint_shift failed at couple@rf1"
    assert "mean and spread of the endpoints differ" in message["body"]
    (run,) = ui.ask("/flow_runs/filter", {})
    link = f"{ui.urls['prefect']}/runs/flow-run/{run['id']}"
    assert message["body"].endswith(f"{run['name']}: {link}")
    asked = {"filter": {"event": {"name": ["reflow.gate.fail"]}}}
    # Prefect stores events in batches, after its automations have seen them.
    (event,) = wait_for(lambda: ui.ask("/events/filter", asked)["events"], 30)
    assert event["payload"]["level"] == 0 < event["payload"]["value"]
    assert event["payload"]["round"] == "rf1" and event["payload"]["gate"] == "endpoint_shift"
    assert f"prefect.flow-run.{run['id']}" in [r["prefect.resource.id"] for r in event["related"]]


def test_a_better_one_step_model_is_told_with_both_distances(ui, told):
    ui.chain.edit("params.yaml", "{warn: 0, fail: 0}", "{warn: 0, fail: null}")
    ui.chain.edit("params.yaml", "steps: 200,", "steps: 5, ")
    for messages, steps in ((2, "5, "), (3, "200,")):
        if messages == 3:
            ui.chain.edit("params.yaml", "steps: 5, ", f"steps: {steps}")
        ui.chain.reflow("run")
        wait_for(lambda n=messages: len(told[0]) == n, 30)
    assert all(m["subject"].startswith("reflow: rf") for m in told[0][1:])
    assert "before none" in told[0][1]["body"]
    events = ui.ask("/events/filter", {"filter": {"event": {"name": ["reflow.alias.moved"]}}})
    moved = [e["payload"] for e in events["events"] if e["payload"]["use"] == "one_step"]
    better = next(p for p in moved if p["before"])
    assert better["round"] == "rf2" and better["now"]["nfe"] == 1
    assert better["now"]["distance"] + better["now"]["error"] < better["before"]["distance"]
    warned = ui.ask("/events/filter", {"filter": {"event": {"name": ["reflow.gate.warn"]}}})
    assert {e["payload"]["stage"] for e in warned["events"]} >= {"couple@rf1"}
