"""When versions of a training are due, and how they come to be: captured at a boundary, committed beside training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rltrack.errors import CheckpointFailed
from rltrack.training.limits import refuse_nonfinite_weights
from rltrack.training.strategies import NEVER, Cadence, Mark

if TYPE_CHECKING:
    from rltrack.checkpoints import Version
    from rltrack.config import LoopSettings
    from rltrack.training.progress import TrainingProgress
    from rltrack.training.setup import SetUp
    from rltrack.training.strategies import Strategy


class Checkpointing:
    """Takes versions of one training.

    Args:
        parts: What the training works with.
        progress: Where it stands.
        strategy: Says where the next checkpoint is.
        settings: How often, and what a failure does.
        describe_loop: Returns the state of everything but the agent, as plain data.
        committed: Told of each version once it is committed, at a boundary.
        warn: Told what a person should know.
    """

    def __init__(
        self,
        parts: SetUp,
        progress: TrainingProgress,
        strategy: Strategy,
        settings: LoopSettings,
        *,
        describe_loop: Callable[[], Mapping[str, Any]],
        committed: Callable[[Version], None],
        warn: Callable[[str], None],
    ) -> None:
        self._parts, self._progress, self._strategy, self._settings = parts, progress, strategy, settings
        self._describe_loop, self._committed, self._warn = describe_loop, committed, warn
        self._next = strategy.next_checkpoint(progress)
        self._cuts = Cadence(env_steps=settings.checkpoints.cut_freq)
        self._next_cut = self._cuts.after(progress) if settings.checkpoints.cut_freq is not None else NEVER
        seconds = settings.training.checkpoint_seconds
        self._seconds = math.inf if seconds is None else seconds
        self._saved_at = -1
        self._saved_time = time.monotonic()
        self._known_inexact = parts.why_not_exact()
        self._failure: CheckpointFailed | None = None

    @property
    def next_mark(self) -> Mark:
        """Where the next version is due, or the next cut."""
        return self._next_cut if self._is_cutting else self._next

    @property
    def is_due(self) -> bool:
        """Whether a version is due here, by its mark or by the clock."""
        if self.next_mark.is_reached(self._progress):
            return True
        by_clock = time.monotonic() - self._saved_time >= self._seconds
        return by_clock and not self.is_current and not self._is_cutting

    @property
    def is_current(self) -> bool:
        """Whether the newest version was taken here."""
        return self._saved_at == self._progress.env_steps

    def begin_at(self, env_steps: int) -> None:
        """Training goes on from a version that was taken at `env_steps`."""
        self._saved_at = env_steps
        self._next = self._strategy.next_checkpoint(self._progress)
        if self._is_cutting:
            self._next_cut = self._cuts.after(self._progress)

    def save(self) -> None:
        """Take a version from which training can go on; where cuts are asked for, cut first if one is due here."""
        if self._is_cutting and self._next_cut.is_reached(self._progress):
            self._parts.agent.cut()
            self._next_cut = self._cuts.after(self._progress)
        self._saved_at, self._saved_time = self._progress.env_steps, time.monotonic()
        self._next = self._strategy.next_checkpoint(self._progress)
        if self._parts.can_capture:
            state = {**self._parts.capture(), "loop": dict(self._describe_loop())}
            self._say_if_degraded()
            self._submit(state, self._progress.env_steps, None)

    def save_at_end(self, *, completed: bool) -> None:
        """Take the last version, unless it was taken here; between two cuts only if nothing is left to train.

        Raises:
            CheckpointFailed: If the last version could not be written, whatever is configured: there is nothing to go on with,
                and without it the end of the training would be lost.
        """
        if not self.is_current and (completed or not self._is_cutting):
            self.save()
        elif self._is_cutting and not self.is_current:
            self._warn(
                f"Between two cuts no version is taken; a resume begins at the last one, at {self._saved_at:,} env steps."
            )
        self.settle(wait=True)
        if self._failure is not None:
            raise self._failure

    def keep_policy(self, state: dict[str, Any], env_steps: int, score: float) -> None:
        """Keep a policy as it was when it was evaluated."""
        if self._settings.checkpoints.keep_best:
            self._submit(state, env_steps, score)

    def settle(self, *, wait: bool = False) -> Version | None:
        """Take note of versions that were committed; return the newest of them.

        Args:
            wait: Whether to wait for those that are on their way.

        Raises:
            CheckpointFailed: If one could not be written, unless that is configured to be a warning.
        """
        newest = None
        for outcome in self._parts.session.settle(wait=wait):
            if isinstance(outcome, CheckpointFailed):
                if self._settings.checkpoints.on_failure == "stop":
                    raise outcome
                self._failure = outcome
                self._warn(f"{outcome} Training goes on, as checkpoints.on_failure says.")
            else:
                newest = outcome
                self._failure = None if newest.is_resumable else self._failure
                self._committed(outcome)
        return newest

    @property
    def _is_cutting(self) -> bool:
        return self._next_cut is not NEVER

    def _submit(self, state: dict[str, Any], env_steps: int, score: float | None) -> None:
        refuse_nonfinite_weights(state, env_steps)
        self._parts.session.commit(
            state,
            env_steps=env_steps,
            score=score,
            numerics=self._parts.numerics(),
            environments=self._parts.describe_resume(),
        )

    def _say_if_degraded(self) -> None:
        reason = self._parts.why_not_exact()
        if reason is not None and reason != self._known_inexact:
            self._warn(f"A resume from here on will not be exact: {reason}")
        self._known_inexact = reason
