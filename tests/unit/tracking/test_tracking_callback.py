"""People's own SB3 scripts: the callback and the logger's output record what the loop records."""

from __future__ import annotations

import getpass
import math
import os
import subprocess
import sys

import gymnasium as gym
import pytest

from rltrack.errors import ConfigurationError, NameTaken
from rltrack.journal import read_journal
from rltrack.runs import Root

sb3 = pytest.importorskip("stable_baselines3")

import torch  # noqa: E402
from stable_baselines3 import DQN, PPO  # noqa: E402
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback  # noqa: E402
from stable_baselines3.common.env_util import make_vec_env  # noqa: E402
from stable_baselines3.common.logger import Logger  # noqa: E402
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize  # noqa: E402

import rltrack  # noqa: E402
from rltrack.tracking.metrics import evaluation_metrics  # noqa: E402
from rltrack.tracking.report import RunReport  # noqa: E402
from rltrack.training.trainer import Trainer, config_of, evaluate_run  # noqa: E402

SMALL = {"policy_kwargs": {"net_arch": [8]}, "device": "cpu", "seed": 3}


def ppo(env="CartPole-v1"):
    return PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=1, **SMALL)


def records(name, kind):
    return [record for record in read_journal(Root().find(name).journal_file) if record["kind"] == kind]


def test_a_script_is_recorded_as_the_loop_records():
    callback = rltrack.TrackingCallback("script")
    assert callback.run is None
    model = ppo().learn(320, callback=callback)
    assert callback.run == "script"
    assert callback.wait_for_tracking(1)
    metrics = records("script", "metrics")
    assert [record["step"] for record in metrics] == [*range(32, 321, 32), 320], "the last update's losses too"
    assert "train/loss" in metrics[-1]["values"]
    assert "time/fps" in metrics[-2]["values"]
    episodes = [
        pair
        for record in records("script", "episodes")
        for pair in zip(record["steps"], record["returns"], strict=True)
    ]
    assert len(episodes) == model._episode_num + len(model.ep_info_buffer)
    (first,) = records("script", "configuration")
    assert first["agent"]["hyperparameters"]["n_steps"] == 32
    status = Root().find("script").status()
    assert (status.state, status.env_steps, status.is_finished) == ("completed", 320, True)


@pytest.mark.slow
def test_the_same_numbers_with_the_loop():
    """Two lines in a script give the journal that TrainingLoop gives, but for what belongs to time."""
    ppo().learn(320, callback=rltrack.TrackingCallback("script"))
    rltrack.TrainingLoop(ppo(), total_timesteps=320, name="loop").run()

    def curve(name, key):
        return [record["values"][key] for record in records(name, "metrics") if key in record["values"]]

    for key in ("train/loss", "train/value_loss", "rollout/ep_rew_mean"):
        assert len(curve("loop", key)) == 10
        assert curve("script", key) == curve("loop", key), key
    for field in ("returns", "lengths", "steps"):
        assert [record[field] for record in records("script", "episodes")] == [
            record[field] for record in records("loop", "episodes")
        ]


def test_learning_on_goes_on_in_the_same_run_and_anew_begins_another():
    callback = rltrack.TrackingCallback()
    model = ppo().learn(64, callback=callback)
    first = callback.run
    model.learn(64, callback=callback, reset_num_timesteps=False)
    assert callback.run == first
    assert [record["step"] for record in records(first, "metrics")] == [32, 64, 64, 96, 128, 128]
    assert len(records(first, "attempt")) == 2
    model.learn(64, callback=callback)
    assert callback.run != first

    named = rltrack.TrackingCallback("named")
    model.learn(64, callback=named)
    with pytest.raises(ConfigurationError, match="another name"):
        model.learn(64, callback=named)
    with pytest.raises(NameTaken, match="resume=True"):
        model.learn(64, callback=rltrack.TrackingCallback("named"))


def test_episodes_without_a_monitor_and_with_normalised_rewards():
    env = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")] * 2))
    ppo(env).learn(640, callback=rltrack.TrackingCallback("raw"))
    lengths = [length for record in records("raw", "episodes") for length in record["lengths"]]
    returns = [value for record in records("raw", "episodes") for value in record["returns"]]
    assert len(returns) > 5
    assert returns == lengths, "CartPole pays one for each step, before normalisation"


class Reaching(gym.Wrapper):
    """CartPole that tells how each episode went; every second one succeeds."""

    ended = 0

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        if terminated or truncated:
            self.ended += 1
            info |= {"is_success": self.ended % 2 == 0, "mean_reward": 7.0}
        return observation, reward, terminated, truncated, info


def reaching(n_envs, **monitor):
    return make_vec_env(lambda: Reaching(gym.make("CartPole-v1")), n_envs=n_envs, seed=3, monitor_kwargs=monitor)


