# Two targets do everything on a fresh machine: `make train` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= configs/cartpole_ppo.yaml

export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: help train test nightly check fast lint types format scores lock clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# rliable without what it depends on, which does not work with pandas 3: a test compares its metrics with ours
$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation rliable==1.2.0
	@touch $@

train: $(VENV)/.installed  ## build the environment if needed, then train PPO on CartPole-v1 (CONFIG=... for another)
	$(BIN)/rltrack flow train $(CONFIG)

test: $(VENV)/.installed  ## build the environment if needed, then run the tests
	$(BIN)/python -m pytest -n 2

nightly: $(VENV)/.installed  ## the long tests: the whole matrix of exact resume, 500 random kills (more than an hour)
	$(BIN)/python -m pytest -n 2 -m nightly --timeout 1800

check: lint types fast  ## format, lint, types, fast tests: within a minute

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

lock: $(VENV)/.installed  ## write requirements.lock from what is installed
	$(BIN)/python -m pip freeze --exclude-editable | sed -E 's/\+cpu//' > requirements.lock

clean:  ## remove the environment and caches (never mlruns/)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
