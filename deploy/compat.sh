#!/usr/bin/env bash
# deploy/compat.sh lowest|highest [--only-build]: builds .compat/lowest or .compat/highest, an environment with the lowest or the
# highest MLflow and Prefect that pyproject.toml allows, and runs a short suite in it: delivery, flows, deployments, promotion.
set -euo pipefail
cd "$(dirname "$0")/.."
which=$1
environment=.compat/$which
python=$environment/bin/python

lower_bound() { sed -nE "s/.*\"$1>=([0-9.]+).*/$1==\1/p" pyproject.toml | head -1; }

case $which in
    lowest) pins="$(lower_bound mlflow) $(lower_bound prefect)" ;;
    highest) pins="" ;;
    *) echo "lowest or highest, not '$which'" >&2; exit 2 ;;
esac

if [ ! -e "$environment/.built" ] || [ pyproject.toml -nt "$environment/.built" ]; then
    rm -rf "$environment"
    .venv/bin/python -m venv "$environment"
    # torch first, by pip: it takes the build that this machine offers
    "$python" -m pip install --quiet "$(grep -oE '^torch==[0-9.]+' requirements.lock)"
    # shellcheck disable=SC2086
    .venv/bin/uv pip install --quiet --python "$python" --requirement pyproject.toml --extra flow --extra sweep \
        pytest pytest-timeout hypothesis $pins
    touch "$environment/.built"
fi
"$python" - <<'PYTHON'
from importlib.metadata import version

print(", ".join(f"{name} {version(name)}" for name in ("mlflow", "prefect", "fastapi", "sqlalchemy")))
PYTHON
[ "${2:-}" = --only-build ] && exit 0
PYTHONPATH="$PWD" "$python" -m pytest -p no:cacheprovider tests/contract/test_sinks.py tests/faults/test_permanent_and_passing.py \
    tests/unit/test_addresses.py tests/unit/tracking/test_delivery.py tests/registry/test_promotion.py tests/flows/test_train_flow.py \
    tests/flows/test_deploy.py
