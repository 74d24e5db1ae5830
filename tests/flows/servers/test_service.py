"""The servers of a project and its deployments, with real servers: slow, and worth it."""

import json
import shlex
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from base64 import b64encode
from contextlib import suppress

import numpy as np
import psutil
import pytest

from tests import browser, servers
from tests.browser import shot
from tests.real_chain import Chain
from tests.servers import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.servers]


@pytest.fixture(scope="module")
def chain(finished):
    return servers.copy(finished, "service")


@pytest.fixture(scope="module")
def ui(chain):
    with servers.running(chain) as ui:
        yield ui


def refused(url, headers):
    try:
        urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20)
    except urllib.error.HTTPError as error:
        return error.code
    return 0


def test_both_servers_answer_and_strangers_are_refused(ui):
    assert refused(f"{ui.urls['prefect']}/api/flows/filter", {}) in (401, 405)
    assert refused(f"{ui.urls['mlflow']}/health", {"Host": "evil.example.com"}) in (0, 403)
    file = ui.chain.root / ".reflow/prefect/auth"
    assert file.stat().st_mode & 0o077 == 0
    known = {"Authorization": f"Basic {b64encode(file.read_bytes().strip()).decode()}"}
    search = "/api/2.0/mlflow/experiments/search?max_results=5"
    for path in ("/", "/version", search, "/get-artifact?path=x&run_uuid=y"):
        assert refused(ui.urls["mlflow"] + path, {}) == 401
    assert refused(ui.urls["mlflow"] + search, known) == 0
    assert refused(ui.urls["mlflow"] + search, {**known, "Host": "evil.example.com"}) == 403


def test_an_experiment_outside_of_the_project_is_refused_by_mlflow(ui, tmp_path):
    said = ui.chain.mlflow(
        "import mlflow\n"
        "t.client.create_experiment('inside')\n"
        f"try: t.client.create_experiment('out', artifact_location='{tmp_path.as_uri()}')\n"
        "except mlflow.MlflowException as error: print(error)"
    )
    assert "PERMISSION_DENIED: artifact_location: leave it out" in said


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


def test_a_run_finishes_when_its_servers_die_midway(finished):
    chain = servers.copy(finished, "away")
    chain.edit("params.yaml", "steps: 200,", "steps: 4000,")
    ui = servers.Ui(chain)
    run = ui.start("away.log", "reflow", "run")
    log = chain.root.parent / "away.log"
    wait_for(lambda: "train@rf2 " in log.read_text())
    for process in psutil.Process(ui.process.pid).children(recursive=True):
        process.kill()
    assert ui.process.wait(60) == 2 and "server ended by itself" in ui.log.read_text()
    assert run.wait(300) == 0, log.read_text()
    said = log.read_text()
    assert "Prefect's server went away" in said and "`reflow publish` records it later" in said
    assert "Traceback" not in said and "Warning" not in said
    about = [line for line in said.splitlines() if line.startswith(("Prefect", "MLflow:"))]
    assert all(len(line) < 160 and "HTTPConnection" not in line for line in about), about
    assert set(chain.plan().values()) == {"unchanged"}
    assert "train@rf2: published" in chain.reflow("publish").stdout
    assert ": 0 logged" in chain.reflow("publish").stdout


def test_mlflow_serves_what_the_registry_says_to_ship(ui):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    name = ui.chain.mlflow("print(t.client.search_registered_models()[0].name)")
    words = ("models", "serve", "-m", f"models:/{name}@one_step", "--env-manager", "local")
    known = shlex.join(["mlflow", *words, "-p", str(port), "-w", "1"])
    code = f'eval "$(python -m flows.cli env)"; exec {known}'
    process = ui.start("serve.log", "bash", "-c", code)
    url = f"http://127.0.0.1:{port}"

    def up():
        with suppress(OSError):
            return urllib.request.urlopen(f"{url}/ping", timeout=5).status == 200
        return False

    def ask(**body):
        kind = {"Content-Type": "application/json"}
        asked = urllib.request.Request(f"{url}/invocations", json.dumps(body).encode(), kind)
        return json.loads(urllib.request.urlopen(asked, timeout=60).read())["predictions"]

    try:
        wait_for(up)
        assert len(ask(inputs=[[0.0, 1.0], [1.0, 1.0]], params={"nfe": 2})) == 2
        drawn = ask(inputs=[], params={"seed": 0, "count": 3})
        file = ui.chain.root.parent / "served.npy"
        ui.chain.reflow("sample", "rf2", str(file), "-n", "3")
        np.testing.assert_allclose(drawn, np.load(file), atol=1e-5)
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def tab(ui):
    with browser.opened(ui) as tab:
        yield tab


@browser.needed
def test_prefects_pages_show_the_run_and_its_stages(ui, tab):
    ui.chain.reflow("run")
    run = ui.ask("/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})[0]
    tab.goto(f"{ui.urls['prefect']}/runs/flow-run/{run['id']}")
    tab.get_by_text(run["name"]).first.wait_for()
    tab.get_by_text("train@rf1").first.wait_for()
    tab.wait_for_timeout(2000)
    shot(tab, "prefect_run")


def links(ui):
    """Return the links to MLflow's pages that `reflow ui` printed."""
    found = [line.split()[-1] for line in ui.log.read_text().splitlines() if "/#/" in line]
    assert all(link.startswith(ui.urls["mlflow"]) for link in found)
    return found


def test_the_links_are_to_the_runs_and_to_the_rounds_of_the_chain(ui):
    runs, rounds = links(ui)
    assert runs.endswith("/#/experiments/1/runs?workflowType=machine_learning")
    assert rounds == f"{runs}&compareRunsMode=CHART&viewStateShareKey=latest"
    assert "the rounds in one chart: http" in ui.chain.reflow("publish").stdout


@browser.needed
def test_the_printed_link_opens_the_rounds_in_one_chart(ui, tab):
    tab.goto(links(ui)[1])
    tab.get_by_text("distance/energy vs distance/floor").first.wait_for()
    tab.wait_for_timeout(3000)
    shot(tab, "mlflow_rounds")
    text = tab.inner_text("body")
    for name in ("rf1", "rf2"):
        assert f"{name} (distance/energy)" in text and f"{name} (distance/floor)" in text
    assert "Model training" in text and "2 matching runs" in " ".join(text.split())


@browser.needed
def test_the_page_of_a_chain_has_the_figure_and_begins_with_the_distance(ui, tab):
    code = "print(t.experiment, t.find(reflow__kind='chain')[0].info.run_id)"
    experiment, run = ui.chain.mlflow(code).split()
    page = f"{ui.urls['mlflow']}/#/experiments/{experiment}/runs/{run}"
    tab.goto(f"{page}?workflowType=machine_learning")
    tab.get_by_text("The rounds in one chart").first.wait_for()
    figure = tab.locator("img[src*=fd_over_nfe]").first
    wait_for(lambda: figure.evaluate("image => image.naturalWidth") > 100)
    shot(tab, "mlflow_chain")
    assert "published" not in tab.inner_text("body")
    tab.goto(f"{page}/model-metrics?workflowType=machine_learning")
    tab.get_by_text("Auto-refresh").first.wait_for()
    tab.wait_for_timeout(5000)
    charts = tab.inner_text("body").partition("Auto-refresh")[2]
    assert charts.split()[:2] == ["distance", "(3)"], charts
    shot(tab, "mlflow_chain_metrics")


@browser.needed
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