def test_successes_and_infos_of_training_episodes_and_of_the_first_eval_callback():
    env = reaching(2, info_keywords=("mean_reward",))
    first, second = (
        EvalCallback(reaching(1, info_keywords=("mean_reward",)), eval_freq=64, n_eval_episodes=2, verbose=0)
        for _ in range(2)
    )
    ppo(env).learn(256, callback=[rltrack.TrackingCallback("reach"), first, second])

    episodes = records("reach", "episodes")
    successes = [value for record in episodes for value in record["infos"]["is_success"]]
    assert len(successes) == sum(len(record["returns"]) for record in episodes) > 5
    assert set(successes) == {0.0, 1.0}
    found = {key: value for record in records("reach", "metrics") for key, value in record["values"].items()}
    assert found["rollout/success_rate"] == pytest.approx(sum(successes) / len(successes))
    assert found["rollout/mean_reward"] == 7.0
    evaluations = records("reach", "evaluation")
    assert [record["step"] for record in evaluations] == [128, 256], "one score at each step"
    metrics = evaluation_metrics(evaluations[-1])
    assert metrics["eval/success_rate"] == 0.5
    assert (metrics["eval/mean_reward"], metrics["eval/info_mean_reward"]) == (evaluations[-1]["mean"], 7.0)
    assert found["eval_callback_2/success_rate"] == 0.5
    assert not any(key.startswith("eval/") for key in found)
    status = Root().find("reach").status()
    assert status.mean_infos == {"is_success": 0.5, "mean_reward": 7.0}


def means_logged(name):
    return [key for record in records(name, "metrics") for key in record["values"] if key.endswith("/mean_reward")]


def test_no_key_holds_the_evaluations_of_rltrack_and_of_an_eval_callback():
    callback = EvalCallback(reaching(1), eval_freq=64, n_eval_episodes=2, verbose=0)
    options = {"total_timesteps": 128, "eval_freq": 128, "eval_env": reaching(1), "eval_episodes": 2, "video": False}
    rltrack.TrainingLoop(ppo(reaching(2)), callbacks=[callback], name="both", **options).run()
    assert means_logged("both") == ["eval_callback/mean_reward"]
    (evaluation,) = records("both", "evaluation")
    assert set(evaluation["infos"]["is_success"]) == {0.0, 1.0}


def stop_after(loop, env_steps):
    return lambda self, progress, stats: loop.stop("half") if progress.env_steps >= env_steps else None


@pytest.mark.slow
def test_without_evaluations_by_rltrack_those_of_the_first_eval_callback_are_the_runs():
    """In the middle of iterations too, with the policy and the statistics of that moment, and over a resume."""

    def loop(name, **options):
        env = VecNormalize(reaching(2), norm_reward=False)
        own = [VecNormalize(reaching(1), norm_reward=False, training=False) for _ in range(2)]
        first, second = (EvalCallback(env, eval_freq=24, n_eval_episodes=2, verbose=0) for env in own)
        settings = {"total_timesteps": 320, "video": False, "sinks": [], "checkpoint_freq": 64}
        watched = {"means": [], "counts": []}

        class Watch(BaseCallback):
            def _on_step(self):
                watched["means"].append(first.last_mean_reward)
                watched["counts"].append(float(env.obs_rms.count))
                return True

        first.callback = Watch()
        callbacks = [second, first] if name == "swapped" else [first, second]
        return rltrack.TrainingLoop(ppo(env), callbacks=callbacks, name=name, **settings, **options), watched, first

    whole, watched, first = loop("whole")
    whole.run()
    found = records("whole", "evaluation")
    assert [record["step"] for record in found] == [48 * number for number in range(1, 7)]
    assert [record["mean"] for record in found] == watched["means"]
    assert set(found[0]["infos"]["is_success"]) == {0.0, 1.0}
    assert set(means_logged("whole")) == {"eval_callback_2/mean_reward"}
    run = Root().find("whole")
    best = run.store().find("best")
    assert best.score == max(watched["means"]) == whole.statistics.best_evaluation.mean
    moment = watched["means"].index(best.score)
    assert best.env_steps == found[moment]["step"]
    kept = run.store().read(best, ["normalization"])["normalization"]
    assert kept["observations"]["count"] == watched["counts"][moment]
    assert run.status().mean_return == watched["means"][-1]
    assert "_on_step" not in vars(first), "nothing of it is left"

    half, _, _ = loop("halves")
    half.add_hook(type("Stop", (), {"on_iteration_end": stop_after(half, 128)})())
    half.run()
    rest, _, _ = loop("halves", resume=True)
    rest.run()
    assert half.progress.env_steps == 128
    again = records("halves", "evaluation")
    assert [(record["step"], record["returns"]) for record in again] == [
        (record["step"], record["returns"]) for record in found
    ]
    assert [record["exact"] for record in records("halves", "attempt")] == [True, True]
    assert Root().find("halves").store().find("best").score == best.score


