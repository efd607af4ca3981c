"""A stack of servers and a worker, and what can happen to it: ``python -m tests.support.stack FOLDER [DATABASE_URL]``."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil

from rltrack.config import TrainingConfig
from rltrack.files import is_locked, lock_holder
from rltrack.runs import Root, RunDirectory
from rltrack.tracking.pages import served_page
from rltrack.training.trainer import Trainer
from rltrack.training.verify import comparable, first_difference, records_of
from tests.support.servers import check_delivered, destination_uri, free_port

LONG, MIDDLE, SHORT = 60_000, 8_000, 2_000
"""Env steps. A long run must still train when a command that was started after its first version reaches it."""

BOOT_SECONDS = 60.0


def training(steps: int, seed: int = 0) -> dict[str, Any]:
    return {
        "seed": seed,
        "agent": {"algorithm": "PPO", "hyperparameters": {"n_steps": 128, "n_epochs": 20}, "device": "cpu"},
        "environment": {"id": "CartPole-v1", "n_envs": 2},
        "training": {"total_timesteps": steps, "eval_freq": steps // 4, "checkpoint_freq": steps // 12},
        "evaluation": {"episodes": 3},
        "tracking": {"video": False},
    }


class Stack:
    """The command line's `up`, `down` and `status`, and Prefect's own, on a root of their own."""

    def __init__(self, folder: Path, database_url: str | None = None) -> None:
        self.root = Root(folder / "mlruns")
        self.installation = ""
        self.folder: Path | None = None
        """Where commands are run; None for the current folder."""
        self.options = ["--database-url", database_url] if database_url else []
        for name in ("prefect", "mlflow", "tensorboard"):
            self.options += [f"--{name}-port", str(free_port())]
        # heartbeats as often as Prefect allows, so that silence is noticed within two minutes
        self.environment = {
            **os.environ,
            "RLTRACK_ROOT": str(self.root.path),
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        }
        self.environment.pop("PREFECT_API_URL", None)
        self.environment.pop("MLFLOW_TRACKING_URI", None)

    def rltrack(self, *arguments: str) -> str:
        return self._call("rltrack", *arguments)

    def prefect(self, *arguments: str) -> str:
        return self._call("prefect", "--no-prompt", *arguments)

    def _call(self, module: str, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, f"{module} {arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def up(self) -> None:
        self.rltrack("up", *self.options)
        self.parts = {row["part"]: row for row in json.loads(self.rltrack("status", "--json"))}
        assert served_page(self.root) == self.parts["mlflow"]["address"]
        self.environment["PREFECT_API_URL"] = f"{self.parts['prefect']['address']}/api"
        self.environment["PREFECT_API_AUTH_STRING"] = (self.root.path / "prefect" / "auth").read_text().strip()

    def down(self) -> None:
        self.rltrack("down")
        deadline = time.monotonic() + 10
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert self.processes() == []

    def processes(self) -> list[str]:
        """Everything that lives and names this root: servers, workers, shippers, flows."""
        found = []
        for process in psutil.process_iter(["pid", "cmdline"]):
            with contextlib.suppress(psutil.Error):
                words = " ".join(process.info["cmdline"] or [])
                root = process.environ().get("RLTRACK_ROOT") if "python" in words else None
                if process.pid != os.getpid() and (str(self.root.path) in words or root == str(self.root.path)):
                    found.append(words)
        return found

    def client(self):
        from prefect.client.orchestration import get_client
        from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

        @contextlib.contextmanager
        def opened():
            settings = {
                setting: self.environment[setting.name] for setting in (PREFECT_API_URL, PREFECT_API_AUTH_STRING)
            }
            with (
                temporary_settings(settings),
                get_client(sync_client=True) as client,
            ):
                yield client

        return opened()

    def run(self, name: str, steps: int) -> None:
        """Start a run of the deployment `train`."""
        parameters = ["-p", f"config={json.dumps(self.training(steps))}", "-p", f"run={name}"]
        self.prefect("deployment", "run", self.deployment("train"), *parameters)

    def training(self, steps: int) -> dict[str, Any]:
        return training(steps)

    def deployment(self, flow: str) -> str:
        return f"{flow}/{flow}-{self.installation}" if self.installation else f"{flow}/{flow}"

    def flow_runs(self, name: str) -> list[Any]:
        """This installation's flow runs of a name, the oldest first."""
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName

        with self.client() as client:
            found = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[name])))
            ours = {item.id for item in client.read_deployments() if item.name.endswith(self.installation)}
        return sorted((run for run in found if run.deployment_id in ours), key=lambda flow_run: flow_run.created)

    def states(self, name: str) -> list[str]:
        return [flow_run.state.name for flow_run in self.flow_runs(name)]

    def directory(self, name: str) -> RunDirectory:
        return RunDirectory(self.root.runs_folder / name)

    def wait_for(self, what: str, ask, seconds: float = 180.0, every: float = 1.0) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := ask()):
            assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}: {json.dumps(self.seen(), indent=1)}"
            time.sleep(every)
        return found

    def seen(self) -> dict[str, Any]:
        """How all flow runs stand, for an error's message."""
        with self.client() as client:
            return {f"{run.name} {str(run.id)[:8]}": f"{run.state.name}: {run.state.message}"
                    for run in client.read_flow_runs()}  # fmt: skip

    def wait_for_version(self, name: str, count: int = 2) -> None:
        folder = self.directory(name).path / "checkpoints"
        self.wait_for(f"version {count} of {name}", lambda: len(list(folder.glob("v*"))) >= count, every=0.1)

    def wait_for_end(self, name: str, seconds: float = 240.0) -> None:
        self.wait_for(
            f"the end of {name}",
            lambda: self.directory(name).path.exists() and self.directory(name).status().is_finished
            and self.states(name)[-1] == "Completed",
            seconds,
        )  # fmt: skip

    def check(self, name: str) -> int:
        """The run is bit-identical to the undisturbed one, and everything is in MLflow and TensorBoard once."""
        _, difference = first_difference(self._outcome("whole"), self._outcome(name))
        assert difference is None, f"{name}: {difference}"
        run = self.directory(name)
        from rltrack.tracking.bookmark import is_delivered

        self.wait_for(f"delivery of {name}", lambda: is_delivered(run), 180)
        return check_delivered(run, destination_uri(run), "FINISHED")

    def train_undisturbed(self, steps: int) -> None:
        trainer = Trainer(TrainingConfig.from_mapping({**training(steps), "name": "whole"}), root=self.root.path)
        trainer.loop.delivers = False
        trainer.train()

    def _outcome(self, name: str) -> dict[str, Any]:
        run = self.directory(name)
        store = run.store()
        return {**comparable(store.read(store.find("last"))), "journal": records_of(run)}

    def kill_trainer(self, name: str, number: int = signal.SIGKILL) -> None:
        lock = self.directory(name).lock_file
        self.wait_for(f"{name} to be trained", lambda: is_locked(lock))
        pid = lock_holder(lock)
        assert pid is not None
        os.kill(pid, number)

    def kill_worker(self) -> None:
        [worker] = [row for row in json.loads(self.rltrack("status", "--json")) if row["part"] == "worker-1"]
        os.kill(worker["pid"], signal.SIGKILL)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def short(stack: Stack) -> None:
    """Up, a run of a deployment, down."""
    stack.up()
    try:
        stack.run("first", SHORT)
        stack.wait_for_end("first")
        assert stack.states("first") == ["Completed"]
    finally:
        stack.down()


