"""Links to MLflow's pages: the runs, the chart of a chain's rounds, one run. Without MLflow."""

import base64
import json
import os
import re
from urllib.parse import quote, unquote, urlencode

VIEW = "mlflow.sharedViewState."
"""Tag of an experiment: a view of its runs that MLflow's pages open by the rest of its name."""
LATEST = "latest"
"""The view of the chain that was published last."""
PLACE = {"workflowType": "machine_learning"}
"""Without this MLflow's pages are those for language models."""


def runs(experiment: str) -> str:
    """Return the link, relative to the server, to the table of an experiment's runs.

    >>> runs("1")
    '#/experiments/1/runs?workflowType=machine_learning'
    """
    return f"#/experiments/{experiment}/runs?{urlencode(PLACE)}"


def rounds(experiment: str, view: str = LATEST) -> str:
    """Return the link, relative to the server, to the chart of a chain's rounds."""
    return (
        f"{runs(experiment)}&{urlencode({'compareRunsMode': 'CHART', 'viewStateShareKey': view})}"
    )


def run(experiment: str, number: str) -> str:
    """Return the link, relative to the server, to a run."""
    return f"#/experiments/{experiment}/runs/{number}?{urlencode(PLACE)}"


def artifact(number: str, path: str) -> str:
    """Return the link, relative to the server, to a file among the artifacts of a run."""
    return f"get-artifact?path={quote(path, safe='')}&run_uuid={number}"


def known(server: str, auth: str) -> dict[str, str]:
    """Ask a server of MLflow for its pages: links by `runs` and `rounds`, those that there are.

    `auth` is a name and password with a colon between, or "". A server that does not answer, or
    has no experiment of this project yet, has the list of its experiments to offer.
    """
    import http.client
    import urllib.error
    import urllib.request

    base = shown(server).rstrip("/")
    if not auth and base != server.rstrip("/"):
        auth = unquote(server.partition("://")[2].partition("@")[0])
    name = urlencode({"experiment_name": os.environ.get("MLFLOW_EXPERIMENT_NAME", "reflow")})
    try:
        asked = urllib.request.Request(f"{base}/api/2.0/mlflow/experiments/get-by-name?{name}")
        if auth:  # not for a host that the server may send to
            word = base64.b64encode(auth.encode()).decode()
            asked.add_unredirected_header("Authorization", f"Basic {word}")
        with urllib.request.urlopen(asked, timeout=5) as reply:
            found = json.loads(reply.read())["experiment"]
        number = str(found["experiment_id"])
        views = {tag["key"] for tag in found.get("tags", [])}
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return {"runs": f"{base}/#/experiments?{urlencode(PLACE)}"}
    chart = {"rounds": f"{base}/{rounds(number)}"} if f"{VIEW}{LATEST}" in views else {}
    return {"runs": f"{base}/{runs(number)}", **chart}


def shown(uri: str) -> str:
    """Return the address of a server or data base without the name and password in it.

    >>> shown("postgresql://lab:secret@db.example.org/mlflow")
    'postgresql://db.example.org/mlflow'
    """
    return re.sub(r"(?<=://)[^/@]*@", "", uri)


def login() -> str:
    """Return the name and password by which this process logs in to MLflow; "" if it has none."""
    name = os.environ.get("MLFLOW_TRACKING_USERNAME")
    return f"{name}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}" if name else ""
