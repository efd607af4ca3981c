"""How often the promotion gate errs, by simulation on lists of returns of real agents.

Pairs of lists are drawn with replacement from the returns of one agent. A challenger that is the same agent should hardly
ever be promoted; one that is better by a known amount should be, the more often the greater the difference and the more
episodes are played.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rltrack.registry.gate import Gate, decide
from rltrack.runs import Root
from rltrack.training.trainer import Trainer, evaluate_run

BAR = 0.05
TRIALS = 1000
DIFFERENCES = (0.1, 0.25, 0.5, 1.0)
"""In standard deviations of the agent's returns."""

EPISODES = (30, 100, 300)
_POOL = 2000
AGENTS = {
    "PPO, CartPole-v1, half trained": (
        "PPO",
        "CartPole-v1",
        {"n_steps": 32, "batch_size": 256, "n_epochs": 20},
        8,
        15_000,
    ),
    "PPO, Acrobot-v1": (
        "PPO",
        "Acrobot-v1",
        {"n_steps": 256, "n_epochs": 4, "gamma": 0.99, "ent_coef": 0.0},
        16,
        100_000,
    ),
    "SAC, Pendulum-v1": ("SAC", "Pendulum-v1", {"learning_rate": 0.001}, 1, 5_000),
}


@dataclass(frozen=True, slots=True)
class Errors:
    """What was simulated for one agent and number of episodes.

    Attributes:
        agent: The agent.
        mean: Of its returns, in reward units.
        std: Standard deviation of its returns.
        episodes: Pairs that a decision is made from.
        same: Fraction of trials in which the same agent was promoted.
        better: The same for challengers that are better by each of `DIFFERENCES`.
    """

    agent: str
    mean: float
    std: float
    episodes: int
    same: float
    better: tuple[float, ...]

    @property
    def passed(self) -> bool:
        """Whether an equal challenger is promoted rarely enough."""
        return self.same <= BAR


def measure_gate(root: Root, trials: int = TRIALS, notify: Callable[[str], None] = print) -> list[Errors]:
    """Train the agents that are missing, let each play 2000 episodes, and simulate decisions."""
    found = []
    for index, (name, (algorithm, env, settings, n_envs, steps)) in enumerate(AGENTS.items()):
        notify(f"{name}: training and playing")
        run = f"gate-{index}"
        config = {
            "name": run,
            "agent": {"algorithm": algorithm, "hyperparameters": settings},
            "environment": {"id": env, "n_envs": n_envs},
            "training": {"total_timesteps": steps, "eval_freq": None},
            "tracking": {"video": False},
        }
        trainer = Trainer(config, root=root.path)
        trainer.loop.delivers = False
        trainer.train()
        _, evaluation = evaluate_run(root.find(run), "last", episodes=_POOL)
        pool = np.array(evaluation.returns)
        for episodes in EPISODES:
            rates = [promoted(pool, difference * pool.std(), episodes, trials) for difference in (0.0, *DIFFERENCES)]
            found.append(Errors(name, float(pool.mean()), float(pool.std()), episodes, rates[0], tuple(rates[1:])))
            notify(f"  {episodes} episodes: the same agent promoted in {100 * rates[0]:.1f} %")
    return found


def promoted(pool: np.ndarray, difference: float, episodes: int, trials: int) -> float:
    """Return how often a challenger is promoted whose returns are drawn from the champion's, plus a difference."""
    rng, gate = np.random.default_rng(0), Gate(episodes=episodes)
    decisions = [
        decide(list(rng.choice(pool, episodes) + difference), list(rng.choice(pool, episodes)), gate, seed=trial)
        for trial in range(trials)
    ]
    return sum(decision.promoted for decision in decisions) / trials


def as_markdown(rows: Sequence[Errors]) -> str:
    """Return the table."""
    head = " | ".join(f"better by {difference:g} σ" for difference in DIFFERENCES)
    lines = [
        f"| agent | mean return | σ | episodes | the same agent (target {100 * BAR:g} %) | {head} |",
        "|---|" + "---:|" * (4 + len(DIFFERENCES)),
    ]
    for row in rows:
        power = " | ".join(f"{100 * rate:.0f} %" for rate in row.better)
        lines.append(
            f"| {row.agent} | {row.mean:.4g} | {row.std:.3g} | {row.episodes} | {100 * row.same:.1f} % | {power} |"
        )
    return "\n".join(lines)
