"""When the policy of a training is evaluated, and what follows from a result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rltrack.evaluation.episodes import EvaluationInterrupted
from rltrack.ranking import is_better
from rltrack.training.limits import refuse_divergence
from rltrack.training.progress import TrainingState, has_converged
from rltrack.training.strategies import NEVER, Decision, Mark

if TYPE_CHECKING:
    from rltrack.agents.protocol import State
    from rltrack.evaluation.episodes import Evaluation
    from rltrack.evaluation.pending import PendingEvaluation
    from rltrack.training.checkpointing import Checkpointing
    from rltrack.training.hooks import HookList
    from rltrack.training.progress import TrainingProgress
    from rltrack.training.reporter import ProgressReporter
    from rltrack.training.setup import SetUp
    from rltrack.training.strategies import Strategy


LONG_EPISODE_STEPS = 10_000
"""Env steps of an episode after which a person is told, once, that none has ended yet."""

NO_LIMIT = (
    "The likely cause: the environment never ends an episode and has no TimeLimit. Register it with max_episode_steps, or add "
    "gymnasium.wrappers.TimeLimit: {max_episode_steps: 1000} to environment.wrappers."
)


class Evaluating:
    """Evaluates one training's policy at marks; records the result, keeps the best policy, lets the strategy answer.

    Beside training (``evaluation.beside_training``) `evaluate` begins an evaluation and takes in the one before, so that
    a result has its consequences at the same env steps however long it takes to play.

    Args:
        parts: What the training works with.
        progress: Where it stands.
        strategy: Says where the next evaluation is, and decides on a result.
        saving: Keeps the best policy.
        threshold: Return at which training has converged; None for none.
        should_stop: Whether somebody waits for training to stop, which interrupts an evaluation.
        hooks: Told of each result.
        reporter: Shows results and decisions.
        warn: Told what a person should know.
    """

    def __init__(
        self,
        parts: SetUp,
        progress: TrainingProgress,
        strategy: Strategy,
        saving: Checkpointing,
        *,
        threshold: float | None,
        should_stop: Callable[[], bool],
        hooks: HookList,
        reporter: ProgressReporter,
        warn: Callable[[str], None],
    ) -> None:
        self.ended: str | None = None
        """Why a result, or a hook before a resume, ended the training; None while it goes on."""
        self._parts, self._progress, self._strategy, self._saving = parts, progress, strategy, saving
        self._threshold, self._should_stop, self._hooks, self._reporter = threshold, should_stop, hooks, reporter
        self._warn = warn
        self._said_long = self._said_cut = False
        self._next = strategy.next_evaluation(progress)
        self._evaluated_at = -1
        self._pending: PendingEvaluation | None = None

    @property
    def next_mark(self) -> Mark:
        """Where the next evaluation is due."""
        return NEVER if self._parts.evaluator is None else self._next

    @property
    def is_due(self) -> bool:
        """Whether an evaluation is due here."""
        return self.next_mark.is_reached(self._progress)

    @property
    def is_current(self) -> bool:
        """Whether the policy as it is was evaluated, with every consequence, or cannot be."""
        if self._parts.evaluator is None:
            return True
        return self._pending is None and (self._evaluated_at == self._progress.env_steps or self.ended is not None)

    def evaluate(self) -> Evaluation | None:
        """Evaluate the policy as it is; return the evaluation that was taken in, or None if a request to stop came first."""
        progress = self._progress
        progress.state = TrainingState.EVALUATING
        self._reporter.update(progress)
        try:
            taken_in = self._take_in_pending()
            if self._pending is None and self.ended is None:
                self._pending = self._parts.begin_evaluation(progress.env_steps)
                self._evaluated_at = progress.env_steps
                if not self._parts.evaluates_beside:
                    taken_in = self._take_in_pending()
        finally:
            progress.state = TrainingState.RUNNING
            progress.restart_clock()
        if self._evaluated_at == progress.env_steps:
            self._next = self._strategy.next_evaluation(progress)
        return taken_in

    def evaluate_finally(self) -> None:
        """Evaluate the final policy, and take in what is pending; a request to stop cuts it short."""
        if self._evaluated_at != self._progress.env_steps:
            self.evaluate()
        self._take_in_pending()

    def _take_in_pending(self) -> Evaluation | None:
        """Wait for the pending evaluation, and let it have its consequences; None without a result."""
        pending = self._pending
        if pending is None:
            return None
        try:
            evaluation = pending.result(self._should_stop, self._tell)
        except EvaluationInterrupted:
            if not self._parts.evaluates_beside:  # begun again when training goes on
                self._pending, self._evaluated_at = None, -1
            return None
        except Exception as error:
            refuse_divergence(self._parts, pending.env_steps, error, pending.policy)
            raise
        self._pending = None
        self._take_in(evaluation, pending.policy)
        return evaluation

    def _tell(self, episodes: int, steps: int) -> None:
        """Show how the evaluation goes, and say once that it does not come to an end."""
        self._reporter.show_evaluation(self._progress, episodes, steps)
        if steps >= LONG_EPISODE_STEPS and not episodes and not self._said_long:
            self._said_long = True
            self._warn(
                f"The evaluation has played {steps:,} env steps without the end of an episode. {NO_LIMIT} Until then an episode is "
                "counted as it is at a bound (evaluation.max_steps_per_episode, evaluation.max_seconds)."
            )

    def _take_in(self, evaluation: Evaluation, policy: State | None) -> None:
        parts, progress = self._parts, self._progress
        before = progress.best_evaluation
        best = is_better(evaluation.mean, None if before is None else before.mean)
        parts.session.records.evaluation(evaluation.env_steps, evaluation.to_record())
        progress.last_evaluation = evaluation
        if best:
            progress.best_evaluation = evaluation
            if policy is None and parts.can_capture:
                policy = parts.capture(parts.best_parts)
            if policy is not None:
                self._saving.keep_policy(policy, evaluation.env_steps, evaluation.mean)
        if evaluation.cut and not self._said_cut:
            self._said_cut = True
            self._warn(
                f"{evaluation.cut} of the evaluation's {len(evaluation.returns)} episodes did not end, and were cut after "
                f"{max(evaluation.lengths):,} env steps at most: they count as they are. {NO_LIMIT} Or set "
                "evaluation.max_steps_per_episode."
            )
        self._reporter.report_evaluation(evaluation, best=best)
        self._hooks.call("on_evaluation_end", progress, evaluation)
        decision = self._strategy.on_evaluation(evaluation)
        if decision is not None:
            self._carry_out(decision)
        if has_converged(evaluation, self._threshold):
            self.ended = (
                f"converged: the interval's lower end {evaluation.interval.low:.6g} reaches {self._threshold:g}"
            )

    def _carry_out(self, decision: Decision) -> None:
        parts = self._parts
        parts.session.records.decision(self._progress.env_steps, decision.name, decision.reason, decision.numbers)
        self._reporter.say(f"{decision.name}: {decision.reason}", show=decision.name not in ("steady", "improving"))
        if decision.restore_best:
            self._saving.settle(wait=True)
            best = parts.session.best()
            if best is not None:
                parts.restore(parts.session.store.read(best, parts.best_parts))
        if decision.learning_rate_scale is not None:
            parts.scale_learning_rate(decision.learning_rate_scale)
        if decision.stop:
            self.ended = f"{decision.name}: {decision.reason}"

    def state_dict(self) -> dict[str, Any]:
        """Return what a version holds of it."""
        return {
            "next_evaluation": [self._next.env_steps, self._next.episodes],
            "evaluated_at": self._evaluated_at,
            "pending": self._pending.state_dict() if self._pending else None,
            "done": self.ended or self._progress.stop_reason,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what a version held; an evaluation that was pending is begun again."""
        self._next = Mark(*state["next_evaluation"])
        self._evaluated_at = state["evaluated_at"]
        self.ended = state["done"]
        if state["pending"] is not None:
            self._pending = self._parts.begin_evaluation(**state["pending"])
