"""Scheduled retraining on a stack: a worse, an equal and a better challenger: ``python -m tests.support.retraining FOLDER``."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from rltrack.files import lock_holder
from tests.support.stack import Stack, say

MODEL = "cartpole"
GATE = {"kind": "superior", "episodes": 60}


def training(steps: int, **hyperparameters: Any) -> dict[str, Any]:
    settings = {
        "n_steps": 32,
        "batch_size": 256,
        "gae_lambda": 0.8,
        "gamma": 0.98,
        "n_epochs": 20,
        "learning_rate": 0.001,
    }
    return {
        "agent": {"algorithm": "PPO", "hyperparameters": {**settings, **hyperparameters}, "device": "cpu"},
        "environment": {"id": "CartPole-v1", "n_envs": 8},
        "training": {"total_timesteps": steps, "eval_freq": max(steps // 4, 256)},
        "evaluation": {"episodes": 20},
        "tracking": {"video": False},
    }


def fire(stack: Stack, name: str, config: dict[str, Any] | None, *, warm_start: bool, kill: bool = False) -> str:
    """Let a schedule of `retrain` fire once; return how its last flow run ended.

    One that is killed is not scheduled: Prefect makes the events of a run that was scheduled less than five minutes before it
    begins wait for one that never comes, for a quarter of an hour.
    """
    from prefect.client.schemas.schedules import IntervalSchedule

    parameters = {"config": config and {**config, "name": name}, "model": MODEL, "gate": GATE, "warm_start": warm_start}
    before = {run.id for run in of_retrain(stack)}
    if kill:
        arguments = [word for key, value in parameters.items() for word in ("-p", f"{key}={json.dumps(value)}")]
        stack.prefect("deployment", "run", "retrain/retrain", *arguments)
        [fired] = stack.wait_for(f"{name} to begin", lambda: [
            run for run in of_retrain(stack) if run.id not in before and run.state.name == "Running"
        ][:1])  # fmt: skip
        _kill_before_promotion(stack, fired.name)
    else:
        with stack.client() as client:
            deployment = client.read_deployment_by_name("retrain/retrain")
            [made] = client.create_deployment_schedules(
                deployment.id, [(IntervalSchedule(interval=timedelta(seconds=15)), True)]
            )
            client._client.patch(
                f"/deployments/{deployment.id}/schedules/{made.id}", json={"parameters": parameters}
            ).raise_for_status()
            [fired] = stack.wait_for(f"{name} to fire", lambda: [
                run for run in of_retrain(stack) if run.id not in before and run.auto_scheduled and run.state.name == "Running"
            ][:1])  # fmt: skip
            client.delete_deployment_schedule(deployment.id, made.id)

    def ended() -> str | None:
        states = [run.state for run in of_retrain(stack) if run.name == fired.name]
        final = [state for state in states if state.is_final() and not state.is_crashed()]
        return final[-1].name if final else None

    outcome = str(stack.wait_for(f"the end of {name}", ended, 400))
    states = [run.state.name for run in of_retrain(stack) if run.name == fired.name]
    say(f"  {name}: {states}")
    return outcome


def of_retrain(stack: Stack) -> list[Any]:
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName

    with stack.client() as client:
        found = client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=["retrain"])), limit=200)
    return sorted((run for run in found if run.state.name != "Scheduled"), key=lambda run: run.created)


def _kill_before_promotion(stack: Stack, name: str) -> None:
    """SIGKILL, in the moment in which training is finished and nothing is decided."""
    run = stack.directory(name)
    stack.wait_for(f"{name} to begin", lambda: run.journal_file.exists() and lock_holder(run.lock_file))
    pid = lock_holder(run.lock_file)
    deadline = time.monotonic() + 200
    while not run.status().is_finished:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    assert not [e for e in history(stack) if e["source"].startswith(f"{name}@")], "it was not decided before the kill"
    say(f"  killed process {pid} between training and promotion")


def history(stack: Stack) -> list[dict[str, Any]]:
    [model] = json.loads(stack.rltrack("models", "--json")) or [{"history": []}]
    return model["history"]


def retrained(stack: Stack) -> None:
    stack.up()
    try:
        assert fire(stack, "first", training(4096), warm_start=False) == "Promoted"
        assert fire(stack, "worse", training(512), warm_start=False) == "NotPromoted"
        assert fire(stack, "equal", training(512, learning_rate=1e-9), warm_start=True) == "NotPromoted"
        assert fire(stack, "better", training(40_000), warm_start=True, kill=True) == "Promoted"
        kinds = [(event["kind"], event["source"].partition("-")[0]) for event in history(stack)]
        assert kinds == [("promoted", "first"), ("refused", "worse"), ("refused", "equal"), ("promoted", "better")], (
            kinds
        )
        _degraded(stack)
        print(stack.rltrack("models"))
    finally:
        stack.down()


def retrained_project(stack: Stack, project: Path) -> None:
    """`examples/own_project`: its script, its champion, and its own deployment file, whose schedule fires once."""
    stack.folder = stack.root.path.parent / "own_project"
    shutil.copytree(project, stack.folder, ignore=shutil.ignore_patterns("__pycache__"))
    file = stack.folder / "prefect.yaml"
    each_night = 'cron: "0 3 * * *"'
    assert file.read_text().count(each_night) == 1
    file.write_text(file.read_text().replace(each_night, "interval: 20"))
    stack.environment["RLTRACK_ALLOWED_MODULES"] = "tank"
    stack.up()
    try:
        subprocess.run([sys.executable, "train.py"], cwd=stack.folder, env=stack.environment, check=True)
        stack.rltrack("promote", "tank", "--model", "tank", "--episodes", "30")
        stack.rltrack("deploy", "--file", "prefect.yaml")
        [ended] = stack.wait_for("a scheduled retraining", lambda: [
            run for run in of_retrain(stack) if run.auto_scheduled and run.state.is_final() and run.state.name != "Cancelled"
        ][-1:], 300)  # fmt: skip
        say(f"  {ended.name}: {ended.state.name}: {ended.state.message}")
        assert ended.state.name in ("Promoted", "NotPromoted")
        trained = stack.directory(ended.name).read_config()
        assert trained["start_from"].startswith("tank@")
        assert trained["environment"]["id"] == "tank.env:make_tank"
        assert [event["kind"] for event in history(stack)][:2] == [
            "promoted",
            "promoted" if ended.state.name == "Promoted" else "refused",
        ]
    finally:
        stack.down()


def _degraded(stack: Stack) -> None:
    """An event about a degraded champion starts a retraining from its own configuration."""
    before = {run.id for run in of_retrain(stack)}
    stack.prefect(
        "deployment", "run", "evaluate-champion/evaluate-champion", "-p", f"model={MODEL}", "-p", "episodes=30",
        "-p", "false_alarm_rate=0.000001",
    )  # fmt: skip
    stack.wait_for("the evaluation", lambda: "AsItWas" in stack.states(f"evaluate the champion of {MODEL}"), 120)
    assert {run.id for run in of_retrain(stack)} == before, "a champion that is as it was is left alone"
    from prefect.events import emit_event
    from prefect.events.worker import EventsWorker

    with stack.client() as client:
        watching = client.read_deployment_by_name("evaluate-champion/evaluate-champion").id
        emit_event(
            "rltrack.champion.degraded",
            resource={"prefect.resource.id": f"rltrack.model.{MODEL}"},
            related=[{"prefect.resource.id": f"prefect.deployment.{watching}", "prefect.resource.role": "deployment"}],
            payload={"model": MODEL},
        )
        EventsWorker.drain_all(timeout=10)
    [begun] = stack.wait_for("a retraining", lambda: [run for run in of_retrain(stack) if run.id not in before][:1], 90)
    stack.wait_for(
        "its end", lambda: [run for run in of_retrain(stack) if run.id == begun.id and run.state.is_final()], 300
    )
    [ended] = [run for run in of_retrain(stack) if run.id == begun.id]
    say(f"  degraded: {ended.name}: {ended.state.name}: {ended.state.message}")
    assert ended.state.name in ("Promoted", "NotPromoted")
    assert stack.directory(ended.name).read_config()["start_from"].startswith("better-")


if __name__ == "__main__":
    retrained(Stack(Path(sys.argv[1]), *sys.argv[2:3]))
