# Everything a person needs, on a fresh Debian or Ubuntu: make run, make demo, make test, make bench.
#
# The virtual environment is .venv. Each need of it has a stamp, so a second run installs nothing and starts at once;
# a change of pyproject.toml or of the compiled core installs again. What comes from apt is installed only when it is
# missing, see scripts/need. Without a C compiler everything runs in pure Python; `make test` installs one.

VENV   := .venv
BIN    := $(VENV)/bin
PYTHON ?= python3
DATA   ?= ./data
ARGS   ?=

# What an installation is made of.
SOURCES := pyproject.toml hatch_build.py merklekv/_core.pyx vendor/xxhash/xxhash.h

# The tests start hundreds of processes: each would compile the server anew if the environment forbade to keep bytecode.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run demo test check docs site structure bench soak clean

help:  ## Show what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(BIN)/python:
	scripts/need $(PYTHON):ensurepip=python3-venv
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(SOURCES) | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.test: $(SOURCES) | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --editable '.[test,applications,bench,demo,docs]'
	@touch $@ $(VENV)/.run

# Whether the compiled core is there. Without a compiler there is no stamp, so each start looks for one again.
$(VENV)/.core: $(VENV)/.run
	@$(BIN)/python scripts/build_core.py $@

# What tests/applications runs with Node.js, in the versions of its lock file; beside what pip installs.
$(VENV)/.npm: tests/applications/package-lock.json | $(BIN)/python
	scripts/need node=nodejs npm=npm
	mkdir -p $(VENV)/npm && cp tests/applications/package*.json $(VENV)/npm
	npm ci --silent --no-audit --no-fund --ignore-scripts --prefix $(VENV)/npm
	@touch $@

run: $(VENV)/.core  ## Serve ./data on 127.0.0.1:7379 (DATA=DIR and ARGS="--port 7380" change it)
	$(BIN)/merklekv run --data-dir $(DATA) $(ARGS)

demo: $(VENV)/.core  ## See it heal: a broker and three nodes, in your browser and the terminal (ARGS="--seconds 20")
	scripts/need mosquitto=mosquitto
	$(BIN)/merklekv demo $(ARGS)

test: check $(VENV)/.npm  ## Run the gate: what check runs, the integration suite without the core, and every test (ARGS="-k words" picks tests)
	scripts/need mosquitto=mosquitto redis-server=redis-server redis-benchmark=redis-tools fiu-run=fiu-utils faketime=faketime strace=strace nc=netcat-openbsd curl=curl chromium=chromium prometheus=prometheus promtool=prometheus gcc=gcc /usr/include/stdlib.h=libc6-dev $(BIN)/python:Python.h=python3-dev
	@$(BIN)/python scripts/build_core.py $(VENV)/.core
	$(if $(ARGS),,MERKLEKV_PURE=1 $(BIN)/pytest --no-skips -n auto --dist worksteal -p no:benchmark tests/integration)
	$(BIN)/pytest --no-skips -n auto --dist worksteal -p no:benchmark $(ARGS)

check: $(VENV)/.test  ## Run the quick half of the gate: ruff, the layers, mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy --strict

docs: $(VENV)/.run  ## Write what the docs take from the code: docs/cli.md, the example in docs/format.md, the commands and metrics in docs/protocol.md, docs/compatibility.md, the examples in docs/replication.md, docs/pictures/exchange.svg
	$(BIN)/python scripts/write_cli_docs.py
	$(BIN)/python scripts/write_format_example.py
	$(BIN)/python scripts/write_metrics.py
	$(BIN)/python scripts/write_commands.py
	$(BIN)/python scripts/write_compatibility.py
	$(BIN)/python scripts/write_deletion_examples.py
	$(BIN)/python scripts/write_exchange_picture.py

site: $(VENV)/.test  ## Build the documentation as a site that works without a network: build/site/index.html
	$(BIN)/python -m sphinx -q --fail-on-warning --keep-going -c docs -d build/doctrees . build/site

structure:  ## Report the code's structure: who knows a record's layout, private accesses, cycles, lines (ROOT=DIR)
	$(PYTHON) scripts/structure.py $(ROOT)

bench: $(VENV)/.test  ## Measure this machine: beside Redis, replication, exchanges; one report with plots
	scripts/need redis-server=redis-server redis-benchmark=redis-tools mosquitto=mosquitto
	@$(BIN)/python scripts/build_core.py $(VENV)/.core
	$(BIN)/python benchmarks/everything.py $(ARGS)

soak: $(VENV)/.test  ## Three nodes under load, faults and hostile clients for an hour; curves in build/soak (ARGS="--minutes 5")
	scripts/need mosquitto=mosquitto faketime=faketime
	@$(BIN)/python scripts/build_core.py $(VENV)/.core
	PYTHONPATH=tests $(BIN)/python -m soak $(ARGS)

clean:  ## Remove the virtual environment and what tools left behind (never data)
	rm -rf $(VENV) build .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis .benchmarks .coverage coverage.xml htmlcov merklekv/_core.*.so
	cd tests/integration && rm -rf coverage.xml htmlcov junit.xml report.html
