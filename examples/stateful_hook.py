"""A hook with state: it watches how much the returns vary, and stops the training when they have become steady.

python examples/stateful_hook.py

A hook with `state_dict` and `load_state_dict` is part of each version: a training that was interrupted goes on with what the
hook knew there. This example stops a training in the middle, goes on, and ends where an undisturbed one does.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from stable_baselines3 import PPO

from rltrack import TrainingLoop


class StopWhenSteady:
    """Stops once the returns of the last episodes vary by less than a part of their mean.

    Args:
        window: Number of episodes that are looked at.
        variation: Standard deviation over mean below which training stops.
    """

    def __init__(self, window: int = 20, variation: float = 0.35) -> None:
        self.variation = variation
        self.returns: deque[float] = deque(maxlen=window)
        self.lowest = np.inf

    def on_episode_end(self, progress: Any, episode_info: Any) -> None:
        self.returns.append(episode_info.episode_return)
        if len(self.returns) == self.returns.maxlen and progress.mean_return > 60:
            found = float(np.std(self.returns) / np.mean(self.returns))
            self.lowest = min(self.lowest, found)
            if found < self.variation:
                progress.request_stop(f"the last {len(self.returns)} returns vary by {100 * found:.0f} %")

    def state_dict(self) -> dict[str, Any]:
        return {"returns": list(self.returns), "lowest": float(self.lowest)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.returns.extend(state["returns"])
        self.lowest = state["lowest"]


class StopAt:
    """Stands for a person who presses Ctrl-C."""

    def __init__(self, loop: TrainingLoop, env_steps: int) -> None:
        self.loop, self.env_steps = loop, env_steps

    def on_iteration_end(self, progress: Any, stats: Any) -> None:
        if progress.env_steps >= self.env_steps:
            self.loop.stop("enough for now")


def new_loop(name: str) -> tuple[TrainingLoop, StopWhenSteady]:
    agent = PPO("MlpPolicy", "CartPole-v1", n_steps=256, batch_size=64, learning_rate=1e-3, seed=0)
    hook = StopWhenSteady()
    return TrainingLoop(agent, total_timesteps=30_000, name=name, resume=True, hooks=[hook]), hook


def main() -> None:
    whole, known = new_loop("steady-whole")
    end = whole.run()
    first, _ = new_loop("steady-halves")
    first.add_hook(StopAt(first, 4_000))
    print(f"first half: {first.run().reason}")
    second, remembered = new_loop("steady-halves")
    print(f"second half: {second.run().reason}")
    print(f"{end.state.value}: {end.reason}")
    same = list(known.returns) == list(remembered.returns) and known.lowest == remembered.lowest
    print(f"the hook ends with the same numbers: {same}")


if __name__ == "__main__":
    main()
