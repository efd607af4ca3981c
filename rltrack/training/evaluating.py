"""When the policy of a training is evaluated, and what follows from a result."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rltrack.agents.protocol import LEARNER_PARTS, POLICY_PARTS
from rltrack.errors import EvaluationUnavailable
from rltrack.evaluation.episodes import EvaluationInterrupted
from rltrack.evaluation.pending import EvaluationBeside, EvaluationHere
from rltrack.ranking import is_better
from rltrack.tracking.metrics import further_evaluation_metrics
from rltrack.training.marks import NEVER, Mark
from rltrack.training.progress import TrainingState, has_converged
from rltrack.training.records import record_warning
from rltrack.training.strategies import Decision

if TYPE_CHECKING:
    from rltrack.agents import AgentBase
    from rltrack.agents.protocol import CallbackEvaluation, State
    from rltrack.evaluation.episodes import Evaluation, Evaluator
    from rltrack.evaluation.pending import PendingEvaluation, Player
    from rltrack.training.checkpointing import Checkpointing
    from rltrack.training.limits import Divergence
    from rltrack.training.plan import TrainingPlan
    from rltrack.training.session import RunSession


LONG_EPISODE_STEPS = 10_000
"""Env steps of an episode after which one warning says that none has ended yet."""

NO_LIMIT = (
    "The likely cause: the environment never ends an episode and has no TimeLimit. Register it with max_episode_steps, or add "
    "gymnasium.wrappers.TimeLimit: {max_episode_steps: 1000} to environment.wrappers."
)


class Evaluating:
    """Evaluates one training's policy at marks; records the result, keeps the best policy, lets the strategy answer.

    In the background (``evaluation.beside_training``) `evaluate` starts an evaluation and applies the previous one, so that
    a result is applied at the same env steps however long it takes to play.

    Args:
        plan: Of the training.
        agent: Whose policy is evaluated.
        session: Where results are recorded.
        checkpoints: Keeps the best policy.
        divergence: Says whether an error came of NaN or infinities.
        evaluator: Plays the episodes; None where there is no environment for it.
        player: Plays them in a background process; None to play between iterations.
        should_stop: Whether training is to stop, which interrupts an evaluation.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        agent: AgentBase,
        session: RunSession,
        checkpoints: Checkpointing,
        divergence: Divergence,
        evaluator: Evaluator | None,
        player: Player | None,
        should_stop: Callable[[], bool],
    ) -> None:
        self.ended: str | None = None
        """Why a result, or a hook before a resume, ended the training; None while it continues."""
        self.lost_best: str | None = None
        """Why the strategy could not return to the best version; None while it could."""
        self._agent, self._session, self._checkpoints = agent, session, checkpoints
        self._divergence = divergence
        self._evaluator, self._player, self._should_stop = evaluator, player, should_stop
        self._progress, self._strategy, self._hooks = plan.progress, plan.strategy, plan.hooks
        self._reporter, self._threshold = plan.reporter, plan.settings.training.convergence_threshold
        self._best_parts = LEARNER_PARTS if plan.strategy.returns_to_best else POLICY_PARTS
        self._said_long = self._said_cut = False
        self._next = self._strategy.next_evaluation(self._progress)
        self._evaluated_at = -1
        self._pending: PendingEvaluation | None = None

    @property
    def has_evaluator(self) -> bool:
        """Whether rltrack evaluates the policy."""
        return self._evaluator is not None

    @property
    def next_mark(self) -> Mark:
        """Where the next evaluation is due."""
        return NEVER if self._evaluator is None else self._next

    @property
    def is_due(self) -> bool:
        """Whether an evaluation is due here."""
        return self.next_mark.is_reached(self._progress)

    @property
    def is_current(self) -> bool:
        """Whether the policy as it is was evaluated, and its result was applied, or it cannot be."""
        if self._evaluator is None:
            return True
        return self._pending is None and (self._evaluated_at == self._progress.env_steps or self.ended is not None)

    def evaluate(self) -> Evaluation | None:
        """Evaluate the policy as it is; return the evaluation that was applied, or None if a request to stop came first."""
        progress, begin = self._progress, time.monotonic()
        progress.state = TrainingState.EVALUATING
        self._reporter.update(progress)
        try:
            applied = self._apply_pending()
            if self._pending is None and self.ended is None:
                self._pending = self._begin(progress.env_steps)
                self._evaluated_at = progress.env_steps
                if self._player is None:
                    applied = self._apply_pending()
        finally:
            progress.state = TrainingState.RUNNING
            progress.leave_out(time.monotonic() - begin)
        if self._evaluated_at == progress.env_steps:
            self._next = self._strategy.next_evaluation(progress)
        return applied

    def evaluate_finally(self) -> None:
        """Evaluate the final policy, and apply what is pending; a request to stop cuts it short."""
        if self._evaluated_at != self._progress.env_steps:
            self.evaluate()
        self._apply_pending()

    def _begin(self, env_steps: int, policy: State | None = None) -> PendingEvaluation:
        """Start to play the episodes.

        Args:
            env_steps: Env steps of training at which the policy was frozen.
            policy: Its parts; None for the agent's own, as they are.

        Raises:
            EvaluationUnavailable: If there is no environment for it.
        """
        if self._evaluator is None:
            raise EvaluationUnavailable(
                "This training has no evaluation. Set eval_freq, and pass eval_env= if it asks for one."
            )
        if self._player is None:
            return EvaluationHere(self._evaluator, env_steps)
        policy = policy or self._agent.capture_parts(self._best_parts)
        return EvaluationBeside(self._player, env_steps, policy)

    def _apply_pending(self) -> Evaluation | None:
        """Wait for the pending evaluation, and apply its result; None without one."""
        pending = self._pending
        if pending is None:
            return None
        try:
            evaluation = pending.result(self._should_stop, self._show)
        except EvaluationInterrupted:
            if self._player is None:  # it is started again when training resumes
                self._pending, self._evaluated_at = None, -1
            return None
        except Exception as error:
            self._divergence.explain(pending.env_steps, error, pending.policy)
            raise
        self._pending = None
        self._apply_result(evaluation, pending.policy)
        return evaluation

    def _show(self, episodes: int, steps: int) -> None:
        """Show the progress of the evaluation, and warn once if no episode ends."""
        self._reporter.show_evaluation(self._progress, episodes, steps)
        if steps >= LONG_EPISODE_STEPS and not episodes and not self._said_long:
            self._said_long = True
            record_warning(
                self._session.records,
                f"The evaluation has played {steps:,} env steps without the end of an episode. {NO_LIMIT} Until then an episode is "
                "counted as it is at a bound (evaluation.max_steps_per_episode, evaluation.max_seconds).",
            )

    def take_over(self, played: Sequence[CallbackEvaluation]) -> None:
        """Record what EvalCallbacks evaluated where rltrack does not: those of the first one are the run's evaluations."""
        for item in played:
            steps, record = item.evaluation.env_steps, item.evaluation.to_record()
            if item.number > 1:
                values = further_evaluation_metrics({"step": steps, **record}, item.number)
                self._session.records.metrics(steps, values, {})
                continue
            best = self._record_result(item.evaluation, partial(getattr, item, "policy"))
            self._reporter.report_evaluation(item.evaluation, best=best)

    def _record_result(self, evaluation: Evaluation, policy_of_then: Callable[[], State | None]) -> bool:
        """Record a result, and keep the policy if it is the best so far; return whether it is."""
        progress, before = self._progress, self._progress.best_evaluation
        best = is_better(evaluation.mean, None if before is None else before.mean)
        self._session.records.evaluation(evaluation.env_steps, evaluation.to_record())
        progress.last_evaluation = evaluation
        if best:
            progress.best_evaluation = evaluation
            policy = policy_of_then()
            if policy is not None:
                self._checkpoints.keep_policy(policy, evaluation.env_steps, evaluation.mean)
        return best

    def _apply_result(self, evaluation: Evaluation, policy: State | None) -> None:
        agent, progress = self._agent, self._progress

        def policy_of_then() -> State | None:
            return agent.capture_parts(self._best_parts) if policy is None and agent.is_capturable else policy

        best = self._record_result(evaluation, policy_of_then)
        if evaluation.cut and not self._said_cut:
            self._said_cut = True
            record_warning(
                self._session.records,
                f"{evaluation.cut} of the evaluation's {len(evaluation.returns)} episodes did not end, and were cut after "
                f"{max(evaluation.lengths):,} env steps at most: they count as they are. {NO_LIMIT} Or set "
                "evaluation.max_steps_per_episode.",
            )
        self._reporter.report_evaluation(evaluation, best=best)
        self._hooks.call("on_evaluation_end", progress, evaluation)
        decision = self._strategy.on_evaluation(evaluation)
        if decision is not None:
            self._apply_decision(decision)
        if has_converged(evaluation, self._threshold):
            self.ended = (
                f"converged: the interval's lower end {evaluation.interval.low:.6g} reaches {self._threshold:g}"
            )

    def _apply_decision(self, decision: Decision) -> None:
        """Record a decision of the strategy, and do what it says."""
        self._session.records.decision(self._progress.env_steps, decision.name, decision.reason, decision.numbers)
        self._reporter.say(f"{decision.name}: {decision.reason}", show=decision.name not in ("steady", "improving"))
        if decision.restore_best:
            self._restore_best()
        if decision.learning_rate_scale is not None:
            self._agent.scale_learning_rate(decision.learning_rate_scale)
        if decision.stop:
            self.ended = f"{decision.name}: {decision.reason}"

    def _restore_best(self) -> None:
        self._checkpoints.record_committed(wait=True)
        evaluation = self._progress.best_evaluation
        if evaluation is None:
            return
        best = self._session.version_of(evaluation)
        if best is None:
            best = self._session.best()
            self.lost_best = f"the best version, from {evaluation.env_steps:,} env steps, is gone"
            instead = "the policy stays as it is" if best is None else f"training returns to {best.name} instead"
            record_warning(self._session.records, f"{self.lost_best[0].upper()}{self.lost_best[1:]}: {instead}.")
        if best is not None:
            self._agent.restore(self._session.store.read(best, self._best_parts))

    def state_dict(self) -> dict[str, Any]:
        """Return what a version holds of it."""
        return {
            "next_evaluation": [self._next.env_steps, self._next.episodes],
            "evaluated_at": self._evaluated_at,
            "pending": self._pending.state_dict() if self._pending else None,
            "done": self.ended or self._progress.stop_reason,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what a version held; an evaluation that was pending is started again."""
        self._next = Mark(*state["next_evaluation"])
        self._evaluated_at = state["evaluated_at"]
        self.ended = state["done"]
        if state["pending"] is not None:
            self._pending = self._begin(**state["pending"])
