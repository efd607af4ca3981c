"""What every pending evaluation keeps to, whether it is played in this process or in a background process."""

from __future__ import annotations

import pytest

pytest.importorskip("stable_baselines3")

from rltrack.agents import POLICY_PARTS, build_for_acting
from rltrack.cleanup import close_all
from rltrack.config import TrainingConfig
from rltrack.errors import EvaluationUnavailable
from rltrack.evaluation.episodes import EvaluationInterrupted, Evaluator, episode_seeds
from rltrack.evaluation.pending import EvaluationBeside, EvaluationHere, Player
from tests.support.models import add_skill, tiny_config, train_tiny

SEEDS = list(episode_seeds(0, 4))


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    run = train_tiny(tmp_path_factory.mktemp("root"), "evaluated")
    agent, env = build_for_acting(TrainingConfig.from_mapping(tiny_config("evaluated")))
    played = agent.make_evaluation_env(None, 1)
    agent.evaluator, agent.run = Evaluator(agent, played, SEEDS), run
    yield agent
    close_all(played, env)


def with_skill(agent, skill):
    """Give the agent a policy that always takes this action; return its parts."""
    policy = agent.run.store().read(agent.run.store().find(add_skill(agent.run, skill)), POLICY_PARTS)
    agent.restore(policy)
    return policy


def never():
    return False


class PendingEvaluationContract:
    def begin(self, agent, env_steps, policy):
        raise NotImplementedError

    def test_its_result_is_that_of_its_policy(self, agent):
        for env_steps, skill in ((100, 0.2), (200, 0.8)):
            pending = self.begin(agent, env_steps, with_skill(agent, skill))
            result, expected = pending.result(never), agent.evaluator.evaluate(env_steps, never)
            assert (result.env_steps, result.returns, result.lengths) == (env_steps, expected.returns, expected.lengths)
            assert result.mean == pytest.approx(5 * skill, abs=0.1)

    def test_once_interrupted_it_can_be_asked_again(self, agent):
        pending = self.begin(agent, 100, with_skill(agent, 0.5))
        with pytest.raises(EvaluationInterrupted):
            pending.result(lambda: True)
        assert pending.result(never).returns == agent.evaluator.evaluate(100, never).returns

    def test_it_starts_again_from_its_state(self, agent):
        policy = with_skill(agent, 0.5)
        pending = self.begin(agent, 100, policy)
        expected = pending.result(never)
        state = pending.state_dict()
        again = self.begin(agent, state["env_steps"], state["policy"] or policy).result(never)
        assert (again.env_steps, again.returns) == (expected.env_steps, expected.returns)


class TestInThisProcess(PendingEvaluationContract):
    def begin(self, agent, env_steps, policy):
        return EvaluationHere(agent.evaluator, env_steps)


class TestInABackgroundProcess(PendingEvaluationContract):
    @pytest.fixture(autouse=True)
    def started(self, forked):
        self.player = Player(TrainingConfig.from_mapping(tiny_config("evaluated")).to_mapping(), SEEDS)
        yield
        self.player.close()

    def begin(self, agent, env_steps, policy):
        return EvaluationBeside(self.player, env_steps, policy)

    def test_a_process_that_dies_is_replaced(self, agent):
        pending = self.begin(agent, 100, with_skill(agent, 0.5))
        self.player._process.kill()
        assert pending.result(never).returns == agent.evaluator.evaluate(100, never).returns

    def test_one_that_dies_each_time_is_an_error_that_says_what_to_do(self, agent):
        self.player = Player({}, SEEDS)
        with pytest.raises(EvaluationUnavailable, match=r"died 3 times .* Set evaluation\.beside_training to false"):
            self.begin(agent, 100, with_skill(agent, 0.5)).result(never)
