# lrurec-stream: `make demo` and `make test` do all set-up themselves; `make` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Without these, glibc gives big tensors back to the system at every training step (about half the speed).
export MALLOC_MMAP_MAX_ ?= 0
export MALLOC_TRIM_THRESHOLD_ ?= 100000000000
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format chaos bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

setup: $(VENV)/.installed  ## build .venv with everything (called by the other targets)

# uv installs in a third of pip's time. It does not read pip's settings: where those name an index, pip does it.
FROM_HERE := --quiet --constraint constraints.txt --editable '.[dev]'
INSTALL_BY_UV = ! $(BIN)/python -m pip config list | grep -q index-url \
	&& $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv \
	&& $(BIN)/uv pip install --python $(BIN)/python --compile-bytecode $(FROM_HERE)

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (once; torch is large, this takes a minute or more) ..."
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Python 3.11 to 3.13 needed, this is " + sys.version.split()[0] + "; choose one with: make PYTHON=python3.11 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(INSTALL_BY_UV) || $(BIN)/python -m pip install $(FROM_HERE)
	@touch $@

demo: setup  ## the whole loop on bundled real data; DATA=file ITEMS=file for your own
	@$(BIN)/lrurec demo $(if $(DATA),--data $(DATA)) $(if $(ITEMS),--items $(ITEMS)) $(ARGS)

# Tests of whole processes first: begun last, they would leave one processor idle at the end.
test: setup  ## all tests, on a real Kafka that they start themselves
	@$(BIN)/python -m pytest tests/integration tests/unit tests/property -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: setup  ## format, lint, types, import directions
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: setup  ## rewrite the code in the house format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

chaos: setup  ## workers that join, die and freeze under load; SCENARIO=name MINUTES=n SEED=s
	@$(BIN)/python -m tests.chaos $(SCENARIO) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) $(ARGS)

bench: setup  ## every benchmark; the better part of an hour
	@$(BIN)/python -m tests.benchmarks $(ARGS)

clean:  ## remove what the project wrote (the virtual environment stays)
	@-test -x $(BIN)/lrurec && $(BIN)/lrurec broker stop
	rm -rf .lrurec
