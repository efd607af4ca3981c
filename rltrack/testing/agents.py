"""The suite of an agent: `rltrack.check_agent` finds no error, and an interrupted training equals an uninterrupted one."""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rltrack.agents import POLICY_PARTS, as_agent
from rltrack.agents.checking import check_agent
from rltrack.agents.environments import default_evaluation
from rltrack.checkpoints.difference import first_difference
from rltrack.cleanup import close_all
from rltrack.errors import EvaluationUnavailable
from rltrack.evaluation.episodes import play_episodes
from rltrack.runs import Root, RunDirectory
from rltrack.training.train_loop import TrainingLoop
from rltrack.training.verify import comparable, records_of


class Interruption(Exception):
    """Ends a training between two checkpoints, as a crash would."""


class InterruptAt:
    """A hook that ends the training in the iteration after so many env steps, once a checkpoint is committed."""

    def __init__(self, env_steps: int, run: RunDirectory) -> None:
        self.env_steps = env_steps
        self.run = run
        self._is_next = False

    def on_iteration_end(self, progress: Any, stats: Any) -> None:
        """Raise when it is time."""
        if self._is_next:
            deadline = time.monotonic() + 60.0
            while not self.run.store().versions() and time.monotonic() < deadline:
                time.sleep(0.01)
            raise Interruption
        self._is_next = progress.env_steps >= self.env_steps


class AgentContract(ABC):
    """What every agent keeps to. Subclass it in a test module, under a name that begins with ``Test``.

    Attributes:
        env: The training environment, as for `rltrack.TrainingLoop`.
        seed: Of the training; None leaves the agent's own seeding unchanged.
        total_timesteps: Budget of each training; several iterations.
        options: Further settings of `rltrack.TrainingLoop`.
        warnings: Texts; a warning of `check_agent` that contains one of them is allowed.
        is_exact: Whether a resume is exact.
    """

    env: Any = None
    seed: int | None = 0
    total_timesteps = 500
    options: Mapping[str, Any] = {}
    warnings: Sequence[str] = ()
    is_exact = True

    @abstractmethod
    def make(self) -> Any:
        """Return a new agent, as a new process would build it."""

    def test_check_agent_finds_nothing(self) -> None:
        """Nothing is missing or wrong, but for the warnings that are allowed."""
        findings = check_agent(self.make(), self.env, seed=self.seed or 0)
        unexpected = [
            str(finding)
            for finding in findings
            if finding.severity == "error" or not any(text in str(finding) for text in self.warnings)
        ]
        assert not unexpected, "\n".join(unexpected)

    def test_an_interrupted_training_equals_an_uninterrupted_one(self, tmp_path: Path) -> None:
        """A crash between two checkpoints and a resume change no bit of the last checkpoint and of the journal."""
        statistics = self._train(tmp_path, "whole")
        try:
            self._train(
                tmp_path,
                "interrupted",
                InterruptAt(round(0.2 * statistics.env_steps), Root(tmp_path).directory("interrupted")),
            )
        except Interruption:
            pass
        else:
            raise AssertionError("The training ended before it was interrupted; raise total_timesteps.")
        resumed = self._train(tmp_path, "interrupted")
        assert resumed.env_steps == statistics.env_steps
        attempts = Root(tmp_path).find("interrupted").history().attempts
        assert [attempt["exact"] for attempt in attempts] == [True, self.is_exact]
        assert attempts[1]["env_steps"] > 0, "it was resumed from a checkpoint"
        if self.is_exact:
            whole, interrupted = self._end(tmp_path, "whole"), self._end(tmp_path, "interrupted")
            names = ("the uninterrupted training", "the interrupted one")
            difference = first_difference(whole, interrupted, names)[1]
            assert difference is None, difference

    def test_a_stored_policy_plays_the_same_episodes(self, tmp_path: Path) -> None:
        """The policy's parts of a checkpoint, restored into a new agent, act as the trained agent does."""
        trained = self._loop(tmp_path, "trained")
        trained.run()
        store = Root(tmp_path).find("trained").store()
        agent = as_agent(self.make())
        agent.bind(self._loop_env(agent), self.seed)
        try:
            agent.restore(copy.deepcopy(store.read(store.find("last"), POLICY_PARTS)))
            assert trained.live is not None
            returns = [self._returns(player) for player in (trained.live.agent, agent)]
            assert returns[0] == returns[1]
        except EvaluationUnavailable:
            return
        finally:
            agent.release()

    def _returns(self, agent: Any) -> tuple[float, ...]:
        env = agent.make_evaluation_env(None, 2) or default_evaluation(self.env, 2)
        try:
            return play_episodes(agent, env, [1, 2]).returns
        finally:
            close_all(env)

    def _loop_env(self, agent: Any) -> Any:
        if isinstance(self.env, str) and not agent.implements("make_evaluation_env"):
            import gymnasium

            return gymnasium.make(self.env)
        return copy.deepcopy(self.env)

    def _loop(self, root: Path, name: str, *hooks: Any) -> TrainingLoop:
        loop = TrainingLoop(
            self.make(),
            copy.deepcopy(self.env),
            root=root,
            name=name,
            resume=True,
            seed=self.seed,
            hooks=hooks,
            total_timesteps=self.total_timesteps,
            checkpoint_freq=max(1, self.total_timesteps // 5),
            **self.options,
        )
        loop.delivers = False
        return loop

    def _train(self, root: Path, name: str, *hooks: Any) -> Any:
        np.random.seed(len(hooks))  # nothing may depend on where the process-wide streams are
        return self._loop(root, name, *hooks).run()

    def _end(self, root: Path, name: str) -> dict[str, Any]:
        run = Root(root).find(name)
        store = run.store()
        return {**comparable(store.read(store.find("last"))), "journal": records_of(run)}
