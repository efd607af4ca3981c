"""Hooks: a user's own code at the moments of a training's life.

A hook is any object with some of the methods of `TrainingHook`. Signatures are checked when it is added; a moment that no
hook listens to costs nothing. One with ``state_dict`` and ``load_state_dict`` is part of each checkpoint.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rltrack.checkpoints.encoding import encode
from rltrack.errors import ConfigurationError, did_you_mean
from rltrack.ranking import is_better, is_score

if TYPE_CHECKING:
    from rltrack.agents.protocol import EpisodeInfo, IterationStats, StepInfo
    from rltrack.checkpoints import Version
    from rltrack.evaluation.episodes import Evaluation
    from rltrack.training.progress import TrainingProgress


class TrainingHook:
    """Every moment, with its arguments. Deriving from this class is optional; `TrainingProgress` always comes first."""

    def on_training_start(self, progress: TrainingProgress) -> None:
        """Training begins, or is resumed."""

    def on_step(self, progress: TrainingProgress, step_info: StepInfo | None) -> None:
        """All parallel environments took a step; None where the algorithm does not show its steps (ARS)."""

    def on_episode_end(self, progress: TrainingProgress, episode_info: EpisodeInfo) -> None:
        """A training episode ended."""

    def on_iteration_end(self, progress: TrainingProgress, iteration_info: IterationStats) -> None:
        """An iteration ended: this is a boundary."""

    def on_evaluation_end(self, progress: TrainingProgress, evaluation: Evaluation) -> None:
        """An evaluation ended."""

    def on_checkpoint(self, progress: TrainingProgress, version: Version) -> None:
        """A version was committed."""

    def on_pause(self, progress: TrainingProgress) -> None:
        """Training pauses."""

    def on_resume(self, progress: TrainingProgress) -> None:
        """Training continues after a pause."""

    def on_error(self, progress: TrainingProgress, error: BaseException) -> None:
        """Training failed; the error is raised after all hooks have heard of it."""

    def on_training_end(self, progress: TrainingProgress) -> None:
        """Training ended, in whatever state ``progress.state`` says."""


EVENTS: dict[str, int] = {
    name: len(inspect.signature(method).parameters) - 1
    for name, method in vars(TrainingHook).items()
    if name.startswith("on_")
}
"""Each moment with the number of its arguments."""


class HookList:
    """Calls hooks in the order in which they were added."""

    def __init__(self) -> None:
        self.hooks: list[Any] = []
        self._listeners: dict[str, list[Callable[..., None]]] = {name: [] for name in EVENTS}

    def add(self, hook: Any) -> None:
        """Add a hook, after checking it.

        Raises:
            ConfigurationError: If it listens to nothing, to an unknown moment, or with the wrong arguments.
        """
        if isinstance(hook, type):
            raise ConfigurationError(
                f"The hook {hook.__name__} is a class. Pass an object: add_hook({hook.__name__}())."
            )
        found = {
            name: getattr(hook, name) for name in dir(hook) if name.startswith("on_") and callable(getattr(hook, name))
        }
        for name in found.keys() - EVENTS.keys():
            raise ConfigurationError(
                f"{type(hook).__name__}.{name} is never called.{did_you_mean(name, EVENTS)} "
                f"Moments: {', '.join(EVENTS)}."
            )
        if not found:
            raise ConfigurationError(f"{type(hook).__name__} has no hook method. Moments: {', '.join(EVENTS)}.")
        for name, method in found.items():
            _check_signature(hook, name, method)
        self.hooks.append(hook)
        for name, method in found.items():
            if getattr(type(hook), name, None) is not getattr(TrainingHook, name):
                self._listeners[name].append(method)

    def listens_to(self, event: str) -> bool:
        """Whether any hook listens to this moment."""
        return bool(self._listeners[event])

    def call(self, event: str, *arguments: Any) -> None:
        """Call this method of every hook that has it."""
        for method in self._listeners[event]:
            method(*arguments)

    @property
    def need_evaluation(self) -> bool:
        """Whether a hook cannot work without evaluations."""
        return any(getattr(hook, "needs_evaluation", False) for hook in self.hooks)

    def check_states(self) -> None:
        """Find out now, and not at the first checkpoint, whether each hook's state can be stored.

        Raises:
            ConfigurationError: If one holds something else than plain data and arrays.
        """
        for hook in filter(_has_state, self.hooks):
            try:
                state = hook.state_dict()
            except Exception:  # it may have none before training begins
                continue
            try:
                encode(state)
            except TypeError as error:
                raise ConfigurationError(
                    f"The state of the hook {type(hook).__name__} cannot be part of a checkpoint: {error}. Let its state_dict() "
                    "return numbers, texts, arrays, and lists, tuples and dictionaries of these."
                ) from error

    def state_dict(self) -> list[tuple[str, Any]]:
        """Return class name and state of each hook that has one, in order."""
        return [(type(hook).__name__, hook.state_dict()) for hook in self.hooks if _has_state(hook)]

    def load_state_dict(self, states: list[tuple[str, Any]]) -> None:
        """Give each hook its state back.

        Raises:
            ConfigurationError: If the hooks with a state are not those of the time when it was taken.
        """
        own, saved = [hook for hook in self.hooks if _has_state(hook)], [name for name, _ in states]
        names = [type(hook).__name__ for hook in own]
        if names != saved:
            raise ConfigurationError(
                f"The checkpoint holds the state of the hooks {', '.join(saved) or '(none)'}; now there are "
                f"{', '.join(names) or '(none)'}. Add the same hooks in the same order before resuming."
            )
        for hook, (_, state) in zip(own, states, strict=True):
            hook.load_state_dict(state)


def _has_state(hook: Any) -> bool:
    return callable(getattr(hook, "state_dict", None)) and callable(getattr(hook, "load_state_dict", None))


def _check_signature(hook: Any, name: str, method: Callable[..., Any]) -> None:
    arguments = [None] * EVENTS[name]
    try:
        inspect.signature(method).bind(*arguments)
    except TypeError:
        wanted = ", ".join(inspect.signature(getattr(TrainingHook, name)).parameters)
        raise ConfigurationError(
            f"{type(hook).__name__}.{name}{inspect.signature(method)} cannot be called. Write: def {name}({wanted})."
        ) from None
    except ValueError:
        return  # a built-in without a signature


class LoggingHook(TrainingHook):
    """Writes a line to the log every so many env steps.

    Args:
        log_interval: Env steps between two lines.
        logger: Where to; omitted: the logger ``rltrack``.
    """

    def __init__(self, log_interval: int = 1000, logger: logging.Logger | None = None) -> None:
        if log_interval < 1:
            raise ConfigurationError(f"log_interval is {log_interval}; it must be at least 1 env step.")
        self.log_interval = log_interval
        self._logger = logger or logging.getLogger("rltrack")
        self._next = 0

    def on_training_start(self, progress: TrainingProgress) -> None:
        """Say where training begins."""
        self._next = (progress.env_steps // self.log_interval + 1) * self.log_interval
        self._logger.info("Training begins at %s env steps", f"{progress.env_steps:,}")

    def on_iteration_end(self, progress: TrainingProgress, iteration_info: IterationStats) -> None:
        """Write a line if an interval was crossed."""
        if progress.env_steps >= self._next:
            self._next = (progress.env_steps // self.log_interval + 1) * self.log_interval
            self._logger.info(
                "%s env steps, %s episodes, mean return %.4g over the last %d, %.0f steps/s",
                f"{progress.env_steps:,}",
                f"{progress.episodes:,}",
                progress.mean_return,
                len(progress.recent_returns),
                progress.steps_per_second,
            )

    def on_evaluation_end(self, progress: TrainingProgress, evaluation: Evaluation) -> None:
        """Write the evaluation's result."""
        self._logger.info(
            "Evaluation at %s env steps: mean return %.4g ± %.4g over %d episodes",
            f"{evaluation.env_steps:,}",
            evaluation.mean,
            evaluation.std,
            len(evaluation.returns),
        )

    def on_training_end(self, progress: TrainingProgress) -> None:
        """Say how training ended."""
        self._logger.info("Training %s at %s env steps", progress.state.value, f"{progress.env_steps:,}")


