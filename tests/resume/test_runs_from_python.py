"""A run that a script began is a run like any other: built again, evaluated, and resumed by its configuration."""

from __future__ import annotations

import dataclasses
import json
import zipfile

import gymnasium as gym
import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from rltrack import TrainingLoop, load_agent
from rltrack.agents.sb3 import SB3Agent
from rltrack.config import TrainingConfig
from rltrack.errors import ConfigurationError, NotAllowed
from rltrack.flows.training import check_parameters
from rltrack.journal.reading import read_journal
from rltrack.runs import Root
from rltrack.training.trainer import Trainer, config_of, evaluate_run

STEPS = {"total_timesteps": 192, "eval_freq": 64, "eval_episodes": 2, "video": False, "sinks": []}


class Walk(gym.Env):
    """A random walk that its actions push."""

    def __init__(self, push=0.1):
        self.observation_space = gym.spaces.Box(-5, 5, (2,), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self.push = push
        self.place, self.steps = 0.0, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = float(self.np_random.normal()), 0
        return self._seen(), {}

    def step(self, action):
        self.place = float(np.clip(self.place + self.push * (2 * action - 1) + 0.1 * self.np_random.normal(), -5, 5))
        self.steps += 1
        return self._seen(), -abs(self.place), False, self.steps >= 11, {}

    def _seen(self):
        return np.array([self.place, self.steps / 11], np.float32)


def make_walk(push=0.1):
    return Walk(push)


def stop_half_way(loop):
    def on_iteration_end(self, progress, iteration_info):
        if progress.env_steps >= 64:
            loop.stop("half")

    loop.add_hook(type("Stop", (), {"on_iteration_end": on_iteration_end})())


def script(root, env=None, **options):
    env = env or VecNormalize(make_vec_env(Walk, n_envs=2, seed=3, env_kwargs={"push": 0.2}), gamma=0.9)
    model = PPO(
        "MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=2, seed=3, learning_rate=options.pop("rate", 3e-4)
    )
    return TrainingLoop(model, name="walk", root=root, **{**STEPS, **options}), model


@pytest.mark.slow
def test_a_run_of_a_script_is_resumed_by_its_configuration_bit_for_bit(tmp_path):
    loop, model = script(tmp_path / "whole", seed=8)
    loop.run()
    whole = model.policy.state_dict()

    loop, _ = script(tmp_path / "halves", seed=8)
    stop_half_way(loop)
    loop.run()
    run = Root(tmp_path / "halves").find("walk")
    config = config_of(run)
    assert config.environment.id == f"{__name__}:Walk"
    assert config.environment.kwargs == {"push": 0.2}
    assert loop.progress.env_steps < 192
    with pytest.raises(ConfigurationError, match="Stop, which is defined in the script"):
        Trainer(config, root=tmp_path / "halves").train()
    Trainer(config.model_copy(update={"script_only": []}), root=tmp_path / "halves").train()
    assert [record["exact"] for record in run.attempts()] == [True, True]
    scores = [
        [
            record["returns"]
            for record in read_journal(Root(root).find("walk").journal_file)
            if record["kind"] == "evaluation"
        ]
        for root in (tmp_path / "whole", tmp_path / "halves")
    ]
    assert scores[0] == scores[1], "the seed of the loop, which its evaluations follow, is kept"
    halves = load_agent("walk", "last", tmp_path / "halves").policy.state_dict()
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    assert len(evaluate_run(run, episodes=3)[1].returns) == 3

    loop, _ = script(tmp_path / "halves", seed=8, resume=True)
    loop.run()
    assert loop.was_finished, "its script knows it too"


def test_what_only_the_script_has_stops_training_but_not_acting(tmp_path, caplog):
    loop, _ = script(tmp_path, rate=lambda left: 1e-3 * left)
    loop.run()
    run = Root(tmp_path).find("walk")
    assert "Only this script can train this run further: the hyperparameter learning_rate" in caplog.text
    assert len(evaluate_run(run, episodes=2)[1].returns) == 2
    with pytest.raises(ConfigurationError, match=r"Only the script .*learning_rate.*TrainingLoop\(…, resume=True\)"):
        Trainer(config_of(run), root=tmp_path).train()


def test_an_environment_that_is_not_found_out_is_named_at_the_start_or_later(tmp_path, caplog):
    class Local(Walk):
        """Nobody can import it."""

    loop, _ = script(tmp_path / "later", make_vec_env(Local, n_envs=2, seed=3), eval_freq=None)
    loop.run()
    assert "Local, which is defined in the script" in caplog.text
    assert "make_env='package.module:Name'" in caplog.text
    run = Root(tmp_path / "later").find("walk")
    with pytest.raises(
        ConfigurationError, match=r"cannot be built outside its script.*rltrack eval walk --env package"
    ):
        evaluate_run(run, "last", episodes=2)
    with pytest.raises(ConfigurationError, match="does not fit a model in CartPole-v1"):
        evaluate_run(run, "last", episodes=2, env_id="CartPole-v1")
    evaluate_run(run, "last", episodes=2, env_id=f"{__name__}:make_walk")
    assert config_of(run).environment.id == f"{__name__}:make_walk", "once is enough"
    Trainer(config_of(run), root=tmp_path / "later").train()

    loop, _ = script(tmp_path / "start", make_vec_env(Local, n_envs=2, seed=3), make_env=f"{__name__}:make_walk")
    loop.run()
    run = Root(tmp_path / "start").find("walk")
    assert len(loop.statistics.history.evaluations) > 0, "a second environment is made by that function too"
    assert len(evaluate_run(run, episodes=2)[1].returns) == 2


def test_runs_of_earlier_releases_go_on_in_their_script(tmp_path, monkeypatch):
    """They recorded the agent's description as their identity, and DummyVecEnv as their environment."""
    import rltrack.training.run_description as now

    class Earlier(now.RunDescription):
        def __init__(self, agent, config, identities, notes=()):
            agent = {**agent, "environment": "DummyVecEnv"}
            super().__init__(agent, {"seed": None, "agent": agent}, ({**identities[-1], "agent": agent},), ())

    with monkeypatch.context() as patched:
        patched.setattr(now, "RunDescription", Earlier)
        script(tmp_path)[0].run()
    run = Root(tmp_path).find("walk")
    with pytest.raises(ConfigurationError, match="an agent of its own"):
        config_of(run)
    loop, _ = script(tmp_path, resume=True)
    loop.run()
    assert loop.was_finished
    assert isinstance(TrainingConfig.from_mapping(config_of(Root(tmp_path).find("walk")).to_mapping()), TrainingConfig)


class Countdown(BaseCallback):
    """Ends training after so many calls."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls
        self.seen = []

    def _on_step(self):
        self.seen.append(float(self.locals["rewards"][0]))
        self.logger.record("own/seen", len(self.seen))
        return len(self.seen) < self.calls


@pytest.mark.slow
def test_callbacks_are_called_as_learn_calls_them_and_resume_exactly(tmp_path):
    def callbacks():
        env = VecNormalize(make_vec_env(Walk, n_envs=1, seed=9), training=False)
        evaluation = EvalCallback(env, eval_freq=24, n_eval_episodes=2, verbose=0)
        return [Countdown(10_000), evaluation]

    learned = callbacks()
    _, model = script(tmp_path / "learn")
    model.learn(192, callback=learned)
    whole = callbacks()
    loop, again = script(tmp_path / "whole", callbacks=whole, eval_freq=None)
    loop.run()
    assert whole[0].seen == learned[0].seen
    assert whole[1].last_mean_reward == learned[1].last_mean_reward
    assert all(torch.equal(model.policy.state_dict()[name], value) for name, value in again.policy.state_dict().items())

    first = callbacks()
    loop, _ = script(tmp_path / "halves", callbacks=first, eval_freq=None, checkpoint_freq=64)
    stop_half_way(loop)
    loop.run()
    second = callbacks()
    loop, halves = script(tmp_path / "halves", callbacks=second, eval_freq=None, resume=True)
    loop.run()
    assert second[0].seen == learned[0].seen
    assert second[1].last_mean_reward == learned[1].last_mean_reward, "the random streams of its environment too"
    assert all(
        torch.equal(model.policy.state_dict()[name], value) for name, value in halves.policy.state_dict().items()
    )
    assert [record["exact"] for record in Root(tmp_path / "halves").find("walk").attempts()] == [True, True]
    assert first[0].seen == learned[0].seen[: len(first[0].seen)]
    assert len(first[0].seen) < 96


def test_a_callback_that_returns_false_ends_training_and_a_configuration_names_callbacks_and_hooks(tmp_path):
    loop, _ = script(tmp_path / "script", callbacks=[Countdown(20)], eval_freq=None)
    statistics = loop.run()
    assert statistics.reason == "the callback Countdown returned False"
    assert statistics.env_steps == 64, "the iteration in which it did is completed"
    config = config_of(Root(tmp_path / "script").find("walk"))
    assert config.hooks == [{f"{__name__}:Countdown": {"calls": 20}}]
    trainer = Trainer(config, root=tmp_path / "configured")
    assert trainer.train().reason == statistics.reason
    with pytest.raises(ConfigurationError, match="which is neither a callback of Stable-Baselines3 nor a hook"):
        Trainer({**config.to_mapping(), "hooks": [f"{__name__}:make_walk"]}, root=tmp_path / "no").train()
    with pytest.raises(NotAllowed, match=r"hooks.*names the module 'tests\.resume"):
        check_parameters(config)


@pytest.mark.slow
def test_callbacks_save_models_that_plain_stable_baselines3_loads(tmp_path):
    """Nothing of what the loop replaces in the model is in the file, with its acceleration and without."""
    keys = []
    for acceleration in (None, "off", "auto"):
        folder = tmp_path / str(acceleration)
        saves = CheckpointCallback(32, str(folder), save_replay_buffer=True, save_vecnormalize=True)
        best = EvalCallback(
            VecNormalize(make_vec_env(Walk, n_envs=1, seed=9), training=False), best_model_save_path=str(folder),
            eval_freq=24, n_eval_episodes=2, verbose=0,
        )  # fmt: skip
        loop, model = script(tmp_path / f"run-{acceleration}", callbacks=[saves, best], eval_freq=None)
        if acceleration is None:
            model.learn(192, callback=[saves, best])
        else:
            loop.plan = dataclasses.replace(loop.plan, agent=SB3Agent(model, acceleration=acceleration))
            loop.run()
        loaded = PPO.load(folder / "rl_model_192_steps", env=model.get_env())
        assert not [name for name in vars(loaded) if callable(getattr(PPO, name, None))], "methods of rltrack's"
        loaded.learn(32)
        PPO.load(folder / "best_model")
        assert (folder / "rl_model_vecnormalize_192_steps.pkl").exists()
        with zipfile.ZipFile(folder / "rl_model_192_steps.zip") as file:
            keys.append(sorted(json.loads(file.read("data"))))
    assert keys[0] == keys[1] == keys[2]


def test_a_bare_vectorised_environment_is_resumed_exactly_with_its_episodes(tmp_path):
    """Without Monitor: the returns of episodes that run at the stop are added up by rltrack, and part of the version."""

    def loop(folder, **options):
        made, model = script(
            tmp_path / folder, DummyVecEnv([Walk, Walk]), eval_freq=None, checkpoint_freq=64, **options
        )
        return made, model

    def episodes(folder):
        journal = Root(tmp_path / folder).find("walk").journal_file
        found = [record for record in read_journal(journal) if record["kind"] == "episodes"]
        return [(record["step"], record["returns"], record["lengths"]) for record in found]

    whole, model = loop("whole")
    whole.run()
    first, _ = loop("halves")
    first.add_hook(type("Stop", (), {"on_iteration_end": lambda self, progress, stats: first.stop("early")})())
    first.run()
    assert first.progress.env_steps == 32, "in the second episode of each environment"
    rest, again = loop("halves", resume=True)
    rest.run()
    assert all(torch.equal(model.policy.state_dict()[name], value) for name, value in again.policy.state_dict().items())
    assert episodes("whole") == episodes("halves")
    assert sum(len(returns) for _, returns, _ in episodes("whole")) == 192 // 11 - 1
    assert [record["exact"] for record in Root(tmp_path / "halves").find("walk").attempts()] == [True, True]


def test_another_log_interval_after_a_kill_loses_no_record(own_root):
    class Die:
        def on_iteration_end(self, progress, stats):
            if progress.env_steps >= 96:
                raise RuntimeError("power cut")

    def loop(log_interval, hooks=()):
        model = A2C("MlpPolicy", make_walk(), n_steps=4, seed=0, device="cpu")
        options = {**STEPS, "checkpoint_freq": 48, "eval_freq": 32, "log_interval": log_interval}
        return TrainingLoop(model, name="logged", resume=True, eval_env=make_walk(), hooks=hooks, **options)

    with pytest.raises(RuntimeError, match="power cut"):
        loop(1, [Die()]).run()
    statistics = loop(10).run()
    assert [evaluation.env_steps for evaluation in statistics.evaluations] == [32, 64, 96, 128, 160, 192]
    assert len(statistics.episode_returns) == statistics.episodes == 192 // 11
    run = Root().find("logged")
    metrics = [record["step"] for record in read_journal(run.journal_file) if record["kind"] == "metrics"]
    assert metrics == [*range(4, 97, 4), 120, 160]
    assert run.attempts()[-1]["exact"]
    assert run.history().missing == []
