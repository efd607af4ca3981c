"""A training is built completely, then run."""

from __future__ import annotations

import dataclasses

import gymnasium as gym
import pytest

pytest.importorskip("stable_baselines3")
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from rltrack import TrainingLoop, TrainingState
from rltrack.config import LoopSettings
from rltrack.errors import ConfigurationError
from rltrack.runs import Root
from rltrack.training.live import Due
from rltrack.training.verify import first_difference
from tests.support.agents import TINY, RecordingHook, ScriptedAgent


class Capturable(ScriptedAgent):
    """A scripted agent of which all state can be taken."""

    def capture(self):
        return {"policy": {"skill": self.skill}, "counters": {"iteration": self.iteration, "total": self.total}}

    def restore(self, state):
        self.skill = state["policy"]["skill"]
        self.iteration, self.total = state["counters"]["iteration"], state["counters"]["total"]


def loop_of(agent=None, **more):
    settings = {"total_timesteps": 60, "eval_freq": 20, "eval_episodes": 2, "checkpoint_freq": 20, **more}
    loop = TrainingLoop(agent or Capturable(), TINY, **settings)
    loop.delivers = False
    return loop


def test_what_is_prepared_is_whole(own_root):
    """Running it fills in nothing: no attribute appears, none is replaced, none was empty."""
    live = loop_of(name="whole").prepare()
    before = dict(vars(live))
    empty = [name for name, value in before.items() if value is None]
    assert empty == []
    assert live.run().state is TrainingState.COMPLETED
    after = vars(live)
    assert after.keys() == before.keys()
    assert [name for name in before if after[name] is not before[name]] == ["_is_closed"]


def test_a_plan_does_not_change(own_root):
    loop = loop_of(name="frozen")
    with pytest.raises(dataclasses.FrozenInstanceError):
        loop.plan.seed = 3
    live = loop.prepare()
    plan = live.plan
    live.run()
    assert live.plan is plan is loop.plan
    assert plan.progress is loop.progress
    assert plan.statistics.history is loop.metrics


def test_what_is_watched_before_the_training_is_what_the_training_has(own_root):
    loop = loop_of(name="watched")
    progress, control, statistics, hooks = loop.progress, loop.control, loop.statistics, loop.hooks
    live = loop.prepare()
    hook = RecordingHook()
    loop.add_hook(hook)  # before it starts
    assert live.run() is statistics
    assert (live.progress, live.control, live.plan.hooks) == (progress, control, hooks)
    assert progress.env_steps == 60
    assert hook.calls


def test_the_verbs_do_what_run_does(own_root):
    loop_of(name="run", seed=3).run()
    live = loop_of(name="verbs", seed=3).prepare()
    live.start()
    seen = []
    while (due := live.due()) is not Due.END:
        seen.append(due)
        live.perform(due)
    live.finish()
    live.close()
    assert {Due.CHUNK, Due.EVALUATION, Due.CHECKPOINT} <= set(seen)
    states = [Root().find(name).store() for name in ("run", "verbs")]
    one, other = (store.read(store.find("last")) for store in states)
    compared, difference = first_difference(one, other)
    assert difference is None
    assert compared > 20


def test_a_finished_run_has_nothing_due(own_root):
    loop_of(name="done").run()
    agent = Capturable()
    loop = TrainingLoop(agent, TINY, total_timesteps=60, eval_freq=20, eval_episodes=2, checkpoint_freq=20, name="done",
                        resume=True)  # fmt: skip
    loop.delivers = False
    live = loop.prepare()
    assert live.was_finished
    assert live.due() is Due.END
    assert live.run().state is TrainingState.COMPLETED
    assert agent.iteration == 0
    assert loop.statistics.env_steps == 60


def test_a_run_that_cannot_be_prepared_is_released(own_root):
    """Its lock, its agent and its environments: another one can be prepared at once."""
    loop_of(name="taken", hooks=[]).run()

    class Stateful:
        def on_iteration_end(self, progress, stats): ...
        def state_dict(self):
            return {}

        def load_state_dict(self, state): ...  # fmt: skip

    first = TrainingLoop(Capturable(), TINY, total_timesteps=200, checkpoint_freq=20, name="hooks", hooks=[Stateful()])
    first.delivers = False
    first.add_hook(type("Stop", (), {"on_iteration_end": lambda self, p, s: p.env_steps >= 40 and first.stop()})())
    first.run()
    released = []
    agent = Capturable()
    agent.release = lambda: released.append(True)
    second = TrainingLoop(agent, TINY, total_timesteps=200, checkpoint_freq=20, name="hooks", resume=True)
    second.delivers = False
    with pytest.raises(ConfigurationError, match="the state of the hooks"):
        second.prepare()
    assert released == [True]
    assert second.live is None
    assert not Root().find("hooks").is_locked()
    assert len(Root().find("hooks").attempts()) == 1, "nothing was begun"


def test_a_loop_is_prepared_once(own_root):
    loop = loop_of(name="once")
    loop.prepare()
    with pytest.raises(ConfigurationError, match="in use or was used"):
        loop.run()
    loop.close()
    loop.close()


class Seen:
    """A hook whose state is what it is given."""

    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state if self.state is not None else 1 / 0

    def load_state_dict(self, state):
        self.state = state

    def on_step(self, progress, step_info):
        self.state = self.state or {}


def test_a_hooks_state_that_cannot_be_stored_is_refused_before_anything_starts(own_root):
    with pytest.raises(ConfigurationError, match=r"The state of the hook Seen cannot .*: /seen: .*set"):
        loop_of(name="set", hooks=Seen({"seen": {1, 2}})).run()
    assert not Root().exists("set")
    circle = []
    circle.append(circle)
    with pytest.raises(ConfigurationError, match="a part of it holds itself"):
        loop_of(name="set", hooks=Seen({"circle": circle})).run()
    loop_of(name="later", hooks=Seen(None)).run()


@pytest.mark.parametrize("config", [None, {"agent": {"algorithm": "Scripted"}}])
def test_evaluation_beside_training_needs_a_configuration(own_root, config):
    settings = LoopSettings.model_validate(
        {"training": {"total_timesteps": 60, "eval_freq": 20}, "evaluation": {"beside_training": True}}
    )
    with pytest.raises(ConfigurationError, match="beside_training builds agent and environment a second time"):
        TrainingLoop(Capturable(), TINY, name="beside", settings=settings, config=config).run()
    assert not Root().exists("beside")


@pytest.mark.parametrize(
    "env", [lambda: make_vec_env("CartPole-v1", 3), lambda: "Pendulum-v1", lambda: [gym.make("CartPole-v1")]]
)
def test_an_environment_that_does_not_fit_the_model_is_a_configuration_error(env):
    model = PPO("MlpPolicy", "CartPole-v1", device="cpu")
    with pytest.raises(
        ConfigurationError, match=r"The model cannot train in the environment that TrainingLoop was given"
    ):
        TrainingLoop(model, env(), total_timesteps=64, tracking=False).run()
