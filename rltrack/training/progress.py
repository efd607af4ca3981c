"""Where a training stands, and what it amounted to."""

from __future__ import annotations

import enum
import math
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rltrack.ranking import is_score
from rltrack.tracking.metrics import MetricsTracker

if TYPE_CHECKING:
    from rltrack.agents.protocol import EpisodeInfo
    from rltrack.evaluation.episodes import Evaluation
    from rltrack.resources import Resources, ResourceSampler

WINDOW = 100
"""Episodes in the running window, as in SB3's ``rollout/ep_rew_mean``."""

_RATE_SECONDS = 10.0


class TrainingState(enum.Enum):
    """What a training is doing, or how it ended."""

    INITIALIZING = "initializing"
    RUNNING = "running"
    EVALUATING = "evaluating"
    PAUSED = "paused"
    COMPLETED = "completed"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        """Whether nothing will happen any more."""
        return self in (TrainingState.COMPLETED, TrainingState.STOPPED, TrainingState.FAILED)


@dataclass(eq=False)
class TrainingProgress:
    """Where a training stands now: counters, speed, resources, the last episodes and evaluations.

    Attributes:
        state: What it is doing.
        env_steps: Env steps so far, added over parallel environments.
        episodes: Finished training episodes.
        iterations: Finished iterations.
        elapsed_seconds: Time spent training, added up over attempts; pauses are left out.
        remaining: Fraction of the whole budget that is left, in [0, 1].
        steps_per_second: Env steps per second over the last seconds.
        episodes_per_minute: Finished episodes per minute over the last seconds.
        eta_seconds: Estimated time to the end of the budget; None while it is unknown.
        resources: The last look at memory, CPU and GPU; None before the first.
        recent_returns: Raw returns of the last 100 episodes.
        recent_lengths: Their lengths, in env steps.
        last_evaluation: The newest evaluation.
        best_evaluation: The one with the highest mean return.
    """

    state: TrainingState = TrainingState.INITIALIZING
    env_steps: int = 0
    episodes: int = 0
    iterations: int = 0
    elapsed_seconds: float = 0.0
    remaining: float = 1.0
    steps_per_second: float = 0.0
    episodes_per_minute: float = 0.0
    eta_seconds: float | None = None
    resources: Resources | None = None
    recent_returns: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    recent_lengths: deque[int] = field(default_factory=lambda: deque(maxlen=WINDOW))
    last_evaluation: Evaluation | None = None
    best_evaluation: Evaluation | None = None
    stop_reason: str | None = field(default=None, repr=False)
    _sampler: ResourceSampler | None = field(default=None, repr=False)
    _marks: deque[tuple[float, int, int, float]] = field(default_factory=deque, repr=False)
    _spent_per_second: float = field(default=0.0, repr=False)

    def request_stop(self, reason: str) -> None:
        """Ask to end the training at the next boundary; the first reason is kept."""
        self.stop_reason = self.stop_reason or reason

    def add_episode(self, episode: EpisodeInfo) -> None:
        """Count a finished episode."""
        self.episodes += 1
        self.recent_returns.append(episode.episode_return)
        self.recent_lengths.append(episode.length)

    def update_performance_stats(self, current_time: float | None = None) -> None:
        """Compute speed and time left from the counters.

        Args:
            current_time: Seconds on any steady clock, the same at each call; omitted: ``time.monotonic()``.
        """
        now = time.monotonic() if current_time is None else current_time
        marks = self._marks
        marks.append((now, self.env_steps, self.episodes, self.remaining))
        while len(marks) > 2 and now - marks[1][0] >= _RATE_SECONDS:
            marks.popleft()
        then, steps, episodes, remaining = marks[0]
        seconds = now - then
        if seconds > 0:
            self.steps_per_second = (self.env_steps - steps) / seconds
            self.episodes_per_minute = 60.0 * (self.episodes - episodes) / seconds
            self._spent_per_second = (remaining - self.remaining) / seconds
        rate = self._spent_per_second
        self.eta_seconds = max(self.remaining, 0.0) / rate if rate > 0 else None

    def leave_out(self, seconds: float) -> None:
        """Measure speed as if the last seconds, of a pause or an evaluation, had not been."""
        self._marks = deque((mark[0] + seconds, *mark[1:]) for mark in self._marks)

    def update_resource_usage(self) -> Resources:
        """Look at memory, CPU and GPU now."""
        if self._sampler is None:
            from rltrack.resources import ResourceSampler

            self._sampler = ResourceSampler()
        self.resources = self._sampler.sample()
        return self.resources

    @property
    def memory_mb(self) -> float | None:
        """Resident memory of training and its environment workers at the last look, in MB."""
        return self.resources.memory_mb if self.resources else None

    @property
    @np.errstate(all="ignore")
    def mean_return(self) -> float:
        """Mean raw return over the last 100 episodes; NaN before the first."""
        return float(np.mean(self.recent_returns)) if self.recent_returns else math.nan

    @property
    def mean_length(self) -> float:
        """Mean length over the last 100 episodes, in env steps; NaN before the first."""
        return float(np.mean(self.recent_lengths)) if self.recent_lengths else math.nan

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs to know."""
        return {
            "env_steps": self.env_steps,
            "episodes": self.episodes,
            "iterations": self.iterations,
            "elapsed_seconds": self.elapsed_seconds,
            "recent_returns": list(self.recent_returns),
            "recent_lengths": list(self.recent_lengths),
            "last_evaluation": _evaluation_record(self.last_evaluation),
            "best_evaluation": _evaluation_record(self.best_evaluation),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        from rltrack.evaluation.episodes import Evaluation

        self.env_steps, self.episodes, self.iterations = state["env_steps"], state["episodes"], state["iterations"]
        self.elapsed_seconds = state["elapsed_seconds"]
        self.recent_returns.extend(state["recent_returns"])
        self.recent_lengths.extend(state["recent_lengths"])
        for name in ("last_evaluation", "best_evaluation"):
            record = state[name]
            setattr(self, name, Evaluation.from_record(record) if record else None)


def _evaluation_record(evaluation: Evaluation | None) -> dict[str, Any] | None:
    return None if evaluation is None else {"step": evaluation.env_steps, **evaluation.to_record()}


@dataclass(eq=False)
class TrainingStatistics:
    """What a training amounted to; `TrainingLoop.run` returns it.

    Attributes:
        run: The run's name; None without tracking.
        state: How it ended.
        reason: Why it ended, in words.
        env_steps: Env steps of the whole run.
        iterations: Iterations.
        seconds: Time spent training, added up over attempts.
        history: The run's records; what is asked for below is read from it when it is asked for.
        convergence_threshold: Mean return that counts as converged, if one was set.
    """

    run: str | None = None
    state: TrainingState = TrainingState.INITIALIZING
    reason: str = ""
    env_steps: int = 0
    iterations: int = 0
    seconds: float = 0.0
    history: MetricsTracker = field(default_factory=MetricsTracker, repr=False)
    convergence_threshold: float | None = None
    _episodes: int = field(default=0, repr=False)
    _best: Evaluation | None = field(default=None, repr=False)
    _final: Evaluation | None = field(default=None, repr=False)

    def take(self, progress: TrainingProgress, history: MetricsTracker, reason: str) -> None:
        """Take over how training ended."""
        self.state, self.reason, self.history = progress.state, reason, history
        self.env_steps, self.iterations = progress.env_steps, progress.iterations
        self.seconds, self._episodes = progress.elapsed_seconds, progress.episodes
        self._best, self._final = progress.best_evaluation, progress.last_evaluation

    @property
    def episodes(self) -> int:
        """Finished training episodes."""
        return self._episodes or len(self.history.episodes)

    @property
    def episode_returns(self) -> list[float]:
        """Raw return of each training episode, in order."""
        return [episode[1] for episode in self.history.episodes]

    @property
    def episode_lengths(self) -> list[int]:
        """Length of each training episode in env steps, in order."""
        return [episode[2] for episode in self.history.episodes]

    @property
    def evaluations(self) -> list[Evaluation]:
        """Every evaluation, in order."""
        from rltrack.evaluation.episodes import Evaluation

        return [Evaluation.from_record(record) for record in self.history.evaluations]

    @property
    def best_evaluation(self) -> Evaluation | None:
        """The evaluation with the highest mean return, the earlier of two equal ones; None where none has a finite one."""
        if self._best is not None:
            return self._best
        scored = [evaluation for evaluation in self.evaluations if is_score(evaluation.mean)]
        return max(scored, key=lambda evaluation: evaluation.mean, default=None)

    @property
    def final_evaluation(self) -> Evaluation | None:
        """The last evaluation."""
        if self._final is not None:
            return self._final
        evaluations = self.evaluations
        return evaluations[-1] if evaluations else None

    @property
    def is_converged(self) -> bool:
        """Whether the lower end of the last evaluation's interval reached `convergence_threshold`."""
        last = self.final_evaluation
        return last is not None and has_converged(last, self.convergence_threshold)

    @np.errstate(all="ignore")
    def window(self, episodes: int = WINDOW) -> dict[str, float]:
        """Return mean, std, min and max return and mean length over the newest episodes; NaN without any."""
        returns = np.array(self.episode_returns[-episodes:])
        lengths = np.array(self.episode_lengths[-episodes:])
        if not returns.size:
            return dict.fromkeys(("mean_return", "std_return", "min_return", "max_return", "mean_length"), math.nan)
        return {
            "mean_return": float(returns.mean()),
            "std_return": float(returns.std()),
            "min_return": float(returns.min()),
            "max_return": float(returns.max()),
            "mean_length": float(lengths.mean()),
        }

    @property
    def steps_per_second(self) -> float:
        """Env steps per second over the whole training."""
        return self.env_steps / self.seconds if self.seconds else 0.0

    def to_mapping(self) -> dict[str, Any]:
        """Return a summary as plain data, without the per-episode history."""
        best, final = self.best_evaluation, self.final_evaluation
        return {
            "run": self.run,
            "state": self.state.value,
            "reason": self.reason,
            "env_steps": self.env_steps,
            "episodes": self.episodes,
            "iterations": self.iterations,
            "seconds": self.seconds,
            "steps_per_second": self.steps_per_second,
            "last_100_episodes": self.window(),
            "best_evaluation": _evaluation_record(best),
            "final_evaluation": _evaluation_record(final),
        }


def has_converged(evaluation: Evaluation, threshold: float | None) -> bool:
    """Whether the lower end of the evaluation's confidence interval reaches the threshold."""
    return threshold is not None and is_score(evaluation.interval.low) and evaluation.interval.low >= threshold
