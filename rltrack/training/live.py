"""LiveTraining: a training that is ready to run, with the methods that take it from boundary to boundary."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from rltrack.cleanup import cleaning_up
from rltrack.errors import CheckpointFailed, ConfigurationError, JournalFailed, MemoryLimitExceeded
from rltrack.secrets import without_secrets
from rltrack.tracking import delivery
from rltrack.training.checkpointing import Checkpointing
from rltrack.training.clock import TrainingClock
from rltrack.training.control import IterationAbandoned
from rltrack.training.ending import Ending
from rltrack.training.evaluating import Evaluating
from rltrack.training.iterating import Iterating
from rltrack.training.limits import Divergence, ResourceWatch
from rltrack.training.progress import TrainingState
from rltrack.training.records import record_warning
from rltrack.training.steering import Steering

if TYPE_CHECKING:
    from rltrack.agents import AgentBase
    from rltrack.agents.protocol import Observer
    from rltrack.checkpoints import Version
    from rltrack.evaluation.episodes import Evaluation, Evaluator
    from rltrack.evaluation.pending import Player
    from rltrack.training.marks import Mark
    from rltrack.training.plan import TrainingPlan
    from rltrack.training.progress import TrainingStatistics
    from rltrack.training.session import RunSession

_logger = logging.getLogger("rltrack")


class Due(StrEnum):
    """What a training does next, seen from a boundary."""

    EVALUATION = "evaluation"
    CHECKPOINT = "checkpoint"
    CHUNK = "chunk"
    FINAL_EVALUATION = "final evaluation"
    END = "end"


class LiveTraining:
    """A training that is ready to run; `rltrack.training.prepare.prepare` makes it from a plan, complete.

    `run` is the training. A flow does the same with a task for each step::

        start
        until due() says END:
            perform what is due: evaluate, checkpoint, or train a chunk to the next mark
        finish  (after an error: fail)
        close

    Args:
        plan: Of the training.
        agent: What is trained; bound to its environment, with the state of the version that training resumes from.
        session: The open run.
        evaluator: Judges the policy; None where there is no environment for it.
        player: Evaluates in a background process; None to evaluate between iterations.
        loop: What that version holds besides the agent (`state_dict`); None at the beginning.
        resources: What to release in the end.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        agent: AgentBase,
        session: RunSession,
        evaluator: Evaluator | None,
        player: Player | None,
        loop: Mapping[str, Any] | None,
        resources: contextlib.ExitStack,
    ) -> None:
        self.plan, self.agent, self.session = plan, agent, session
        self.progress, self.control = plan.progress, plan.control
        self.was_finished = session.is_finished
        """Whether the run was finished before: then there is nothing to train, and only what is left is delivered."""
        self.clock = TrainingClock(plan.progress, plan.strategy)
        divergence = Divergence(agent)
        resumed_at = None if loop is None else self.progress.env_steps
        self.checkpoints = Checkpointing(plan, agent, session, divergence, resumed_at=resumed_at)
        self.evaluations = Evaluating(
            plan,
            agent,
            session,
            self.checkpoints,
            divergence,
            evaluator,
            player,
            should_stop=self._should_end_evaluation,
        )
        if loop is not None:
            self.evaluations.load_state_dict(loop)
        self._iterations = Iterating(plan, agent, session, self.clock, self.evaluations, divergence)
        self._watch = ResourceWatch(self.progress, plan.settings.training.memory_limit_mb)
        self._steering = Steering(
            session.directory, self.control, self.progress, self._record_signal, self._checkpoint_on_request
        )
        self._ending = Ending(plan, session, self.evaluations, self._watch)
        is_shipped = plan.delivers and plan.settings.tracking.sinks
        self._delivery = delivery.Delivery(session.directory) if is_shipped else delivery.NoDelivery()
        self._resources = resources
        self._is_closed = False

    def run(self) -> TrainingStatistics:
        """Train until the budget is spent or something asks to stop; return what it amounted to.

        Raises:
            TrainingDiverged: If a loss or a weight became NaN or infinite.
            MemoryLimitExceeded: If `memory_limit_mb` was exceeded; a checkpoint was written.
        """
        if self.was_finished:  # what was not delivered then is delivered now
            self.close()
            return self.plan.statistics
        try:
            with self.control.signals():
                self.start()
                while (due := self.due()) is not Due.END:
                    self.perform(due)
                self.finish()
        except BaseException as error:
            with cleaning_up(f"Recording that {type(error).__name__} ended the training"):
                self.fail(error)
            with cleaning_up("Releasing the run"):
                self.close()
            raise
        self.close()
        return self.plan.statistics

    # ---- the methods that a flow calls one by one ----

    def start(self) -> None:
        """Start the clock and call the hooks; comes before the first chunk."""
        progress = self.progress
        self.control.on_signal = self._record_signal
        self._steering.start()
        progress.state = TrainingState.RUNNING
        self._iterations.start()
        self.plan.reporter.start(self.plan.statistics.run or "training", progress)
        self.plan.hooks.call("on_training_start", progress)
        self._watch.look()
        self._delivery.look()

    def due(self) -> Due:
        """Return what is to be done at this boundary; `END` when only `finish` is left."""
        if self.was_finished:
            return Due.END
        leaving = self._ending.is_forced or self.clock.is_overtime(self.progress.elapsed_seconds)
        if not leaving and self.evaluations.is_due:
            return Due.EVALUATION
        outcome = self._ending.outcome()
        if outcome is not None:
            return Due.END if leaving or self.evaluations.is_current else Due.FINAL_EVALUATION
        return Due.CHECKPOINT if self.checkpoints.is_due else Due.CHUNK

    def perform(self, due: Due, mark: Mark | None = None) -> None:
        """Do what is due: evaluate, checkpoint, or train a chunk, to the next mark or to the one given."""
        if due is Due.EVALUATION:
            self.evaluate()
        elif due is Due.FINAL_EVALUATION:
            self.evaluations.evaluate_finally()
            self._count_overtime()
        elif due is Due.CHECKPOINT:
            self.checkpoints.save(self.state_dict())
        elif due is Due.CHUNK:
            try:
                self.train_chunk(mark or self.next_mark())
            except IterationAbandoned as abandoned:
                self._ending.abandoned = f"{self.control.reason}; the iteration in flight was abandoned ({abandoned})"

    def next_mark(self) -> Mark:
        """Return up to where the next chunk trains."""
        return self.evaluations.next_mark.earliest(self.checkpoints.next_mark).earliest(self.plan.strategy.budget.mark)

    def train_chunk(self, mark: Mark) -> None:
        """Train until a mark is reached or something asks to stop; does nothing where it is reached already."""
        if self.progress.state is TrainingState.INITIALIZING:
            raise ConfigurationError("Call start() before the first chunk.")
        while not mark.is_reached(self.progress) and self._ending.outcome() is None and not self.checkpoints.is_due:
            self._steering.look()
            if self.control.should_pause:
                self._pause()
            elif self.control.should_stop:
                continue
            else:
                self._iterations.iterate()
                self.checkpoints.record_committed()
                self._watch.look()
                self._delivery.look()
                self.plan.reporter.update(self.progress)

    def evaluate(self) -> Evaluation | None:
        """Evaluate the policy as it is, keep it if it is the best so far, and let the strategy answer.

        In the background (``evaluation.beside_training``) this starts the evaluation, and applies the previous one.

        Returns:
            The evaluation that was applied; None without one, or if a request to stop came first.
        """
        evaluation = self.evaluations.evaluate()
        self._count_overtime()
        return evaluation

    def checkpoint(self) -> Version | None:
        """Commit a version from which training can be resumed; None if the agent cannot be captured, or as configured."""
        self.checkpoints.save(self.state_dict())
        return self.checkpoints.record_committed(wait=True)

    def finish(self) -> None:
        """Write the last version, and record how training ended.

        Raises:
            MemoryLimitExceeded: If that is why it ended.
        """
        state, reason = self._ending.outcome() or (TrainingState.STOPPED, "finish() was called")
        if self._ending.abandoned is None:
            self.checkpoints.save_at_end(self.state_dict(), completed=state is TrainingState.COMPLETED)
        if self._watch.exceeded is not None:
            raise MemoryLimitExceeded(f"At {self.progress.env_steps} env steps {self._watch.exceeded}")
        self.checkpoints.record_committed(wait=True)
        self.progress.state = state
        self.agent.end_training()
        self.plan.hooks.call("on_training_end", self.progress)
        self._ending.record(reason)

    def fail(self, error: BaseException) -> None:
        """Call the hooks with the error that ends the training, and record it; the caller raises it."""
        self.progress.state = TrainingState.FAILED
        with cleaning_up("A hook's on_error"):
            self.plan.hooks.call("on_error", self.progress, error)
        if isinstance(error, JournalFailed):
            return  # there is nothing left to write to
        message = without_secrets(" ".join(str(error).split()))
        self.session.records.error(error, message)
        self._ending.record(f"{type(error).__name__}: {message}")

    def close(self) -> None:
        """Release everything, and deliver what was recorded; harmless if called twice."""
        if self._is_closed:
            return
        self._is_closed = True
        plan, statistics = self.plan, self.plan.statistics
        if not plan.tracking:
            statistics.history.detach()  # the journal goes with the temporary folder
        try:
            self._resources.close()
        finally:
            with cleaning_up("Closing the reporter"):
                plan.reporter.close(self.progress, f"{statistics.state.value}: {statistics.reason}")
        if self.progress.state.is_final:
            self._deliver_rest()

    def wait_for_tracking(self, timeout: float | None = None) -> bool:
        """Wait until everything is delivered, or the timeout (in seconds) is over; return whether it is."""
        return self._delivery.wait(timeout)

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the agent that a version holds."""
        return {
            "progress": self.progress.state_dict(),
            "strategy": self.plan.strategy.state_dict(),
            "hooks": self.plan.hooks.state_dict(),
            **self.evaluations.state_dict(),
        }

    @property
    def observer(self) -> Observer:
        """Receives the agent's steps and episodes."""
        return self._iterations.observer

    def _should_end_evaluation(self) -> bool:
        self._steering.look(at_boundary=False)
        return self.control.should_stop or self.clock.is_overtime()

    def _count_overtime(self) -> None:
        """An evaluation that was cut short by `max_seconds` has spent them."""
        if self.clock.is_overtime():
            self.clock.advance()
            record_warning(
                self.session.records,
                f"max_seconds ({self.clock.max_seconds:g} s) was spent while the policy was evaluated, and the "
                "evaluation did not end in the time that it is given on top: it has no result. Raise max_seconds, or lower "
                "evaluation.episodes.",
            )

    def _pause(self) -> None:
        progress, hooks, reporter = self.progress, self.plan.hooks, self.plan.reporter
        progress.state = TrainingState.PAUSED
        hooks.call("on_pause", progress)
        reporter.update(progress)
        reporter.say(f"paused at {progress.env_steps:,} env steps", show=True)
        self._steering.paused()
        self.control.wait_while_paused(self._steering.look)
        progress.state = TrainingState.RUNNING
        self.clock.skip()
        hooks.call("on_resume", progress)

    def _checkpoint_on_request(self) -> str:
        why_not = self.checkpoints.why_not_here
        if why_not and self.checkpoints.is_current:
            return why_not
        version = None if why_not else self.checkpoint()
        if version is None:
            raise CheckpointFailed(why_not or "no version was written; the run's warnings say why")
        return f"{version.name} at {version.env_steps:,} env steps"

    def _record_signal(self, name: str) -> None:
        if not self._is_closed:
            self.session.records.signal(name)

    def _deliver_rest(self) -> None:
        """Deliver what is left, now that training has released the run."""
        if not self.session.is_mirrored:
            store = self.plan.settings.checkpoints.store
            _logger.warning(
                f"{store} lacks the newest records of this run. They are delivered to MLflow when it has them, so that another "
                "machine that resumes the run repeats nothing; resume the run here to try again."
            )
        self._delivery.finish()
