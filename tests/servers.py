"""A project's servers for the tests: a running `reflow ui`, and questions to its Prefect."""

import json
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager

from tests.real_chain import Chain


def wait_for(what, seconds=90, every=0.5):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(every)
    raise AssertionError(f"waited {seconds} s in vain")


class Ui:
    """A running `reflow ui`."""

    def __init__(self, chain, **more):
        self.chain, self.env = chain, {**chain.env(), **more}
        self.log = chain.root.parent / "ui.log"
        self.process = self.start("ui.log", "reflow", "ui")
        self.file = chain.root / ".reflow" / "servers.json"
        wait_for(lambda: self.file.exists() or self.process.poll() is not None)
        assert self.file.exists(), self.log.read_text()
        self.urls = json.loads(self.file.read_text())

    def ask(self, path, body=None):
        auth = (self.chain.root / ".reflow/prefect/auth").read_text().strip()
        headers = {"Authorization": f"Basic {b64encode(auth.encode()).decode()}"}
        headers["Content-Type"] = "application/json"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.urls['prefect']}/api{path}", data, headers)
        with urllib.request.urlopen(request, timeout=20) as reply:
            return json.loads(reply.read() or "null")

    def start(self, log, *command):
        """Start a command of the project beside the servers; its output is in the file `log`."""
        if command[0] == "reflow":
            command = (*self.chain.REFLOW, *command[1:])
        with (self.chain.root.parent / log).open("w") as out:
            return subprocess.Popen(
                command, cwd=self.chain.root, env=self.env, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip

    def logs(self, run):
        lines = self.ask("/logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}})
        return [line["message"] for line in lines]

    def tasks(self, run):
        """Return the state of each stage of a flow run."""
        found = self.ask("/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
        return {t["name"]: t["state_name"] for t in found}

    def order(self, deployment, order, name):
        """Ask a deployment for a run, as its form does; return the id of the run."""
        path = f"/deployments/{deployment}/create_flow_run"
        return self.ask(path, {"parameters": {"order": order}, "name": name})["id"]

    def state(self, run):
        return self.ask(f"/flow_runs/{run}")["state_type"]

    def ended(self, run, seconds=240, states=("COMPLETED", "FAILED", "CRASHED")):
        """Wait for a run to end; return how it did."""
        return wait_for(lambda: s if (s := self.state(run)) in states else None, seconds, 1)


def copy(finished, name):
    """Copy a finished chain whose Prefect knows nothing yet."""
    root = finished.parent / name
    shutil.copytree(finished, root, symlinks=True)
    shutil.rmtree(root / ".reflow" / "prefect", ignore_errors=True)
    return Chain(root)


@contextmanager
def running(chain, **more) -> Iterator[Ui]:
    """Keep the servers of a chain's project; see that they end, and that nothing stays."""
    ui = Ui(chain, **more)
    try:
        yield ui
    finally:
        ui.process.send_signal(signal.SIGINT)
        assert ui.process.wait(60) == 0, ui.log.read_text()
    assert not ui.file.exists()
    for url in (ui.urls["prefect"], ui.urls["mlflow"]):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(url.rpartition(":")[2])))
