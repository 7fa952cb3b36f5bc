# `make help` lists the targets. PYTHON names the interpreter (3.11 or newer) from which .venv is made.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DOCS_STAMP := .venv/.installed-docs
ALL_STAMP := .venv/.installed-all
# Virtual environments with other versions of the dependencies. TRANSFORMERS is what .venv-newest installs of transformers.
LOWEST := .venv-lowest
NEWEST := .venv-newest
TRANSFORMERS ?= transformers
# Sources of transformers for test-peers: fetched by pip, or a checkout of the same version.
PEERS := .peers
LENSKIT := .venv-lenskit
TRANSFORMERS_SOURCE ?= $(PEERS)
EXTRAS := app,baselines,benchmark,dev,docs,lcrec,onnx,peers,ray,release,search,serve,tensorboard,trackers,vectors
# What skips without an extra. PYTEST_FLAGS=--every-extra makes such a skip a failure.
EXTRA_TESTS := tests/app tests/baselines tests/exports tests/serving tests/benchmark/test_results.py tests/commands/test_ray_engine.py \
    tests/corpora/test_item_embeddings.py tests/docs/test_notebooks.py tests/evaluation/test_comparison_plot.py tests/evaluation/test_training_curves.py tests/training/test_indexing.py tests/training/test_search.py \
    tests/recipes/experiments/test_alignment_page.py tests/training/test_trackers.py
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
LOWEST_INSTALL := $(LOWEST)/bin/python -m pip install -qq --disable-pip-version-check -c constraints-lowest.txt
NEWEST_INSTALL := $(NEWEST)/bin/python -m pip install -qq --disable-pip-version-check --upgrade

# What `make words` reads. codespell does not follow the links in modeling_cllm4rec.
TEXTS := modeling_cllm4rec tokenization recipes notebooks tests docs .github .ci Makefile setup.cfg ruff.toml $(wildcard *.md)

.DEFAULT_GOAL := help
.PHONY: help setup setup-all demo test test-extras test-lowest test-newest test-peers test-lenskit test-slow coverage lint words types docs notebooks sdist dist bench

help:  ## print this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

setup: $(STAMP)  ## make .venv with this package and its tested dependencies

# torch comes first and by its constraint: an unconstrained torch may be another build, several GB larger.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, not " + sys.version.split()[0] + ": make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	@echo "set-up: virtual environment in .venv"
	@$(PYTHON) -m venv .venv
	@echo "set-up: torch"
	@$(PIP_INSTALL) torch
	@echo "set-up: this package and its other dependencies"
	@$(PIP_INSTALL) -e ".[dev]"
	@touch $@

$(DOCS_STAMP): $(STAMP) setup.cfg constraints.txt
	@echo "set-up: documentation tools"
	@$(PIP_INSTALL) -e ".[docs]"
	@touch $@

setup-all: $(ALL_STAMP)  ## the same with every extra

$(ALL_STAMP): $(STAMP)
	@echo "set-up: all extras"
	@$(PIP_INSTALL) -e ".[$(EXTRAS)]"
	@touch $@ $(DOCS_STAMP)

# A stamp of the lowest versions, as .venv has one; the newest versions are looked up each time.
$(LOWEST)/.installed: setup.cfg pyproject.toml constraints-lowest.txt
	@echo "set-up: virtual environment in $(LOWEST)"
	@$(PYTHON) -m venv --clear $(LOWEST)
	@echo "set-up: torch"
	@$(LOWEST_INSTALL) torch
	@echo "set-up: this package and the lowest versions of its other dependencies"
	@$(LOWEST_INSTALL) -e ".[dev]"
	@$(LOWEST)/bin/python -m pip check
	@touch $@

demo: $(STAMP)  ## generate a data set, pretrain, finetune, evaluate, recommend
	$(BIN)/python recipes/demo.py

test: lint types  ## set-up, lint, types and the fast tests
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-extras: $(ALL_STAMP)  ## the fast tests that need an extra
	$(BIN)/python -m pytest -n 2 -m "not slow" --every-extra $(EXTRA_TESTS)

test-lowest: $(LOWEST)/.installed  ## the fast tests on the lowest versions of the dependencies
	$(LOWEST)/bin/python -m pytest -n 2 -m "not slow"

