# `make demo` and `make test` each do everything from a clean clone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint docs reliability clean

demo: $(VENV)/.train
	$(BIN)/mmmlib train -d hubble --recipe mmm --logs-dir runs

test: $(VENV)/.test
	$(BIN)/pytest

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --config setup.cfg

docs: $(VENV)/.docs
	$(BIN)/sphinx-build -W -q docs docs/_build/html

# All that CI does a little of: an hour or more, and 8 GB for the versions.
reliability: $(VENV)/.reliability
	$(BIN)/python -m benchmarks.reliability
	$(BIN)/python -m benchmarks.coverage --keep build/lines
	$(BIN)/python -m benchmarks.mutants --map build/lines
	$(BIN)/python -m benchmarks.versions
	$(BIN)/python -m benchmarks.tables

# One stamp for each set of extras; a change of the requirements installs again.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: EXTRAS := train
$(VENV)/.test: EXTRAS := train,test,docs
$(VENV)/.lint: EXTRAS := train,test,lint
$(VENV)/.docs: EXTRAS := train,docs
$(VENV)/.reliability: EXTRAS := train,test,reliability
$(VENV)/.train $(VENV)/.test $(VENV)/.lint $(VENV)/.docs $(VENV)/.reliability: setup.cfg pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf $(VENV) build dist docs/_build *.egg-info
