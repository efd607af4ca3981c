"""Two teams on one Prefect and one MLflow server with accounts, and a stranger: ``python -m tests.support.teams FOLDER``.

Both train a run of the same name, retrain on a schedule, cancel, are killed and recover. Neither sees a state, event, limit or
model of the other change, and nobody touches the stranger's flow run of that name.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.support.servers import free_port
from tests.support.stack import LONG, SHORT, Stack, say, training

PASSWORD = "a-long-password"
STRANGER = """
import time
from prefect import flow

@flow(name="payroll", flow_run_name="baseline")
def payroll():
    time.sleep(3600)

payroll()
"""


class Team(Stack):
    """A root with a worker, on servers that others use too."""

    def __init__(self, folder: Path, name: str, shared: dict[str, str]) -> None:
        super().__init__(folder / name)
        self.installation = name
        (folder / name).mkdir()
        self.environment.update(shared, MLFLOW_TRACKING_USERNAME=name, MLFLOW_TRACKING_PASSWORD=PASSWORD,
                                PREFECT_HOME=str(folder / name / "prefect-home"), PREFECT_WORKER_QUERY_SECONDS="2")  # fmt: skip
        self.worker: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        say(
            f"  {self.installation}: {self.rltrack('deploy', '--name', self.installation).count('create')} things are made"
        )
        command = [
            sys.executable,
            "-m",
            "prefect",
            "worker",
            "start",
            "--type",
            "process",
            "--pool",
            f"rltrack-{self.installation}",
        ]
        with open(self.root.path / "worker.log", "ab") as log:
            self.worker = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def end(self) -> None:
        if self.worker is not None:
            os.killpg(self.worker.pid, signal.SIGKILL)
            self.worker.wait()

    def training(self, steps: int) -> dict[str, Any]:
        """Delivered into an experiment of the team's own: on the server, others may only read it."""
        config = training(steps)
        return {**config, "tracking": {**config["tracking"], "experiment": self.installation}}

    def server_side(self) -> dict[str, Any]:
        """Everything of this team that the Prefect server holds, but for what changes while flow runs go on."""
        mark = json.loads((self.root.path / "installation.json").read_text())["id"]
        with self.client() as client:
            ours = [item for item in client.read_deployments() if f"rltrack.installation={mark}" in item.tags]
            return {
                "deployments": {item.name: [item.parameters, [s.active for s in item.schedules], item.paused, item.tags]
                                for item in sorted(ours, key=lambda item: item.name)},
                "automations": sorted((item.name, item.enabled, item.tags) for item in client.read_automations()
                                      if f"rltrack.installation={mark}" in item.tags),
                "pool": client.read_work_pool(f"rltrack-{self.installation}").model_dump(
                    mode="json", include={"description", "is_paused", "base_job_template", "concurrency_limit"}),
            }  # fmt: skip

    def runs_of(self, flow: str) -> list[Any]:
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId

        with self.client() as client:
            only = FlowRunFilterDeploymentId(any_=[client.read_deployment_by_name(self.deployment(flow)).id])
            found = client.read_flow_runs(flow_run_filter=FlowRunFilter(deployment_id=only))
        return sorted((run for run in found if run.state.name != "Scheduled"), key=lambda run: run.created)

    def fire_retrain(self) -> Any:
        """Let a schedule of `retrain` fire once; return the flow run."""
        from prefect.client.schemas.schedules import IntervalSchedule

        parameters = {"config": {**self.training(SHORT), "name": "nightly"}, "model": f"walker-{self.installation}",
                      "gate": {"episodes": 30}, "warm_start": False}  # fmt: skip
        with self.client() as client:
            deployment = client.read_deployment_by_name(self.deployment("retrain"))
            [made] = client.create_deployment_schedules(
                deployment.id, [(IntervalSchedule(interval=timedelta(seconds=15)), True)]
            )
            client._client.patch(
                f"/deployments/{deployment.id}/schedules/{made.id}", json={"parameters": parameters}
            ).raise_for_status()
            [fired] = self.wait_for(
                "a scheduled retraining", lambda: [run for run in self.runs_of("retrain") if run.auto_scheduled][:1]
            )
            client.delete_deployment_schedule(deployment.id, made.id)
        return fired

    def ended_retrain(self, flow_run_id: Any) -> Any:
        """Wait for the end of a retraining; return its flow run."""

        def ended() -> list[Any]:
            return [run for run in self.runs_of("retrain") if run.id == flow_run_id and run.state.is_final()]

        return self.wait_for("the end of a retraining", ended, 300)[0]


