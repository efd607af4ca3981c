"""TrainingLoop with real SB3 agents, from the model to MLflow and TensorBoard."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

sb3 = pytest.importorskip("stable_baselines3")

from stable_baselines3 import DQN, PPO, SAC  # noqa: E402
from stable_baselines3.common.env_util import make_vec_env  # noqa: E402
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize  # noqa: E402

import rltrack  # noqa: E402
from rltrack import (  # noqa: E402
    EarlyStoppingHook,
    LoggingHook,
    Trainer,
    TrainingConfig,
    TrainingLoop,
    TrainingState,
    TrainingStrategy,
    create_training_loop,
)
from rltrack.errors import ConfigurationError  # noqa: E402
from rltrack.journal import read_journal  # noqa: E402
from rltrack.runs import Root  # noqa: E402
from rltrack.tracking.bookmark import read_bookmark  # noqa: E402

PROJECT = Path(__file__).resolve().parents[1]
SMALL = {"net_arch": [16, 16]}


def small_ppo(env="CartPole-v1", **options):
    return PPO(
        "MlpPolicy",
        env,
        n_steps=64,
        batch_size=32,
        n_epochs=2,
        seed=0,
        device="cpu",
        policy_kwargs=dict(SMALL),
        **options,
    )


def small_dqn(env="CartPole-v1", **options):
    options = {"learning_starts": 20, "buffer_size": 1000, **options}
    return DQN("MlpPolicy", env, seed=0, device="cpu", policy_kwargs=dict(SMALL), **options)


def config_of(**changes):
    data = {
        "seed": 1,
        "agent": {"algorithm": "PPO", "hyperparameters": {"n_steps": 32, "batch_size": 32, "n_epochs": 2}},
        "environment": {"id": "CartPole-v1", "n_envs": 2},
        "training": {"total_timesteps": 256, "eval_freq": 128},
        "evaluation": {"episodes": 3},
    }
    return TrainingConfig.from_mapping({**data, **changes})


@pytest.mark.slow
def test_from_model_to_mlflow_and_tensorboard(delivery, own_root):
    """The whole way: one run, its numbers in MLflow and TensorBoard once, its artifacts, its status."""
    loop = TrainingLoop(
        small_ppo(), gym.make("CartPole-v1"), total_timesteps=320, eval_freq=128, eval_episodes=3, name="whole"
    )
    loop.add_hook(LoggingHook(log_interval=100))
    loop.add_hook(EarlyStoppingHook(patience=10, min_improvement=0.01))
    statistics = loop.run()
    assert loop.wait_for_tracking(timeout=180)
    assert statistics.state is TrainingState.COMPLETED

    run = Root().find("whole")
    from mlflow.tracking import MlflowClient

    delivered = read_bookmark(run).mlflow.state
    client = MlflowClient(delivered["tracking_uri"])
    found = client.get_run(delivered["run_id"])
    assert found.info.status == "FINISHED"
    assert found.info.experiment_id != "0"
    assert found.data.params["algorithm"] == "PPO"
    assert found.data.params["n_steps"] == "64"
    expected = [
        (record["step"], record["values"]["train/loss"])
        for record in read_journal(run.journal_file)
        if record["kind"] == "metrics" and "train/loss" in record["values"]
    ]
    history = client.get_metric_history(delivered["run_id"], "train/loss")
    assert [(metric.step, metric.value) for metric in sorted(history, key=lambda metric: metric.step)] == expected
    assert len(expected) == 5, "every iteration's losses, the last one's too"
    assert [metric.step for metric in client.get_metric_history(delivered["run_id"], "eval/mean_reward")] == [
        128,
        256,
        320,
    ]
    names = {item.path for item in client.list_artifacts(delivered["run_id"])}
    assert names >= {"config.yaml", "train.log", "plots", "evaluations.csv"}

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.tensorboard)).Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert scalars == [(step, pytest.approx(value)) for step, value in expected]

    run.bookmark_file.unlink()  # as if nobody remembered that it was delivered
    again = subprocess.run(
        [sys.executable, "-m", "rltrack.tracking.shipper", str(run.path)], timeout=180, capture_output=True
    )
    assert again.returncode == 0, again.stderr
    assert len(client.get_metric_history(delivered["run_id"], "train/loss")) == len(expected)
    assert len(client.search_runs([delivered["experiment_id"]])) == 1
    events = EventAccumulator(str(run.tensorboard)).Reload()
    assert len(events.Scalars("train/loss")) == len(expected)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_episodic_off_policy_updates_once_per_episode(n_envs, own_root):
    model = small_dqn(make_vec_env("CartPole-v1", n_envs=n_envs, seed=0), train_freq=4, gradient_steps=2)
    loop = TrainingLoop(model, strategy=TrainingStrategy.EPISODIC, total_episodes=12, name="episodic")
    statistics = loop.run()
    assert 12 <= statistics.episodes <= 12 + (n_envs - 1)
    assert model.train_freq.frequency == 4, "what the strategy changed is put back"
    messages = [
        record["message"]
        for record in read_journal(Root().find("episodic").journal_file)
        if record["kind"] == "warning"
    ]
    if n_envs == 1:
        assert statistics.iterations == 12
        assert model._n_updates == pytest.approx(statistics.env_steps / 2, abs=20), (
            "as many updates per env step as asked for"
        )
    else:
        assert statistics.iterations > 12
        assert any("EPISODIC" in message for message in messages)


def test_episodic_schedule_follows_episodes():
    model = small_dqn(exploration_fraction=0.5, exploration_final_eps=0.1)
    TrainingLoop(model, strategy="episodic", total_episodes=20, tracking=False).run()
    assert model.exploration_rate == pytest.approx(0.1)
    assert model._current_progress_remaining == pytest.approx(0.0, abs=0.06)


@pytest.mark.slow
def test_adaptive_lowers_the_learning_rate_of_sb3():
    model = small_ppo()
    loop = TrainingLoop(
        model,
        strategy="adaptive",
        total_timesteps=64 * 40,
        eval_freq=64,
        eval_episodes=2,
        tracking=False,
        eval_env=Constant(),
    )
    loop.run()
    rates = loop.metrics.history("train/learning_rate").values
    assert rates[0] == pytest.approx(3e-4)
    assert rates[-1] == pytest.approx(3e-4 / 8)
    assert [record["decision"] for record in loop.metrics.decisions].count("plateau") >= 3


class Constant(gym.Wrapper):
    """CartPole whose every episode ends after three steps: a plateau by construction."""

    def __init__(self):
        super().__init__(gym.make("CartPole-v1", max_episode_steps=3))


@pytest.mark.slow
def test_normalised_frame_stacked_agent_is_evaluated_with_its_statistics():
    env = VecFrameStack(VecNormalize(make_vec_env("Pendulum-v1", n_envs=2, seed=0)), 2)
    model = small_ppo(env)
    loop = TrainingLoop(model, env, total_timesteps=512, eval_freq=256, eval_episodes=2, tracking=False)
    statistics = loop.run()
    assert len(statistics.evaluations) == 2
    assert all(-2000 < value < 0 for evaluation in statistics.evaluations for value in evaluation.returns), (
        "raw returns"
    )
    assert min(statistics.episode_returns) < -100, "raw, not the normalised rewards that the agent sees"


def test_load_agent_gives_back_the_normalised_model(own_root):
    config = config_of(environment={"id": "Pendulum-v1", "n_envs": 2, "normalize": True}, name="norm",
                       training={"total_timesteps": 512, "eval_freq": 256})  # fmt: skip
    trainer = Trainer(config)
    statistics = trainer.train()
    last = rltrack.load_agent("norm", version="last")
    trained = trainer.loop.live.agent.model
    np.testing.assert_array_equal(
        last.get_vec_normalize_env().obs_rms.mean, trained.get_vec_normalize_env().obs_rms.mean
    )
    observation = last.get_env().reset()
    action, _ = last.predict(observation, deterministic=True)
    expected, _ = trained.predict(observation, deterministic=True)
    np.testing.assert_array_equal(action, expected)

    best = statistics.best_evaluation
    from rltrack.evaluation.episodes import episode_seeds, play_episodes
    from rltrack.training.trainer import agent_of

    agent, env, version, _ = agent_of(Root().find("norm"), "best")
    assert version.env_steps == best.env_steps
    replayed = play_episodes(agent, agent.make_evaluation_env(None, 3), episode_seeds(0, 3))
    assert replayed.returns == best.returns, "the best version plays as it did when it was kept"
    env.close()


@pytest.mark.slow
def test_trainer_resumes_and_refuses_another_configuration(own_root):
    first = Trainer(config_of(name="one", training={"total_timesteps": 512, "checkpoint_freq": 64}))
    first.loop.add_hook(
        type("Stop", (), {"on_iteration_end": lambda self, p, i: p.env_steps >= 192 and first.loop.stop()})()
    )
    assert first.train().state is TrainingState.STOPPED

    with pytest.raises(rltrack.RltrackError, match="seed: 1 → 2"):
        Trainer(config_of(name="one", seed=2, training={"total_timesteps": 512})).train()

    second = Trainer(config_of(name="one", training={"total_timesteps": 512, "memory_limit_mb": 90_000}))
    statistics = second.train()
    assert statistics.state is TrainingState.COMPLETED
    assert statistics.env_steps == 512
    attempts = [record for record in read_journal(Root().find("one").journal_file) if record["kind"] == "attempt"]
    assert [record["env_steps"] for record in attempts] == [0, 192]
    assert attempts[1]["exact"] is True
    steps = [record["step"] for record in read_journal(Root().find("one").journal_file) if record["kind"] == "metrics"]
    assert steps == sorted(set(steps))


def test_replay_buffer_comes_back_on_resume(own_root):
    def build():
        return small_dqn(train_freq=4, target_update_interval=50)

    first = TrainingLoop(build(), total_timesteps=400, name="dqn")
    first.add_hook(type("Stop", (), {"on_iteration_end": lambda self, p, i: p.env_steps >= 200 and first.stop()})())
    first.run()
    buffer = first.live.agent.model.replay_buffer
    second = TrainingLoop(build(), total_timesteps=400, name="dqn", resume=True)
    second.prepare()
    restored = second.live.agent.model
    assert restored.replay_buffer.pos == buffer.pos == 200
    np.testing.assert_array_equal(restored.replay_buffer.observations[:200], buffer.observations[:200])
    assert restored._n_updates == first.live.agent.model._n_updates
    second.close()


def test_given_environment_replaces_the_models_own():
    model = small_ppo("CartPole-v1")
    env = DummyVecEnv([lambda: gym.make("CartPole-v1", max_episode_steps=7)])
    statistics = TrainingLoop(model, env, total_timesteps=64, tracking=False).run()
    assert max(statistics.episode_lengths) <= 7
    assert statistics.episode_returns == [float(length) for length in statistics.episode_lengths]


def test_model_can_be_saved_and_trained_on_afterwards(tmp_path):
    model = small_ppo()
    TrainingLoop(model, total_timesteps=64, tracking=False).run()
    model.save(tmp_path / "model")
    PPO.load(tmp_path / "model")
    model.learn(64, reset_num_timesteps=False)
    assert model.num_timesteps == 128


def test_on_step_hook_sees_what_the_agent_sees():
    class Steps:
        def __init__(self):
            self.seen = []

        def on_step(self, progress, step_info):
            self.seen.append(
                (step_info.env_steps, step_info.rewards.shape, step_info.actions.shape, len(step_info.infos))
            )

    for model in (
        small_ppo(make_vec_env("CartPole-v1", n_envs=2)),
        SAC("MlpPolicy", make_vec_env("Pendulum-v1", n_envs=2), learning_starts=1000),
    ):
        hook = Steps()
        TrainingLoop(model, total_timesteps=128, tracking=False, hooks=[hook]).run()
        assert len(hook.seen) == 64
        assert hook.seen[-1][0] == 128
        assert hook.seen[0][1] == (2,)
        assert hook.seen[0][3] == 2


def test_an_algorithm_class_is_refused_with_words():
    with pytest.raises(ConfigurationError, match="the class PPO"):
        TrainingLoop(PPO, "CartPole-v1", total_timesteps=10, tracking=False).run()


def test_created_from_settings():
    config = config_of()
    loop = create_training_loop(small_ppo(), "CartPole-v1", config, tracking=False)
    assert loop.run().env_steps == 256


SCRIPT = """
import sys
from stable_baselines3 import PPO
from rltrack import TrainingLoop, ProgressReporter
loop = TrainingLoop(PPO("MlpPolicy", "CartPole-v1", n_steps=64, device="cpu"), total_timesteps=10**9, name="signal",
                    reporter=ProgressReporter(console=True, line_seconds=0.2))
