"""Show that a resume is exact: train whole, train again with kills, compare every leaf of the two.

Each training runs in processes of its own; a kill is a SIGKILL to itself between two checkpoints, so that a stretch is
trained twice. What the wall clock says is not compared, nor the pickled inside of the environments: had it not come back,
the rest would differ. Where this process has no fixed hash seed, each of them has another one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from rltrack import hash_seed
from rltrack.agents import build_agent
from rltrack.agents.protocol import State
from rltrack.checkpoints.difference import first_difference as first_difference
from rltrack.cleanup import close_all
from rltrack.config import TrainingConfig
from rltrack.errors import RltrackError
from rltrack.journal import Record, read_journal
from rltrack.processes import python_command
from rltrack.runs import Root, RunDirectory
from rltrack.training.trainer import Trainer

_MIN_STEPS, _ITERATIONS, _AFTER_WARM_UP = 500, 6, 600
"""Env steps at least; iterations of on-policy agents; env steps of off-policy agents after their warm-up."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What came out.

    Attributes:
        difference: The first leaf that differs, with both values; None where the two trainings are bit-identical.
        compared: Number of leaves that were compared.
        env_steps: Of each training.
        kills: How often the second one was killed.
        tier: By which tier the environments took part.
        notes: What the killed training had to say.
    """

    difference: str | None
    compared: int
    env_steps: int
    kills: int
    tier: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """One training, or a piece of one.

    Attributes:
        config: What to train, with its name.
        root: Where.
        kill_at: Env steps after which the process kills itself; None to train to the end.
    """

    config: TrainingConfig
    root: Path
    kill_at: int | None


def verify_resume(
    config: TrainingConfig,
    *,
    timesteps: int | None = None,
    kills: int = 2,
    notify: Callable[[str], None] = lambda text: None,
    run: Callable[[Job], tuple[int, str]] | None = None,
) -> Verification:
    """Train a configuration whole and in killed pieces, and compare.

    Args:
        config: What to train; its budget is shortened.
        timesteps: Env steps; None for a few iterations after any warm-up.
        kills: How often to kill, at least 1.
        notify: Called with progress messages.
        run: Runs a job in another process; returns its exit code (negative: a signal) and its last message. Omitted: in a
            new interpreter.

    Raises:
        RltrackError: If one of the trainings fails.
    """
    short = _shortened(config, timesteps, kills)
    total = short.training.total_timesteps or 0
    with tempfile.TemporaryDirectory(prefix="rltrack-verify-") as folder:
        root = Path(folder)
        ends: list[int | None] = [round(total * kill / (kills + 1)) for kill in range(1, kills + 1)]
        for name, kill_at in [("whole", None), *(("killed", end) for end in [*ends, None])]:
            until = "to its end" if kill_at is None else f"until a SIGKILL after {kill_at:,}"
            notify(f"{name}: training {total:,} env steps, {until}")
            job = Job(short.model_copy(update={"name": name}), root, kill_at)
            code, message = (run or _in_new_interpreter)(job)
            expected = 0 if kill_at is None else -signal.SIGKILL
            if code != expected:
                raise RltrackError(f"A training ended with exit code {code}, not {expected}: {message or 'no message'}")
        whole, killed = (Root(root).find(name) for name in ("whole", "killed"))
        compared, difference = first_difference(
            _everything(whole), _everything(killed), ("the uninterrupted training", "the killed one")
        )
        history = killed.history()
        return Verification(
            difference, compared, total, len(history.attempts) - 1, history.tier, tuple(history.warnings)
        )


def comparable(state: State) -> dict[str, Any]:
    """Return the parts of a version that must have the same bits."""
    return {part: tree for part, tree in state.items() if part != "environment"}


def records_of(run: RunDirectory) -> list[Record]:
    """Return what training produced: the numbered records of the journal."""
    return [record for record in read_journal(run.journal_file) if "seq" in record]


def _everything(run: RunDirectory) -> dict[str, Any]:
    store = run.store()
    return {**comparable(store.read(store.find("last"))), "journal": records_of(run)}


def _shortened(config: TrainingConfig, timesteps: int | None, kills: int) -> TrainingConfig:
    if kills < 1:
        raise RltrackError(f"kills is {kills}; kill at least once.")
    if timesteps is None:
        agent, env = build_agent(config)
        settings = agent.describe()["hyperparameters"]
        close_all(env)
        rollout = int(settings.get("n_steps") or 0) * config.environment.n_envs
        warm_up = settings.get("learning_starts")
        timesteps = max(_MIN_STEPS, _ITERATIONS * rollout, 0 if warm_up is None else int(warm_up) + _AFTER_WARM_UP)
        timesteps = min(timesteps, config.training.total_timesteps or timesteps)
    part = max(1, timesteps // (4 * (kills + 1)))
    training = {
        **config.training.model_dump(),
        "total_timesteps": timesteps,
        "eval_freq": max(1, timesteps // 3) if config.training.evaluates else None,
        "checkpoint_freq": part,
        "checkpoint_seconds": None,
        "max_seconds": None,
    }
    if config.training.strategy in ("episodic", "mixed"):  # cut short by env steps instead
        training |= {"strategy": "timestep_based", "eval_freq_episodes": None, "checkpoint_freq_episodes": None}
        training["total_episodes"] = None
    checkpoints = {**config.checkpoints.model_dump(), "store": None, "keep_last": 2}
    evaluation = {**config.evaluation.model_dump(), "episodes": min(config.evaluation.episodes, 3)}
    data = {**config.to_mapping(), "training": training, "checkpoints": checkpoints, "evaluation": evaluation}
    return TrainingConfig.from_mapping({**data, "start_from": None}, source="verify-resume")


def _in_new_interpreter(job: Job) -> tuple[int, str]:
    data = orjson.dumps({"config": job.config.to_mapping(), "root": str(job.root), "kill_at": job.kill_at})
    done = subprocess.run(
        python_command("rltrack.training.verify"),
        input=data,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, hash_seed.VARIABLE: hash_seed.hash_seed()},
    )
    messages = done.stderr.decode(errors="replace").strip().splitlines()
    return done.returncode, messages[-1] if messages else ""


def run_job(job: Job) -> None:
    """Do a job in this process."""
    hooks = [] if job.kill_at is None else [_KillAt(job.kill_at)]
    trainer = Trainer(job.config, root=job.root, hooks=hooks)
    trainer.loop.delivers = False
    trainer.train()


class _KillAt:
    """Ends its own process, as a crash would."""

    def __init__(self, env_steps: int) -> None:
        self._env_steps = env_steps

    def on_iteration_end(self, progress: Any, stats: Any) -> None:
        if progress.env_steps >= self._env_steps:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Train what standard input says."""
    job = orjson.loads(sys.stdin.buffer.read())
    run_job(Job(TrainingConfig.from_mapping(job["config"]), Path(job["root"]), job["kill_at"]))


if __name__ == "__main__":
    main()