# torch comes from the index that pip is set up with; PyPI's needs several GB of CUDA, other indices have CPU builds.
test-newest:  ## the fast tests on the newest versions (TRANSFORMERS=git+https://... for a branch)
	@$(PYTHON) -m venv $(NEWEST)
	@echo "set-up: torch"
	@$(NEWEST_INSTALL) torch
	@echo "set-up: this package and the newest versions of its other dependencies"
	@$(NEWEST_INSTALL) "$(TRANSFORMERS)" -e ".[dev]"
	$(NEWEST)/bin/python -m pytest -n 2 -m "not slow"

test-slow: $(STAMP)  ## the tests that `make test` leaves out
	$(BIN)/python -m pytest -m slow $(PYTEST_FLAGS)

# A source distribution of transformers lacks some modules of its tests, see tests/peers/transformers/conftest.py.
test-peers: $(STAMP) $(PEERS)  ## transformers' own test suites over our classes (TRANSFORMERS_SOURCE=a checkout: all of them)
	@$(PIP_INSTALL) -e ".[peers]"
	TRANSFORMERS_SOURCE=$(TRANSFORMERS_SOURCE) $(BIN)/python -m pytest -o addopts="--import-mode=importlib -q" tests/peers/transformers $(PYTEST_FLAGS)

# It needs pandas 2, so the constraints do not hold for it.
test-lenskit:  ## LensKit's conformance suite over our models, in an environment of its own
	@$(PYTHON) -m venv $(LENSKIT)
	@$(LENSKIT)/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt torch
	@$(LENSKIT)/bin/python -m pip install -qq --disable-pip-version-check -e . lenskit hypothesis pytest
	HF_HUB_OFFLINE=1 $(LENSKIT)/bin/python -m pytest -o addopts="--import-mode=importlib -q" tests/peers/lenskit $(PYTEST_FLAGS)

$(PEERS):
	@$(BIN)/python -m pip download -qq --disable-pip-version-check --no-binary transformers --no-deps --no-build-isolation \
	    -c constraints.txt -d $(PEERS).download transformers
	@mkdir -p $(PEERS)
	@tar --extract --gzip --strip-components=1 --directory=$(PEERS) --file=$$(ls $(PEERS).download/*.tar.gz)
	@touch $(PEERS)/tests/__init__.py

coverage: $(STAMP)  ## the fast tests, and which lines and branches they run
	$(BIN)/python -m pytest -n 2 -m "not slow" --cov --cov-report=term

lint: words  ## style, likely bugs, docstrings, words, pickle, direction of imports
	$(BIN)/python -m ruff check . && $(BIN)/python -m ruff format --check -q .
	$(BIN)/lint-imports --no-logo --no-cache

words: $(STAMP)  ## banned words of .words.txt
	$(BIN)/codespell $(TEXTS)

types: $(STAMP)  ## type annotations
	$(BIN)/python -m mypy

docs: $(DOCS_STAMP)  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

notebooks: $(DOCS_STAMP)  ## write notebooks/*.ipynb from the scripts of the same names
	$(BIN)/python docs/generators/notebook_pages.py

bench: $(STAMP)  ## time training and scoring against the released scheme
	$(BIN)/python recipes/experiments/training_speed.py

# TAG=v1.2.3, as the release workflow sets it, must be the version of setup.cfg.
dist: $(STAMP)  ## build source distribution and wheel into dist/, and check them as the index does (TAG=v1.2.3)
	@$(BIN)/python -c 'import configparser as c, sys; s = c.ConfigParser(); s.read("setup.cfg", encoding="utf-8"); v = "v" + s["metadata"]["version"]; sys.exit("TAG is $(TAG) and setup.cfg has " + v if "$(TAG)" not in ("", v) else 0)'
	@rm -rf dist build
	$(BIN)/python -c "import setuptools.build_meta as backend; backend.build_sdist('dist')"
	$(BIN)/python -c "import setuptools.build_meta as backend; backend.build_wheel('dist')"
	@$(PIP_INSTALL) -e ".[release]"
	$(BIN)/python -m twine check --strict dist/*

sdist: $(STAMP)  ## build the source distribution into dist/
	$(BIN)/python -c "import setuptools.build_meta as backend; print('dist/' + backend.build_sdist('dist'))"
