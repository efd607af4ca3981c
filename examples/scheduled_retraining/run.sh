#!/usr/bin/env bash
# A champion, and a schedule that retrains it, on this machine; about three minutes.
#
#   bash examples/scheduled_retraining/run.sh
set -euo pipefail
cd "$(dirname "$0")"

rltrack up           # Prefect, MLflow, TensorBoard, a worker
trap 'rltrack down' EXIT

# a first champion, trained for a short while only
rltrack train --algo ppo --env CartPole-v1 --timesteps 6000 --name cartpole-first
rltrack promote cartpole-first --model cartpole

# from here on a new policy is trained each minute, and challenges it
rltrack deploy --file prefect.yaml

echo "waiting for a challenger …"
until [ "$(rltrack models --json | python3 -c 'import json, sys; print(len(json.load(sys.stdin)[0]["history"]))')" -ge 2 ]; do
    sleep 5
done
rltrack models       # every decision, with its reason
