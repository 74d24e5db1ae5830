"""The servers of a project and its deployments, with real servers: slow, and worth it."""

import json
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from base64 import b64encode

import pytest

from tests.conftest import SOURCE
from tests.real_chain import Chain

pytestmark = [pytest.mark.slow, pytest.mark.servers]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def wait_for(what, seconds=90, every=0.5):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(every)
    raise AssertionError(f"waited {seconds} s in vain")


@pytest.fixture(scope="module")
def chain(finished):
    root = finished.parent / "service"
    shutil.copytree(finished, root, symlinks=True)
    shutil.rmtree(root / ".reflow" / "prefect", ignore_errors=True)
    return Chain(root)


class Ui:
    """A running `reflow ui`."""

    def __init__(self, chain):
        self.chain = chain
        self.log = chain.root.parent / "ui.log"
        command = ["python", "-m", "flows.cli", "ui"]
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                command, cwd=chain.root, env=chain.env(), stdout=out, stderr=out
            )
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


@pytest.fixture(scope="module")
def ui(chain):
    ui = Ui(chain)
    yield ui
    ui.process.send_signal(signal.SIGINT)
    assert ui.process.wait(60) == 0, ui.log.read_text()
    assert not ui.file.exists()
    for url in (ui.urls["prefect"], ui.urls["mlflow"]):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(url.rpartition(":")[2])))


def refused(url, headers):
    try:
        urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20)
    except urllib.error.HTTPError as error:
        return error.code
    return 0


def test_both_servers_answer_and_strangers_are_refused(ui):
    assert refused(f"{ui.urls['prefect']}/api/flows/filter", {}) in (401, 405)
    assert refused(f"{ui.urls['mlflow']}/health", {"Host": "evil.example.com"}) in (0, 403)
    path = f"{ui.urls['mlflow']}/api/2.0/mlflow/experiments/search?max_results=5"
    assert refused(path, {"Host": "evil.example.com"}) == 403
    assert refused(path, {}) == 0
    mode = (ui.chain.root / ".reflow/prefect/auth").stat().st_mode
    assert mode & 0o077 == 0


def test_a_second_ui_and_a_port_in_use_are_one_line(ui, tmp_path):
    again = ui.chain.reflow("ui", check=False)
    assert again.returncode == 2 and "run already, in process" in again.stderr
    other = tmp_path / "other"
    shutil.copytree(ui.chain.root, other, symlinks=True, ignore=shutil.ignore_patterns(".reflow"))
    port = ui.urls["prefect"].rpartition(":")[2]
    taken = Chain(other).reflow("ui", "--prefect-port", port, check=False)
    assert taken.returncode == 2
    assert f"port {port} is in use by a Prefect server that is not this project's" in taken.stderr


def test_a_run_reports_to_the_servers(ui):
    done = ui.chain.reflow("run")
    assert ui.urls["mlflow"] in done.stdout
    runs = ui.ask("/flow_runs/filter", {})
    assert [r["state_type"] for r in runs] == ["COMPLETED"]
    tasks = ui.ask("/task_runs/filter", {"flow_runs": {"id": {"any_": [runs[0]["id"]]}}})
    assert {"prepare", "train@rf1", "couple@rf1", "compare"} <= {t["name"] for t in tasks}
    assert {t["state_name"] for t in tasks} == {"Cached"}


def test_a_run_that_was_killed_is_crashed_at_the_next(ui):
    ui.chain.edit("params.yaml", "steps: 200,", "steps: 90000,")
    command = ["python", "-m", "flows.cli", "run"]
    doomed = subprocess.Popen(
        command, cwd=ui.chain.root, env=ui.chain.env(), stdout=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: list((ui.chain.root / ".reflow/runs").glob("*")))
        state = {"state": {"type": {"any_": ["RUNNING"]}}}
        wait_for(lambda: ui.ask("/flow_runs/filter", {"flow_runs": state}))
    finally:
        doomed.kill()
        doomed.wait()
    ui.chain.edit("params.yaml", "steps: 90000,", "steps: 200,")
    time.sleep(3)  # for what the killed one had started to be gone
    done = ui.chain.reflow("run", check=False)
    assert "had died; it is marked as crashed" in done.stdout, done.stdout + done.stderr
    assert not ui.ask("/flow_runs/filter", {"flow_runs": state})
    assert "CRASHED" in {r["state_type"] for r in ui.ask("/flow_runs/filter", {})}


@pytest.fixture
def served(ui):
    log = (ui.chain.root.parent / "deploy.log").open("w")
    command = ["python", "-m", "flows.cli", "deploy", "--order", '{"seed": 1}']
    process = subprocess.Popen(
        command, cwd=ui.chain.root, env=ui.chain.env(), stdout=log, stderr=log
    )
    name = "/deployments/name/reflow-chain/chain"

    def there():
        try:
            return ui.ask(name)
        except urllib.error.HTTPError:
            assert process.poll() is None, (ui.chain.root.parent / "deploy.log").read_text()
            return None

    yield wait_for(there)
    process.terminate()
    process.wait(60)


