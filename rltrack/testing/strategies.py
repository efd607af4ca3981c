"""The suite of a strategy: marks lie ahead, the schedule falls, and its state is complete plain data."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from rltrack.evaluation.episodes import Evaluation
from rltrack.training.strategies import Decision, Strategy

MEANS: Sequence[float] = (
    1.0,
    2.0,
    5.0,
    5.0,
    4.9,
    5.0,
    5.0,
    math.nan,
    -20.0,
    5.1,
    -30.0,
    -30.0,
    9.0,
    math.inf,
    9.0,
    20.0,
)
"""Evaluations that improve, stagnate, collapse, recover, and have no number."""


@dataclass
class At:
    """Where a training stands.

    Attributes:
        env_steps: Env steps so far.
        episodes: Finished episodes so far.
        elapsed_seconds: Seconds of training so far.
    """

    env_steps: int = 0
    episodes: int = 0
    elapsed_seconds: float = 0.0


class StrategyContract(ABC):
    """What every strategy keeps to. Subclass it in a test module, under a name that begins with ``Test``."""

    @abstractmethod
    def make(self) -> Strategy:
        """Return a new strategy with a budget of 1,000 env steps or 100 episodes, or both, and evaluations within it."""

    def test_marks_lie_ahead(self) -> None:
        """A mark that is reached already would be due for ever."""
        strategy = self.make()
        for at in _course():
            for mark in (strategy.next_evaluation(at), strategy.next_checkpoint(at)):
                assert not mark.is_reached(at), f"{mark} is reached already at {at}"

    def test_the_schedule_falls_with_the_budget(self) -> None:
        """From 1 to 0, never rising; the budget is spent when nothing remains."""
        strategy = self.make()
        remaining = [strategy.remaining(at) for at in _course()]
        assert remaining[0] == 1.0
        assert remaining == sorted(remaining, reverse=True)
        assert remaining[-1] <= 0.0
        for at in _course():
            assert (strategy.spent(at) is not None) == (strategy.remaining(at) <= 0.0), f"spent or not at {at}"
            assert (strategy.spent(at) is not None) == strategy.budget.mark.is_reached(at)

    def test_a_restored_strategy_decides_the_same(self) -> None:
        """The state is plain data that JSON keeps, and holds everything that evaluations have changed."""
        for resumed_after in range(len(MEANS)):
            whole, before, after = self.make(), self.make(), self.make()
            decisions = [_evaluate(whole, index) for index in range(len(MEANS))]
            for index in range(resumed_after):
                _evaluate(before, index)
            after.load_state_dict(json.loads(json.dumps(before.state_dict())))
            resumed = [_evaluate(after, index) for index in range(resumed_after, len(MEANS))]
            assert [_as_text(one) for one in resumed] == [_as_text(one) for one in decisions[resumed_after:]]
            at = At(env_steps=600, episodes=60)
            assert (after.next_evaluation(at), after.next_checkpoint(at)) == (
                whole.next_evaluation(at),
                whole.next_checkpoint(at),
            )

    def test_decisions_ask_for_what_the_strategy_declares(self) -> None:
        """`needs_of_agent`, `returns_to_best` and `learning_rate_scale` are checked or used before a decision is applied."""
        strategy = self.make()
        for index in range(len(MEANS)):
            decision = _evaluate(strategy, index)
            if decision is None:
                continue
            assert decision.reason
            if decision.restore_best:
                assert strategy.returns_to_best
                assert {"capture", "restore"} <= set(strategy.needs_of_agent)
            if decision.learning_rate_scale is not None:
                assert "scale_learning_rate" in strategy.needs_of_agent
                assert strategy.learning_rate_scale == decision.learning_rate_scale, "a resume applies it again"


def _course() -> list[At]:
    return [At(env_steps=10 * index, episodes=index, elapsed_seconds=float(index)) for index in range(101)]


def _evaluate(strategy: Strategy, index: int) -> Decision | None:
    mean = MEANS[index]
    return strategy.on_evaluation(Evaluation.of(50 * index, [mean - 0.1, mean, mean + 0.1]))


def _as_text(decision: Decision | None) -> str:
    """NaN equals nothing."""
    return repr(decision)
