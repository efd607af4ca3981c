"""Strategies: when the budget is spent, where the next marks are, how much of the schedule remains.

A strategy is a small object whose state is part of each checkpoint; it touches neither agent nor environment, but may
answer an evaluation with a `Decision` that `rltrack.training.evaluating.Evaluating` applies.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rltrack.checkpoints import Retention
from rltrack.errors import ConfigurationError
from rltrack.ranking import is_better, is_score
from rltrack.training.marks import Budget, Cadence, Mark

if TYPE_CHECKING:
    from rltrack.config import CheckpointsSection, TrainingSection
    from rltrack.evaluation.episodes import Evaluation
    from rltrack.training.marks import Counters


class TrainingStrategy(enum.Enum):
    """What a training's budget and marks are counted in."""

    EPISODIC = "episodic"
    TIMESTEP_BASED = "timestep_based"
    MIXED = "mixed"
    ADAPTIVE = "adaptive"


@dataclass(frozen=True, slots=True)
class Decision:
    """What a strategy made of an evaluation, with its numbers and its reason.

    Attributes:
        name: ``improving``, ``plateau``, ``collapse``, ``converged``, ``steady``.
        reason: In words.
        numbers: What it was decided on.
        learning_rate_scale: New factor on the scheduled learning rate, or None to leave it.
        restore_best: Bring back weights, optimizer and normalisation of the best version.
        stop: End the training.
    """

    name: str
    reason: str
    numbers: dict[str, float] = field(default_factory=dict)
    learning_rate_scale: float | None = None
    restore_best: bool = False
    stop: bool = False


