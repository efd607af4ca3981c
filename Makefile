# Two targets do everything on a fresh machine: `make train` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= configs/cartpole_ppo.yaml

export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: help train test nightly check fast lint types format scores docs audit audit-where-possible coverage build lock clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# the lock file has every package with its SHA-256; torch's CUDA builds then bring the libraries that they need beside it
$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet "$$(grep -oE '^torch==[0-9.]+' requirements.lock)"
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

train: $(VENV)/.installed  ## build the environment if needed, then train PPO on CartPole-v1 (CONFIG=... for another)
	$(BIN)/rltrack flow train $(CONFIG)

test: $(VENV)/.installed  ## build the environment if needed, then run the tests
	$(BIN)/python -m pytest -n 2

nightly: $(VENV)/.installed  ## the long tests: the whole matrix of exact resume, 500 random kills (more than an hour)
	$(BIN)/python -m pytest -n 2 -m nightly --timeout 1800

check: lint types fast audit-where-possible  ## format, lint, types, fast tests, known vulnerabilities: a few minutes

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.installed
	$(BIN)/mypy

fast: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 -m "not slow and not nightly"

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

audit-where-possible: $(VENV)/.installed
	@if $(BIN)/python -c "import urllib.request as u; u.urlopen('https://pypi.org/pypi/pip/26.0/json', timeout=3)" 2> /dev/null; \
	then $(MAKE) audit; else echo "pip-audit cannot reach its data from here; run 'make audit' where it can"; fi

coverage: $(VENV)/.installed  ## run the tests and say which lines and branches they reach (half an hour on 2 cores)
	$(BIN)/python -m pytest -n 2 --cov --cov-report term --cov-report html

build: $(VENV)/.installed  ## build the wheel and the source archive into dist/
	$(BIN)/uv build --quiet

lock: $(VENV)/.installed  ## lock what pyproject.toml asks for, with hashes (deploy/lock.sh --upgrade for newer versions)
	deploy/lock.sh

clean:  ## remove the environment and caches (never mlruns/)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist site htmlcov
