"""What is recognised, and what is left to Stable-Baselines3."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import TRPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv

import rltrack
from rltrack.acceleration import update_ppo
from rltrack.acceleration.parts import NAMES
from rltrack.acceleration.update import mean
from rltrack.errors import ConfigurationError
from tests.unit.acceleration.cases import BOX, assert_same, both, build, learn, result

SHORT = {"n_steps": 32, "batch_size": 16, "n_epochs": 1}
DISCRETE = spaces.Discrete(3)


class OwnPolicy(ActorCriticPolicy):
    """A subclass may compute anything."""


class OwnPPO(PPO):
    """So may an algorithm."""


LEFT = {
    "gsde": (PPO, BOX, {"use_sde": True}, "gSDE"),
    "policy": (PPO, BOX, {"policy": OwnPolicy}, "OwnPolicy"),
    "algorithm": (OwnPPO, BOX, {}, "OwnPPO"),
    "activation": (PPO, BOX, {"policy_kwargs": {"activation_fn": torch.nn.PReLU}}, "PReLU"),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_is_not_exactly_known_is_left_alone(case):
    algorithm, space, options, reason = LEFT[case]
    report = both(lambda: build(algorithm, space, **SHORT, **options), 64, ("environments", "optimizers"))
    assert reason in str(report)


def test_contrib_gets_optimizer_and_environments():
    both(lambda: build(TRPO, BOX, n_steps=32, batch_size=16), 64, ("environments", "optimizers"))


def test_dict_observations_get_optimizer_and_environments():
    space = spaces.Dict({"a": spaces.Box(-1, 1, (2,), np.float32), "b": spaces.Discrete(3)})

    class DictEnv(gym.Env):
        observation_space, action_space = space, DISCRETE

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.observation_space.seed(int(self.np_random.integers(1000)))
            return self.observation_space.sample(), {}

        def step(self, action):
            return self.observation_space.sample(), 1.0, bool(self.np_random.random() < 0.1), False, {}

    def make():
        return PPO("MultiInputPolicy", DummyVecEnv([lambda: Monitor(DictEnv())]), seed=1, device="cpu", **SHORT)

    both(make, 64, ("environments", "optimizers"))


def test_methods_of_the_object_itself_are_kept():
    model = build(PPO, BOX, **SHORT)
    calls = []
    model.train = lambda: calls.append(1)
    report = rltrack.accelerate(model)
    assert "its own train" in str(report)
    model.learn(32)
    assert calls == [1]


def test_methods_replaced_on_the_class_are_kept(monkeypatch):
    monkeypatch.setattr(PPO, "train", lambda self: None)
    assert "its own train" in str(rltrack.accelerate(build(PPO, BOX, **SHORT)))


def test_hooks_are_called_when_registered_later():
    plain, fast = build(PPO, BOX, **SHORT), build(PPO, BOX, **SHORT)
    rltrack.accelerate(fast)
    seen = {}
    for model in (plain, fast):
        model.policy.value_net.register_forward_hook(lambda *_, own=model: seen.update({own: seen.get(own, 0) + 1}))
    learn(plain, 32)
    learn(fast, 32)
    assert seen[plain] == seen[fast] > 0


class Freezing(BaseCallback):
    """Freezes some layers in the middle of a training, and gives them free again."""

    def _on_step(self):
        first = next(module for module in self.model.policy.modules() if isinstance(module, torch.nn.Linear))
        for parameter in first.parameters():
            parameter.requires_grad = not 32 < self.num_timesteps <= 64
        return True


FROZEN = {
    "ppo": (PPO, BOX, SHORT),
    "a2c": (A2C, BOX, {"n_steps": 8, "use_rms_prop": False}),
    "a2c-rmsprop": (A2C, BOX, {"n_steps": 8}),
    "dqn": (DQN, DISCRETE, {"learning_starts": 8, "batch_size": 8, "buffer_size": 100}),
    "sac": (SAC, BOX, {"learning_starts": 8, "batch_size": 8, "buffer_size": 100}),
    "td3": (TD3, BOX, {"learning_starts": 8, "batch_size": 8, "buffer_size": 100}),
}


@pytest.mark.parametrize("case", FROZEN)
def test_layers_that_are_frozen_later_stay_as_they_are(case):
    algorithm, space, options = FROZEN[case]
    both(lambda: build(algorithm, space, **options), 96, NAMES, callback=Freezing())


def test_an_optimizer_exchanged_later_is_used():
    found = []
    for fast in (False, True):
        model = build(PPO, BOX, **SHORT)
        if fast:
            rltrack.accelerate(model)
        model.policy.optimizer = torch.optim.SGD(model.policy.parameters(), lr=0.1)
        found.append(learn(model, 40))
        del found[-1]["random"][-1]
    assert_same(*found)


@pytest.mark.parametrize("what", ["update", "collection", "networks", "optimizers"])
def test_a_formula_one_ulp_wrong_is_caught(what, monkeypatch):
    def wrong(tensor):
        return torch.nextafter(tensor, torch.full_like(tensor, torch.inf))

    if what == "update":
        own = update_ppo.mse_loss
        monkeypatch.setattr(update_ppo, "mse_loss", lambda a, b: own(a, b) * (1 + 2**-23))
    elif what == "collection":
        from rltrack.acceleration.actor_critic import ActorCritic

        forward = ActorCritic.forward

        def off_by_one(self, observations):
            actions, values, log_probs = forward(self, observations)
            return actions, wrong(values), log_probs

        monkeypatch.setattr(ActorCritic, "forward", off_by_one)
    elif what == "networks":
        from rltrack.acceleration.actor_critic import ActorCritic

        act = ActorCritic.act
        monkeypatch.setattr(ActorCritic, "act", lambda self, x, deterministic: wrong(act(self, x, deterministic)))
    else:
        from rltrack.acceleration.optimizers import FlatAdam

        update = FlatAdam.update

        def one_weight(self, group, lr):
            update(self, group, lr)
            self.flat.values[0] = wrong(self.flat.values[0])

        monkeypatch.setattr(FlatAdam, "update", one_weight)
    make = lambda: build(PPO, BOX, **SHORT)  # noqa: E731
    report = both(make, 40)
    assert what not in report.accelerated
    assert "differ" in str(report)


def test_the_check_leaves_model_and_random_streams_as_they_were():
    model = build(DQN, DISCRETE, learning_starts=10, buffer_size=100)
    learn(model, 30)
    before = result(model)
    del before["random"][-1]
    rltrack.accelerate(model)
    after = result(model)
    del after["random"][-1]
    assert_same(before, after)


def test_the_report_has_a_line_for_each_part():
    report = rltrack.accelerate(build(PPO, BOX, **SHORT))
    lines = str(report).splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == list(NAMES)
    assert all(line.endswith("accelerated") for line in lines[:-1])
    assert "checked bit by bit" in lines[-1]


def test_what_is_no_model_is_refused():
    with pytest.raises(ConfigurationError, match="takes a model of Stable-Baselines3"):
        rltrack.accelerate("PPO")


def test_the_mean_of_one_loss_is_as_numpys():
    for value in (-0.0, 0.0, 0.1, -3.0):
        assert str(mean([torch.tensor(value)])) == str(np.mean([torch.tensor(value).item()]))
