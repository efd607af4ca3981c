"""Two worker processes that stand for two machines carry out a sweep, and are killed: ``python -m tests.support.machines FOLDER``.

Each machine has a root and a home of its own; they share a Prefect and an MLflow server on PostgreSQL and an S3 server on
loopback. A machine that is lost never comes back: a new one with an empty disk takes its place.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from rltrack.config import TrainingConfig
from rltrack.files import is_locked, lock_holder
from rltrack.runs import Root, RunDirectory
from rltrack.studies.search import Search
from rltrack.training.trainer import Trainer
from rltrack.training.verify import comparable, first_difference, records_of
from tests.support.servers import expected_metrics, postgres_database
from tests.support.stack import Stack, say

TRIALS = 12
PAUSE_SECONDS = (12.0, 25.0)


def sweep_file(folder: Path, store: str, trials: int) -> Path:
    """PPO on CartPole with a checkpoint every few iterations, so that a run can be lost anywhere."""
    file = folder / "sweep.yaml"
    file.write_text(
        json.dumps(
            {
                "seed": 5,
                "agent": {"algorithm": "PPO", "hyperparameters": {"n_steps": 128}, "device": "cpu"},
                "environment": {"id": "CartPole-v1", "n_envs": 2},
                "training": {"total_timesteps": 40_000, "eval_freq": 8_000, "checkpoint_freq": 2_000},
                "evaluation": {"episodes": 3},
                "checkpoints": {"store": store},
                "tracking": {"video": False},
                "sweep": {
                    "parameters": {
                        "learning_rate": {"float": [1e-4, 1e-2], "log": True},
                        "n_epochs": {"choice": [4, 8]},
                    },
                    "trials": trials,
                    "pruner": {"median": {"n_startup_trials": 9, "n_warmup_steps": 2}},
                },
            }
        )
    )
    return file


class Machine:
    """A worker with a root and a home of its own."""

    def __init__(self, folder: Path, name: str, environment: dict[str, str]) -> None:
        self.path = folder / name
        self.root = Root(self.path / "mlruns")
        (self.path / "home").mkdir(parents=True)
        self.environment = {**environment, "HOME": str(self.path / "home"), "RLTRACK_ROOT": str(self.root.path),
                            "PREFECT_HOME": str(self.path / "home" / "prefect")}  # fmt: skip
        self.start_worker()

    def start_worker(self) -> None:
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "rltrack", "--type", "process",
                   "--name", self.path.name, "--limit", "1"]  # fmt: skip
        with open(self.path / "worker.log", "ab") as log:
            self.worker = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )

    def kill_worker(self) -> None:
        """Only the worker; what it started goes on."""
        self.worker.kill()
        self.worker.wait()

    def kill_trainer(self) -> bool:
        for run in self.root.runs():
            pid = lock_holder(run.lock_file) if is_locked(run.lock_file) else None
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    return True
        return False

    def lose(self) -> None:
        """Everything at once, as a power cut does."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("RLTRACK_ROOT") == str(self.root.path):
                    process.kill()
        self.worker.wait()


def swept(stack: Stack, s3: str, folder: Path, *, trials: int = TRIALS, kills: int = 8, seed: int = 0) -> None:
    """Carry out a sweep on two machines while they are killed; hold everything against the storage and undisturbed runs."""
    dice = random.Random(seed)
    stack.options += ["--workers", "0"]
    with postgres_database() as storage:
        stack.environment.update(
            RLTRACK_SIGNING_KEY="a key for tests only", RLTRACK_SWEEP_STORAGE=storage, AWS_ACCESS_KEY_ID="x",
            AWS_SECRET_ACCESS_KEY="x", AWS_ENDPOINT_URL=s3, AWS_DEFAULT_REGION="us-east-1",
            AWS_REQUEST_CHECKSUM_CALCULATION="when_required",
        )  # fmt: skip
        os.environ.update(
            {name: value for name, value in stack.environment.items() if name.startswith(("AWS", "RLTRACK_S"))}
        )
        import s3fs

        bucket = f"sweep-{time.time_ns()}"
        s3fs.S3FileSystem().mkdir(bucket)
        file = sweep_file(folder, f"s3://{bucket}/runs", trials)
        stack.environment["RLTRACK_ALLOWED_ADDRESSES"] = f"s3://{bucket}/runs"
        stack.up()
        mlflow = stack.parts["mlflow"]["address"]
        shared = {**stack.environment, "MLFLOW_TRACKING_URI": mlflow, "PREFECT_WORKER_QUERY_SECONDS": "2"}
        machines: list[Machine] = []
        lost: list[Machine] = []
        controller = None
        try:
            machines = [Machine(folder, f"machine-{number}", shared) for number in (1, 2)]
            controller = _start_controller(file, shared, folder)
            for kill in range(kills):
                time.sleep(dice.uniform(*PAUSE_SECONDS))
                if controller.poll() is not None:
                    break
                place = dice.randrange(2)
                what = (
                    "machine" if kill == 2 else dice.choice(["trainer", "trainer", "worker", "machine", "controller"])
                )
                say(f"kill {kill + 1}: {what} {machines[place].path.name}")
                if what == "trainer":
                    machines[place].kill_trainer()
                elif what == "worker":
                    machines[place].kill_worker()
                    machines[place].start_worker()
                elif what == "machine":
                    machines[place].lose()
                    lost.append(machines[place])
                    machines[place] = Machine(folder, f"machine-{3 + len(lost)}", shared)
                else:
                    controller.kill()
                    controller.wait()
                    controller = _start_controller(file, shared, folder)
            code = controller.wait(1500)
            assert code == 0, (folder / "controller.log").read_text()[-3000:]
            say("the sweep has ended")
            search = Search("sweep", Root(folder / "looking"), storage).open()
            states = [trial.state.name for trial in search.trials()]
            say(f"trials: {states}")
            assert len(states) == trials
            assert set(states) <= {"COMPLETE", "PRUNED"}, states
            check_runs(search, [*machines, *lost], mlflow, folder)
            search._storage.engine.dispose()
        finally:
            if controller is not None and controller.poll() is None:
                controller.kill()
            for machine in machines:
                machine.lose()
            stack.down()


