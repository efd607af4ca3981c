"""One iteration of a training: the agent collects and updates, and what it did is counted, recorded and passed to hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rltrack.training.control import IterationAbandoned
from rltrack.training.evaluating import NO_LIMIT
from rltrack.training.limits import Divergence, refuse_nonfinite_losses
from rltrack.training.observer import ProgressObserver
from rltrack.training.records import record_iteration, record_warning

if TYPE_CHECKING:
    from rltrack.agents import AgentBase
    from rltrack.training.clock import TrainingClock
    from rltrack.training.evaluating import Evaluating
    from rltrack.training.plan import TrainingPlan
    from rltrack.training.session import RunSession

ENDLESS_STEPS = 10_000
"""Env steps of each environment without the end of any episode, after which one warning is given."""


class Iterating:
    """Goes from one boundary to the next.

    Args:
        plan: Of the training.
        agent: What is trained.
        session: Where iterations are recorded.
        clock: Counts the seconds.
        evaluations: Of the training; they take over what callbacks evaluate.
        divergence: Says whether an error came of NaN or infinities.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        agent: AgentBase,
        session: RunSession,
        clock: TrainingClock,
        evaluations: Evaluating,
        divergence: Divergence,
    ) -> None:
        self._agent, self._session, self._clock = agent, session, clock
        self._progress, self._strategy = plan.progress, plan.strategy
        self._hooks, self._control = plan.hooks, plan.control
        self._divergence = divergence
        self._evaluations, self._warned_endless = evaluations, False
        self.observer = ProgressObserver(
            plan.progress, plan.hooks, plan.strategy.remaining, agent.set_schedule, self._check_inside
        )

    def start(self) -> None:
        """Prepare the first iteration: clock, hooks and the agent's schedules begin here."""
        self._clock.start()
        self.observer.listen()
        self._agent.set_schedule(self._strategy.remaining(self._progress))

    def iterate(self) -> None:
        """Let the agent collect and update once; then count and record what it did, and call the hooks.

        Raises:
            IterationAbandoned: If a signal, or a limit that cannot wait, cut it off: the agent is in no consistent state.
            TrainingDiverged: If a loss or a weight became NaN or infinite.
        """
        progress = self._progress
        try:
            with self._control.abandonable():
                stats = self._agent.advance(self.observer)
        except Exception as error:
            self._divergence.explain(progress.env_steps, error)
            raise
        progress.iterations += 1
        self._clock.advance()
        episodes = self.observer.take_episodes()
        evaluates = self._evaluations.has_evaluator
        record_iteration(self._session.records, progress, stats, episodes, evaluates=evaluates)
        if not evaluates:
            self._evaluations.take_over(stats.evaluations)
        refuse_nonfinite_losses(stats.losses, progress.env_steps)
        if stats.stop_reason is not None:
            progress.request_stop(stats.stop_reason)
        self._warn_if_endless()
        self._hooks.call("on_iteration_end", progress, stats)

    def _check_inside(self) -> None:
        """An iteration is long: it may wait for an episode that does not end, and then no boundary comes.

        Raises:
            IterationAbandoned: If it should end, and nothing but the end of an episode would end it.
        """
        self._warn_if_endless()
        if self._agent.collects_whole_episodes:
            limit = self._clock.max_seconds
            if limit is not None and self._clock.elapsed_seconds >= limit and not self._control.should_stop:
                self._control.stop(f"max_seconds ({limit:g} s) is spent")
            if self._control.should_stop:
                raise IterationAbandoned("its episode does not end")

    def _warn_if_endless(self) -> None:
        """Warn once that no episode ends: budgets and marks in episodes are then never reached."""
        progress = self._progress
        if self._warned_endless or progress.episodes or progress.env_steps < ENDLESS_STEPS:
            return
        if progress.env_steps >= ENDLESS_STEPS * self._agent.n_envs:
            self._warned_endless = True
            never = (
                "" if self._strategy.budget.total_episodes is None else " total_episodes is never reached like that."
            )
            record_warning(
                self._session.records,
                f"No episode has ended in {progress.env_steps:,} env steps.{never} {NO_LIMIT}",
            )
