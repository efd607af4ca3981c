"""Why a training ends, and how that is recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rltrack.training.progress import TrainingState
from rltrack.training.records import record_end
from rltrack.training.reporter import format_duration

if TYPE_CHECKING:
    from rltrack.training.evaluating import Evaluating
    from rltrack.training.limits import ResourceWatch
    from rltrack.training.plan import TrainingPlan
    from rltrack.training.session import RunSession


class Ending:
    """Knows at each boundary whether the training ends there.

    Args:
        plan: Of the training.
        session: Where the end is recorded.
        evaluations: A result may end the training.
        watch: So may a limit on memory.
    """

    def __init__(self, plan: TrainingPlan, session: RunSession, evaluations: Evaluating, watch: ResourceWatch) -> None:
        self._plan, self._session, self._evaluations, self._watch = plan, session, evaluations, watch
        self.abandoned: str | None = None
        """Why the iteration in flight was cut off; None while the agent is in a consistent state."""

    @property
    def is_forced(self) -> bool:
        """Whether training ends here, whatever is due: on request, at a limit, or because an iteration was cut off."""
        return self.abandoned is not None or self._watch.exceeded is not None or self._plan.control.should_stop

    def outcome(self) -> tuple[TrainingState, str] | None:
        """Return how training ends here, and why; None if it continues."""
        if self.abandoned is not None:
            return TrainingState.STOPPED, self.abandoned
        if self._watch.exceeded is not None:
            return TrainingState.FAILED, self._watch.exceeded
        if self._plan.control.should_stop:
            return TrainingState.STOPPED, self._plan.control.reason or "stopped"
        reason = self._early_end() or self._plan.strategy.spent(self._plan.progress)
        return None if reason is None else (TrainingState.COMPLETED, reason)

    def record(self, reason: str) -> None:
        """Write how this attempt ended: into the journal, the statistics and the log file."""
        plan = self._plan
        record_end(self._session.records, plan.progress, reason, goes_on=self._may_go_on())
        plan.statistics.take(plan.progress, plan.statistics.history, reason)
        plan.reporter.say(f"{reason}; {format_duration(plan.progress.elapsed_seconds)} of training")

    def _early_end(self) -> str | None:
        """Return why training ends before its budget is spent, as a result or a hook says."""
        return self._evaluations.ended or self._plan.progress.stop_reason

    def _may_go_on(self) -> bool:
        """Whether another attempt has something to train: this one did not complete, or only its seconds are spent."""
        if self._plan.progress.state is not TrainingState.COMPLETED:
            return True
        return self._early_end() is None and self._plan.strategy.budget.is_time_up(self._plan.progress)
