PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Every torch run in the tests is small: one thread each is faster and repeatable.
export OMP_NUM_THREADS ?= 1

.PHONY: help setup test test-slow lint bench speed clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $$(command -v $(PYTHON) || command -v python3) -m venv $(VENV)
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed, found " + sys.version)'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

setup: $(VENV)/.installed  ## make .venv with the tested versions

lint: setup  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint  ## everything that must hold, in minutes
	$(BIN)/python -m pytest -n auto --dist worksteal

test-slow: setup  ## the long learning runs
	$(BIN)/python -m pytest -n auto -m slow

bench: setup  ## train the quick suite and write its report
	$(BIN)/dqn-bench run quick
	$(BIN)/dqn-bench report quick

speed: setup  ## training throughput beside the libraries' own DQN: leave the machine alone meanwhile
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[sbx]'
	$(BIN)/python benchmarks/speed --json benchmarks/results/speed.json

clean:  ## remove what the other targets made
	rm -rf $(VENV) benchmarks/speed/.venvs build dist results reports *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
