"""Environments as people have them: they train as with plain SB3, or one line says why not."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecMonitor

from rltrack import Trainer, TrainingConfig, TrainingLoop, cleanup
from rltrack.agents import build_agent
from rltrack.agents.env_state.layers import capture, gym_layers, restore
from rltrack.agents.environments import make_gym_env, make_vec_env_from
from rltrack.agents.factory import check
from rltrack.agents.sb3_state import capture as capture_model
from rltrack.cleanup import close_all
from rltrack.cli import run_command
from rltrack.config import EnvironmentConfig
from rltrack.episode_limits import EpisodeLimits
from rltrack.errors import ConfigurationError
from rltrack.evaluation.episodes import Evaluation, episode_seeds, play_episodes
from rltrack.identity import identity
from rltrack.journal import read_journal
from rltrack.runs import Root
from rltrack.text import printable
from rltrack.training.film import film
from rltrack.training.progress import TrainingState
from rltrack.training.trainer import evaluate_run
from tests.support import odd_envs

PROJECT = Path(__file__).resolve().parents[3]
QUICK = {"n_steps": 64, "batch_size": 64, "n_epochs": 1}


def model(env_id, **more):
    return PPO("MlpPolicy", gym.make(env_id), seed=0, **QUICK, **more)


def config(env_id, **sections):
    data = {
        "name": "odd",
        "agent": {"algorithm": "PPO", "hyperparameters": QUICK},
        "environment": {"id": env_id},
        "training": {"total_timesteps": 128, "eval_freq": 64},
        "evaluation": {"episodes": 2},
        "tracking": {"video": False},
    }
    for name, section in sections.items():
        data[name] = {**data.get(name, {}), **section}
    return TrainingConfig.from_mapping(data)


def trained(settings, root):
    trainer = Trainer(settings, root=root)
    trainer.loop.delivers = False
    return trainer.train()


def records(root, kind):
    return [record for record in read_journal(Root(root).find("odd").journal_file) if record["kind"] == kind]


@pytest.fixture(autouse=True)
def fresh():
    cleanup._told.clear()
    odd_envs.Alone.lives = 0


# ---- what cannot be closed ----


@pytest.mark.parametrize("kind", ["CloseRaises", "CloseExits"])
def test_an_environment_that_cannot_be_closed_trains_from_python(kind, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "rltrack"):
        loop = TrainingLoop(model(f"Odd{kind}-v0"), total_timesteps=128, eval_freq=64, eval_episodes=2, root=tmp_path)
        loop.delivers = False
        assert loop.run().reason == "all 128 env steps are done"
    told = [one for one in caplog.messages if one.startswith(f"Closing {kind} failed")]
    assert len(told) == 1  # however often it is closed
    assert "\x1b" not in told[0]


def test_an_environment_that_cannot_be_closed_trains_from_a_configuration(tmp_path):
    statistics = trained(config("OddCloseRaises-v0", environment={"n_envs": 2}), tmp_path)
    assert statistics.state is TrainingState.COMPLETED
    assert len(statistics.evaluations) == 1


def test_each_of_several_is_closed_whatever_the_others_do():
    closed = []

    class Closing(odd_envs.Base):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def close(self):
            closed.append(self.name)
            if self.name in ("b", "sink"):
                raise OSError("no")

    close_all(DummyVecEnv([lambda name=name: Closing(name) for name in "abc"]), None, Closing("sink"), Closing("last"))
    assert {"a", "b", "c", "sink", "last"} <= set(closed)


def test_an_error_of_cleaning_up_does_not_replace_the_error_before(tmp_path):
    class Spoils:
        def on_iteration_end(self, progress, stats):
            raise KeyError("the first error")

        def on_error(self, progress, error):
            raise ValueError("the second error")

    loop = TrainingLoop(model("OddCloseRaises-v0"), total_timesteps=128, hooks=[Spoils()], root=tmp_path, name="odd")
    loop.delivers = False
    with pytest.raises(KeyError, match="the first error"):
        loop.run()
    assert records(tmp_path, "end")[-1]["reason"].startswith("KeyError")


# ---- infos are no state ----


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["LambdaInInfo", "ItselfInInfo", "KeepsInfo", "KeepsObjects", "DelRaises"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_cannot_be_pickled_does_not_end_a_training(kind, tmp_path):
    settings = {"total_timesteps": 256, "eval_freq": 64, "eval_episodes": 2, "checkpoint_freq": 64}
    loop = TrainingLoop(model(f"Odd{kind}-v0"), **settings, root=tmp_path, name="odd")
    loop.delivers = False
    assert loop.run().state is TrainingState.COMPLETED
    assert records(tmp_path, "attempt")[-1]["environments"]["tier"] in ("capture", "replay")
    assert not records(tmp_path, "warning")


def test_infos_are_in_no_version(tmp_path):
    def size(kind):
        loop = TrainingLoop(model(f"Odd{kind}-v0"), total_timesteps=128, root=tmp_path, name=kind)
        loop.delivers = False
        loop.run()
        folder = Root(tmp_path).find(kind).path / "checkpoints"
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

    assert size("LargeInfo") < size("Base") + 20_000


def test_a_state_with_infos_that_an_older_rltrack_took_is_put_back():
    """Up to now the buffer of infos was part of what was taken."""
    venv = make_vec_env("OddBase-v0", n_envs=1, seed=0)
    venv.reset()
    venv.step(np.array([1]))
    layers = [venv, *gym_layers(venv.envs[0])]
    state = capture(layers, [venv.envs[0].unwrapped], "attributes")
    other = make_vec_env("OddBase-v0", n_envs=1, seed=5)
    other.reset()
    theirs = [other, *gym_layers(other.envs[0])]
    restore(theirs, [other.envs[0].unwrapped], state)
    assert (other.step(np.array([0]))[0] == venv.step(np.array([0]))[0]).all()
    assert other.envs[0].unwrapped.t == 2


def test_infos_that_monitor_keeps_do_not_end_a_training(tmp_path):
    def build():
        return Monitor(gym.make("OddLambdaInInfo-v0"), str(tmp_path / "monitor"), info_keywords=("undo",))

    agent = PPO("MlpPolicy", DummyVecEnv([build]), seed=0, **QUICK)
    loop = TrainingLoop(agent, total_timesteps=128, root=tmp_path, name="odd")
    loop.delivers = False
    assert loop.run().state is TrainingState.COMPLETED
    assert all(set(one) <= {"r", "l", "t"} for one in capture_model(agent, ["counters"])["counters"]["episodes"])
    assert records(tmp_path, "attempt")[-1]["environments"]["tier"] == "capture"


def test_a_vec_monitor_with_a_file_can_be_taken(tmp_path):
    venv = VecMonitor(make_vec_env("OddBase-v0", n_envs=1), str(tmp_path / "monitor"))
    loop = TrainingLoop(PPO("MlpPolicy", venv, seed=0, **QUICK), total_timesteps=128, root=tmp_path, name="odd")
    loop.delivers = False
    loop.run()
    assert records(tmp_path, "attempt")[-1]["environments"]["tier"] == "capture"


@pytest.mark.parametrize("kind", ["BitFlippingEnv"])
def test_infos_that_her_keeps_make_a_resume_inexact_if_they_cannot_be_taken(kind, tmp_path):
    from stable_baselines3 import DQN, HerReplayBuffer
    from stable_baselines3.common.envs import BitFlippingEnv

    class Tells(BitFlippingEnv):
        def step(self, action):
            *result, info = super().step(action)
            return *result, {**info, "undo": lambda: None}

    kept = {"copy_info_dict": True, "n_sampled_goal": 2}
    agent = DQN("MultiInputPolicy", Tells(n_bits=3, max_steps=4), replay_buffer_class=HerReplayBuffer,
                replay_buffer_kwargs=kept, learning_starts=20, buffer_size=200, seed=0)  # fmt: skip
    loop = TrainingLoop(agent, total_timesteps=60, checkpoint_freq=30, root=tmp_path, name="odd")
    loop.delivers = False
    assert loop.run().state is TrainingState.COMPLETED
    said = [record["message"] for record in records(tmp_path, "warning")]
    assert any("not be exact" in message and "replay buffer" in message for message in said)


# ---- episodes that never end ----


def test_a_time_limit_among_the_wrappers_ends_episodes(tmp_path):
    wrappers = [{"gymnasium.wrappers.TimeLimit": {"max_episode_steps": 25}}]
    statistics = trained(config("OddEndless-v0", environment={"wrappers": wrappers}), tmp_path)
    assert set(statistics.episode_lengths) == {25}
    assert [one.lengths for one in statistics.evaluations] == [(25, 25), (25, 25)]
    assert Root(tmp_path).find("odd").read_config()["environment"]["wrappers_inside_monitor"] is True
    assert evaluate_run(Root(tmp_path).find("odd"), episodes=2)[1].lengths == (25, 25)


@pytest.mark.slow
def test_a_run_of_before_keeps_its_order_of_wrappers(tmp_path):
    wrappers = [{"gymnasium.wrappers.ClipReward": {"max_reward": 0.5}}]
    old = config("CartPole-v1", environment={"wrappers": wrappers, "wrappers_inside_monitor": False})
    assert "wrappers_inside_monitor" not in identity(old)["environment"]  # as in journals of before
    trained(old, tmp_path)
    unsaid = config("CartPole-v1", environment={"wrappers": wrappers}, training={"max_seconds": 1000})
    assert trained(unsaid, tmp_path).state is TrainingState.COMPLETED  # read, not refused
    assert Root(tmp_path).find("odd").read_config()["environment"]["wrappers_inside_monitor"] is False


@pytest.mark.parametrize(("inside", "expected"), [(True, [25, 75]), (False, [])])
def test_the_order_is_what_the_configuration_says(inside, expected):
    section = EnvironmentConfig(
        id="OddEndless-v0",
        wrappers=[{"gymnasium.wrappers.TimeLimit": {"max_episode_steps": 25}}],
        wrappers_inside_monitor=inside,
    )
    env = make_vec_env_from(section, 0)
    env.reset()
    told = [env.step(np.array([1]))[3][0] for _ in range(25)]
    assert ("episode" in told[-1]) is bool(expected)


def test_an_order_without_wrappers_is_as_sb3_builds():
    env = make_vec_env_from(EnvironmentConfig(id="OddBase-v0"), 0)
    theirs = make_vec_env("OddBase-v0", seed=0)
    names = [[type(layer).__name__ for layer in gym_layers(one.envs[0])] for one in (env, theirs)]
    assert names[0] == names[1]


class Still:
    """Acts without thinking."""

    def predict(self, observation, *, state=None, episode_start=None, deterministic=True, **inputs):
        return np.ones(
            len(next(iter(observation.values())) if isinstance(observation, dict) else observation), int
        ), state


def evaluation_env(env_id, n_envs=2):
    agent, env = build_agent(config(env_id))
    return agent.make_evaluation_env(None, n_envs), env


def test_an_episode_that_does_not_end_is_cut_and_counted():
    stage, _ = evaluation_env("OddEndless-v0")
    evaluation = play_episodes(Still(), stage, [1, 2, 3], limits=EpisodeLimits(max_steps=50))
    assert evaluation.lengths == (50, 50, 50)
    assert evaluation.returns == (50.0, 50.0, 50.0)
    assert evaluation.cut == 3
    assert Evaluation.from_record({"step": 0, **evaluation.to_record()}).cut == 3


def test_bounds_change_nothing_where_episodes_end():
    stage, _ = evaluation_env("OddBase-v0")
    free = play_episodes(Still(), stage, episode_seeds(0, 5))
    bounded = play_episodes(Still(), stage, episode_seeds(0, 5), limits=EpisodeLimits(20, 1000.0))
    assert (free.returns, free.lengths, free.cut) == (bounded.returns, bounded.lengths, bounded.cut)
    assert "cut" not in free.to_record()  # records are as they were


def test_an_evaluation_is_cut_by_its_seconds():
    stage, _ = evaluation_env("OddEndless-v0")
    evaluation = play_episodes(Still(), stage, [1, 2, 3, 4], limits=EpisodeLimits(None, 0.05))
    assert len(evaluation.returns) == evaluation.cut == 2  # the others had not begun


def test_episodes_of_a_given_vec_env_are_bounded_too():
    from rltrack.agents.sb3_environments import SB3Evaluation

    agent = model("OddEndless-v0")
    stage = SB3Evaluation(make_vec_env("OddEndless-v0", n_envs=2), agent.env, agent)
    evaluation = play_episodes(Still(), stage, [1, 2, 3], limits=EpisodeLimits(max_steps=30))
    assert evaluation.lengths == (30, 30)
    assert evaluation.cut == 2


def test_a_training_without_ends_says_so_and_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("rltrack.training.evaluating.LONG_EPISODE_STEPS", 30)
    monkeypatch.setattr("rltrack.training.iterating.ENDLESS_STEPS", 64)
    statistics = trained(config("OddEndless-v0", evaluation={"max_steps_per_episode": 40}), tmp_path)
    assert statistics.state is TrainingState.COMPLETED
    assert [one.cut for one in statistics.evaluations] == [2, 2]
    said = [record["message"] for record in records(tmp_path, "warning")]
    assert len(said) == 3  # each once
    assert all("TimeLimit" in message for message in said)


@pytest.mark.slow
def test_max_seconds_ends_an_evaluation_that_does_not_end(tmp_path, monkeypatch):
    monkeypatch.setattr("rltrack.training.clock.OVERTIME_SECONDS", 0.2)
    statistics = trained(config("OddEndless-v0", training={"max_seconds": 0.5}), tmp_path)
    assert "max_seconds (0.5 s) is spent" in statistics.reason
    assert not statistics.evaluations
    assert any("it has no result" in record["message"] for record in records(tmp_path, "warning"))


@pytest.mark.parametrize("limit", [{"max_seconds": 0.1}, {}])
def test_an_iteration_that_waits_for_the_end_of_an_episode_can_be_left(limit, tmp_path, monkeypatch):
    from stable_baselines3 import DQN

    monkeypatch.setattr("rltrack.training.observer.LONG_ITERATION_STEPS", 100)
    monkeypatch.setattr("rltrack.training.observer.LOOK_EVERY_STEPS", 10)
    monkeypatch.setattr("rltrack.training.iterating.ENDLESS_STEPS", 100)

    class Stops:
        def on_step(self, progress, step):
            if not limit and progress.env_steps == 200:
                loop.stop("enough")

    agent = DQN("MlpPolicy", gym.make("OddEndless-v0"), seed=0, learning_starts=10**6)
    loop = TrainingLoop(agent, total_episodes=5, hooks=[Stops()], root=tmp_path, name="odd", **limit)
    loop.delivers = False
    reason = loop.run().reason
    assert ("max_seconds" if limit else "enough") in reason
    assert "its episode does not end" in reason
    assert any("total_episodes is never reached" in record["message"] for record in records(tmp_path, "warning"))


def test_an_evaluation_shows_how_it_goes(tmp_path, capsys):
    from rltrack.training.progress import TrainingProgress
    from rltrack.training.reporter import ProgressReporter

    reporter = ProgressReporter(console=True, line_seconds=0.0)
    progress = TrainingProgress(state=TrainingState.EVALUATING)
    reporter.show_evaluation(progress, 3, 12_345)
    assert "evaluating (3 episodes done, 12,345 steps)" in capsys.readouterr().err


@pytest.mark.slow
def test_a_warning_is_shown_while_the_log_goes_to_a_file(tmp_path, forked):
    program = (
        "import gymnasium as gym, logging; from stable_baselines3 import PPO; from rltrack import TrainingLoop\n"
        "from tests.support import odd_envs; from rltrack.training import iterating; iterating.ENDLESS_STEPS = 64\n"
        "model = PPO('MlpPolicy', gym.make('OddEndless-v0'), n_steps=64, batch_size=64, n_epochs=1)\n"
        f"loop = TrainingLoop(model, total_timesteps=128, root={str(tmp_path)!r}); loop.delivers = False; loop.run()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("No episode has ended in 64 env steps.") == 1


# ---- messages ----


@pytest.mark.parametrize("kind", odd_envs.SPACES)
def test_a_space_that_no_policy_takes_is_named(kind):
    with pytest.raises(ConfigurationError, match="Use instead") as caught:
        check(config(f"Odd{kind}Space-v0"))
    message = str(caught.value)
    assert "\n" not in message
    assert kind.removeprefix("Nested").removeprefix("DictOf") in message


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("NoMetadata", "`metadata` must be a dictionary"),
        ("OldReset", "is of the old package gym"),
        ("NoSpace", "must specify an observation space"),
        ("CannotBeBuilt", r"FileNotFoundError: map.bin \\x1b\]0;owned\\x07 is missing"),
    ],
)
def test_what_is_wrong_with_an_environment_is_said_in_one_line(kind, expected):
    with pytest.raises(ConfigurationError, match=expected) as caught:
        make_gym_env(f"Odd{kind}-v0")
    assert "Unknown environment" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_wrappers_that_do_not_fit_are_named():
    wrappers = [{"gymnasium.wrappers.TimeLimit": {"max_steps": 5}}]
    with pytest.raises(ConfigurationError, match=r"Wrapper (Patched)?TimeLimit cannot be put"):
        check(config("OddBase-v0", environment={"wrappers": wrappers}))


@pytest.mark.parametrize("kind", ["Base", "TakesNoRenderMode"])
def test_gymnasium_does_not_warn_of_a_render_mode_that_is_not_there(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        close_all(make_vec_env_from(EnvironmentConfig(id=f"Odd{kind}-v0"), 0))


def test_one_instance_in_a_process_trains_without_evaluations(tmp_path):
    statistics = trained(config("OddAlone-v0"), tmp_path)
    assert statistics.state is TrainingState.COMPLETED
    assert any("allows one instance in a process" in record["message"] for record in records(tmp_path, "warning"))


@pytest.mark.parametrize("probe", [True, False])
def test_one_connection_to_a_simulator_trains_from_python(probe, tmp_path):
    agent = PPO("MlpPolicy", odd_envs.OneConnection(), seed=0, **QUICK)
    loop = TrainingLoop(agent, total_timesteps=64, eval_freq=None, probe=probe, root=tmp_path, name="odd")
    loop.delivers = False
    assert loop.run().state is TrainingState.COMPLETED
    said = [record["message"] for record in records(tmp_path, "warning")]
    assert any("Connection refused" in message for message in said) is probe  # without a probe no second one is tried


def test_a_vectorised_environment_that_is_not_sb3s_trains(tmp_path):
    """As SuperSuit's: a wrapper around what is no VecEnv, and whose attributes are asked for by name."""

    class Several:
        num_envs = 2
        render_mode = None

        def __init__(self):
            self.envs = [odd_envs.Base(), odd_envs.Base()]
            self.observation_space, self.action_space = self.envs[0].observation_space, self.envs[0].action_space

        def close(self):
            pass

    class Wrapper(VecEnvWrapper):
        def __init__(self, venv):
            self.venv, self.num_envs, self.render_mode = venv, venv.num_envs, None
            self.observation_space, self.action_space = venv.observation_space, venv.action_space
            self.reset_infos = [{}, {}]

        def reset(self):
            return np.stack([env.reset()[0] for env in self.venv.envs])

        def step_async(self, actions):
            self.actions = actions

        def step_wait(self):
            found = [env.step(action) for env, action in zip(self.venv.envs, self.actions, strict=True)]
            seen, rewards, ends, _, infos = zip(*found, strict=True)
            infos = [{**info, "terminal_observation": one} for info, one in zip(infos, seen, strict=True)]
            seen = [env.reset()[0] if end else one for env, end, one in zip(self.venv.envs, ends, seen, strict=True)]
            return np.stack(seen), np.array(rewards), np.array(ends), infos

        def env_is_wrapped(self, wrapper_class, indices=None):
            return [False, False]

        def get_attr(self, attr_name, indices=None):
            return [getattr(self.venv, attr_name)] * 2

        def getattr_recursive(self, name):
            raise AttributeError(name)

        def getattr_depth_check(self, name, already_found):
            return None

    loop = TrainingLoop(PPO("MlpPolicy", Wrapper(Several()), **QUICK), total_timesteps=128, root=tmp_path, name="odd")
    loop.delivers = False
    assert loop.run().state is TrainingState.COMPLETED


