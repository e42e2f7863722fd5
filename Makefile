# make demo        install into .venv, generate data, train, evaluate, write demo/report.html
# make test        install with the development tools, then lint, types and tests
# make test-full   the same with the slow and full-size checks, and the notebooks
# make test-extras lint, the pages and the tests with every optional package installed, as continuous integration runs them
# make docs        the pages of docs/ as a site in site/
# make bench       every measurement in benchmarks/
# make lint        ruff and mypy
# make clean       remove .venv, caches, site/ and build products; demo/ and runs/ stay
#
# PYTHON=python3.12 chooses the interpreter (3.11 or newer), OUT=DIR the demo's folder, WORKERS=N the test processes.
# Where packages come from is pip's own configuration (for example PIP_INDEX_URL).

PYTHON ?= python3
OUT ?= demo
# One torch thread per test process; four processes are as many as the longest tests can keep busy.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN || echo 2); if [ $$n -gt 4 ]; then n=4; fi; echo $$n)

BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder

.PHONY: demo test test-full test-extras docs bench lint clean

demo: .venv/.installed
	$(BIN)/cover demo --out $(OUT)

test: lint
	$(PYTEST) -m "not full"

test-full: lint .venv/.installed-notebooks
	$(PYTEST) --hypothesis-profile full
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest --nbmake --nbmake-timeout 900 --timeout 1800 docs/notebooks

# The first prerequisite installs what the others need. Torchcodec needs FFmpeg's libraries and the page's tests need Chromium:
# without them, pytest names the tests that it skips.
test-extras: .venv/.installed-extras lint docs
	$(PYTEST) -m "extras or not full"

docs: .venv/.installed-docs
	$(BIN)/python -m sphinx -W --keep-going -q -E -a docs site
	@echo site/index.html

bench: .venv/.installed-dev
	@for script in $(wildcard benchmarks/[a-z]*.py); do echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: an install is repeated when what it installs from has changed. An interrupted one leaves no stamp.
.venv/.installed: pyproject.toml constraints.txt | .venv/.created
	@echo "installing into .venv (some minutes the first time)"
	@$(INSTALL) -e .
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt | .venv/.created
	@echo "installing into .venv with the development tools (some minutes the first time)"
	@$(INSTALL) -e '.[dev]'
	@touch .venv/.installed $@

.venv/.installed-notebooks: pyproject.toml constraints.txt | .venv/.created
	@echo "installing into .venv with what runs the notebooks (some minutes the first time)"
	@$(INSTALL) -e '.[dev,notebooks]'
	@touch .venv/.installed .venv/.installed-dev $@

.venv/.installed-docs: pyproject.toml constraints.txt | .venv/.created
	@echo "installing into .venv with what builds the pages (some minutes the first time)"
	@$(INSTALL) -e '.[docs]'
	@touch .venv/.installed $@

.venv/.installed-extras: pyproject.toml constraints.txt | .venv/.created
	@echo "installing into .venv with every optional package (some minutes the first time)"
	@$(INSTALL) -e '.[dev,docs,cluster,torchcodec]' wandb scipy
	@touch .venv/.installed .venv/.installed-dev .venv/.installed-docs $@

.venv/.created:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "cover needs Python 3.11 or newer and $(PYTHON) is %d.%d: make PYTHON=python3.11" % sys.version_info[:2])'
	@$(PYTHON) -m venv .venv
	@touch $@
