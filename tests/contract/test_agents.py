"""What every agent keeps to: SB3's, sb3-contrib's, the own agent of the documentation, and one with an interface only."""

from __future__ import annotations

import pytest

from rltrack.testing import AgentContract
from tests.resume.test_same_as_learn import CASES, build
from tests.support.agents import own_agent_of_the_docs

FAST = ("ppo", "a2c", "dqn-3-envs")


class TestSB3(AgentContract):
    seed = None

    @pytest.fixture(
        autouse=True, params=[case if case in FAST else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
    )
    def case(self, request):
        self.name = request.param
        self.total_timesteps = CASES[self.name][3]
        masked = "masked" in CASES[self.name][1]  # it carries no Gymnasium id, so that no second one can be built
        self.warnings = ("no evaluation environment",) if masked else ()

    def make(self):
        return build(self.name)[0]


class TestOwnAgentOfTheDocs(AgentContract):
    env = "CartPole-v1"

    def make(self):
        return own_agent_of_the_docs()()


class TestExample(AgentContract):
    env = "FrozenLake-v1"
    warnings = ("the observer gets no StepInfo",)

    def make(self):
        from examples.custom_agent import QLearning

        return QLearning()
