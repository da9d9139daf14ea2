PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet -c constraints.txt

.PHONY: demo test lint types coverage chromium clean

demo: $(VENV)/.installed  ## Install, then examine a small network: report.html and report.json.
	$(BIN)/gnomon examine --out report.html

test: $(VENV)/.tests chromium  ## Install what the tests need, then run them.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

lint: $(VENV)/.tests  ## Style and formatting.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.tests  ## The type checker.
	$(BIN)/mypy

coverage: $(VENV)/.tests  ## How often each instrument's 95 % interval covers the truth, on the whole grid of networks.
	$(BIN)/python tests/coverage_grid.py

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "gnomon needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	$(INSTALL) -e .
	@touch $@

$(VENV)/.tests: $(VENV)/.created pyproject.toml constraints.txt
	$(INSTALL) -e '.[test,lint]'
	@touch $@ $(VENV)/.installed

chromium:
	@if command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null; then :; \
	elif command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	else echo "No Chromium here, so the tests of the page in a browser are skipped. On Debian: sudo apt install chromium"; fi

clean:  ## Delete what make and the tools have made.
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis report.html report.json report.npz
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
