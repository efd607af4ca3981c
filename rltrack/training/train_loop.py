"""TrainingLoop: trains an agent from mark to mark, with everything else happening in between.

Long because the words about what a user may call and give take up as much room as the loop.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rltrack.agents.protocol import State
from rltrack.cleanup import cleaning_up
from rltrack.config import LoopSettings
from rltrack.errors import ConfigurationError, JournalFailed, MemoryLimitExceeded
from rltrack.evaluation.episodes import Evaluation
from rltrack.secrets import without_secrets
from rltrack.tracking import delivery
from rltrack.tracking.metrics import MetricsTracker
from rltrack.training.checkpointing import Checkpointing
from rltrack.training.control import Control, IterationAbandoned
from rltrack.training.evaluating import NO_LIMIT, Evaluating
from rltrack.training.hooks import EarlyStoppingHook, HookList, LoggingHook, TrainingHook
from rltrack.training.limits import ResourceWatch, refuse_divergence, refuse_nonfinite_losses
from rltrack.training.observer import ProgressObserver
from rltrack.training.progress import TrainingProgress, TrainingState, TrainingStatistics
from rltrack.training.records import record_end, record_iteration
from rltrack.training.reporter import ProgressReporter, format_duration
from rltrack.training.setup import SetUp, set_up
from rltrack.training.strategies import Mark, TrainingStrategy, make_strategy

if TYPE_CHECKING:
    from rltrack.checkpoints import Version
    from rltrack.tracking.delivery import Delivery

__all__ = [
    "EarlyStoppingHook",
    "LoggingHook",
    "MetricsTracker",
    "ProgressReporter",
    "TrainingHook",
    "TrainingLoop",
    "TrainingProgress",
    "TrainingState",
    "TrainingStatistics",
    "TrainingStrategy",
    "create_training_loop",
]

RATE_SECONDS = 0.05
"""How often speed and time left are computed, at boundaries."""

OVERTIME_SECONDS, OVERTIME_SHARE = 10.0, 0.1
"""How long an evaluation may go on when `max_seconds` is spent: so many seconds, or this share of `max_seconds` if it is more."""

ENDLESS_STEPS = 10_000
"""Env steps of each environment without the end of any episode, after which a person is told, once."""

_logger = logging.getLogger("rltrack")


class Due(StrEnum):
    """What a training does next, seen from a boundary."""

    EVALUATION = "evaluation"
    CHECKPOINT = "checkpoint"
    CHUNK = "chunk"
    FINAL_EVALUATION = "final evaluation"
    END = "end"


class TrainingLoop:
    """Trains an agent, and keeps everything that is worth keeping.

    The loop, in words::

        set up: bind the agent, build the evaluation, open the run, restore its newest version if it has one
        until the budget is spent, or something asks to stop, do what is due:
            evaluate                                 (the best policy so far is kept as a version)
            checkpoint
            train a chunk: iterate to the next mark  (an iteration: collect, update; between two lies a boundary)
        evaluate, checkpoint, record the end, deliver to MLflow and TensorBoard

    Stop, pause, signals, limits and hooks' requests are looked at at boundaries only.

    Args:
        agent: An SB3, sb3-contrib or SBX model, or any object with the `rltrack.agents.Agent` protocol.
        env: A Gymnasium environment, an SB3 ``VecEnv``, or an id; None for the one that the model has.
        settings: All settings as one value; or give them flat, as keywords (below).
        eval_env: Environment for evaluation, never the training one; omitted: built like the training environment.
        hooks: Objects with some of the methods of `TrainingHook`.
        reporter: Shows the progress; omitted: a bar where standard error is a terminal.
        name: The run's name under the root; omitted: new and unique.
        root: Folder of all runs; omitted: ``RLTRACK_ROOT``, or ``./mlruns``.
        resume: Whether a run of this name may go on.
        tracking: False: nothing is kept when the training has ended.
        seed: Seed of agent and environment; None leaves their own seeding alone.
        identity: What must be equal for a run to go on; omitted: the settings and the agent's description.
        config: The resolved configuration to keep beside the run; omitted: made from the settings.
        options: Any of the settings, flat: ``strategy``, ``total_timesteps``, ``total_episodes``, ``max_seconds``,
            ``eval_freq``, ``eval_episodes``, ``checkpoint_freq``, ``checkpoint_seconds``, ``memory_limit_mb``,
            ``convergence_threshold``, ``enable_early_stopping``, ``patience``, ``min_improvement``,
            ``tensorboard_log_dir``, … (`rltrack.config.FLAT_KEYS` has them all).

    Raises:
        ConfigurationError: If a setting is unknown, contradictory or out of range.
    """

    def __init__(
        self,
        agent: Any = None,
        env: Any = None,
        *,
        settings: LoopSettings | None = None,
        eval_env: Any = None,
        hooks: Iterable[Any] = (),
        reporter: ProgressReporter | None = None,
        name: str | None = None,
        root: str | Path | None = None,
        resume: bool = False,
        tracking: bool = True,
        seed: int | None = None,
        identity: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        if settings is not None and options:
            raise ConfigurationError(f"Give settings= or flat options, not both; got both, with {', '.join(options)}.")
        self.settings = LoopSettings.from_flat(options) if settings is None else settings
        if self.settings.training.needs_evaluation:
            self._evaluate_by_default()
        self.strategy = make_strategy(self.settings.training)
        self.progress = TrainingProgress()
        self.metrics = MetricsTracker()
        """The run's whole history so far; read from its journal when asked."""
        self.statistics = TrainingStatistics(convergence_threshold=self.settings.training.convergence_threshold)
        self.control = Control()
        self.hooks = HookList()
        self.reporter = reporter or ProgressReporter()
        self.name, self.root, self.may_resume, self.tracking = name, root, resume, tracking
        self.seed, self.identity, self.config = seed, identity, config
        self.start_from: State | None = None
        """Parts of another run's state to begin with; only a run without a version of its own takes them."""
        self.delivers = tracking
        """Whether the records go to MLflow and TensorBoard when training has ended."""
        self.was_finished = False
        """Whether the run was finished before, so that nothing was trained."""
        self._given = (agent, env, eval_env)
        self._parts: SetUp | None = None
        self._delivery: Delivery | None = None
        self._begun: tuple[Checkpointing, Evaluating] | None = None
        self._abandoned: str | None = None
        self._said_endless = False
        self._observer: ProgressObserver | None = None
        self._watch = ResourceWatch(self.progress, self.settings.training.memory_limit_mb)
        self._tick = self._rated = 0.0
        if self.settings.training.enable_early_stopping:
            training = self.settings.training
            self.add_hook(EarlyStoppingHook(training.patience, training.min_improvement))
        for hook in hooks:
            self.add_hook(hook)

    # ---- what a user calls ----

    def add_hook(self, hook: Any) -> None:
        """Add a hook: an object with some of the methods of `TrainingHook`.

        Raises:
            ConfigurationError: If it listens to no known moment, or with the wrong arguments.
        """
        self.hooks.add(hook)
        if self.hooks.need_evaluation and not self.settings.training.evaluates:
            self._evaluate_by_default()
            self.strategy = make_strategy(self.settings.training)

    def stop(self, reason: str = "stop() was called") -> None:
        """Stop at the next boundary, with a checkpoint; from any thread, also before `run`."""
        self.control.stop(reason)

    def pause(self) -> None:
        """Pause at the next boundary; from any thread, also before `run`."""
        self.control.pause()

    def resume(self) -> None:
        """Go on after a pause; from any thread."""
        self.control.resume()

    def run(self, agent: Any = None, env: Any = None) -> TrainingStatistics:
        """Train until the budget is spent or something asks to stop.

        Args:
            agent: The agent, if the constructor was not given it.
            env: The environment, likewise.

        Returns:
            What the training amounted to. The run's journal and versions are complete; the delivery to MLflow and
            TensorBoard goes on in a process of its own (`wait_for_tracking`).

        Raises:
            ConfigurationError: If agent, environment and settings do not fit together; nothing was started.
            TrainingDiverged: If a loss or a weight became NaN or infinite.
            MemoryLimitExceeded: If `memory_limit_mb` was exceeded; a checkpoint was written.
        """
        self.set_up(agent, env)
        if self.progress.state.is_final:  # finished before; what was not delivered then is delivered now
            self._ready().close()
            self._deliver_rest()
            return self.statistics
        try:
            with self.control.signals():
                self.begin()
                while (due := self.due()) is not Due.END:
                    self.carry_out(due)
                self.finish()
        except BaseException as error:
            with cleaning_up(f"Recording that {type(error).__name__} ended the training"):
                self.fail(error)
            with cleaning_up("Releasing the run"):
                self.close()
            raise
        self.close()
        return self.statistics

    def wait_for_tracking(self, timeout: float | None = None) -> bool:
        """Wait until everything is in MLflow and TensorBoard.

        Args:
            timeout: Seconds to wait; None for as long as it takes.

        Returns:
            Whether it is there now. If not, it can be delivered later: nothing is lost.
        """
        return True if self._delivery is None else self._delivery.wait(timeout)

    # ---- the verbs, which a flow calls one by one ----

    def set_up(self, agent: Any = None, env: Any = None) -> None:
        """Get ready to train: bind the agent, open the run, and restore its newest version if it has one.

        A run that was finished before is only read: its state is final afterwards.
        """
        if self._parts is not None:
            raise ConfigurationError("This TrainingLoop is in use or was used. Make a new one for another training.")
        given_agent, given_env, eval_env = self._given
        with self.reporter.waiting():
            self._parts = set_up(self, agent or given_agent, given_env if env is None else env, eval_env)

    def begin(self) -> None:
        """Start the clock and tell the hooks; comes after `set_up` and before the first chunk."""
        parts, progress = self._ready(), self.progress
        self.control.on_signal = self._heard_signal
        progress.state = TrainingState.RUNNING
        self._tick = self._rated = time.monotonic()
        progress.update_performance_stats(self._tick)
        self._observer = ProgressObserver(
            progress, self.hooks, self.strategy.remaining, parts.agent.set_schedule, self._look_inside
        )
        parts.agent.set_schedule(self.strategy.remaining(progress))
        self.reporter.start(self.statistics.run or "training", progress)
        self.hooks.call("on_training_start", progress)
        self._watch.look()
        if self.delivers:
            self._delivery = delivery.deliver(parts.session.directory)

    def due(self) -> Due:
        """Return what is to be done at this boundary; `END` when only `finish` is left."""
        leaving = (
            self._abandoned is not None
            or self._watch.exceeded is not None
            or self.control.should_stop
            or self._is_overtime(self.progress.elapsed_seconds)
        )
        if not leaving and self._judging.is_due:
            return Due.EVALUATION
        outcome = self._outcome()
        if outcome is not None:
            return Due.END if leaving or self._judging.is_current else Due.FINAL_EVALUATION
        return Due.CHECKPOINT if self._saving.is_due else Due.CHUNK

    def carry_out(self, due: Due, mark: Mark | None = None) -> None:
        """Do what is due: evaluate, checkpoint, or train a chunk, to the next mark or to the one given."""
        if due is Due.EVALUATION:
            self.evaluate()
        elif due is Due.FINAL_EVALUATION:
            self._judging.evaluate_finally()
            self._count_overtime()
        elif due is Due.CHECKPOINT:
            self._saving.save()
        elif due is Due.CHUNK:
            try:
                self.train_chunk(mark or self.next_mark())
            except IterationAbandoned as abandoned:
                self._abandoned = f"{self.control.reason}; the iteration in flight was abandoned ({abandoned})"

    def train_chunk(self, mark: Mark) -> None:
        """Train until a mark is reached or something asks to stop; does nothing where it is reached already."""
        observer = self._observer
        if observer is None:
            raise ConfigurationError("Call begin() after set_up() and before the first chunk.")
        while not mark.is_reached(self.progress) and not self._wants_to_leave():
            if self.control.should_pause:
                self._pause()
            else:
                self._iterate(observer)

    def evaluate(self) -> Evaluation | None:
        """Evaluate the policy as it is, keep it if it is the best so far, and let the strategy answer.

        Beside training (``evaluation.beside_training``) this begins the evaluation, and takes in the one before.

        Returns:
            The evaluation that was taken in; None without one, or if a request to stop came first.
        """
        evaluation = self._judging.evaluate()
        self._count_overtime()
        return evaluation

    def checkpoint(self) -> Version | None:
        """Commit a version from which training can go on; None if the agent cannot be captured, or as configured."""
        self._saving.save()
        return self._saving.settle(wait=True)

    def finish(self) -> None:
        """Write the last version, and record how training ended.

        Raises:
            MemoryLimitExceeded: If that is why it ended.
        """
        state, reason = self._outcome() or (TrainingState.STOPPED, "finish() was called")
        if self._abandoned is None:
            self._saving.save_at_end(completed=state is TrainingState.COMPLETED)
        if self._watch.exceeded is not None:
            raise MemoryLimitExceeded(f"At {self.progress.env_steps} env steps {self._watch.exceeded}")
        self._saving.settle(wait=True)
        self.progress.state = state
        self.hooks.call("on_training_end", self.progress)
        self._record_end(reason)

    def fail(self, error: BaseException) -> None:
        """Tell everybody that an error ends the training, and record it; the raising is left to the caller."""
        self.progress.state = TrainingState.FAILED
        with cleaning_up("A hook's on_error"):
            self.hooks.call("on_error", self.progress, error)
        if isinstance(error, JournalFailed):
            return  # there is nothing left to write to
        message = without_secrets(" ".join(str(error).split()))
        self._ready().session.records.error(error, message)
        self._record_end(f"{type(error).__name__}: {message}")

    def close(self) -> None:
        """Release everything, and deliver what was recorded; harmless if called twice."""
        parts = self._parts
        if parts is None or parts.closed:
            return
        if not self.tracking:
            self.metrics.detach()  # the journal goes with the temporary folder
        statistics = self.statistics
        try:
            parts.close()
        finally:
            with cleaning_up("Closing the reporter"):
                self.reporter.close(self.progress, f"{statistics.state.value}: {statistics.reason}")
        if self.progress.state.is_final:
            self._deliver_rest()

    # ---- inside ----

    def _deliver_rest(self) -> None:
        """Training has released the run: see to it that what is left is delivered."""
        session = self._ready().session
        if not session.is_mirrored:
            _logger.warning(
                f"{self.settings.checkpoints.store} lacks the newest records of this run. They are delivered to MLflow when it has "
                "them, so that another machine that goes on doubles nothing; resume the run to try again."
            )
        if self.delivers:
            self._delivery = self._delivery or delivery.deliver(session.directory)
            if self._delivery is not None:
                self._delivery.finish()

    def _iterate(self, observer: ProgressObserver) -> None:
        parts = self._ready()
        try:
            with self.control.abandonable():
                stats = parts.agent.advance(observer)
        except Exception as error:
            refuse_divergence(parts, self.progress.env_steps, error)
            raise
        self.progress.iterations += 1
        self._advance_clock()
        record_iteration(parts.session.journal, self.progress, stats, observer.take_episodes())
        refuse_nonfinite_losses(stats.losses, self.progress.env_steps)
        self._say_if_endless(parts)
        self.hooks.call("on_iteration_end", self.progress, stats)
        self._saving.settle()
        self._watch.look()
        if self._delivery is not None:
            self._delivery.look()
        self.reporter.update(self.progress)

    def _look_inside(self) -> None:
        """An iteration is long: it may wait for an episode that does not end, and then no boundary comes.

        Raises:
            IterationAbandoned: If it should end, and nothing but the end of an episode would end it.
        """
        parts = self._ready()
        self._say_if_endless(parts)
        if getattr(parts.agent, "collects_whole_episodes", False):
            elapsed = self.progress.elapsed_seconds + time.monotonic() - self._tick
            limit = self.settings.training.max_seconds
            if limit is not None and elapsed >= limit and not self.control.should_stop:
                self.control.stop(f"max_seconds ({limit:g} s) is spent")
            if self.control.should_stop:
                raise IterationAbandoned("its episode does not end")

    def _say_if_endless(self, parts: SetUp) -> None:
        """Say once that no episode ends: budgets and marks in episodes are then never reached."""
        progress = self.progress
        if self._said_endless or progress.episodes or progress.env_steps < ENDLESS_STEPS:
            return
        n_envs = int(getattr(getattr(parts.agent, "env", None), "num_envs", 1))
        if progress.env_steps >= ENDLESS_STEPS * n_envs:
            self._said_endless = True
            never = "" if self.strategy.budget.total_episodes is None else " total_episodes is never reached like that."
            self._warn(f"No episode has ended in {progress.env_steps:,} env steps.{never} {NO_LIMIT}")

    def _advance_clock(self) -> None:
        now, progress = time.monotonic(), self.progress
        progress.elapsed_seconds += now - self._tick
        self._tick = now
        progress.remaining = min(max(self.strategy.remaining(progress), 0.0), 1.0)
        if now - self._rated >= RATE_SECONDS:
            self._rated = now
            progress.update_performance_stats(now)

    def _is_overtime(self, elapsed_seconds: float) -> bool:
        """Whether even an evaluation must end: `max_seconds` is spent, and what a final evaluation is given on top."""
        limit = self.settings.training.max_seconds
        return limit is not None and elapsed_seconds >= limit + max(OVERTIME_SECONDS, OVERTIME_SHARE * limit)

    def _should_end_evaluation(self) -> bool:
        elapsed = self.progress.elapsed_seconds + time.monotonic() - self._tick
        return self.control.should_stop or self._is_overtime(elapsed)

    def _count_overtime(self) -> None:
        """An evaluation that was cut short by `max_seconds` has spent them."""
        if self._is_overtime(self.progress.elapsed_seconds + time.monotonic() - self._tick):
            self._advance_clock()
            self._warn(
                f"max_seconds ({self.settings.training.max_seconds:g} s) was spent while the policy was evaluated, and the "
                "evaluation did not end in the time that it is given on top: it has no result. Raise max_seconds, or lower "
                "evaluation.episodes."
            )

    def next_mark(self) -> Mark:
        """Return up to where the next chunk trains."""
        return self._judging.next_mark.earliest(self._saving.next_mark).earliest(self.strategy.budget.mark)

    def _wants_to_leave(self) -> bool:
        """Whether there is something to do at this boundary before training goes on."""
        return self._outcome() is not None or self._saving.is_due

    def _outcome(self) -> tuple[TrainingState, str] | None:
        """Return how training ends here, or None if it goes on."""
        if self._abandoned is not None:
            return TrainingState.STOPPED, self._abandoned
        if self._watch.exceeded is not None:
            return TrainingState.FAILED, self._watch.exceeded
        if self.control.should_stop:
            return TrainingState.STOPPED, self.control.reason or "stopped"
        reason = self._judging.ended or self.progress.stop_reason or self.strategy.spent(self.progress)
        return None if reason is None else (TrainingState.COMPLETED, reason)

    def _may_go_on(self) -> bool:
        """Whether another attempt has something to train: this one did not complete, or only its seconds are spent."""
        if self.progress.state is not TrainingState.COMPLETED:
            return True
        ended = self._judging.ended or self.progress.stop_reason
        return ended is None and self.strategy.budget.is_time_up(self.progress)

    def _pause(self) -> None:
        progress = self.progress
        progress.state = TrainingState.PAUSED
        self.hooks.call("on_pause", progress)
        self.reporter.update(progress)
        self.reporter.say(f"paused at {progress.env_steps:,} env steps", show=True)
        self.control.wait_while_paused()
        progress.state = TrainingState.RUNNING
        progress.restart_clock()
        self._tick = time.monotonic()
        self.hooks.call("on_resume", progress)

    def _record_end(self, reason: str) -> None:
        record_end(self._ready().session.journal, self.progress, reason, goes_on=self._may_go_on())
        self.statistics.take(self.progress, self.metrics, reason)
        self.reporter.say(f"{reason}; {format_duration(self.progress.elapsed_seconds)} of training")

    def _state_dict(self) -> dict[str, Any]:
        """Everything but the agent that a version holds."""
        return {
            "progress": self.progress.state_dict(),
            "strategy": self.strategy.state_dict(),
            "hooks": self.hooks.state_dict(),
            **self._judging.state_dict(),
        }

    def begin_at(self, parts: SetUp, loop: Mapping[str, Any] | None) -> None:
        """Take over what a checkpoint held (`_state_dict`), or begin where there is none."""
        if loop is not None:
            self.progress.load_state_dict(loop["progress"])
            self.strategy.load_state_dict(loop["strategy"])
            self.hooks.load_state_dict(loop["hooks"])
        saving = Checkpointing(
            parts,
            self.progress,
            self.strategy,
            self.settings,
            describe_loop=self._state_dict,
            committed=lambda version: self.hooks.call("on_checkpoint", self.progress, version),
            warn=self._warn,
        )
        judging = Evaluating(
            parts,
            self.progress,
            self.strategy,
            saving,
            threshold=self.settings.training.convergence_threshold,
            should_stop=self._should_end_evaluation,
            hooks=self.hooks,
            reporter=self.reporter,
            warn=self._warn,
        )
        if loop is not None:
            saving.begin_at(self.progress.env_steps)
            judging.load_state_dict(loop)
        self._begun = saving, judging

    def _evaluate_by_default(self) -> None:
        training = self.settings.training.with_evaluations(20)
        self.settings = self.settings.model_copy(update={"training": training})

    def _warn(self, message: str) -> None:
        _logger.warning(message)
        if self._parts is not None:
            self._parts.session.records.warning(message)

    def _heard_signal(self, name: str) -> None:
        if self._parts is not None and not self._parts.closed:
            self._parts.session.records.signal(name)

    @property
    def _saving(self) -> Checkpointing:
        return self._ready_to_train()[0]

    @property
    def _judging(self) -> Evaluating:
        return self._ready_to_train()[1]

    def _ready_to_train(self) -> tuple[Checkpointing, Evaluating]:
        if self._begun is None:
            raise ConfigurationError("Call run() or set_up() first.")
        return self._begun

    def _ready(self) -> SetUp:
        if self._parts is None:
            raise ConfigurationError("Call run() or set_up() first.")
        return self._parts


def create_training_loop(
    agent: Any, env: Any, config: Mapping[str, Any] | LoopSettings, **options: Any
) -> TrainingLoop:
    """Build a TrainingLoop from a flat dictionary, such as ``{"strategy": "adaptive", "total_timesteps": 100_000}``.

    Args:
        agent: As for `TrainingLoop`.
        env: As for `TrainingLoop`.
        config: Flat settings, or all settings as one value.
        options: Further keywords of `TrainingLoop`, such as ``name`` or ``hooks``; they win over `config`.

    Raises:
        ConfigurationError: If a setting is unknown (the nearest right one is named), contradictory or out of range.
    """
    if isinstance(config, LoopSettings):
        return TrainingLoop(agent, env, settings=config, **options)
    if not isinstance(config, Mapping):
        raise ConfigurationError(
            f"config is a {type(config).__name__}; pass a dictionary such as {{'total_timesteps': 10_000}}."
        )
    return TrainingLoop(agent, env, **{**config, **options})