if len(sys.argv) > 1:
    import time
    loop.control.deadline_seconds = 1.0
    class Stuck:
        def on_step(self, progress, step_info):
            if progress.env_steps == 200:
                print("stuck", file=sys.stderr, flush=True)
                time.sleep(600)
    loop.add_hook(Stuck())
statistics = loop.run()
print(statistics.state.value, "|", statistics.reason, flush=True)
"""


def start_script(root, python, *arguments):
    process = subprocess.Popen(
        [python, "-c", SCRIPT, *arguments],
        env={**os.environ, "RLTRACK_ROOT": str(root), "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for line in process.stderr:
        if ("steps" in line and not arguments) or "stuck" in line:
            return process
    raise AssertionError("the script ended early")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_at_the_next_boundary_with_a_checkpoint(number, own_root, forks, forked):
    process = start_script(own_root, sys.executable if number == signal.SIGINT else forks.python)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert f"stopped | {signal.Signals(number).name} received" in output, errors
    run = Root(own_root).find("signal")
    assert run.status().state == "stopped"
    assert run.store().find("last").env_steps == run.status().env_steps
    assert run.store().find("last").env_steps % 64 == 0
    kinds = [record["kind"] for record in read_journal(run.journal_file)]
    assert "signal" in kinds


@pytest.mark.slow
@pytest.mark.parametrize("how", ["deadline", "second SIGINT"])
def test_an_iteration_that_does_not_end_is_abandoned(how, own_root, forks):
    process = start_script(own_root, forks.python, "stuck")
    process.send_signal(signal.SIGINT)
    if how != "deadline":
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert "stopped | SIGINT received; the iteration in flight was abandoned" in output, errors
    assert Root(own_root).find("signal").store().versions() == []


def test_run_sets_handlers_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    TrainingLoop(small_ppo(), total_timesteps=64, tracking=False).run()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_new_run_begins_with_another_runs_policy(own_root):
    Trainer(config_of(name="origin")).train()
    warm = Trainer(
        config_of(name="warm", start_from="origin@last", training={"total_timesteps": 64, "eval_freq": None})
    )
    seen = {}

    class First:
        def on_training_start(self, progress):
            seen.update(warm.loop.live.agent.capture())

    warm.loop.add_hook(First())
    assert warm.train().env_steps == 64
    origin = Root().find("origin").store()
    kept = origin.read(origin.find("last"))
    for key, value in kept["policy"]["policy"].items():
        np.testing.assert_array_equal(seen["policy"]["policy"][key], value)
    assert (
        seen["optimizer"]["policy.optimizer"]["state"].keys() == kept["optimizer"]["policy.optimizer"]["state"].keys()
    )
    assert seen["counters"]["num_timesteps"] == 0
    with pytest.raises(rltrack.RltrackError, match="No run 'nowhere'"):
        Trainer(config_of(name="lost", start_from="nowhere")).train()
    assert not Root().exists("lost")
