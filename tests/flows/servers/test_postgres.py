"""PostgreSQL as the backend of both servers."""

import pytest

from tests import postgres, servers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.servers,
    pytest.mark.skipif(postgres.BINARIES is None, reason="Debian's postgresql is not installed"),
]
PREFECT, MLFLOW = "PREFECT_SERVER_DATABASE_CONNECTION_URL", "MLFLOW_TRACKING_URI"


@pytest.fixture(scope="module")
def server():
    with postgres.serving("prefect", "mlflow") as server:
        yield server


@pytest.fixture(scope="module")
def chain(finished):
    return servers.copy(finished, "postgres")


def backends(server, password=""):
    prefect = server.url("prefect", "postgresql+asyncpg", password)
    return {PREFECT: prefect, MLFLOW: server.url("mlflow", password=password)}


def test_wrong_credentials_are_one_line_and_start_nothing(server, chain):
    words = [f"{name}={url}" for name, url in backends(server, "wrong").items()]
    done = chain.sh("env", *words, "python", "-m", "flows.cli", "ui", check=False)
    assert done.returncode == 2 and "server did not start; see " in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (chain.root / ".reflow" / "servers.json").exists()


def test_both_servers_keep_their_records_in_postgresql(server, chain):
    with servers.running(chain, **backends(server)) as ui:
        done = chain.reflow("run")
        assert ui.urls["mlflow"] in done.stdout
        assert [r["state_type"] for r in ui.ask("/flow_runs/filter", {})] == ["COMPLETED"]
        assert server.ask("prefect", "select count(*) from flow_run") == [(1,)]
        runs = server.ask("mlflow", "select name, status from runs")
        assert {"rf1", "rf2"} <= {name for name, _ in runs}
        assert {status for _, status in runs} == {"FINISHED"}
        chain.reflow("publish")
        assert len(server.ask("mlflow", "select name from runs")) == len(runs)
