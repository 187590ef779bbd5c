# make compare    trains the pendulum with three model losses and compares them
# make findings   rewrites docs/findings.md and the README's table from the results
# make mistakes   rewrites docs/mistakes.md with the message that each mistake gets
# make test       the tests            make test-fast   those that need two minutes
# make test-docs  the code of the documents and the notebooks
# make lint       style and types      make wheel       builds the package into dist/
# make docs       the documentation site, into build/docs
#
# Variables: PYTHON=python3.13, VENV=folder of the environment, ARGS="more arguments",
# such as make compare ARGS="--config.num_seeds=8".

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
PINS := setup.cfg pyproject.toml requirements.txt
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
PYTEST := $(VENV)/bin/python -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder
FAST := tests/analysis tests/cli/test_main.py tests/envs/test_base.py \
  tests/envs/test_classic.py tests/losses/test_value_gradients.py \
  tests/losses/test_values.py tests/run/test_rows.py tests/storage/test_files.py \
  tests/storage/test_results.py tests/test_api.py tests/test_config.py \
  tests/test_dynamics.py tests/test_evaluate.py tests/test_fit_isolation.py \
  tests/test_imagine.py tests/test_layout.py tests/test_mbpo_refusals.py \
  tests/test_networks.py tests/test_replay.py tests/test_sac.py \
  tests/test_schedules.py tests/test_termination.py
DOCUMENTS := tests/test_documents.py tests/test_notebooks.py

.PHONY: compare findings mistakes test test-fast test-docs lint docs wheel clean

compare: $(VENV)/.installed
	$(VENV)/bin/vagram compare --config=pendulum $(ARGS)

findings: $(VENV)/.installed
	$(VENV)/bin/vagram study --write_findings $(ARGS)

mistakes: $(VENV)/.installed-dev
	$(VENV)/bin/python tests/mistakes.py

test: $(VENV)/.installed-dev
	$(PYTEST) $(DOCUMENTS:%=--ignore=%) $(ARGS)

test-docs: $(VENV)/.installed-dev
	$(PYTEST) $(DOCUMENTS) $(ARGS)

test-fast: $(VENV)/.installed-dev
	$(PYTEST) $(FAST) $(ARGS)

lint: $(VENV)/.installed-dev
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

docs: $(VENV)/.installed-docs
	$(VENV)/bin/python -m sphinx --quiet --fail-on-warning --builder html docs build/docs

# Files in build/ that are no longer in the package would get into the wheel.
wheel: $(VENV)/bin/python
	rm -rf build/bdist* build/lib dist
	$(VENV)/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps \
	  --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The date of a stamp file is that of the last installation.
$(VENV)/.installed: $(PINS) | $(VENV)/bin/python
	$(PIP) --editable . --constraint requirements.txt
	touch $@

$(VENV)/.installed-dev: $(PINS) | $(VENV)/bin/python
	$(PIP) --editable ".[dev]" --requirement requirements.txt
	touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: $(PINS) | $(VENV)/bin/python
	$(PIP) --editable ".[docs]" --requirement requirements.txt
	touch $@
