"""A callback of Stable-Baselines3, with a state of its own."""

from __future__ import annotations

from stable_baselines3.common.callbacks import BaseCallback


class HighestLevel(BaseCallback):
    """Record the highest level that any tank reached."""

    def __init__(self) -> None:
        super().__init__()
        self.highest = 0.0

    def _on_step(self) -> bool:
        levels = self.training_env.get_attr("level")
        self.highest = max(self.highest, *levels)
        self.logger.record("tank/highest_level", self.highest)
        return True