def test_off_policy_agents_and_a_logger_alone():
    DQN("MlpPolicy", "CartPole-v1", learning_starts=50, buffer_size=500, **SMALL).learn(
        300, callback=rltrack.TrackingCallback("dqn"), log_interval=1
    )
    assert len(records("dqn", "episodes")) > 5
    assert any("train/loss" in record["values"] for record in records("dqn", "metrics"))

    output = rltrack.JournalOutputFormat("logged")
    logger = Logger(None, [output])
    logger.record("eval/score", 3)
    logger.record("eval/secret", 4.0, exclude="mlflow")
    logger.record("eval/nan", math.nan)
    logger.record("eval/text", "hello")
    logger.dump(7)
    logger.close()
    (record,) = records("logged", "metrics")
    assert record["values"].keys() == {"eval/score", "eval/secret", "eval/nan"}
    assert record["excluded"] == {"mlflow": ["eval/secret"]}
    assert Root().find("logged").status().state == "completed"


SCRIPT = """
import rltrack
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

class Breaks(BaseCallback):
    def _on_step(self):
        if self.num_timesteps == 40:
            raise RuntimeError("the simulator fell over")
        return True

model = PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, n_epochs=1, device="cpu")
model.learn(320, callback=[rltrack.TrackingCallback("broken"), Breaks()])
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_the_configuration_of_a_script_has_its_torch_threads(own_root, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ppo().learn(64, callback=rltrack.TrackingCallback("threads"))
        assert torch.get_num_threads() == threads, "the script's own training is not changed"
    finally:
        torch.set_num_threads(before)
    assert config_of(Root().find("threads")).agent.threads == threads


def test_a_failure_is_recorded_where_methods_of_the_model_are_replaced(own_root):
    """As `rltrack.accelerate` replaces them."""
    model = ppo()
    rltrack.accelerate(model)
    model.env.envs[0].step = lambda action: 1 / 0
    with pytest.raises(ZeroDivisionError):
        model.learn(64, callback=rltrack.TrackingCallback(name="replaced"))
    assert Root().find("replaced").status().reason.startswith("ZeroDivisionError")
    assert type(model) is PPO
    assert "collect_rollouts" in vars(model)


@pytest.mark.slow
def test_a_script_that_fails_says_so(own_root, forked):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=dict(os.environ), timeout=120
    )
    assert "the simulator fell over" in done.stderr
    status = Root().find("broken").status()
    assert (status.state, status.reason) == ("failed", "RuntimeError: the simulator fell over")
    assert Root().find("broken").status().is_finished is False


@pytest.mark.slow
def test_policies_scores_and_configuration_of_a_script_with_an_eval_callback(capsys):
    """The best policy comes with the normalisation statistics of its moment; the run is evaluated like any other."""
    env = VecNormalize(make_vec_env("CartPole-v1", n_envs=2, seed=3))
    watched = EvalCallback(
        VecNormalize(make_vec_env("CartPole-v1"), training=False), eval_freq=64, n_eval_episodes=3, verbose=0
    )
    means, counts = [], []

    class Means(BaseCallback):
        def _on_step(self):
            means.append(watched.last_mean_reward)
            counts.append(env.obs_rms.count)
            return True

    watched.callback = Means()
    model = ppo(env)
    model.learn(512, callback=[rltrack.TrackingCallback("scored"), watched])
    run = Root().find("scored")
    found = records("scored", "evaluation")
    assert [record["mean"] for record in found] == means
    assert [record["step"] for record in found] == [128, 256, 384, 512]
    best, last = (run.store().find(name) for name in ("best", "last"))
    assert best.score == max(means)
    kept = run.store().read(best, ["normalization"])["normalization"]
    assert kept["observations"]["count"] == counts[means.index(max(means))]
    assert last.env_steps == 512
    assert not last.is_resumable
    config = config_of(run)
    assert (config.training.total_timesteps, config.training.eval_freq, config.evaluation.episodes) == (512, 128, 3)
    assert len(evaluate_run(run, "last", episodes=2)[1].returns) == 2
    assert "_on_step" not in vars(watched), "nothing of it is left"
    with pytest.raises(ConfigurationError, match=r"keeps policies and no state to resume from.*--from scored@last"):
        Trainer(config).train()
    Trainer({**config.to_mapping(), "name": "from-it", "start_from": "scored@last"}).train()
    report = RunReport(run, {})
    report.catch_up(run.journal_file.stat().st_size, 0)
    assert report.tags()["mlflow.user"] == getpass.getuser()
    assert report.params()["seed"] == 3