class Strategy:
    """What every strategy does, counted in env steps unless a subclass says otherwise.

    Args:
        section: The training section of the configuration.
    """

    kind = TrainingStrategy.TIMESTEP_BASED
    updates_per_episode = False
    """Whether off-policy agents with one environment should update once per episode."""
    needs_of_agent: Sequence[str] = ()
    """Optional methods of the agent without which the strategy cannot work."""
    returns_to_best = False
    """Whether training may continue from the best version, which is then kept with its optimizer."""
    learning_rate_scale = 1.0
    """Factor on the scheduled learning rate."""

    def __init__(self, section: TrainingSection) -> None:
        self.budget = Budget(section.total_timesteps, section.total_episodes, section.max_seconds)
        self.evaluations = self.cadence(section.eval_freq, section.eval_freq_episodes)
        self.checkpoints = self.cadence(section.checkpoint_freq, section.checkpoint_freq_episodes)

    def cadence(self, freq: int | None, freq_episodes: int | None) -> Cadence:
        """Return how often something with these frequencies is due."""
        return Cadence(env_steps=freq)

    def remaining(self, at: Counters) -> float:
        """Return the fraction of the whole budget that is left, for schedules.

        As in SB3 it falls slightly below 0 when the last iteration overshoots; schedules decide what to make of that.
        """
        assert self.budget.total_timesteps is not None, "the configuration was validated"
        return 1.0 - float(at.env_steps) / float(self.budget.total_timesteps)

    def spent(self, at: Counters) -> str | None:
        """Return why the budget is spent, or None."""
        return self.budget.spent(at)

    def next_evaluation(self, at: Counters) -> Mark:
        """Return where the next evaluation is due."""
        return self.evaluations.after(at)

    def next_checkpoint(self, at: Counters) -> Mark:
        """Return where the next checkpoint is due."""
        return self.checkpoints.after(at)

    def on_evaluation(self, evaluation: Evaluation) -> Decision | None:
        """Answer an evaluation; None for nothing to do."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs to know."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""


class TimestepBased(Strategy):
    """Budget and marks in env steps."""


class Episodic(Strategy):
    """Budget and marks in finished episodes."""

    kind = TrainingStrategy.EPISODIC
    updates_per_episode = True

    def cadence(self, freq: int | None, freq_episodes: int | None) -> Cadence:
        """Frequencies are episodes."""
        return Cadence(episodes=freq)

    def remaining(self, at: Counters) -> float:
        """Return the fraction of the episodes that is left."""
        assert self.budget.total_episodes is not None, "the configuration was validated"
        return 1.0 - at.episodes / self.budget.total_episodes


class Mixed(Strategy):
    """Both budgets and both cadences: whichever comes first."""

    kind = TrainingStrategy.MIXED

    def cadence(self, freq: int | None, freq_episodes: int | None) -> Cadence:
        """Each frequency in its own unit."""
        return Cadence(env_steps=freq, episodes=freq_episodes)

    def remaining(self, at: Counters) -> float:
        """Follow the budget that is closer to its end."""
        assert self.budget.total_timesteps is not None, "the configuration was validated"
        assert self.budget.total_episodes is not None, "the configuration was validated"
        return min(1.0 - at.env_steps / self.budget.total_timesteps, 1.0 - at.episodes / self.budget.total_episodes)


class Adaptive(Strategy):
    """Looks at each evaluation's confidence interval against the best so far, and answers.

    - *improving* (the interval lies above the best mean): the next evaluation may wait longer.
    - *plateau* (no new best mean for `PLATEAU_PATIENCE` evaluations): evaluate more often and halve the learning rate,
      at most `MAX_REDUCTIONS` times.
    - *collapse* (the interval lies below the best one's): weights, optimizer and normalisation of the best version come
      back with half the learning rate, at most `MAX_RESTORES` times, while counters and random streams continue.
    - *converged* (the lower end of the interval reaches `convergence_threshold`): stop.
    - *steady*: none of these.

    The interval between evaluations stays within a quarter and four times `eval_freq`.
    """

    kind = TrainingStrategy.ADAPTIVE
    needs_of_agent = ("capture", "restore", "scale_learning_rate")
    returns_to_best = True
    PLATEAU_PATIENCE = 3
    MAX_REDUCTIONS = 3
    MAX_RESTORES = 3
    LONGER, SHORTER = 1.5, 0.5
    WIDEST, NARROWEST = 4.0, 0.25

    def __init__(self, section: TrainingSection) -> None:
        super().__init__(section)
        if section.eval_freq is None:
            raise ConfigurationError("Strategy 'adaptive' needs evaluations; set eval_freq.")
        self._base = section.eval_freq
        self._threshold = section.convergence_threshold
        self.interval = float(section.eval_freq)
        self.learning_rate_scale = 1.0
        self.best: tuple[float, float, float] | None = None
        """Mean and interval of the best evaluation so far."""
        self.without_best = 0
        self.reductions = 0
        self.restores = 0

    def next_evaluation(self, at: Counters) -> Mark:
        """Return where the current interval ends."""
        return Mark(env_steps=at.env_steps + max(1, round(self.interval)))

    def on_evaluation(self, evaluation: Evaluation) -> Decision:
        """Compare with the best so far, and decide."""
        mean, (low, high) = evaluation.mean, evaluation.interval
        best = self.best
        numbers = {"mean": mean, "low": low, "high": high}
        if best is not None:
            numbers |= {"best_mean": best[0], "best_low": best[1], "best_high": best[2]}
        decision = self._decide(mean, low, high, best) if is_score(mean) else self._without_score(mean, best)
        if is_better(mean, None if best is None else best[0]):
            self.best, self.without_best = (mean, low, high), 0
        numbers |= {"eval_interval": self.interval, "learning_rate_scale": self.learning_rate_scale}
        return Decision(
            decision.name, decision.reason, numbers, decision.learning_rate_scale, decision.restore_best, decision.stop
        )

    def _decide(self, mean: float, low: float, high: float, best: tuple[float, float, float] | None) -> Decision:
        if self._threshold is not None and low >= self._threshold:
            return Decision(
                "converged", f"the interval's lower end {low:.6g} reaches the threshold {self._threshold:g}", stop=True
            )
        if best is None:
            return Decision("steady", "the first evaluation is the best so far")
        if low > best[0]:
            self._widen(self.LONGER)
            return Decision("improving", f"the interval's lower end {low:.6g} is above the best mean {best[0]:.6g}")
        if high < best[1]:
            return self._collapse(high, best[1])
        self.without_best = 0 if mean > best[0] else self.without_best + 1
        if self.without_best >= self.PLATEAU_PATIENCE:
            return self._plateau(best[0])
        return Decision("steady", f"mean {mean:.6g} is within reach of the best mean {best[0]:.6g}")

    def _without_score(self, mean: float, best: tuple[float, float, float] | None) -> Decision:
        """A mean that is NaN or infinite is no better one, and cannot be compared."""
        self.without_best += 1
        if best is not None and self.without_best >= self.PLATEAU_PATIENCE:
            return self._plateau(best[0])
        return Decision("steady", f"the mean return is {mean}, which cannot be compared")

    def _collapse(self, high: float, best_low: float) -> Decision:
        found = f"the interval's upper end {high:.6g} is below the best interval's lower end {best_low:.6g}"
        if self.restores >= self.MAX_RESTORES:
            return Decision(
                "collapse", f"{found}; the best version came back {self.restores} times already, so no more"
            )
        self.restores += 1
        self.without_best = 0
        self.learning_rate_scale *= 0.5
        self._widen(self.SHORTER)
        reason = f"{found}; the best version comes back (time {self.restores} of {self.MAX_RESTORES})"
        return Decision("collapse", reason, learning_rate_scale=self.learning_rate_scale, restore_best=True)

    def _plateau(self, best_mean: float) -> Decision:
        found = f"no better mean than {best_mean:.6g} for {self.without_best} evaluations"
        self.without_best = 0
        self._widen(self.SHORTER)
        if self.reductions >= self.MAX_REDUCTIONS:
            return Decision("plateau", f"{found}; the learning rate was lowered {self.reductions} times already")
        self.reductions += 1
        self.learning_rate_scale *= 0.5
        reason = f"{found}; learning rate halved (time {self.reductions} of {self.MAX_REDUCTIONS})"
        return Decision("plateau", reason, learning_rate_scale=self.learning_rate_scale)

    def _widen(self, factor: float) -> None:
        self.interval = min(max(self.interval * factor, self.NARROWEST * self._base), self.WIDEST * self._base)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that evaluations have changed."""
        return {
            "interval": self.interval,
            "learning_rate_scale": self.learning_rate_scale,
            "best": self.best,
            "without_best": self.without_best,
            "reductions": self.reductions,
            "restores": self.restores,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        for name in self.state_dict():
            setattr(self, name, state[name])
        if self.best is not None and not is_score(self.best[0]):  # versions of before kept a NaN
            self.best = None


STRATEGIES: dict[TrainingStrategy, type[Strategy]] = {
    strategy.kind: strategy for strategy in (TimestepBased, Episodic, Mixed, Adaptive)
}


def make_strategy(section: TrainingSection) -> Strategy:
    """Build the strategy that a configuration names."""
    return STRATEGIES[TrainingStrategy(section.strategy)](section)


def retention_of(section: CheckpointsSection, strategy: object) -> Retention:
    """Return which versions of a training are kept.

    Args:
        section: The checkpoints section of the configuration.
        strategy: The name of the strategy; what is no name of one returns to no version.
    """
    returns = any(kind.value == strategy and known.returns_to_best for kind, known in STRATEGIES.items())
    return Retention(section.keep_last, section.keep_best, section.keep_every, returns)
