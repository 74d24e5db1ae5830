"""Deployments with real servers, a real scheduler, real workers: slow, and worth it."""

import re
import time
import urllib.error
from pathlib import Path

import psutil
import pytest

from tests import servers
from tests.servers import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.servers]
LONG = {"overrides": {"rounds.rf2.train.steps": 12000}}
"""About half a minute of training, checkpoints every 500 steps."""


@pytest.fixture(scope="module")
def chain(finished):
    return servers.copy(finished, "deployed")


@pytest.fixture(scope="module")
def ui(chain):
    with servers.running(chain) as ui:
        yield ui


def registered(ui, name, process):
    """Wait until a deployment is on the server; return it."""

    def there():
        try:
            return ui.ask(f"/deployments/name/reflow-chain/{name}")
        except urllib.error.HTTPError:
            assert process.poll() is None, f"{name} was not deployed: {process.args}"
            return None

    return wait_for(there)


@pytest.fixture(scope="module")
def served(ui):
    process = ui.start("deploy.log", "reflow", "deploy", "--order", '{"seed": 1}')
    yield registered(ui, "chain", process)
    process.terminate()
    process.wait(60)


def working_in(folder: Path):
    """Return the processes whose working directory is in a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            inside = Path(process.cwd()).is_relative_to(folder)
        except (psutil.Error, OSError):
            continue
        found += [process] if inside else []
    return found


def trained(ui, run, steps):
    """Say whether the second round of a run has come to a number of steps."""
    words = [line.split() for line in ui.logs(run) if line.startswith("train@rf2 ")]
    return any(int(line[1].split("/")[0]) >= steps for line in words if "/" in line[1])


def resumed(ui, run):
    """Say whether a training of the second round began with steps that were done before."""
    lines = [line for line in ui.logs(run) if line.startswith("train@rf2 ")]
    return any(re.fullmatch(r"train@rf2 [1-9]\d*/\d+", line) for line in lines)


def test_a_run_of_the_deployment_works_in_a_worktree_and_leaves_a_branch(ui, served):
    form = served["parameter_openapi_schema"]
    overrides = form["definitions"]["Order"]["properties"]["overrides"]["description"]
    assert "order" in form["properties"] and "`rounds.<round>.train.lr`: Peak" in overrides
    before = (ui.chain.root / "params.yaml").read_text(), ui.chain.lock()
    run = ui.order(served["id"], {"overrides": {"rounds.rf2.train.steps": 150}}, "a b")
    assert ui.ended(run) == "COMPLETED", "\n".join(ui.logs(run))
    branch = f"reflow/a-b-{run[:8]}"
    assert "steps: 150" in ui.chain.sh("git", "show", f"{branch}:params.yaml").stdout
    lock = ui.chain.sh("git", "show", f"{branch}:dvc.lock").stdout
    assert "train@rf2" in lock and lock != before[1]
    assert before == ((ui.chain.root / "params.yaml").read_text(), ui.chain.lock())
    assert not list((ui.chain.root / ".reflow/worktrees").glob("a-b*"))
    keys = ("git.dirty", "mlflow.source.git.commit")
    code = f"tags = t.find(reflow__round='rf2')[0].data.tags; print(*(tags[k] for k in {keys}))"
    dirty, commit = ui.chain.mlflow(code).split()
    assert dirty == "false"
    assert "steps: 150" in ui.chain.sh("git", "show", f"{commit}:params.yaml").stdout
    assert "View run" not in (ui.chain.root.parent / "deploy.log").read_text()
    states = ui.tasks(run)
    assert states["train@rf1"] == "Cached" and states["train@rf2"] == "Completed"


def test_the_pages_have_artifacts_and_assets_of_the_run(ui, served):
    artifacts = ui.ask("/artifacts/filter", {"artifacts": {}})
    found = {a["key"]: a for a in artifacts}
    pictures = {"fd-over-nfe", "straightness", "samples-rf1", "samples-rf2"}
    assert {"rounds", "couplings", "mlflow", *pictures} <= set(found)
    assert found["rounds"]["type"] == "table" and '"round": "floor"' in found["rounds"]["data"]
    assert "couplings/rf1" in found["couplings"]["data"]
    assert found["fd-over-nfe"]["data"].startswith("data:image/png;base64,")
    assert ui.urls["mlflow"] in found["mlflow"]["data"]
    asked = {"filter": {"event": {"prefix": ["prefect.asset."]}}, "limit": 50}
    events = ui.ask("/events/filter", asked)["events"]
    made = {e["resource"]["prefect.resource.id"] for e in events if "material" in e["event"]}
    assert "dvc://reflow/models/rf2" in made
    used = {e["resource"]["prefect.resource.id"] for e in events if "reference" in e["event"]}
    assert {"dvc://reflow/couplings/rf1", "dvc://reflow/models/rf1"} <= used


def test_a_schedule_starts_runs_by_itself(ui):
    process = ui.start("often.log", "reflow", "deploy", "--name", "often", "--every", "30")
    try:
        which = {"deployments": {"id": {"any_": [registered(ui, "often", process)["id"]]}}}

        def done():
            runs = ui.ask("/flow_runs/filter", which)
            return [r for r in runs if r["state_type"] == "COMPLETED"]

        first = wait_for(done, 240, 2)[0]
        assert first["auto_scheduled"]
        states = ui.tasks(first["id"])
        states.pop("inputs")  # its files are in no git tree, so a new worktree writes them
        assert set(states.values()) == {"Cached"}
    finally:
        process.terminate()
        process.wait(60)


def test_runs_go_one_at_a_time_and_one_cancelled_in_the_pages_goes_on_by_retry(ui, served):
    run = ui.order(served["id"], LONG, "long")
    wait_for(lambda: trained(ui, run, 500), 240)
    other = ui.order(served["id"], {}, "other")
    wait_for(lambda: trained(ui, run, 6000), 240)
    assert ui.state(other) in ("SCHEDULED", "PENDING")
    folder = ui.chain.root / ".reflow/worktrees" / f"long-{run[:8]}"
    assert working_in(folder)
    ui.ask(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    wait_for(lambda: ui.state(run) == "CANCELLED", 120)
    wait_for(lambda: not working_in(folder), 30)
    assert folder.exists()
    assert not trained(ui, run, 12000)
    assert ui.ended(other) == "COMPLETED"
    again = {"type": "SCHEDULED", "name": "AwaitingRetry"}
    ui.ask(f"/flow_runs/{run}/set_state", {"state": again, "force": True})
    assert ui.ended(run) == "COMPLETED", "\n".join(ui.logs(run))
    assert resumed(ui, run), "\n".join(ui.logs(run))
    assert "steps: 12000" in ui.chain.sh("git", "show", f"reflow/long-{run[:8]}:params.yaml").stdout


def test_a_crashed_workers_run_is_continued_by_another(ui):
    words = ui.chain.sh("env", "python", "-m", "flows.cli", "env").stdout.splitlines()
    known = [w.removeprefix("export ").replace("'", "") for w in words if w.startswith("export ")]
    prefect = ("env", *known, "python", "-m", "prefect")
    ui.chain.sh(*prefect, "work-pool", "create", "reflow", "--type", "process")
    # Prefect 3.8 registers it, and then asks for the pool's workers in a way that servers refuse.
    done = ui.chain.sh(*prefect, "--no-prompt", "deploy", "--all", check=False)
    assert "Deployment 'reflow-chain/chain' successfully" in done.stdout, done.stdout + done.stderr
    found = ui.ask("/deployments/name/reflow-chain/chain")
    assert found["work_pool_name"] == "reflow" and found["entrypoint"].endswith(".scheduled")
    doomed = ui.start("worker.log", *prefect, "worker", "start", "--pool", "reflow")
    run = ui.order(found["id"], {"overrides": {"rounds.rf2.train.steps": 12500}}, "crash")
    wait_for(lambda: trained(ui, run, 1500), 240)
    for process in [*psutil.Process(doomed.pid).children(recursive=True), doomed]:
        process.kill()
    doomed.wait()
    assert ui.state(run) == "RUNNING"
    start = time.monotonic()
    wait_for(lambda: ui.state(run) in ("CRASHED", "SCHEDULED"), 300, 1)
    assert time.monotonic() - start > 60, "not by its heartbeat"
    worker = ui.start("worker.log", *prefect, "worker", "start", "--pool", "reflow")
    try:
        assert ui.ended(run, states=("COMPLETED", "FAILED")) == "COMPLETED"
    finally:
        worker.terminate()
        worker.wait(60)
    assert resumed(ui, run), "\n".join(ui.logs(run))
    assert ui.tasks(run)["train@rf1"] == "Cached"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--order", '{"sede": 1}'],
            "order: sede: extra inputs are not permitted, got 1; parameters are",
        ),
        (["--order", "{"], "--order: not JSON"),
        (["--order", '{"overrides": {"rounds.rf9.train.steps": 1}}'], "no 'rf9'; there are: rf1"),
        (["--order", '{"overrides": {"rounds.rf2.train.steps": -1}}'], "rounds.rf2.train.steps"),
        (["--order", '{"rev": "nowhere"}'], "no revision 'nowhere'"),
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