def test_a_run_of_the_deployment_works_in_a_worktree_and_leaves_a_branch(ui, served):
    schema = served["parameter_openapi_schema"]
    assert "order" in schema["properties"]
    before = (ui.chain.root / "params.yaml").read_text(), ui.chain.lock()
    order = {"overrides": {"rounds.rf2.train.steps": 150}}
    made = ui.ask(
        f"/deployments/{served['id']}/create_flow_run",
        {"parameters": {"order": order}, "name": "a b"},
    )

    def ended():
        run = ui.ask(f"/flow_runs/{made['id']}")
        return run if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED") else None

    run = wait_for(ended, seconds=240, every=2)
    lines = ui.ask("/logs/filter", {"logs": {"flow_run_id": {"any_": [made["id"]]}}})
    assert run["state_type"] == "COMPLETED", "\n".join(line["message"] for line in lines)
    branch = f"reflow/a-b-{made['id'][:8]}"
    params = ui.chain.sh("git", "show", f"{branch}:params.yaml").stdout
    assert "steps: 150" in params
    lock = ui.chain.sh("git", "show", f"{branch}:dvc.lock").stdout
    assert "train@rf2" in lock and lock != before[1]
    assert before == ((ui.chain.root / "params.yaml").read_text(), ui.chain.lock())
    assert not list((ui.chain.root / ".reflow/worktrees").glob("a-b*"))
    tasks = ui.ask("/task_runs/filter", {"flow_runs": {"id": {"any_": [made["id"]]}}})
    states = {t["name"]: t["state_name"] for t in tasks}
    assert states["train@rf1"] == "Cached" and states["train@rf2"] == "Completed"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--order", '{"sede": 1}'], "order: sede: Extra inputs are not permitted; parameters are"),
        (["--order", "{"], "--order: not JSON"),
        (["--order", '{"overrides": {"rounds.rf9.train.steps": 1}}'], "no 'rf9'; there are: rf1"),
        (["--order", '{"overrides": {"rounds.rf2.train.steps": -1}}'], "rounds.rf2.train.steps"),
        (["--order", '{"rev": "nowhere"}'], "git worktree: invalid reference: nowhere"),
        (["--cron", "at night"], "is no schedule; five fields expected"),
    ],
)
def test_a_mistake_registers_nothing(ui, words, says):
    done = ui.chain.reflow("deploy", "--name", "wrong", *words, check=False)
    assert done.returncode == 2 and says in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    with pytest.raises(urllib.error.HTTPError):
        ui.ask("/deployments/name/reflow-chain/wrong")
    assert "check-" not in ui.chain.sh("git", "worktree", "list").stdout


def test_a_pool_gets_the_deployment_with_its_schedule(ui):
    ui.chain.reflow("deploy", "--name", "nightly", "--pool", "gpus", "--cron", "0 2 * * *")
    found = ui.ask("/deployments/name/reflow-chain/nightly")
    assert found["work_pool_name"] == "gpus"
    assert [s["schedule"]["cron"] for s in found["schedules"]] == ["0 2 * * *"]
    assert found["global_concurrency_limit"]["limit"] == 1
    assert ui.chain.root.samefile(found["pull_steps"][0].popitem()[1]["directory"])


@pytest.fixture
def tab(ui):
    from playwright.sync_api import sync_playwright

    password = (ui.chain.root / ".reflow/prefect/auth").read_text().strip()
    coded = b64encode(password.encode()).decode()
    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        tab.set_default_timeout(60_000)
        tab.add_init_script(f"localStorage.setItem('prefect-password', '{coded}')")
        yield tab
        browser.close()


def shot(tab, name):
    folder = SOURCE / ".reflow" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    tab.screenshot(path=folder / f"{name}.png")


@pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")
def test_prefects_pages_show_the_run_and_its_stages(ui, tab):
    ui.chain.reflow("run")
    run = ui.ask("/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})[0]
    tab.goto(f"{ui.urls['prefect']}/runs/flow-run/{run['id']}")
    tab.get_by_text(run["name"]).first.wait_for()
    tab.get_by_text("train@rf1").first.wait_for()
    tab.wait_for_timeout(2000)
    shot(tab, "prefect_run")


@pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")
def test_mlflows_pages_compare_two_rounds(ui, tab):
    code = (
        "import json; f = lambda n: t.find(reflow__kind='round', reflow__round=n)[0].info.run_id;"
        "print(json.dumps([t.experiment, f('rf1'), f('rf2')]))"
    )
    experiment, *runs = json.loads(ui.chain.mlflow(code))
    query = f'?runs={json.dumps(runs)}&experiments=["{experiment}"]'
    tab.goto(f"{ui.urls['mlflow']}/#/compare-runs{query}")
    tab.get_by_text("Comparing 2 Runs").first.wait_for()
    tab.wait_for_timeout(3000)
    shot(tab, "mlflow_compare")
    text = tab.inner_text("body")
    assert "rf1" in text and "rf2" in text
