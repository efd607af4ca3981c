"""Counts what happens inside an iteration, and calls the hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rltrack.agents.protocol import EpisodeInfo, StepInfo
    from rltrack.training.hooks import HookList
    from rltrack.training.progress import TrainingProgress


LONG_ITERATION_STEPS, LOOK_EVERY_STEPS = 10_000, 1_000
"""Steps of the environments after which an iteration is long, and how often to look then."""


class ProgressObserver:
    """Receives the agent's steps and episodes; keeps progress and schedule up to date within an iteration.

    Args:
        progress: What is counted.
        hooks: Called at each event.
        remaining: Gives the fraction of the budget that is left.
        set_schedule: Takes it.
        look: Called regularly inside an iteration that has become long, such as one that waits for the end of an episode.
    """

    def __init__(
        self,
        progress: TrainingProgress,
        hooks: HookList,
        remaining: Callable[[TrainingProgress], float],
        set_schedule: Callable[[float], None],
        look: Callable[[], None],
    ) -> None:
        self._look = look
        self._look_at = LONG_ITERATION_STEPS
        self._steps = 0
        self._progress, self._hooks = progress, hooks
        self._remaining, self._set_schedule = remaining, set_schedule
        self._episodes: list[EpisodeInfo] = []
        self.listen()

    def listen(self) -> None:
        """See whether hooks want steps and episodes: passing them on costs something at each step."""
        self.wants_steps = self._hooks.listens_to("on_step")
        self._passes_episodes = self._hooks.listens_to("on_episode_end")

    def on_step(self, env_steps: int, step: StepInfo | None) -> None:
        """Count a step of the environments."""
        self._progress.env_steps += env_steps
        self._steps += 1
        if self._steps >= self._look_at:
            self._look_at += LOOK_EVERY_STEPS
            self._look()
        self._set_schedule(self._remaining(self._progress))
        if self.wants_steps:
            self._hooks.call("on_step", self._progress, step)

    def on_episode_end(self, episode: EpisodeInfo) -> None:
        """Count a finished episode; a schedule may follow episodes."""
        self._progress.add_episode(episode)
        self._set_schedule(self._remaining(self._progress))
        self._episodes.append(episode)
        if self._passes_episodes:
            self._hooks.call("on_episode_end", self._progress, episode)

    def take_episodes(self) -> list[EpisodeInfo]:
        """Return the episodes that ended since the last call."""
        taken, self._episodes = self._episodes, []
        self._steps, self._look_at = 0, LONG_ITERATION_STEPS
        return taken
