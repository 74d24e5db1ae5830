#!/usr/bin/env bash
# Make the virtual environment in $VENV: `setup.sh` from requirements.lock, what a user needs, `setup.sh
# dev` from requirements-dev.lock, that and what tests, checks and docs need. torch comes first: a plain
# `pip install torch` takes several GB of CUDA packages also where there is no GPU.
# TORCH_INDEX: auto (CPU build without a GPU, pip's default with one) or the URL of an index.
set -euo pipefail
for=${1:-use} lock=requirements.lock
case $for in
use) ;;
dev) lock=requirements-dev.lock ;;
*) echo "error: setup.sh takes no word, or dev; found $for" >&2 && exit 2 ;;
esac
venv=${VENV:-.venv} index=${TORCH_INDEX:-auto} python=${PYTHON:-python3}
cpu_index=https://download.pytorch.org/whl/cpu

say() { printf '%s\n' "$*" >&2; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    say "error: Python 3.11 or newer expected, found $("$python" --version); set PYTHON=python3.11"
    exit 2
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
# pip compiles bytecode, which takes a minute. Where PYTHONDONTWRITEBYTECODE is set, as in many
# containers, every process would otherwise compile torch again: about four seconds for each stage.
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
torch=$(grep -E '^torch==' "$lock")

# Would pip's default index bring CUDA packages with torch? Ask it before it downloads them.
brings_cuda() {
    pip install --quiet --dry-run --ignore-installed --report - "$torch" 2>/dev/null |
        "$venv/bin/python" -c '
import json, sys
names = [i["metadata"]["name"] for i in json.load(sys.stdin)["install"]]
sys.exit(not any(n.startswith(("nvidia-", "cuda-")) or n == "triton" for n in names))'
}

if "$venv/bin/python" -c 'import torch' 2>/dev/null; then
    say "torch is there already"
elif [ "$index" != auto ]; then
    pip install --index-url "$index" "$torch"
elif command -v nvidia-smi >/dev/null; then
    pip install "$torch"
elif pip install --quiet --retries 0 --timeout 10 --index-url "$cpu_index" "$torch" 2>/dev/null; then
    say "torch: the CPU build of $cpu_index"
elif brings_cuda; then
    say "error: no GPU here, and the only torch that can be reached is a CUDA build of several GB;"
    say "       make $cpu_index reachable, or choose: make setup TORCH_INDEX=URL"
    exit 2
else
    pip install "$torch"
fi
# uv takes a third of pip's time. It does not read pip's configuration (a mirror, a folder of files),
# so where uv does not reach a package pip installs them. Both take the lock as it is: no dependency
# may replace the torch that is there (torch-fidelity names torchvision, which the tests do not need).
uv=$(grep -E '^uv==' requirements-dev.lock)
all_but_torch() { grep -vE '^torch==' "$lock"; }
by_uv() {
    pip install --quiet "$uv" &&
        all_but_torch | "$venv/bin/uv" pip install --quiet --no-deps \
            --compile-bytecode --python "$venv/bin/python" --requirement -
}
by_uv || {
    say "uv cannot install everything here; pip does"
    pip install --quiet --no-deps -r <(all_but_torch)
}
pip install --quiet --no-deps -e .
if [ "$for" = dev ]; then
    touch "$venv/.installed-dev"
elif [ ! -e "$venv/.installed-dev" ]; then
    pip uninstall --quiet --yes uv
fi
touch "$venv/.installed"
