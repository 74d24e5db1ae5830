#!/usr/bin/env bash
# Serve the records of this project on loopback until Ctrl-C: MLflow's UI and Prefect's UI.
set -euo pipefail
eval "$(python - <<'PY'
import os
import shlex
from pathlib import Path
from flows.home import configure, find_root
configure(find_root(Path.cwd()))
for name in ("PREFECT_HOME", "PREFECT_SERVER_ANALYTICS_ENABLED", "DO_NOT_TRACK",
             "MLFLOW_TRACKING_URI", "MLFLOW_DISABLE_TELEMETRY"):
    print(f"export {name}={shlex.quote(os.environ[name])}")
PY
)"
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
trap 'kill 0' EXIT
prefect server start --host 127.0.0.1 --port 4200 &
mlflow server --host 127.0.0.1 --port 5000 --backend-store-uri "$MLFLOW_TRACKING_URI" --workers 1 &
echo "Prefect  http://127.0.0.1:4200"
echo "MLflow   http://127.0.0.1:5000/#/experiments?workflowType=machine_learning"
wait
