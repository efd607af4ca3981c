"""A root is written with one set of releases, and read, delivered and continued with newer ones.

``python -m tests.support.upgrade OLD_PYTHON NEW_PYTHON FOLDER``: two interpreters, each with rltrack's dependencies, and a new
folder for the root. Prints what is done; fails at the first thing that is not as it should be.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
SMALL = (
    *("--algo", "ppo", "--env", "CartPole-v1", "--set", "agent.hyperparameters.n_steps=64"),
    *("--set", "agent.hyperparameters.batch_size=64", "--set", "training.eval_freq=256", "--set", "evaluation.episodes=2"),
    *("--set", "tracking.video=false"),
)  # fmt: skip
SECONDS = 300.0


class Installation:
    """rltrack from this checkout with one interpreter's dependencies."""

    def __init__(self, python: str, root: Path) -> None:
        self._python, self._root = python, root
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "PREFECT_"))},
            "PYTHONPATH": str(PROJECT), "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1", "NO_COLOR": "1",
            "COLUMNS": "500",
        }  # fmt: skip

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self._python, "-m", *words], env=self._environment, cwd=self._root.parent, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def run(self, *words: str, code: int = 0) -> str:
        """Run a command of rltrack; return what it prints."""
        return self.call("rltrack", "--root", str(self._root), *words, code=code)

    def call(self, *words: str, code: int = 0) -> str:
        print(f"{Path(self._python).parent.parent.name}: {' '.join(words)}", flush=True)
        process = self.start(*words)
        output, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == code, f"exit code {process.returncode}, not {code}:\n{output}\n{errors}"
        return output

    def versions(self) -> dict[str, str]:
        script = "from importlib.metadata import version; print(version('mlflow'), version('prefect'))"
        done = subprocess.run([self._python, "-c", script], capture_output=True, text=True, check=True)
        return dict(zip(("mlflow", "prefect"), done.stdout.split(), strict=True))


def revision(root: Path) -> str:
    with contextlib.closing(sqlite3.connect(root / "mlflow.db")) as connection:
        return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])


def delivered(installation: Installation, run: str) -> bool:
    return bool(json.loads(installation.run("show", run, "--json"))["delivery"]["complete"])


def write(old: Installation, root: Path) -> None:
    """A finished run by a flow, a champion, a run that was stopped, one that was trained and not delivered."""
    old.run("flow", "train", *SMALL, "--timesteps", "512", "--name", "before")
    old.run("promote", "before", "--model", "pole")
    process = old.start("rltrack", "--root", str(root), "train", *SMALL, "--timesteps", "100000", "--name", "half")
    stop_after_a_version(process, root, set())


def copy_database(source: Path, target: Path) -> None:
    """By sqlite's own command: to read the file otherwise would take this process's locks on it away."""
    with contextlib.closing(sqlite3.connect(source)) as old, contextlib.closing(sqlite3.connect(target)) as new:
        old.backup(new)


def versions(root: Path) -> set[str]:
    return {path.name for path in (root / "runs" / "half" / "checkpoints").glob("v*")}


def stop_after_a_version(process: subprocess.Popen[str], root: Path, known: set[str]) -> None:
    """Let the run ``half`` train until it has a version that is not known, and stop it."""
    deadline = time.monotonic() + SECONDS
    while versions(root) <= known and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 3, f"stopped, with a version; not {process.returncode}:\n{output}\n{errors}"


def go_on(new: Installation, root: Path) -> None:
    """Read, be told what a person has to do, upgrade, deliver, continue, promote."""
    before = revision(root)
    assert {item["name"] for item in json.loads(new.run("runs", "--json"))} == {"before", "half"}
    assert delivered(new, "before")
    new.run("journal", "before")
    other = "mlflow db upgrade" in new.run("doctor", code=1) if needs_upgrade(new, root) else False
    goes_on = ("train", *SMALL, "--timesteps", "512", "--name", "after")
    said = new.run(*goes_on)
    if other:
        assert "mlflow db upgrade" in said
        assert not delivered(new, "after")
        copy_database(root / "mlflow.db", root.parent / "mlflow-before.db")
        new.call("mlflow", "db", "upgrade", f"sqlite:///{root / 'mlflow.db'}")
        assert revision(root) != before
        new.run("sync", "--all")
    new.run("doctor")
    assert all(delivered(new, run) for run in ("before", "after"))
    known = versions(root)
    stop_after_a_version(new.start("rltrack", "--root", str(root), "resume", "half"), root, known)
    new.run("sync", "half")
    assert delivered(new, "half")
    attempts = [json.loads(line) for line in new.run("journal", "half", "--kind", "attempt", "--json").splitlines()]
    assert len(attempts) == 2
    assert attempts[1]["exact"], "with the same torch and SB3 it is exact"
    assert "pole" in new.run("models")
    new.run("promote", "after", "--model", "pole", "--gate", "not-inferior", "--margin", "1000")
    new.run("flow", "train", *SMALL, "--timesteps", "512", "--name", "flow-after")
    assert delivered(new, "flow-after")


def needs_upgrade(new: Installation, root: Path) -> bool:
    script = "from rltrack.tracking.sinks.schema import expected_revision; print(expected_revision())"
    done = subprocess.run([new._python, "-c", script], capture_output=True, text=True, check=True, env=new._environment)
    return done.stdout.strip() != revision(root)


def upgrade(old_python: str, new_python: str, folder: Path) -> None:
    """Do all of it."""
    folder.mkdir(parents=True)
    root = folder.absolute() / "mlruns"
    old, new = Installation(old_python, root), Installation(new_python, root)
    print(f"old: {old.versions()}, new: {new.versions()}", flush=True)
    write(old, root)
    print(f"schema of MLflow's database: {revision(root)}", flush=True)
    go_on(new, root)
    print(f"schema of MLflow's database: {revision(root)}", flush=True)


if __name__ == "__main__":
    upgrade(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
