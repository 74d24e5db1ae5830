# `make demo` and `make test` are all a fresh machine needs; `make help` lists the rest.
VENV ?= .venv
TORCH_INDEX ?= auto
export VENV TORCH_INDEX
bin := $(VENV)/bin
# The stages call `python`: it must be the one of the environment.
run := PATH="$(abspath $(bin)):$$PATH"

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev shell test-py demo chain check format settings test test-all bench bench-quick docs diagrams ui \
	clean lock mutations

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.installed: requirements.lock pyproject.toml scripts/setup.sh
	bash scripts/setup.sh

$(VENV)/.installed-dev: requirements-dev.lock pyproject.toml scripts/setup.sh
	bash scripts/setup.sh dev

setup: $(VENV)/.installed  ## make the environment (TORCH_INDEX=URL for another torch build)

setup-dev: $(VENV)/.installed-dev  ## the same with what tests, checks, docs and benchmarks need

shell: setup  ## a shell in which `reflow`, `dvc`, `prefect`, `mlflow` are found; leave it by exit
	@$(run) $${SHELL:-bash}

demo: setup  ## run a two-round reflow chain on handwritten digits, through Prefect, into MLflow
	@$(run) reflow run

chain: setup  ## the same chain by DVC alone: no Prefect, no server
	@$(run) dvc repro

check: setup-dev  ## linters, types, architecture, hooks
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(run) lint-imports
	$(bin)/pre-commit validate-config

format: setup-dev  ## format the code and mend what can be mended
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

settings: setup-dev  ## write docs/settings.md and params.schema.json from the settings classes
	$(run) python -m flows.params.reference > docs/settings.md
	$(run) python -m flows.params.schema > params.schema.json

test: setup-dev  ## the tests, one real chain included; two files of them at a time
	$(run) pytest -m "not servers and not long" -n 2 --dist loadgroup

test-all: setup-dev  ## all tests: also real servers, deployments, and their UI in Chromium
	$(run) pytest

mutations: setup-dev  ## break the core in 40 and more ways; a test must notice each (about 20 minutes)
	$(run) python -m tests.mutations

.bench-venv/.installed: benchmarks/peers.txt scripts/peers.sh $(VENV)/.installed-dev
	bash scripts/peers.sh

bench: setup-dev .bench-venv/.installed  ## speed, error, memory beside other packages, as ratios; an hour
	@OMP_NUM_THREADS=1 .bench-venv/bin/python -m benchmarks.bench

bench-quick: setup-dev  ## the same in small, for a look; beside other packages if they are there
	@OMP_NUM_THREADS=1 $(if $(wildcard .bench-venv/.installed),.bench-venv,$(VENV))/bin/python \
	  -m benchmarks.bench --quick

docs: setup-dev  ## the documentation site, in .reflow/site; stops at a dead link or a page that nav lacks
	@$(run) PYTHONPATH=. NO_MKDOCS_2_WARNING=1 mkdocs build --strict -f scripts/mkdocs.yml
	@echo "the site: .reflow/site/index.html"

diagrams: setup-dev  ## draw the diagrams of docs/ as SVG, after one was edited (npm, chromium)
	@$(bin)/python scripts/diagrams.py

ui: setup  ## the Prefect UI and the MLflow UI of this project on loopback, until Ctrl-C
	@$(run) reflow ui

clean:  ## remove machine-local state (runs, logs, checkpoints); DVC's cache and outputs stay
	rm -rf .reflow/prefect .reflow/mlflow .reflow/scratch .reflow/locks .reflow/timings.json
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis

# One lock for every Python and system: what only some need has a marker. Of torch's CUDA packages those
# that a machine needs come with torch itself (scripts/setup.sh).
not_locked := '^(nvidia-|cuda-|triton==|torchvision==)'
compile := $(bin)/uv pip compile --quiet pyproject.toml --universal --python-version 3.11 --no-header --no-annotate

lock: setup-dev  ## resolve both locks anew: of users, of developers; without old pins by UP=--upgrade
	@mkdir -p .reflow
	$(compile) $(UP) --extra dev -c requirements-dev.lock | grep -vE $(not_locked) > .reflow/dev.lock
	mv .reflow/dev.lock requirements-dev.lock
	$(compile) -c requirements-dev.lock | grep -vE $(not_locked) > .reflow/users.lock
	mv .reflow/users.lock requirements.lock

PY ?= 3.13
test-py:  ## a short chain in an environment of the users' lock with another Python: make test-py PY=3.13
	@mkdir -p .reflow
	PYTHON=$${PYTHON:-python$(PY)} VENV=.reflow/venv-$(PY) bash scripts/setup.sh
	PATH="$(abspath .reflow/venv-$(PY)/bin):$$PATH" bash scripts/short_chain.sh