@pytest.mark.parametrize(
    "around",
    [
        lambda env: env,
        Monitor,
        lambda env: DummyVecEnv([lambda: env]),
        lambda env: gym.wrappers.TimeLimit(env.unwrapped, 9),
    ],
)
def test_the_training_environment_is_refused_for_evaluation(around, tmp_path):
    env = gym.make("OddBase-v0")
    agent = PPO("MlpPolicy", env, seed=0, **QUICK)
    loop = TrainingLoop(agent, total_timesteps=64, eval_freq=64, eval_env=around(env), root=tmp_path, name="odd")
    with pytest.raises(ConfigurationError, match="contains the environment that is trained in"):
        loop.run()
    assert not (tmp_path / "runs").exists()


def test_a_picture_that_cannot_be_made_is_one_line(tmp_path):
    trained(config("OddRenderRaises-v0"), tmp_path)
    with pytest.raises(ConfigurationError, match=r"render\(\) raised RuntimeError: no display"):
        film(Root(tmp_path).find("odd"), tmp_path / "a.mp4", tmp_path / "a.gif")


def test_nothing_that_an_error_says_steers_the_terminal(tmp_path, capfd):
    arguments = ["--root", str(tmp_path), "train", "--algo", "ppo", "--timesteps", "128", "--name", "odd"]
    code = run_command([*arguments, "--env", "OddSpeaks-v0", "--set", "agent.hyperparameters.n_steps=64"])
    shown = capfd.readouterr()
    assert code == 1
    assert "\x1b" not in shown.err
    assert r"\x1b[2J\x1b[31mall your runs are deleted" in shown.err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ä → 日本\n\tline", "ä → 日本\n\tline"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("a\rb\x9b2J", r"a\rb\x9b2J"),
        ("abc\u202efdp.exe", r"abc\u202efdp.exe"),
        ("lone \ud800", r"lone \ud800"),
    ],
)
def test_printable(text, expected):
    assert printable(text) == expected
