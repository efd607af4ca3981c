"""What holds a model's state works with an accelerated one: save, load, copies, optimizers' states, undo."""

from __future__ import annotations

import copy

import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback

import rltrack
from tests.unit.acceleration.cases import BOX, assert_same, build, learn, result

DISCRETE = spaces.Discrete(3)
EARLY = {"learning_starts": 20, "buffer_size": 200, "batch_size": 16}
MODELS = {
    "ppo": (PPO, BOX, {"n_steps": 32, "batch_size": 16, "n_epochs": 1}),
    "a2c": (A2C, DISCRETE, {}),
    "dqn": (DQN, DISCRETE, EARLY),
    "sac": (SAC, BOX, EARLY | {"policy_kwargs": {"net_arch": [16]}}),
}


def make(name):
    algorithm, space, options = MODELS[name]
    return build(algorithm, space, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_undo_and_accelerate_in_the_middle_change_nothing(name):
    plain, switched = make(name), make(name)
    results = []
    for model in (plain, switched):
        model.set_random_seed(0)
        report = rltrack.accelerate(model) if model is switched else None
        learn(model, 40)
        if report is not None:
            report.undo()
            assert not [own for own in vars(model).values() if type(own).__module__.startswith("rltrack.")]
        learn(model, 40, reset_num_timesteps=False)
        if report is not None:
            rltrack.accelerate(model)
        results.append(learn(model, 40, reset_num_timesteps=False))
        del results[-1]["random"][-1]
    assert_same(*results)


@pytest.mark.parametrize("name", MODELS)
def test_saved_and_loaded_and_copied(name, tmp_path):
    model = make(name)
    rltrack.accelerate(model)
    learn(model, 40)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", env=model.env)
    copied = copy.deepcopy(model.policy)
    for weights in (loaded.policy.state_dict(), copied.state_dict()):
        assert all(torch.equal(own, weights[key]) for key, own in model.policy.state_dict().items())
    assert not {"train", "collect_rollouts"} & set(vars(loaded))
    before = {key: own.clone() for key, own in copied.state_dict().items()}
    model.learn(40)
    assert all(torch.equal(own, before[key]) for key, own in copied.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow
def test_state_put_back_is_taken_over(name):
    """Through `set_parameters`, and by copies in place, as exact resume does it."""
    results = []
    for fast in (False, True):
        model = make(name)
        if fast:
            rltrack.accelerate(model)
        learn(model, 40)
        kept = copy.deepcopy(model.get_parameters())
        learn(model, 40, reset_num_timesteps=False)
        model.set_parameters(kept)
        torch.manual_seed(1)
        results.append(learn(model, 40, reset_num_timesteps=False))
        del results[-1]["random"][-1]
    assert_same(*results)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_callbacks_see_the_same_and_can_end_the_training(name):
    class Watching(BaseCallback):
        def __init__(self, last):
            super().__init__()
            self.last, self.seen = last, []

        def _on_step(self):
            own = self.locals
            assert own["self"] is self.model
            numbers = [own[key] for key in ("new_obs", "rewards", "dones", "actions")]
            self.seen.append(
                [sorted(own), [number.tolist() for number in numbers], self.num_timesteps, str(own["infos"])]
            )
            return self.num_timesteps < self.last

        def _on_rollout_end(self):
            self.seen.append(sorted(self.locals))

    found = []
    for fast in (False, True):
        model = make(name)
        if fast:
            rltrack.accelerate(model)
        callback = Watching(75)
        learn(model, 100, callback=callback)
        assert model.num_timesteps == 75
        seen = [
            [*own[:-1], own[-1].split("'t':")[0]] if isinstance(own[-1], str) and len(own) == 4 else own
            for own in callback.seen
        ]
        left = result(model)
        del left["random"][-1]
        found.append((seen, left))
    assert found[0][0] == found[1][0]
    assert_same(found[0][1], found[1][1])


@pytest.mark.parametrize("name", ["ppo", "a2c", "sac"])
def test_nan_is_found_at_the_same_step(name):
    class Breaking(BaseCallback):
        def _on_step(self):
            if self.num_timesteps == 50:
                with torch.no_grad():
                    for parameter in self.model.policy.parameters():
                        parameter.fill_(float("nan"))
            return True

    ends = []
    for fast in (False, True):
        model = make(name)
        if fast:
            rltrack.accelerate(model)
        with pytest.raises(ValueError, match="parameter") as raised:
            model.learn(100, callback=Breaking())
        ends.append((model.num_timesteps, str(raised.value)[:60]))
    assert ends[0] == ends[1]


def test_predictions_are_the_same_for_one_observation_and_for_many():
    for name in MODELS:
        plain, fast = make(name), make(name)
        rltrack.accelerate(fast)
        observations = plain.env.reset()
        for own in (observations, observations[0]):
            for deterministic in (True, False):
                answers = []
                for model in (plain, fast):
                    torch.manual_seed(0)
                    answers.append(model.policy.predict(own, deterministic=deterministic)[0])
                assert answers[0].shape == answers[1].shape
                assert (answers[0] == answers[1]).all()
