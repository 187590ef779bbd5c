# make compare    the comparison of model losses, in an environment made on the spot
# make test       the tests              make lint    style and format
# Settings: PYTHON=python3.13, ARGS="--config.num_seeds=8", VENV=folder of the environment

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
PINS := setup.cfg pyproject.toml requirements.txt
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: compare test lint clean

compare: $(VENV)/.installed
	$(VENV)/bin/python -m vagram_jax.cli.compare \
	  --config=vagram_jax/cli/configs/pendulum.py $(ARGS)

test: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest --numprocesses=auto --dist=loadfile $(ARGS)

lint: $(VENV)/.installed-dev
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# A stamp is as new as the last installation, so that nothing is installed twice.
$(VENV)/.installed: $(PINS) | $(VENV)/bin/python
	$(PIP) --editable ".[mujoco]" --requirement requirements.txt
	touch $@

$(VENV)/.installed-dev: $(PINS) | $(VENV)/bin/python
	$(PIP) --editable ".[dev]" --requirement requirements.txt
	touch $@ $(VENV)/.installed
