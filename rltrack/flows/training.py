"""A run's live training inside a flow run, and what a flow refuses to train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect import get_run_logger

from rltrack.agents.environments import check_wrappers, environment_creator
from rltrack.agents.named_code import check_defined_there
from rltrack.config import TrainingConfig
from rltrack.errors import RltrackError
from rltrack.flows.page import Page, PageHook
from rltrack.flows.streams import keep_apart
from rltrack.permissions import KNOWN_WRAPPERS, Permissions
from rltrack.runs import Root, RunDirectory
from rltrack.training.control import Control
from rltrack.training.progress import TrainingStatistics
from rltrack.training.reporter import ProgressReporter
from rltrack.training.strategies import Mark
from rltrack.training.train_loop import Due, TrainingLoop
from rltrack.training.trainer import Trainer

MAX_ATTEMPTS_WITHOUT_PROGRESS = 5
"""Attempts in a row that begin at the same version, after which a run no longer comes back by itself."""


class Training:
    """A run's live training inside a flow run: built when it is first asked for, and anew after each failure.

    Args:
        config: What is trained; with a name.
        root: Folder of all runs.
        console: Show the progress on the terminal.
        hooks: The flow's own.
    """

    def __init__(self, config: TrainingConfig, root: Root, *, console: bool, hooks: Sequence[Any] = ()) -> None:
        self.config, self.root, self.hooks = config, root, hooks
        self.control = Control()
        self.page: Page | None = None
        self._console = console
        self._trainer: Trainer | None = None
        self.statistics: TrainingStatistics | None = None
        self.was_finished = False

    @property
    def directory(self) -> RunDirectory:
        """The run's folder."""
        assert self.config.name is not None, "the flow named it"
        return self.root.directory(self.config.name)

    def open(self) -> TrainingLoop:
        """Return the live loop; where there is none, restore the run from its newest version, or begin it."""
        if self._trainer is None:
            keep_apart()
            hooks = [*self.hooks, *([] if self.page is None else [PageHook(self.page, get_run_logger)])]
            reporter = ProgressReporter(console=self._console)
            trainer = Trainer(self.config, root=self.root.path, reporter=reporter, hooks=hooks, control=self.control)
            try:
                trainer.set_up()
                if trainer.loop.progress.state.is_final:
                    self.was_finished = True
                else:
                    trainer.loop.begin()
            except BaseException:
                trainer.close()
                raise
            self._trainer = trainer
        return self._trainer.loop

    def carry_out(self, due: Due, env_steps: int, mark: Mark | None = None) -> None:
        """Do what was due at a number of env steps; after a failure, first everything that leads there.

        Args:
            due: What is to be done.
            env_steps: Where it was due.
            mark: For a chunk, up to where it trains.
        """
        loop = self.open()
        try:
            while loop.progress.env_steps < env_steps and (before := loop.due()) is not Due.END:
                loop.carry_out(before)
            if due is Due.END:
                loop.finish()
            elif due in (Due.CHUNK, Due.CHECKPOINT) or loop.due() is due:
                loop.carry_out(due, mark)
        except BaseException as error:
            self.give_up(error)
            raise

    def give_up(self, error: BaseException) -> None:
        """Record an error as the end of this attempt, and release everything."""
        trainer, self._trainer = self._trainer, None
        if trainer is not None:
            try:
                trainer.loop.fail(error)
            finally:
                trainer.close()

    def stop(self, reason: str) -> None:
        """Stop at this boundary, with a version, and release everything."""
        if self._trainer is not None:
            self.control.stop(reason)
            self._trainer.loop.finish()
            self.close()

    def close(self) -> TrainingLoop | None:
        """Release everything; return the loop that was live, which delivers what is left."""
        trainer, self._trainer = self._trainer, None
        if trainer is None:
            return None
        trainer.close()
        self.statistics = trainer.loop.statistics
        return trainer.loop


def refuse_if_hopeless(run: RunDirectory) -> None:
    """Refuse a run whose last attempts all began at the same version and came no further.

    Raises:
        RltrackError: With what to do.
    """
    attempts = [record.get("resumed_from") for record in run.attempts()]
    last = attempts[-MAX_ATTEMPTS_WITHOUT_PROGRESS:]
    if len(last) == MAX_ATTEMPTS_WITHOUT_PROGRESS and len(set(last)) == 1 and not run.status().is_finished:
        raise RltrackError(
            f"Run {run.name} was begun {len(last)} times from {last[0] or 'its beginning'} without coming to another version; it "
            f"does not come back by itself any more. See `rltrack show {run.name}`, mend the reason, and go on with "
            f"`rltrack resume {run.name}`."
        )


def check_parameters(config: TrainingConfig) -> None:
    """Refuse what this worker does not allow: parameters come from whoever reaches Prefect, and name what is run and written.

    Raises:
        NotAllowed: With a line for each thing: what was asked, what is allowed, and how to allow it.
    """
    Permissions.from_environment().check(config.to_mapping())
    check_wrappers(config.environment.wrappers, KNOWN_WRAPPERS)
    agent = config.agent
    named = {
        "agent.algorithm": agent.algorithm,
        "agent.policy": agent.policy,
        "agent.hyperparameters": agent.hyperparameters,
    }
    if environment_creator(config.environment.id) is not None:
        named["environment.id"] = config.environment.id
    for key, value in {**named, "environment.kwargs": config.environment.kwargs, "hooks": config.hooks}.items():
        check_defined_there(value, key)
