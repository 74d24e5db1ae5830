#!/usr/bin/env bash
# Make .bench-venv: the packages of benchmarks/peers.txt, over the environment of the project, which
# it sees and does not change. Without their dependencies: what they need of them is in the list, and
# none may bring another torch. `make bench` reports a package that is not there as not measured.
set -euo pipefail
venv=.bench-venv project=${VENV:-.venv} list=benchmarks/peers.txt

say() { printf '%s\n' "$*" >&2; }
pip() { "$venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-deps "$@"; }
packages() { "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

"$project/bin/python" -m venv --clear "$venv"
# A line of a .pth file that begins with import is run: the project's own .pth files count too.
printf 'import site; site.addsitedir("%s")\n' "$(packages "$project")" >"$(packages "$venv")/project.pth"
pip -r "$list" || for package in $(grep -v '^#' "$list"); do
    pip "$package" || say "not installed, so not measured: $package"
done
touch "$venv/.installed"
