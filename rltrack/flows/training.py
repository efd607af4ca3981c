"""The training of a run inside a flow run, and the checks before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rltrack.agents.environments import environment_creator
from rltrack.agents.wrappers import check_wrappers
from rltrack.config import TrainingConfig
from rltrack.errors import RltrackError
from rltrack.flows.streams import use_second_random
from rltrack.named_code import check_defined_there
from rltrack.permissions import KNOWN_WRAPPERS, Permissions
from rltrack.runs import Root, RunDirectory
from rltrack.training.control import Control
from rltrack.training.live import Due, LiveTraining
from rltrack.training.marks import Mark
from rltrack.training.progress import TrainingStatistics
from rltrack.training.reporter import ProgressReporter
from rltrack.training.trainer import Trainer

MAX_ATTEMPTS_WITHOUT_PROGRESS = 5
"""Attempts in a row that start at the same version, after which a run is no longer restarted automatically."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a flow's training ended; the data of the flow run's state, which Prefect keeps in this process.

    Attributes:
        directory: The run's folder.
        statistics: What the training amounted to.
        was_finished: Whether the run was finished before, so that nothing was trained.
    """

    directory: RunDirectory
    statistics: TrainingStatistics
    was_finished: bool


class Training:
    """A run's live training inside a flow run: prepared when it is first asked for, and again after each failure.

    Args:
        config: The training, with a name.
        root: Folder of all runs.
        console: Show the progress on the terminal.
        hooks: Further hooks.
    """

    def __init__(self, config: TrainingConfig, root: Root, *, console: bool, hooks: Sequence[Any] = ()) -> None:
        self.config, self.root, self.hooks = config, root, hooks
        self.control = Control()
        self._console = console
        self._current: tuple[Trainer, LiveTraining] | None = None

    @property
    def directory(self) -> RunDirectory:
        """The run's folder."""
        assert self.config.name is not None, "the flow named it"
        return self.root.directory(self.config.name)

    def live(self) -> LiveTraining:
        """Return the live training; where there is none, restore the run from its newest version, or begin it."""
        if self._current is None:
            use_second_random()
            reporter = ProgressReporter(console=self._console)
            trainer = Trainer(
                self.config, root=self.root.path, reporter=reporter, hooks=self.hooks, control=self.control
            )
            try:
                live = trainer.prepare()
                if not live.was_finished:
                    live.start()
            except BaseException:
                trainer.close()
                raise
            self._current = trainer, live
        return self._current[1]

    def perform(self, due: Due, env_steps: int, mark: Mark | None = None) -> None:
        """Do what was due at a number of env steps; after a failure, first everything that leads there."""
        live = self.live()
        try:
            while live.progress.env_steps < env_steps and (before := live.due()) is not Due.END:
                live.perform(before)
            if due is Due.END:
                live.finish()
            elif due in (Due.CHUNK, Due.CHECKPOINT) or live.due() is due:
                live.perform(due, mark)
        except BaseException as error:
            self._give_up(error)
            raise

    def _give_up(self, error: BaseException) -> None:
        """Record an error as the end of this attempt, and release everything."""
        if self._current is not None:
            (trainer, live), self._current = self._current, None
            try:
                live.fail(error)
            finally:
                trainer.close()

    def stop(self, reason: str) -> None:
        """Stop at this boundary, with a version, and release everything."""
        if self._current is not None:
            self.control.stop(reason)
            self._current[1].finish()
            self.close()

    def close(self) -> None:
        """Release everything; harmless if called twice."""
        if self._current is not None:
            (trainer, _), self._current = self._current, None
            trainer.close()


def check_attempts(run: RunDirectory) -> None:
    """Refuse a run whose last attempts all started at the same version without reaching another.

    Raises:
        RltrackError: With the remedy.
    """
    attempts = [record.get("resumed_from") for record in run.attempts()]
    last = attempts[-MAX_ATTEMPTS_WITHOUT_PROGRESS:]
    if len(last) == MAX_ATTEMPTS_WITHOUT_PROGRESS and len(set(last)) == 1 and not run.status().is_finished:
        raise RltrackError(
            f"Run {run.name} was started {len(last)} times from {last[0] or 'its beginning'} without reaching another version; "
            f"it is no longer restarted automatically. See `rltrack show {run.name}`, fix the cause, and continue with "
            f"`rltrack resume {run.name}`."
        )


def check_parameters(config: TrainingConfig) -> None:
    """Refuse what this worker does not allow: anyone who reaches Prefect can set parameters, which name code and files.

    Raises:
        NotAllowed: With a line for each refused value: what is allowed, and how to allow it.
    """
    Permissions.from_environment().check(config.to_mapping())
    check_wrappers(config.environment.wrappers, KNOWN_WRAPPERS)
    agent = config.agent
    named: dict[str, Any] = {
        "agent.algorithm": agent.algorithm,
        "agent.policy": agent.policy,
        "agent.hyperparameters": agent.hyperparameters,
    }
    if environment_creator(config.environment.id) is not None:
        named["environment.id"] = config.environment.id
    wrapping = [list(item.values()) for item in config.environment.wrappers if not isinstance(item, str)]
    named |= {"hooks": config.hooks, "environment.kwargs": config.environment.kwargs, "environment.wrappers": wrapping}
    for key, value in named.items():
        check_defined_there(value, key)
