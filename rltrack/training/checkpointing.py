"""When versions of a training are due, and how they are written: captured at a boundary, committed in a background thread."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rltrack.errors import CheckpointFailed
from rltrack.training.marks import NEVER, Cadence, Mark
from rltrack.training.records import record_warning

if TYPE_CHECKING:
    from rltrack.agents import AgentBase
    from rltrack.checkpoints import Version
    from rltrack.training.limits import Divergence
    from rltrack.training.plan import TrainingPlan
    from rltrack.training.session import RunSession


class Checkpointing:
    """Takes versions of one training.

    Args:
        plan: Of the training.
        agent: Whose state is taken.
        session: Keeps the versions.
        divergence: Refuses a policy that diverged.
        resumed_at: Env steps of the version that training resumes from; None at the beginning.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        agent: AgentBase,
        session: RunSession,
        divergence: Divergence,
        *,
        resumed_at: int | None,
    ) -> None:
        self._agent, self._session, self._hooks = agent, session, plan.hooks
        self._divergence = divergence
        self._progress, self._strategy, settings = plan.progress, plan.strategy, plan.settings
        self._section = settings.checkpoints
        self._next = self._strategy.next_checkpoint(self._progress)
        self._cuts = Cadence(env_steps=settings.checkpoints.cut_freq)
        self._next_cut = self._cuts.after(self._progress) if settings.checkpoints.cut_freq is not None else NEVER
        seconds = settings.training.checkpoint_seconds
        self._seconds = math.inf if seconds is None else seconds
        self._saved_at = -1 if resumed_at is None else resumed_at
        self._saved_time = time.monotonic()
        self._known_inexact = agent.why_not_exact()
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

    @property
    def why_not_here(self) -> str | None:
        """Return why no further version can be taken at this boundary; None where one can."""
        if not self._agent.is_capturable:
            return "the agent cannot be captured"
        if self._is_cutting:
            return f"versions are taken at cuts only; the next is at {self._next_cut.text}"
        if self.is_current:
            return f"there is a version of {self._progress.env_steps:,} env steps"
        return None

    def save(self, loop: Mapping[str, Any]) -> None:
        """Take a version from which training can be resumed; with cuts, cut first if one is due here.

        Args:
            loop: The state of everything but the agent, as plain data.
        """
        if self._is_cutting and self._next_cut.is_reached(self._progress):
            self._agent.cut()
            self._next_cut = self._cuts.after(self._progress)
        self._saved_at, self._saved_time = self._progress.env_steps, time.monotonic()
        self._next = self._strategy.next_checkpoint(self._progress)
        if self._agent.is_capturable:
            state = {**self._agent.capture(), "loop": dict(loop)}
            self._warn_if_inexact()
            self._submit(state, self._progress.env_steps, None)

    def save_at_end(self, loop: Mapping[str, Any], *, completed: bool) -> None:
        """Take the last version, unless it was taken here; between two cuts only if nothing is left to train.

        Args:
            loop: As for `save`.
            completed: Whether nothing is left to train.

        Raises:
            CheckpointFailed: If the last version could not be written, whatever is configured: there is nothing to resume from,
                and without it the end of the training would be lost.
        """
        if not self.is_current and (completed or not self._is_cutting):
            self.save(loop)
        elif self._is_cutting and not self.is_current:
            record_warning(
                self._session.records,
                f"Between two cuts no version is taken; a resume begins at the last one, at {self._saved_at:,} env steps.",
            )
        self.record_committed(wait=True)
        if self._failure is not None:
            raise self._failure

    def keep_policy(self, state: dict[str, Any], env_steps: int, score: float) -> None:
        """Keep a policy as it was when it was evaluated."""
        if self._section.keep_best or self._strategy.returns_to_best:
            self._submit(state, env_steps, score)

    def record_committed(self, *, wait: bool = False) -> Version | None:
        """Record the versions that were committed since the last call, call the hooks, and return the newest of them.

        Args:
            wait: Whether to wait for those that are on their way.

        Raises:
            CheckpointFailed: If one could not be written, unless that is configured to be a warning.
        """
        newest = None
        for outcome in self._session.record_committed(wait=wait):
            if isinstance(outcome, CheckpointFailed):
                if self._section.on_failure == "stop":
                    raise outcome
                self._failure = outcome
                record_warning(self._session.records, f"{outcome} Training continues, as checkpoints.on_failure says.")
            else:
                newest = outcome
                self._failure = None if newest.is_resumable else self._failure
                self._hooks.call("on_checkpoint", self._progress, outcome)
        return newest

    @property
    def _is_cutting(self) -> bool:
        return self._next_cut is not NEVER

    def _submit(self, state: dict[str, Any], env_steps: int, score: float | None) -> None:
        self._divergence.refuse_nonfinite_weights(state, env_steps)
        self._session.commit(
            state,
            env_steps=env_steps,
            score=score,
            numerics=self._agent.numerics(),
            environments=self._agent.describe_resume(),
        )

    def _warn_if_inexact(self) -> None:
        reason = self._agent.why_not_exact()
        if reason is not None and reason != self._known_inexact:
            record_warning(self._session.records, f"A resume from here on will not be exact: {reason}")
        self._known_inexact = reason