class EarlyStoppingHook(TrainingHook):
    """Stops when evaluations no longer improve.

    Args:
        patience: Evaluations in a row without improvement before stopping.
        min_improvement: By how much a mean return must exceed the best one to count, in reward units.
    """

    needs_evaluation = True

    def __init__(self, patience: int = 10, min_improvement: float = 0.01) -> None:
        if patience < 1:
            raise ConfigurationError(f"patience is {patience}; it must be at least 1 evaluation.")
        if not min_improvement >= 0:
            raise ConfigurationError(f"min_improvement is {min_improvement}; it must be 0 or more, in reward units.")
        self.patience = patience
        self.min_improvement = min_improvement
        self.best: float | None = None
        self.without_improvement = 0

    def on_evaluation_end(self, progress: TrainingProgress, evaluation: Evaluation) -> None:
        """Compare with the best mean so far."""
        if is_better(evaluation.mean, self.best, by=self.min_improvement):
            self.best = evaluation.mean
            self.without_improvement = 0
            return
        self.without_improvement += 1
        if self.without_improvement >= self.patience:
            wanted = "finite mean return"
            if self.best is not None:
                wanted = f"mean return above {self.best:.6g} + {self.min_improvement:g}"
            progress.request_stop(f"early stopping: no {wanted} for {self.without_improvement} evaluations")

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen so far."""
        return {"best": self.best, "without_improvement": self.without_improvement}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.best = state["best"] if is_score(state["best"]) else None
        self.without_improvement = state["without_improvement"]