def scheduled(stack: Stack) -> None:
    """Up, a schedule that fires and skips, a run that is killed and comes back by itself, a sweep, down."""
    stack.train_undisturbed(MIDDLE)
    stack.up()
    try:
        stack.up()  # changes nothing
        _is_scheduled(stack)
        _is_killed(stack, MIDDLE)
        _is_swept(stack, trials=1)
    finally:
        stack.down()


def whole(stack: Stack) -> None:
    """Everything that the documentation promises."""
    stack.train_undisturbed(LONG)
    stack.up()
    try:
        for scene in (_completes, _is_scheduled, _is_swept, _is_cancelled, _is_preempted, _is_killed, _worker_is_killed,
                      _both_are_killed, _server_is_away, _is_drained):  # fmt: skip
            say(scene.__name__.strip("_").replace("_", " "))
            scene(stack)
    finally:
        stack.down()


def _completes(stack: Stack) -> None:
    stack.run("first", LONG)
    stack.wait_for_end("first")
    say(f"  {stack.check('first')} values once in MLflow")
    refused = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deployment", "run", "train/train",
         "-p", 'config={"agent": {"algorithm": "PPO"}, "environment": {"id": "CartPole-v1"}, "training": {"total_timesteps": 0}}'],
        env=stack.environment, capture_output=True, text=True,
    )  # fmt: skip
    assert refused.returncode != 0, "the server refuses bad values"


def _is_swept(stack: Stack, trials: int = 2) -> None:
    """A sweep's trials are runs of a deployment, started once each; the command comes back to what is there."""
    sweep = {"parameters": {"learning_rate": {"float": [1e-4, 1e-3]}}, "trials": trials, "pruner": "none"}
    file = stack.root.path.parent / "swept.json"
    file.write_text(json.dumps({**training(SHORT), "sweep": sweep}))
    for _ in range(trials):
        out = json.loads(stack.rltrack("sweep", str(file), "--deployed", "--json"))
        assert [trial["state"] for trial in out["trials"]] == ["complete"] * trials
    for number in range(trials):
        assert stack.states(f"swept-t{number:04d}") == ["Complete"]
        assert stack.directory(f"swept-t{number:04d}").status().is_finished


