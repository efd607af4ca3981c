# Two targets do everything on a fresh machine: `make train` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
TORCH = $$(grep -oE '^torch==[0-9.]+' requirements.lock)
CONFIG ?= configs/cartpole_ppo.yaml
# Many tests wait for servers and processes: more of them at once than there are cores
WORKERS ?= $$($(BIN)/python -c "import os; print(2 + (os.cpu_count() or 1))")

export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
# Set (images of containers often do), each start of a process compiles MLflow, Prefect and rltrack anew: twice the time
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help train test nightly check compat fast lint types format scores docs audit audit-where-possible coverage build lock clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# The lock file has every package with its SHA-256. Torch goes first, from a folder: installers that check hashes would pass over a
# smaller build that this machine offers (PIP_FIND_LINKS, say) for PyPI's. A build that the lock file does not know is left out here,
# and PyPI's comes with the rest; then come the libraries that PyPI's needs beside it.
$(VENV)/.installed: requirements.lock pyproject.toml
	@echo "Installing the locked packages into $(VENV); the first time this takes a minute or more."
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(VENV)/first
	@sed -n '/^torch==/,/[^\\]$$/p' requirements.lock > $(VENV)/first/torch.lock
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > $(VENV)/first/uv.lock
	$(PIP) download --quiet --no-deps --dest $(VENV)/first "$(TORCH)"
	-@$(PIP) install --quiet --quiet --quiet --no-deps --require-hashes --no-index --find-links $(VENV)/first --requirement $(VENV)/first/torch.lock
	$(PIP) install --quiet --no-deps --require-hashes --requirement $(VENV)/first/uv.lock
	@rm -rf $(VENV)/first
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --require-hashes --requirement requirements.lock
	$(PIP) install --quiet "$(TORCH)"
	PYTHONWARNINGS=ignore $(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

train: $(VENV)/.installed  ## build the environment if needed, then train PPO on CartPole-v1 (CONFIG=... for another)
	$(BIN)/rltrack flow train $(CONFIG)

test: $(VENV)/.installed  ## build the environment if needed, then run the tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

nightly: $(VENV)/.installed  ## the long tests: the whole matrix of exact resume, 500 random kills (more than an hour)
	$(BIN)/python -m pytest -n 2 -m nightly --timeout 1800

compat: $(VENV)/.installed  ## test with the lowest and the highest MLflow and Prefect that are allowed (ten minutes)
	deploy/compat.sh lowest
	deploy/compat.sh highest

check: lint types fast audit-where-possible  ## format, lint, types, fast tests, known vulnerabilities: two minutes

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.installed
	$(BIN)/mypy

fast: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not nightly"

format: $(VENV)/.installed  ## format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

scores: $(VENV)/.installed  ## train the tuned presets over 5 seeds and write docs/scores.md (about two hours on 2 cores)
	$(BIN)/rltrack benchmark scores --output docs/scores.md

docs: $(VENV)/.installed  ## build the documentation's pages, strictly, into site/
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict --quiet

audit: $(VENV)/.installed  ## look the locked packages up in the database of known vulnerabilities
	$(BIN)/pip-audit --strict --progress-spinner off --disable-pip --requirement requirements.lock

# One package is asked about first: where its data cannot be reached, pip-audit fails or skips it
audit-where-possible: $(VENV)/.installed
	@if echo "pip==26.0" | timeout 30 $(BIN)/pip-audit --progress-spinner off --disable-pip --no-deps --requirement /dev/stdin --format json \
	2> /dev/null | grep -q '"vulns"'; \
	then $(MAKE) audit; else echo "pip-audit cannot reach its data from here; run 'make audit' where it can"; fi

coverage: $(VENV)/.installed  ## run the tests and say which lines and branches they reach (half an hour on 2 cores)
	$(BIN)/python -m pytest -n 2 --cov --cov-report term --cov-report html

build: $(VENV)/.installed  ## build the wheel and the source archive into dist/
	$(BIN)/uv build --quiet

lock: $(VENV)/.installed  ## lock what pyproject.toml asks for, with hashes (UPGRADE=--upgrade for newer versions)
	deploy/lock.sh $(UPGRADE)

clean:  ## remove the environment and caches (never mlruns/)
	rm -rf $(VENV) .compat .mypy_cache .ruff_cache .pytest_cache build dist site htmlcov
