#!/usr/bin/env bash
# A project of two short rounds in two dimensions, in a folder of its own, by the `reflow` in the PATH:
# made, run through Prefect, compared, published, and found to be up to date.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python --version
reflow --version
reflow init chain --from eight_gaussians
cd chain
sed -i -E 's/steps: [0-9]+, batch/steps: 300, batch/; s/pairs: [0-9]+/pairs: 2000/; s/samples: [0-9]+/samples: 250/' params.yaml
reflow run
reflow compare
reflow publish
test "$(reflow plan --json | python -c 'import json, sys; print({p["state"] for p in json.load(sys.stdin)})')" = "{'unchanged'}"
