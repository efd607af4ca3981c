"""What every agent keeps to: SB3's, sb3-contrib's, the own agent of the documentation, and one with an interface only."""

from __future__ import annotations

import pytest

from rltrack.testing import AgentContract
from tests.resume.test_same_as_learn import CASES, build
from tests.support.agents import own_agent_of_the_docs

FAST = ("ppo", "dqn-3-envs")
SLOW = ("sac", "recurrent-ppo", "ars")
"""In every run, one of each kind: on-policy, off-policy, actor and critic, recurrent, evolutionary. The others are nightly."""
WARNINGS = {
    "maskable-ppo": ["no evaluation environment"],  # made without an id, so that no second one can be built
    "ars": ["the observer gets no StepInfo"],  # SB3 steps inside evaluate_policy
    "ars-2-envs": ["the observer gets no StepInfo"],
}


def _marks(case):
    if case in FAST:
        return ()
    return pytest.mark.slow if case in SLOW else pytest.mark.nightly


class TestSB3(AgentContract):
    seed = None

    @pytest.fixture(autouse=True, params=[pytest.param(case, marks=_marks(case)) for case in CASES])
    def case(self, request):
        self.name = request.param
        self.total_timesteps = CASES[self.name][3]
        self.warnings = WARNINGS.get(self.name, ())

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