@contextlib.contextmanager
def shared_servers(folder: Path) -> Iterator[dict[str, str]]:
    """A Prefect server with a password and an MLflow server with accounts; what their clients set."""
    from rltrack.flows.server import ServerFolder, hold_server

    port = free_port()
    config = folder / "auth.ini"
    config.write_text(
        "[mlflow]\ndefault_permission = READ\n"
        f"database_uri = sqlite:///{folder / 'accounts.db'}\nadmin_username = admin\nadmin_password = {PASSWORD}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    environment = {**os.environ, "MLFLOW_AUTH_CONFIG_PATH": str(config), "MLFLOW_FLASK_SERVER_SECRET_KEY": "secret",
                   "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # fmt: skip
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1", "--host", "127.0.0.1",
               "--port", str(port), "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}",
               "--artifacts-destination", str(folder / "artifacts")]  # fmt: skip
    with open(folder / "mlflow.log", "ab") as log:
        mlflow = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        with hold_server(folder / "shared") as api:
            deadline = time.monotonic() + 120
            while not _answers(f"{address}/health"):
                assert mlflow.poll() is None, (folder / "mlflow.log").read_text()[-2000:]
                assert time.monotonic() < deadline, "MLflow's server did not start"
                time.sleep(0.3)
            auth = ServerFolder(folder / "shared").auth()
            assert auth is not None
            yield {"PREFECT_API_URL": api, "PREFECT_API_AUTH_STRING": auth, "MLFLOW_TRACKING_URI": address}
    finally:
        os.killpg(mlflow.pid, signal.SIGKILL)
        mlflow.wait()


def _answers(address: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=2):
        return True
    return False


def make_account(address: str, name: str) -> None:
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/users/create",
        data=json.dumps({"username": name, "password": PASSWORD}).encode(),
        headers={"Content-Type": "application/json",
                 "Authorization": f"Basic {base64.b64encode(f'admin:{PASSWORD}'.encode()).decode()}"},
    )  # fmt: skip
    urllib.request.urlopen(request, timeout=30).read()


def two_teams(folder: Path) -> None:
    with shared_servers(folder) as shared, _admin(shared):
        names = ("team-a", "team-b")
        for name in names:
            make_account(shared["MLFLOW_TRACKING_URI"], name)
        one, other = (Team(folder, name, shared) for name in names)
        script = folder / "stranger.py"
        script.write_text(STRANGER)
        beats_seldom = {
            **one.environment,
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "600",
        }  # the teams wait 90 s for a heartbeat
        stranger = subprocess.Popen([sys.executable, str(script)], env=beats_seldom, start_new_session=True)
        began = time.monotonic()
        try:
            for team in (one, other):
                team.train_undisturbed(LONG)
                team.begin()
            before = {team.installation: team.server_side() for team in (one, other)}
            _same_name(one, other)
            _cancelled(one, other)
            _retrained(one, other)
            _models(one, other)
            _degraded(one, other)
            assert {team.installation: team.server_side() for team in (one, other)} == before
            time.sleep(max(0.0, 150.0 - (time.monotonic() - began)))
            _undeployed(one, other, before)
            with one.client() as client:
                [flow] = [flow for flow in client.read_flows() if flow.name == "payroll"]
                [theirs] = [run for run in client.read_flow_runs() if run.flow_id == flow.id]
            assert (theirs.name, theirs.state.name, theirs.tags) == ("baseline", "Running", [])
            say(f"the stranger's flow run is {theirs.state.name} after {time.monotonic() - began:.0f} s")
        finally:
            os.killpg(stranger.pid, signal.SIGKILL)
            stranger.wait()
            for team in (one, other):
                team.end()
            _end_processes([one, other])


