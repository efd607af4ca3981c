"""What every strategy keeps to."""

from __future__ import annotations

import pytest

from rltrack.config import BUDGETS, TrainingSection
from rltrack.testing import StrategyContract
from rltrack.training.strategies import STRATEGIES, TrainingStrategy, make_strategy

BUDGET = {"total_timesteps": 1000, "total_episodes": 100}


class TestBuiltIn(StrategyContract):
    @pytest.fixture(autouse=True, params=STRATEGIES, ids=lambda kind: kind.value)
    def section(self, request):
        kind: TrainingStrategy = request.param
        budget = {key: BUDGET[key] for key in BUDGETS[kind.value]}
        freq = 10 if kind is TrainingStrategy.EPISODIC else 100
        self.kind = kind
        self.settings = TrainingSection(strategy=kind.value, eval_freq=freq, checkpoint_freq=freq, **budget)

    def make(self):
        strategy = make_strategy(self.settings)
        assert strategy.kind is self.kind
        return strategy


class TestConverging(StrategyContract):
    def make(self):
        return make_strategy(
            TrainingSection(strategy="adaptive", eval_freq=50, total_timesteps=1000, convergence_threshold=8.0)
        )
