# Everything from a fresh machine with git, make and Python >= 3.11 with pip. Each set of packages leaves
# a stamp in .venv, so a second run installs nothing until pyproject.toml changes.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-upstream test-flax-models lint format clean

demo: $(VENV)/demo.stamp
	$(BIN)/python -m experiments.tour --out=out --verbosity=-1

# Upstreams that cannot live beside tunix (which asks for a newer transformers) have a venv of their own.
FLAX_MODELS := transformers or penzai or haiku or equinox

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m 'not ($(FLAX_MODELS) or gemma)'

test-upstream:
	$(MAKE) --no-print-directory VENV=.venv-upstream test-flax-models

test-flax-models: $(VENV)/flax.stamp
	$(BIN)/python -m pytest tests/upstream -m '$(FLAX_MODELS)'

lint: $(VENV)/test.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/test.stamp
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

$(VENV)/demo.stamp: EXTRAS = models,upstream,viz
$(VENV)/test.stamp: EXTRAS = models,upstream,viz,dev
$(VENV)/flax.stamp: EXTRAS = models,flax-models,viz,dev

$(VENV)/%.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[$(EXTRAS)]'
	touch $@

# Some distributions ship venv without the pip to put into it; then the pip of $(PYTHON) installs it.
$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mechjax needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV) || { \
	  $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	  $(PYTHON) -m pip --python $(BIN)/python install pip; }

clean:
	rm -rf $(VENV) .venv-newest .venv-upstream out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