@contextlib.contextmanager
def _admin(shared: dict[str, str]) -> Iterator[None]:
    """This process looks at MLflow as its administrator."""
    account = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    os.environ.update(account)
    try:
        yield
    finally:
        for name in account:
            os.environ.pop(name, None)


def _end_processes(teams: list[Team]) -> None:
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("RLTRACK_ROOT") in {str(team.root.path) for team in teams}:
                process.kill()


def _same_name(one: Team, other: Team) -> None:
    """Both train `baseline`; one's is killed and comes back, the other's goes on as if nothing had happened."""
    say("both train a run of the same name; one is killed")
    for team in (one, other):
        team.run("baseline", LONG)
    other.wait_for_version("baseline")
    other.kill_trainer("baseline")
    for team in (one, other):
        team.wait_for_end("baseline", 400)
        say(f"  {team.installation}: {team.states('baseline')}, {team.check('baseline')} values once in MLflow")
    assert one.states("baseline") == ["Completed"]
    assert len(other.states("baseline")) == 2
    assert other.states("baseline")[-1] == "Completed"


def _cancelled(one: Team, other: Team) -> None:
    say("one cancels, the other trains on")
    for team in (one, other):
        team.run("cancelled", LONG)
        team.wait_for_version("cancelled")
    [flow_run] = one.flow_runs("cancelled")
    one.prefect("flow-run", "cancel", str(flow_run.id))
    one.wait_for("the cancellation", lambda: one.states("cancelled")[0] in ("Stopped", "Cancelled"))
    other.wait_for_end("cancelled", 400)
    assert other.states("cancelled") == ["Completed"]
    assert len(one.flow_runs("cancelled")) == 1


def _retrained(one: Team, other: Team) -> None:
    say("a schedule of each retrains a model of its own")
    for team in (one, other):
        fired = team.fire_retrain()
        ended = team.ended_retrain(fired.id)
        assert ended.state.name == "Promoted", ended.state.message


def _models(one: Team, other: Team) -> None:
    say("one cannot take the other's model")
    before = json.loads(other.rltrack("models", "--json"))
    tried = subprocess.run(
        [sys.executable, "-m", "rltrack", "promote", "baseline", "--model", f"walker-{other.installation}", "--episodes", "30"],
        env=one.environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert tried.returncode == 1, tried.stdout + tried.stderr
    assert "Traceback" not in tried.stderr
    assert json.loads(other.rltrack("models", "--json")) == before
    say(f"  {tried.stderr.strip().splitlines()[-1][:160]}")


def _degraded(one: Team, other: Team) -> None:
    """An event about one's champion starts one's retraining only."""
    from prefect.events import emit_event
    from prefect.events.worker import EventsWorker

    say("an event about one's champion")
    before = {team.installation: {run.id for run in team.runs_of("retrain")} for team in (one, other)}
    with one.client() as client:
        watching = client.read_deployment_by_name(one.deployment("evaluate-champion")).id
        emit_event(
            "rltrack.champion.degraded",
            resource={"prefect.resource.id": f"rltrack.model.walker-{one.installation}"},
            related=[{"prefect.resource.id": f"prefect.deployment.{watching}", "prefect.resource.role": "deployment"}],
            payload={"model": f"walker-{one.installation}"},
        )
        EventsWorker.drain_all(timeout=10)
    new = one.wait_for(
        "one's retraining",
        lambda: [run for run in one.runs_of("retrain") if run.id not in before[one.installation]],
        120,
    )
    one.ended_retrain(new[0].id)
    assert {run.id for run in other.runs_of("retrain")} == before[other.installation]


def _undeployed(one: Team, other: Team, before: dict[str, Any]) -> None:
    say("one undeploys")
    removed = one.rltrack("undeploy")
    assert removed.count("remove") == 12, removed
    assert other.server_side() == before[other.installation]
    other.run("afterwards", SHORT)
    other.wait_for("the run after it", lambda: other.states("afterwards")[-1:] == ["Completed"])


if __name__ == "__main__":
    here = Path(sys.argv[1])
    here.mkdir(parents=True, exist_ok=True)
    two_teams(here)
    say("all well")