def _start_controller(file: Path, environment: dict[str, str], folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "rltrack", "--root", str(folder / "controller"), "sweep", str(file), "--deployed"]
    with open(folder / "controller.log", "ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def check_runs(search: Search, machines: list[Machine], mlflow: str, folder: Path) -> None:
    """Each trial is one MLflow run with its journal's numbers, once; and those that moved are bit-identical."""
    moved, compared = 0, 0
    for number in range(len(search.trials())):
        name = search.run_names(number)[0]
        homes = [machine.root.find(name) for machine in machines if machine.root.exists(name)]
        finished = [home for home in homes if home.status().is_finished]  # again where it was not told before
        assert finished, f"{name} is finished on no machine"
        run = finished[-1]
        assert all(records_of(home) == records_of(run) for home in finished), f"{name} ended differently"
        check_in_mlflow(run, number, mlflow)
        attempts = run.attempts()
        assert all(attempt["exact"] for attempt in attempts), f"{name}: {attempts}"
        if len(homes) == 1 and len(attempts) == 1:
            continue
        told = f"{name}: {len(attempts)} attempts on {len(homes)} machine(s)"
        if search.trials()[number].state.name == "COMPLETE":
            check_undisturbed(search, number, run, folder)
            moved, compared = moved + (len(homes) > 1), compared + 1
            told += ", bit-identical to an undisturbed run"
        say(told)
    assert compared, "no run was interrupted: kill more"
    assert moved, "no run moved from one machine to another: kill more"


def check_undisturbed(search: Search, number: int, run: RunDirectory, folder: Path) -> None:
    [config] = search.configs(number, search.values_of(number))
    alone = config.model_copy(update={"checkpoints": config.checkpoints.model_copy(update={"store": None})})
    trainer = Trainer(TrainingConfig.from_mapping(alone.to_mapping()), root=folder / "undisturbed")
    trainer.loop.delivers = False
    trainer.train()
    ours = trainer.run_directory
    assert ours is not None
    _, difference = first_difference(_outcome(ours), _outcome(run))
    assert difference is None, f"{run.name}: {difference}"


def _outcome(run: RunDirectory) -> dict[str, object]:
    store = run.store()
    return {**comparable(store.read(store.find("last"))), "journal": records_of(run)}


def check_in_mlflow(run: RunDirectory, number: int, mlflow: str) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(mlflow)
    deadline = time.monotonic() + 120
    while True:
        found = [
            item
            for experiment in client.search_experiments()
            for item in client.search_runs([experiment.experiment_id], f"tags.`rltrack.trial` = '{number}'")
        ]
        assert len(found) == 1, f"trial {number} is {len(found)} MLflow runs"
        if found[0].info.status == "FINISHED":
            break
        assert time.monotonic() < deadline, f"trial {number} is {found[0].info.status} in MLflow"
        time.sleep(1)
    for key, rows in expected_metrics(run).items():
        if key.startswith("system/"):  # sampled on each machine, and not carried to the next
            continue
        history = client.get_metric_history(found[0].info.run_id, key)
        assert sorted((metric.step, metric.timestamp) for metric in history) == sorted(row[:2] for row in rows), key


@contextlib.contextmanager
def s3_server():
    """An S3 server on loopback."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        yield "http://{}:{}".format(*server.get_host_and_port())
    finally:
        server.stop()


if __name__ == "__main__":
    here = Path(sys.argv[1])
    here.mkdir(parents=True, exist_ok=True)
    with s3_server() as address, postgres_database() as database:
        url = database.replace("postgresql+psycopg", "postgresql")
        swept(Stack(here, url), address, here, seed=int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    say("all well")
