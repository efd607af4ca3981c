"""An agent of your own, without Stable-Baselines3: tabular Q-learning on FrozenLake, killed in the middle and resumed.

python examples/custom_agent.py

`rltrack.AgentBase` has every method of an agent. Four are abstract; with `capture`, `restore` and `why_not_exact` checkpoints hold
the whole state, and a resumed run ends with the same table.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from rltrack import AgentBase, TrainingLoop, TrainingStatistics
from rltrack.agents import EpisodeInfo, IterationStats

ENVIRONMENT = "FrozenLake-v1"


class QLearning(AgentBase):
    """Tabular Q-learning (Watkins 1989) for discrete observations and actions. One iteration is one episode.

    Args:
        learning_rate: Step size at the start; it falls to a tenth over the budget.
        gamma: Discount.
        exploration: Chance of a random action at the start; it falls to a tenth over the budget.
    """

    def __init__(self, learning_rate: float = 0.2, gamma: float = 0.99, exploration: float = 1.0) -> None:
        self.learning_rate, self.gamma, self.exploration = learning_rate, gamma, exploration
        self.remaining = 1.0
        self.steps = self.episodes = 0

    def bind(self, env: gym.Env[Any, Any], seed: int | None) -> None:
        self.env = env
        self.seed = seed or 0
        self.rng = np.random.default_rng(seed)
        self.table = np.zeros((env.observation_space.n, env.action_space.n))

    def advance(self, observer: Any) -> IterationStats:
        # an episode's seed follows from its number: a resumed run plays the same episodes, whatever the environment keeps
        observation, _ = self.env.reset(seed=self.seed + self.episodes)
        falling = 0.1 + 0.9 * max(self.remaining, 0.0)
        total, length, done, error = 0.0, 0, False, 0.0
        while not done:
            explores = self.rng.random() < self.exploration * falling
            action = int(self.rng.integers(self.table.shape[1]) if explores else self.table[observation].argmax())
            following, reward, terminated, truncated, _ = self.env.step(action)
            target = float(reward) + (0.0 if terminated else self.gamma * self.table[following].max())
            error = target - self.table[observation, action]
            self.table[observation, action] += self.learning_rate * falling * error
            observation, done = following, terminated or truncated
            total, length = total + float(reward), length + 1
            observer.on_step(1, None)
        self.steps += length
        self.episodes += 1
        observer.on_episode_end(EpisodeInfo(total, length, self.steps))
        metrics = [(self.steps, {"train/largest_value": float(self.table.max())})] if self.episodes % 50 == 0 else []
        return IterationStats(length, metrics, losses={"train/td_error": error})

    def predict(self, observation: Any, **inputs: Any) -> tuple[np.ndarray, None]:
        return self.table[np.asarray(observation)].argmax(axis=-1), None

    def set_schedule(self, remaining: float) -> None:
        self.remaining = remaining

    # ---- with these a run goes on after anything, bit for bit ----

    def capture(self) -> dict[str, Any]:
        return {
            "policy": {"table": self.table.copy()},
            "counters": {"steps": self.steps, "episodes": self.episodes},
            "random": {"rng": self.rng.bit_generator.state},
            "environment": {},  # nothing of it is needed: each iteration begins with a reset
        }

    def restore(self, state: dict[str, Any]) -> None:
        if "policy" in state:
            self.table = state["policy"]["table"].copy()
        if "counters" in state:
            self.steps, self.episodes = state["counters"]["steps"], state["counters"]["episodes"]
        if "random" in state:
            self.rng.bit_generator.state = state["random"]["rng"]

    def why_not_exact(self) -> str | None:
        return None

    def describe(self) -> dict[str, Any]:
        values = {"learning_rate": self.learning_rate, "gamma": self.gamma, "exploration": self.exploration}
        return {"algorithm": "QLearning", "environment": ENVIRONMENT, "hyperparameters": values}


def train(name: str, agent: QLearning, hooks: list[Any] | None = None) -> TrainingStatistics:
    options: dict[str, Any] = {
        "total_episodes": 3_000,
        "eval_freq": 1_000,
        "eval_episodes": 100,
        "checkpoint_freq": 500,
    }
    return TrainingLoop(agent, ENVIRONMENT, name=name, resume=True, seed=0, hooks=hooks or [], **options).run()


class Interruption(Exception):
    """Stands for a crash."""


class CrashAt:
    """A hook that ends the training the hard way."""

    def on_episode_end(self, progress: Any, episode_info: Any) -> None:
        if progress.episodes == 1_700:
            raise Interruption


def main() -> None:
    undisturbed = QLearning()
    statistics = train("q-undisturbed", undisturbed)
    try:
        train("q-interrupted", QLearning(), [CrashAt()])
    except Interruption:
        print("interrupted in episode 1,700")
    resumed = QLearning()  # what a new process would build
    train("q-interrupted", resumed)
    evaluation = statistics.final_evaluation
    assert evaluation is not None
    print(f"{statistics.state.value}: {statistics.reason}")
    print(
        f"success rate {evaluation.mean:.2f}, 95 % interval {evaluation.interval.low:.2f} to {evaluation.interval.high:.2f}"
    )
    print(f"the same table, bit for bit: {np.array_equal(undisturbed.table, resumed.table)}")


if __name__ == "__main__":
    main()
