.DEFAULT_GOAL := help
.PHONY: help install demo check test audit bench bench-quick torture clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(READY) ## Create .venv from the lock (hashes checked) and install banana-batch into it

$(READY): constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; try: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY) ## Make a dozen pictures with the free sandbox endpoint
	$(BIN)/banana-batch run jobs/demo.csv --sandbox -o outputs/demo

check: $(READY) ## Lint, format, types, walls of the house
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(READY) ## All tests but the long torture (at most two minutes)
	$(BIN)/python -m pytest -q -n 2

bench: $(READY) ## Measure beside what a user would pick instead
	$(BIN)/python -m tests.benchmarks

bench-quick: $(READY) ## The same with smaller workloads (at most two minutes)
	$(BIN)/python -m tests.benchmarks --quick

torture: $(READY) ## Kills, power cuts, faults (15 minutes; TIER=b: the nightly one)
	$(BIN)/python -m tests.torture $(or $(TIER),a)

audit: $(READY) ## Look for known holes in what the lock names (asks the package index)
	$(BIN)/python -m pip_audit --strict --require-hashes --disable-pip --progress-spinner off -r constraints.txt

clean: ## Remove the environment and what tests and demos left
	rm -rf $(VENV) outputs/demo outputs/bench .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
