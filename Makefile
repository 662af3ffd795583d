# Needs Python >= 3.11, git and make. Everything else is installed into .venv by the first target.
# What pyenv builds is not optimised unless it is told to, and the tests take a fifth longer on it. There
# the system's Python is taken, if it is new enough and can make environments.
PYTHON ?= $(shell \
	if python3 -c 'import sysconfig; "enable-opt" in sysconfig.get_config_var("CONFIG_ARGS") or exit(1)' \
	|| ! /usr/bin/python3 -c 'import ensurepip, sys; exit(sys.version_info < (3, 11))' 2>/dev/null; \
	then echo python3; else echo /usr/bin/python3; fi)
BIN := .venv/bin
# All tests of a file run in one worker, because they share compiled functions.
TEST := -m pytest -n 2 --dist loadfile --no-loadscope-reorder
# A version of Python, JAX or Flax changes interfaces, which these files of tests/library cover.
ON_VERSIONS := $(addprefix tests/library/test_,contract.py distributed.py laws.py convolutions.py \
	flax.py keras.py equinox.py wiring.py)

.PHONY: demo test test-long test-all test-peers test-lowest test-newest lint format constraints docs dist bench-gpu help
.DELETE_ON_ERROR:

demo: .venv/installed  ## SGD, SAM, ARSAM and budgeted SAM on digits with noisy labels
	$(BIN)/python -m examples.classification $(if $(wildcard runs/digits/config.json),--resume)

test: .venv/installed  ## the tests, except long ones
	$(BIN)/python $(TEST)

test-long: .venv/installed  ## the tests that make test leaves out
	$(BIN)/python $(TEST) -m long

test-all: test test-long  ## all tests

test-peers: .venv/peers  ## against PyTorch implementations
	$(BIN)/python -m pytest tests/library/test_peers.py

test-lowest: .venv/lowest/installed  ## the library on the lowest versions that pyproject.toml allows
	.venv/lowest/bin/python $(TEST) $(ON_VERSIONS)

test-newest: .venv/newest/installed  ## the library on the newest Python at hand, with its newest JAX
	.venv/newest/bin/python $(TEST) $(ON_VERSIONS)

lint: .venv/installed  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: .venv/installed  ## what ruff can mend by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints: .venv/installed  ## pins the newest versions
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
		--upgrade --no-header --no-annotate --no-emit-index-url -o constraints.txt
	$(BIN)/uv pip compile pyproject.toml --extra docs --universal --python-version 3.11 \
		--upgrade --no-header --no-annotate --no-emit-index-url -o docs/constraints.txt

# Sphinx loses index entries for the search, and old warnings, when it reuses an earlier build.
docs: .venv/docs/installed  ## the site, in docs/_build/html; a warning is an error
	.venv/docs/bin/sphinx-build -W -E -a --keep-going --quiet $(BUILD) -b html docs docs/_build/html

dist: .venv/installed  ## sdist and wheel in dist/, checked as a package index does
	rm -rf dist
	$(BIN)/uv build --quiet
	$(BIN)/twine check --strict dist/*

bench-gpu: .venv/installed  ## time and memory on this accelerator, in at most 8 minutes; call again to continue
	$(BIN)/python -m benchmarks.cost --accelerator

help:  ## this list
	@sed -nE 's/^([a-z-]+):.*  ## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

# Without their dependencies: zij's pin of torch would bring several GB of CUDA.
.venv/peers: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps zij pytorch_optimizer
	touch $@

.venv/lowest/installed: pyproject.toml .venv/installed
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv/lowest
	$(BIN)/uv pip install --quiet --python .venv/lowest/bin/python --resolution lowest-direct -e .
	$(BIN)/uv pip install --quiet --python .venv/lowest/bin/python \
		flax==0.10.6 hypothesis orbax-checkpoint pytest pytest-xdist scipy
	touch $@

# Apart from the tools of development: Sphinx and twine want different versions of docutils.
.venv/docs/installed: pyproject.toml docs/constraints.txt .venv/installed
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv/docs
	$(BIN)/uv pip install --quiet --python .venv/docs/bin/python -c docs/constraints.txt \
		-r pyproject.toml --extra docs
	touch $@

# uv takes the first Python on the path that pyproject.toml allows: put those of pyenv before it.
PYTHONS := $$(ls -d $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.*/bin 2>/dev/null | sort -rV | tr '\n' ':')

.venv/newest/installed: pyproject.toml constraints.txt .venv/installed
	PATH="$(PYTHONS)$$PATH" $(BIN)/uv venv --quiet --clear --no-python-downloads .venv/newest
	$(BIN)/uv pip install --quiet --python .venv/newest/bin/python -c constraints.txt -e '.[test]'
	touch $@

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[dev]'
	touch $@
