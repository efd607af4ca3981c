from __future__ import annotations

import pytest

pytest.importorskip("stable_baselines3")
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from rltrack.errors import ConfigurationError
from rltrack.training.train_loop import TrainingLoop


class Counting(BaseCallback):
    calls = 0

    def _on_step(self):
        type(self).calls += 1
        return True


class Hook:
    calls = 0

    def on_step(self, progress, step_info):
        type(self).calls += 1


def function(seen, globals_):
    Counting.calls += 1
    return True


def ppo():
    return PPO("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=16, n_epochs=1, seed=0, device="cpu")


@pytest.mark.parametrize(
    ("more", "counted"),
    [
        ({"callbacks": Counting()}, Counting),
        ({"callbacks": CallbackList([Counting()])}, Counting),
        ({"callbacks": function}, Counting),
        ({"callbacks": [function]}, Counting),
        ({"callbacks": None, "hooks": Hook()}, Hook),
        ({"hooks": (hook for hook in [Hook()])}, Hook),
    ],
)
def test_hooks_and_callbacks_may_be_one_or_several(more, counted):
    counted.calls = 0
    TrainingLoop(ppo(), total_timesteps=16, tracking=False, **more).run()
    assert counted.calls == 16


@pytest.mark.parametrize("tracking", [True, False])
def test_that_only_the_script_can_go_on_is_said_only_of_runs_that_are_kept(own_root, caplog, tracking):
    loop = TrainingLoop(ppo(), total_timesteps=16, tracking=tracking, callbacks=[function])
    loop.delivers = False
    loop.run()
    assert ("Only this script can train this run further" in caplog.text) is tracking


def test_a_class_in_place_of_an_object_is_named():
    with pytest.raises(ConfigurationError, match=r"Pass an object: Counting\(\)"):
        TrainingLoop(ppo(), total_timesteps=16, tracking=False, callbacks=Counting).run()
    with pytest.raises(ConfigurationError, match=r"add_hook\(Hook\(\)\)"):
        TrainingLoop(ppo(), total_timesteps=16, tracking=False, hooks=Hook)
