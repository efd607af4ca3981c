#!/usr/bin/env bash
# Writes requirements.lock (everything, for development) and deploy/requirements.lock (what the container image runs; torch
# comes from an index of its own). Versions that are locked stay, unless an argument such as --upgrade or
# --upgrade-package NAME says otherwise. Each file is locked by its SHA-256.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=.venv/bin/uv

lock() {
    output=$1
    shift
    "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
        --output-file "$output" pyproject.toml "$@"
}

extras() { for extra in "$@"; do echo "--extra $extra"; done; }

# shellcheck disable=SC2046
lock requirements.lock <(echo "rliable==1.2.0") $(extras atari box2d contrib dev docs flow hub mujoco onnx postgres s3 server sweep video zoo) "$@"
# shellcheck disable=SC2046
lock deploy/requirements.lock --constraint requirements.lock --no-emit-package torch $(extras contrib flow postgres s3 server sweep)

# the build of torch that pip takes here (a CPU build, say) may be another file than PyPI's: its hash is allowed too
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
torch=$(grep -oE '^torch==[0-9.]+' requirements.lock)
.venv/bin/python -m pip download --quiet --no-deps --dest "$folder" "$torch"
hash=$(sha256sum "$folder"/torch-*.whl | cut -d ' ' -f 1)
grep -q "$hash" requirements.lock || sed -i "s/^torch==.*/&\n    --hash=sha256:$hash \\\\/" requirements.lock