def _is_scheduled(stack: Stack) -> None:
    """A schedule that fires, and skips while one runs."""
    from prefect.client.schemas.schedules import IntervalSchedule

    with stack.client() as client:
        deployment = client.read_deployment_by_name("retrain/retrain")
        parameters = {"config": {**training(SHORT * 2), "name": "nightly"}}
        [made] = client.create_deployment_schedules(
            deployment.id, [(IntervalSchedule(interval=timedelta(seconds=8)), True)]
        )
        client._client.patch(
            f"/deployments/{deployment.id}/schedules/{made.id}", json={"parameters": parameters}
        ).raise_for_status()

        def of_retrain():
            from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId

            only = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]))
            return [
                (run.state.name, run.state.message or "", run.auto_scheduled)
                for run in client.read_flow_runs(flow_run_filter=only)
            ]

        stack.wait_for("a scheduled run", lambda: any(run[0] == "Completed" and run[2] for run in of_retrain()), 240)
        stack.wait_for("a skipped one", lambda: any("concurrency limit" in run[1] for run in of_retrain()), 120)
        client.delete_deployment_schedule(deployment.id, made.id)
        stack.wait_for(
            "the last one's end", lambda: not any(run[0] in ("Running", "Pending") for run in of_retrain()), 120
        )
        say(f"  {[run[0] for run in of_retrain() if run[0] != 'Scheduled']}")


def _is_cancelled(stack: Stack) -> None:
    stack.run("cancelled", LONG)
    stack.wait_for_version("cancelled")
    [flow_run] = stack.flow_runs("cancelled")
    began = time.monotonic()
    stack.prefect("flow-run", "cancel", str(flow_run.id))
    stack.wait_for("the cancellation", lambda: stack.states("cancelled")[0] in ("Stopped", "Cancelled"))
    status = stack.directory("cancelled").status()
    assert status.state == "stopped", status
    say(f"  {stack.states('cancelled')} after {time.monotonic() - began:.1f} s, at {status.env_steps:,} env steps")
    time.sleep(8)
    assert len(stack.flow_runs("cancelled")) == 1, "what a person cancelled stays so"
    stack.run("cancelled", LONG)
    stack.wait_for_end("cancelled")
    stack.check("cancelled")


def _is_preempted(stack: Stack) -> None:
    stack.run("preempted", LONG)
    stack.wait_for_version("preempted")
    stack.kill_trainer("preempted", signal.SIGTERM)
    stack.wait_for_end("preempted")
    say(f"  {stack.states('preempted')}, {stack.check('preempted')} values once in MLflow")
    assert stack.states("preempted")[0] == "Preempted"


def _is_killed(stack: Stack, steps: int = LONG) -> None:
    stack.run("killed", steps)
    stack.wait_for_version("killed")
    stack.kill_trainer("killed")
    stack.wait_for_end("killed")
    say(f"  {stack.states('killed')}, {stack.check('killed')} values once in MLflow")


def _worker_is_killed(stack: Stack) -> None:
    stack.run("workerless", LONG)
    stack.wait_for_version("workerless")
    stack.kill_worker()
    stack.wait_for_end("workerless", 400)
    say(f"  {stack.states('workerless')}, {stack.check('workerless')} values once in MLflow")


def _both_are_killed(stack: Stack) -> None:
    stack.run("bereft", LONG)
    stack.wait_for_version("bereft")
    stack.kill_worker()
    stack.kill_trainer("bereft")
    stack.wait_for_end("bereft", 400)
    say(f"  {stack.states('bereft')}, {stack.check('bereft')} values once in MLflow")


def _server_is_away(stack: Stack) -> None:
    """It hangs for a minute; training takes no notice, and the states are true afterwards."""
    [server] = [row for row in json.loads(stack.rltrack("status", "--json")) if row["part"] == "prefect"]
    stack.run("serverless", LONG)
    stack.wait_for_version("serverless")
    os.kill(server["pid"], signal.SIGSTOP)
    try:
        began, before = time.monotonic(), stack.directory("serverless").status().env_steps
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not stack.directory("serverless").status().is_finished:
            time.sleep(0.2)
        seconds, after = time.monotonic() - began, stack.directory("serverless").status().env_steps
        assert after > before
        say(f"  {(after - before) / seconds:,.0f} steps/s while it was away")
        time.sleep(max(0.0, deadline - time.monotonic()))
    finally:
        os.kill(server["pid"], signal.SIGCONT)
    stack.wait_for_end("serverless")
    stack.check("serverless")


def _is_drained(stack: Stack) -> None:
    """`down` suspends what runs; after the next `up` it goes on as the same flow run."""
    stack.run("drained", LONG)
    stack.wait_for_version("drained")
    stack.down()
    assert stack.directory("drained").status().state == "stopped"
    stack.up()
    stack.wait_for_end("drained")
    assert len(stack.flow_runs("drained")) == 1
    stack.check("drained")


if __name__ == "__main__":
    whole(Stack(Path(sys.argv[1]), *sys.argv[2:3]))
