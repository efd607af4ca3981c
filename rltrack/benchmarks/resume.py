"""The matrix of exact resume: algorithms and environments, each trained whole and in killed pieces, compared bit by bit.

``python -m rltrack.benchmarks.resume CASE`` runs one case in a separate process, whose forks train: a fork shares nothing
with the killed one but what was imported before.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from rltrack.config import TrainingConfig
from rltrack.errors import ConfigurationError, did_you_mean
from rltrack.processes import python_command
from rltrack.training.verify import Job, Verification, run_job, verify_resume

ATARI_WRAPPER = "stable_baselines3.common.atari_wrappers.AtariWrapper"
OURS = "rltrack.benchmarks.environments:"
NEEDED = {"LunarLander": "Box2D", "BipedalWalker": "Box2D", "CarRacing": "Box2D", "HalfCheetah": "mujoco", "Ant-": "mujoco",
          "Hopper": "mujoco", "Humanoid": "mujoco", "NoFrameskip": "ale_py", "ALE/": "ale_py"}  # fmt: skip
CONTRIB = ("QRDQN", "TQC", "CrossQ", "TRPO", "RecurrentPPO", "MaskablePPO", "ARS")


@dataclass(frozen=True, slots=True)
class Case:
    """One cell of the matrix.

    Attributes:
        name: Unique.
        config: A configuration.
        tier: By which tier its environments are expected to take part.
    """

    name: str
    config: Mapping[str, Any]
    tier: str = "capture"

    @property
    def missing(self) -> str | None:
        """The module that it needs and that is not installed, or None."""
        env_id, algorithm = self.config["environment"]["id"], self.config["agent"]["algorithm"]
        needed = [module for part, module in NEEDED.items() if part in env_id]
        needed += ["sb3_contrib"] if algorithm in CONTRIB or "InvalidAction" in env_id else []
        return next((module for module in needed if importlib.util.find_spec(module) is None), None)


def _case(name: str, algorithm: str, env_id: str, steps: int, hyperparameters: Mapping[str, Any], *, tier: str = "capture",
          policy: str = "MlpPolicy", checkpoints: Mapping[str, Any] | None = None, **environment: Any) -> Case:  # fmt: skip
    small = {} if policy == "CnnPolicy" or algorithm == "ARS" else {"policy_kwargs": {"net_arch": [16, 16]}}
    settings = {**small, **hyperparameters}
    if hyperparameters.get("policy_kwargs"):
        settings["policy_kwargs"] = {**small["policy_kwargs"], **hyperparameters["policy_kwargs"]}
    config = {
        "seed": 3,
        "agent": {"algorithm": algorithm, "policy": policy, "hyperparameters": settings, "device": "cpu"},
        "environment": {"id": env_id, **environment},
        "training": {"total_timesteps": steps},
        "checkpoints": dict(checkpoints or {}),
    }
    return Case(name, config, tier)


_ON = {"n_steps": 32, "batch_size": 32, "n_epochs": 2}
_OFF = {"learning_starts": 50, "buffer_size": 300, "batch_size": 16}
_DQN = {**_OFF, "train_freq": 4, "target_update_interval": 30}
_HER = {**_OFF, "replay_buffer_class": "HerReplayBuffer"}
_OU = {"action_noise": {"ornstein-uhlenbeck": 0.2}}
_MEMORY = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}

CASES: tuple[Case, ...] = (
    _case("ppo-cartpole", "PPO", "CartPole-v1", 600, {**_ON, "learning_rate": {"linear": 0.001}}),
    _case("ppo-cartpole-4", "PPO", "CartPole-v1", 600, _ON, n_envs=4),
    _case("ppo-cartpole-sub2", "PPO", "CartPole-v1", 600, _ON, n_envs=2, vectorization="subproc"),
    _case("ppo-multiobs-sub2-global-random", "PPO", f"{OURS}MultiObs-v0", 300, _ON, policy="MultiInputPolicy", n_envs=2,
          vectorization="subproc"),
    _case("ppo-multiobs", "PPO", f"{OURS}MultiObs-v0", 300, _ON, policy="MultiInputPolicy", n_envs=2),
    _case("ppo-cartpole-norm-4", "PPO", "CartPole-v1", 600, _ON, n_envs=4, normalize=True),
    _case("ppo-cartpole-stack3-norm", "PPO", "CartPole-v1", 600, _ON, normalize=True, frame_stack=3),
    _case("ppo-acrobot", "PPO", "Acrobot-v1", 600, _ON),
    _case("ppo-mountaincar", "PPO", "MountainCar-v0", 600, _ON),
    _case("ppo-frozenlake", "PPO", "FrozenLake-v1", 600, _ON),
    _case("ppo-taxi", "PPO", "Taxi-v4", 600, _ON),
    _case("ppo-pendulum-gsde", "PPO", "Pendulum-v1", 500, {**_ON, "use_sde": True, "sde_sample_freq": 4}),
    _case("ppo-target-kl", "PPO", "CartPole-v1", 600, {**_ON, "target_kl": 0.001}, n_envs=2),
    _case("a2c-cartpole-4", "A2C", "CartPole-v1", 500, {}, n_envs=4),
    _case("a2c-pendulum-norm-gsde", "A2C", "Pendulum-v1", 500, {"use_sde": True}, normalize=True),
    _case("dqn-cartpole", "DQN", "CartPole-v1", 700, _DQN),
    _case("dqn-cartpole-3", "DQN", "CartPole-v1", 700, {**_DQN, "train_freq": 8, "gradient_steps": 4}, n_envs=3),
    _case("dqn-mountaincar", "DQN", "MountainCar-v0", 600, _DQN),
    _case("dqn-frozenlake", "DQN", "FrozenLake-v1", 600, _DQN),
    _case("dqn-taxi", "DQN", "Taxi-v4", 600, _DQN),
    _case("dqn-cartpole-memory", "DQN", "CartPole-v1", 700, {**_DQN, **_MEMORY}),
    _case("dqn-cartpole-memory-not-full", "DQN", "CartPole-v1", 500, {**_DQN, **_MEMORY, "buffer_size": 900}),
    _case("dqn-cartpole-nstep3", "DQN", "CartPole-v1", 700, {**_DQN, "n_steps": 3}),
    _case("dqn-her-bitflip", "DQN", f"{OURS}BitFlipping-v0", 600, _HER, policy="MultiInputPolicy"),
    _case("sac-her-bitflip-info", "SAC", f"{OURS}ContinuousBitFlipping-v0", 400,
          {**_HER, "replay_buffer_kwargs": {"copy_info_dict": True}}, policy="MultiInputPolicy"),
    _case("sac-pendulum", "SAC", "Pendulum-v1", 400, {**_OFF, "learning_rate": {"linear": 0.001}}),
    _case("sac-pendulum-norm-3", "SAC", "Pendulum-v1", 450, _OFF, n_envs=3, normalize=True),
    _case("sac-pendulum-gsde", "SAC", "Pendulum-v1", 400, {**_OFF, "use_sde": True, "train_freq": 8, "gradient_steps": 8}),
    _case("sac-pendulum-episodes", "SAC", "Pendulum-v1", 800,
          {**_OFF, "ent_coef": 0.1, "train_freq": [1, "episode"], "gradient_steps": 20}),
    _case("sac-mountaincar-nstep", "SAC", "MountainCarContinuous-v0", 400, {**_OFF, "n_steps": 3}),
    _case("td3-pendulum", "TD3", "Pendulum-v1", 400, {**_OFF, "action_noise": {"normal": 0.1}}),
    _case("td3-pendulum-2-ou", "TD3", "Pendulum-v1", 500, {**_OFF, **_OU, "gradient_steps": -1}, n_envs=2),
    _case("ddpg-pendulum-ou", "DDPG", "Pendulum-v1", 400, {**_OFF, **_OU}),
    _case("qrdqn-cartpole", "QRDQN", "CartPole-v1", 600, {**_OFF, "train_freq": 4}),
    _case("tqc-pendulum", "TQC", "Pendulum-v1", 300, _OFF),
    _case("crossq-pendulum", "CrossQ", "Pendulum-v1", 250, _OFF),
    _case("trpo-cartpole-2", "TRPO", "CartPole-v1", 500, {"n_steps": 32, "batch_size": 32}, n_envs=2),
    _case("recurrentppo-cartpole-2", "RecurrentPPO", "CartPole-v1", 400,
          {**_ON, "policy_kwargs": {"lstm_hidden_size": 8}}, policy="MlpLstmPolicy", n_envs=2),
    _case("recurrentppo-pendulum-gsde", "RecurrentPPO", "Pendulum-v1", 400,
          {**_ON, "use_sde": True, "policy_kwargs": {"lstm_hidden_size": 8}}, policy="MlpLstmPolicy"),
    _case("maskableppo-invalid", "MaskablePPO", f"{OURS}InvalidAction-v0", 400, _ON, n_envs=2),
    _case("ars-cartpole", "ARS", "CartPole-v1", 1500, {"n_delta": 4}, policy="LinearPolicy"),
    _case("ppo-halfcheetah-norm-2", "PPO", "HalfCheetah-v5", 400, _ON, n_envs=2, normalize=True),
    _case("sac-ant", "SAC", "Ant-v5", 250, _OFF),
    _case("sac-hopper", "SAC", "Hopper-v5", 300, _OFF),
    _case("ppo-humanoid-sub2", "PPO", "Humanoid-v5", 300, _ON, n_envs=2, vectorization="subproc"),
    _case("ppo-pong-cnn-stack4", "PPO", "PongNoFrameskip-v4", 200, _ON, policy="CnnPolicy", wrappers=[ATARI_WRAPPER],
          frame_stack=4),
    _case("dqn-breakout-cnn-stack4", "DQN", "BreakoutNoFrameskip-v4", 200, {**_DQN, **_MEMORY, "buffer_size": 120},
          policy="CnnPolicy", wrappers=[ATARI_WRAPPER], frame_stack=4),
    _case("replay-ppo-lunarlander", "PPO", "LunarLander-v3", 600, _ON, n_envs=2, tier="replay"),
    _case("replay-ppo-lunarlander-sub2", "PPO", "LunarLander-v3", 600, _ON, n_envs=2, vectorization="subproc", tier="replay"),
    _case("replay-dqn-lunarlander", "DQN", "LunarLander-v3", 700, _DQN, tier="replay"),
    _case("replay-sac-lunarlander", "SAC", "LunarLanderContinuous-v3", 400, _OFF, tier="replay"),
    _case("cut-ppo-lunarlander", "PPO", "LunarLander-v3", 600, _ON, tier="cut", checkpoints={"cut_freq": 100}, n_envs=2),
    _case("cut-dqn-lunarlander-nstep", "DQN", "LunarLander-v3", 700, {**_DQN, "n_steps": 3}, tier="cut",
          checkpoints={"cut_freq": 100}),
    _case("cut-sac-lunarlander", "SAC", "LunarLanderContinuous-v3", 400, _OFF, tier="cut", checkpoints={"cut_freq": 80}),
    _case("cut-ppo-bipedal-sub2", "PPO", "BipedalWalker-v3", 600, _ON, tier="cut", checkpoints={"cut_freq": 100}, n_envs=2,
          vectorization="subproc"),
    _case("cut-sac-bipedal", "SAC", "BipedalWalker-v3", 300, _OFF, tier="cut", checkpoints={"cut_freq": 60}),
    _case("cut-dqn-her-bitflip", "DQN", f"{OURS}BitFlipping-v0", 600, _HER, policy="MultiInputPolicy", tier="cut",
          checkpoints={"cut_freq": 110}),
    _case("cut-recurrentppo-norm", "RecurrentPPO", "CartPole-v1", 400, {**_ON, "policy_kwargs": {"lstm_hidden_size": 8}},
          policy="MlpLstmPolicy", n_envs=2, normalize=True, tier="cut", checkpoints={"cut_freq": 100}),
    _case("inexact-ppo-bipedal", "PPO", "BipedalWalker-v3", 600, _ON, tier="inexact"),
)  # fmt: skip
BY_NAME = {case.name: case for case in CASES}


@dataclass(frozen=True, slots=True)
class Row:
    """The outcome of one case.

    Attributes:
        name: Of the case.
        exact: Whether every leaf was equal; None where the case did not run.
        expected: Whether that and the tier are as they should be.
        tier: By which tier the environments took part.
        compared: Number of leaves.
        seconds: For everything.
        note: The first difference, or why it did not run.
    """

    name: str
    exact: bool | None
    expected: bool
    tier: str
    compared: int
    seconds: float
    note: str


def run_case(name: str) -> Row:
    """Run one case in a separate process."""
    case = BY_NAME[name]
    if case.missing is not None:
        return Row(name, None, True, case.tier, 0, 0.0, f"{case.missing} is not installed")
    begun = time.monotonic()
    done = subprocess.run(
        python_command("rltrack.benchmarks.resume", name), capture_output=True, stdin=subprocess.DEVNULL
    )
    seconds = time.monotonic() - begun
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        return Row(name, None, False, case.tier, 0, seconds, lines[-1] if lines else f"exit code {done.returncode}")
    found = Verification(**orjson.loads(done.stdout.splitlines()[-1]))
    exact = found.difference is None
    expected = exact == (case.tier != "inexact") and found.tier == case.tier
    return Row(name, exact, expected, found.tier, found.compared, seconds, found.difference or "")


def run_matrix(names: Iterable[str] = (), *, jobs: int = 2, notify: Callable[[str], None] = print) -> list[Row]:
    """Run all cases, or some.

    Raises:
        ConfigurationError: If a case is unknown.
    """
    wanted = list(names) or list(BY_NAME)
    for name in wanted:
        if name not in BY_NAME:
            raise ConfigurationError(f"No case '{name}'.{did_you_mean(name, BY_NAME)}")
    rows = []
    with ThreadPoolExecutor(jobs) as pool:
        for row in pool.map(run_case, wanted):
            notify(
                f"{row.name}: {'exact' if row.exact else 'not exact' if row.exact is not None else 'not run'} {row.note}".rstrip()
            )
            rows.append(row)
    return rows


def as_markdown(rows: list[Row]) -> str:
    """Return the table of the documentation."""
    lines = [
        "# Exact resume, case by case",
        "",
        "Made by `rltrack benchmark resume`. Each case is trained whole, and again in pieces: a process kills itself (SIGKILL)",
        "between two checkpoints, another resumes. Compared are every leaf of the last version (weights, optimizers, replay",
        "buffer, normalisation, random streams, state of loop and hooks) and every numbered record of the journal.",
        "",
        "| case | environments by | exact | leaves | remarks |",
        "|---|---|---|---:|---|",
    ]
    for row in rows:
        exact = "not run" if row.exact is None else "yes" if row.exact else "no"
        remark = (
            row.note if row.exact is None else "" if row.exact else "as its tier says" if row.expected else row.note
        )
        lines.append(f"| {row.name} | {row.tier} | {exact} | {row.compared or ''} | {remark} |")
    return "\n".join(lines) + "\n"


def preload_imports() -> None:
    """Import what each fork would import."""
    for name in (
        "stable_baselines3",
        "sb3_contrib",
        "rltrack.agents.factory",
        "rltrack.resources",
    ):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _in_fork(job: Job) -> tuple[int, str]:
    """Train in a fork; return the exit code as `subprocess` reports it, and the last line of a failure."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            run_job(job)
            code = 0
        except BaseException:
            os.write(writer, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        message = pipe.read().decode(errors="replace").strip()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), message.splitlines()[-1] if message else ""


def main() -> None:
    """Run the case that is named, and print its outcome as JSON."""
    preload_imports()
    case = BY_NAME[sys.argv[1]]
    config = TrainingConfig.from_mapping(case.config)
    steps = config.training.total_timesteps
    found = verify_resume(config, timesteps=steps, kills=2, run=_in_fork)
    print(orjson.dumps(asdict(found)).decode())


if __name__ == "__main__":
    main()
