"""What the documentation of Stable-Baselines3 and sb3-contrib shows, each as a short program with a configuration.

`tried` lets an example run through each door of rltrack and says what came out; the table in docs/sb3-examples.md has the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from matplotlib.figure import Figure as Drawing
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3, HerReplayBuffer
from stable_baselines3.common import callbacks as sb3_callbacks
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.logger import Figure, HParam
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.results_plotter import load_results, ts2xy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import (
    SubprocVecEnv,
    VecCheckNan,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecVideoRecorder,
)

import rltrack
from rltrack import TrainingLoop
from rltrack.errors import RltrackError
from rltrack.runs import Root
from rltrack.training.trainer import Trainer, config_of, load_agent

HERE = __name__
FORK = {"start_method": "fork"}


def on(**network):
    """Return small on-policy settings; new ones each time, as SB3 writes into `policy_kwargs`."""
    return {"n_steps": 32, "batch_size": 32, "n_epochs": 2, "policy_kwargs": {"net_arch": [16], **network}}


def off(**network):
    return {"learning_starts": 32, "buffer_size": 500, "batch_size": 16, "policy_kwargs": {"net_arch": [16], **network}}


# ---- code of one's own, as the documentation's chapters have it ----


class Line(gym.Env):
    """Walk to the left end of a line."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, size=8):
        self.observation_space = spaces.Box(0, size, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.size, self.place, self.steps = size, size - 1, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = int(self.np_random.integers(2, self.size)), 0
        return np.array([self.place], np.float32), {}

    def step(self, action):
        self.place = int(np.clip(self.place + (1 if action else -1), 0, self.size))
        self.steps += 1
        ended = self.place == 0
        return np.array([self.place], np.float32), float(ended), ended, self.steps >= 20, {"is_success": ended}


class Both(Line):
    """The same with a dictionary of observations."""

    def __init__(self, size=8):
        super().__init__(size)
        part = self.observation_space
        self.observation_space = spaces.Dict({"place": part, "image": spaces.Box(0, 255, (36, 36, 1), np.uint8)})

    def _both(self, observation):
        return {"place": observation, "image": np.full((36, 36, 1), 20 * int(observation[0]), np.uint8)}

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed)
        return self._both(observation), info

    def step(self, action):
        observation, *rest = super().step(action)
        return self._both(observation), *rest


class TwoLayers(BaseFeaturesExtractor):
    """A feature extractor of one's own."""

    def __init__(self, observation_space, features_dim=12):
        super().__init__(observation_space, features_dim)
        inside = torch.nn.Linear(observation_space.shape[0], features_dim)
        self.layers = torch.nn.Sequential(inside, torch.nn.ReLU())

    def forward(self, observations):
        return self.layers(observations)


class TwoHeads(torch.nn.Module):
    """Networks of actor and critic, instead of SB3's."""

    def __init__(self, feature_dim, units=10):
        super().__init__()
        self.latent_dim_pi = self.latent_dim_vf = units
        self.actor = torch.nn.Sequential(torch.nn.Linear(feature_dim, units), torch.nn.Tanh())
        self.critic = torch.nn.Sequential(torch.nn.Linear(feature_dim, units), torch.nn.Tanh())

    def forward(self, features):
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features):
        return self.actor(features)

    def forward_critic(self, features):
        return self.critic(features)


class OwnPolicy(ActorCriticPolicy):
    """A policy of one's own."""

    def _build_mlp_extractor(self):
        self.mlp_extractor = TwoHeads(self.features_dim)


class Logs(BaseCallback):
    """Logs a value of its own, and hyperparameters and a figure for TensorBoard."""

    def _on_training_start(self):
        values = HParam({"algorithm": type(self.model).__name__}, {"rollout/ep_len_mean": 0})
        self.logger.record("hparams", values, exclude=("stdout", "log", "json", "csv"))

    def _on_step(self):
        self.logger.record("own/random", float(np.random.random()))
        return True

    def _on_rollout_end(self):
        self.logger.record("own/figure", Figure(Drawing(), close=True), exclude=("stdout", "log", "json", "csv"))


class SavesBest(BaseCallback):
    """Saves the model when the mean return in Monitor's file is the best so far."""

    def __init__(self, check_freq, log_dir):
        super().__init__()
        self.check_freq, self.log_dir, self.best = check_freq, log_dir, -np.inf

    def _on_step(self):
        if self.n_calls % self.check_freq == 0:
            _, returns = ts2xy(load_results(self.log_dir), "timesteps")
            if len(returns) and np.mean(returns[-100:]) > self.best:
                self.best = float(np.mean(returns[-100:]))
                self.model.save(Path(self.log_dir) / "best_model")
        return True


class TakesOneKey(VecEnvWrapper):
    """A vectorised wrapper of one's own: one entry of a dictionary of observations."""

    def __init__(self, venv, key):
        super().__init__(venv, observation_space=venv.observation_space.spaces[key])
        self.key = key

    def reset(self):
        return self.venv.reset()[self.key]

    def step_wait(self):
        observations, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = info["terminal_observation"][self.key]
        return observations[self.key], rewards, dones, infos


def falling(start):
    """The schedule of the documentation: a function in a function."""
    return lambda left: left * start


def scratch() -> str:
    return tempfile.mkdtemp(prefix="sb3-example-")


def mask_of(env):
    """Forbid to walk away from the end in every third step."""
    return np.array([True, env.unwrapped.steps % 3 != 0])


# ---- the examples ----


def cartpole(n_envs=1, **more):
    return make_vec_env("CartPole-v1", n_envs=n_envs, seed=1, **more)


def pendulum(n_envs=1, **more):
    return make_vec_env("Pendulum-v1", n_envs=n_envs, seed=1, **more)


def with_callbacks(*given):
    return PPO("MlpPolicy", cartpole(), seed=1, **on()), list(given)


def in_processes():
    return PPO("MlpPolicy", cartpole(2, vec_env_cls=SubprocVecEnv, vec_env_kwargs=FORK), seed=1, **on()), []


def own_extractor():
    kwargs = on(features_extractor_class=TwoLayers, features_extractor_kwargs={"features_dim": 12})
    return PPO("MlpPolicy", cartpole(), seed=1, **kwargs), []


def saved_and_loaded():
    """A model and its replay buffer are saved, loaded, and trained further."""
    model = SAC("MlpPolicy", pendulum(), seed=1, **off())
    model.learn(64)
    folder = Path(scratch())
    model.save(folder / "model")
    model.save_replay_buffer(folder / "buffer")
    loaded = SAC.load(folder / "model", env=pendulum())
    loaded.load_replay_buffer(folder / "buffer")
    loaded.set_random_seed(1)
    return loaded, []


def changed_parameters():
    model = A2C("MlpPolicy", cartpole(), seed=1, policy_kwargs={"net_arch": [16]})
    parameters = {name: value + 0.01 for name, value in model.policy.state_dict().items()}
    model.set_parameters({"policy": parameters}, exact_match=False)
    return model, []


def masked():
    from sb3_contrib import MaskablePPO
    from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
    from sb3_contrib.common.wrappers import ActionMasker

    def make():
        return ActionMasker(Line(), mask_of)

    model = MaskablePPO("MlpPolicy", make_vec_env(make, n_envs=1, seed=1), seed=1, **on())
    own = MaskableEvalCallback(make_vec_env(make, seed=2), eval_freq=64, n_eval_episodes=2, verbose=0)
    return model, [own]


def contrib(algorithm, policy, env, **more):
    import sb3_contrib

    return getattr(sb3_contrib, algorithm)(policy, env, seed=1, **more), []


def monitored():
    folder = scratch()
    return PPO("MlpPolicy", cartpole(monitor_dir=folder), seed=1, **on()), [SavesBest(64, folder)]


def evaluated():
    stop = sb3_callbacks.StopTrainingOnRewardThreshold(1e9, verbose=0)
    flat = sb3_callbacks.StopTrainingOnNoModelImprovement(1000, verbose=0)
    return with_callbacks(
        sb3_callbacks.EvalCallback(
            cartpole(), callback_on_new_best=stop, callback_after_eval=flat, eval_freq=64, n_eval_episodes=2,
            best_model_save_path=scratch(), log_path=scratch(), verbose=0,
        )
    )  # fmt: skip


def every_n():
    folder = scratch()
    checkpoint = sb3_callbacks.CheckpointCallback(64, folder, save_replay_buffer=True, save_vecnormalize=True)
    saves = sb3_callbacks.EveryNTimesteps(64, sb3_callbacks.CheckpointCallback(1, folder))
    log = sb3_callbacks.LogEveryNTimesteps(64)
    return with_callbacks(sb3_callbacks.CallbackList([checkpoint, saves]), log)


def recorded():
    env = VecVideoRecorder(cartpole(), scratch(), record_video_trigger=lambda step: step == 0, video_length=20)
    return PPO("MlpPolicy", env, seed=1, **on()), []


def atari():
    import ale_py

    gym.register_envs(ale_py)
    env = VecFrameStack(make_atari_env("PongNoFrameskip-v4", n_envs=2, seed=1), n_stack=4)
    return A2C("CnnPolicy", env, seed=1, policy_kwargs={"features_extractor_kwargs": {"features_dim": 16}}), []


def bits():
    return BitFlippingEnv(n_bits=4, continuous=False, max_steps=4)


def her():
    env = bits()
    given = {"n_sampled_goal": 4, "goal_selection_strategy": "future"}
    return DQN(
        "MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, replay_buffer_kwargs=given, seed=1, **off()
    ), []


def agent(algorithm="PPO", policy="MlpPolicy", **hyperparameters):
    return {"algorithm": algorithm, "policy": policy, "hyperparameters": hyperparameters, "device": "cpu"}


def noise_of(n_envs):
    return VectorizedActionNoise(NormalActionNoise(np.zeros(1), 0.1 * np.ones(1)), n_envs)


_ATARI = "stable_baselines3.common.atari_wrappers:AtariWrapper"
_SCRIPT = "yes, in its script only"
_MASKER = "sb3_contrib.common.wrappers:ActionMasker"
_CALLBACKS = "stable_baselines3.common.callbacks"
_CARTPOLE = {"id": "CartPole-v1"}
_PENDULUM = {"id": "Pendulum-v1"}


@dataclass(frozen=True)
class Example:
    """A short program.

    Attributes:
        title: As the table has it.
        build: Makes the model and its callbacks, always alike.
        agent: The section ``agent`` of a configuration that trains the same; or why there is none.
        environment: The section ``environment``.
        steps: Env steps, whole iterations.
        hooks: The key ``hooks``.
        make_env: What the loop must be told.
        loop: What comes out with `TrainingLoop`.
        callback: With `TrackingCallback`.
        fast: With `accelerate`.
        every_run: Whether it is cheap enough for every run of the tests.
    """

    title: str
    build: Callable[[], tuple[Any, list[Any]]]
    agent: Mapping[str, Any] | str
    environment: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 128
    hooks: tuple[Any, ...] = ()
    make_env: str | None = None
    loop: str = "yes"
    callback: str = "yes"
    fast: str = "yes"
    every_run: bool = False

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """What comes out at each door, as the table has it."""
        configured = f"no: {self.agent}" if isinstance(self.agent, str) else "yes"
        return configured, self.loop, self.callback, self.fast


EXAMPLES = {
    "basic": Example(
        "first steps: `A2C(\"MlpPolicy\", \"CartPole-v1\")`",
        lambda: (A2C("MlpPolicy", "CartPole-v1", seed=1, policy_kwargs={"net_arch": [16]}), []),
        agent("A2C", policy_kwargs={"net_arch": [16]}), _CARTPOLE, 100, every_run=True,
    ),
    "subproc": Example(
        "multiprocessing: `SubprocVecEnv`",
        in_processes,
        agent(**on()), {**_CARTPOLE, "n_envs": 2, "vectorization": "subproc", "vec_env_kwargs": FORK},
        loop="yes, inexact", fast="yes, in part",
    ),
    "vectorized-noise": Example(
        "off-policy with several environments, `VectorizedActionNoise`",
        lambda: (TD3("MlpPolicy", pendulum(2), action_noise=noise_of(2), gradient_steps=-1, seed=1, **off()), []),
        agent("TD3", action_noise={f"{HERE}:noise_of": {"n_envs": 2}}, gradient_steps=-1, **off()), {**_PENDULUM, "n_envs": 2}, 128,
    ),
    "dict": Example(
        "Dict observations: `MultiInputPolicy`",
        lambda: (PPO("MultiInputPolicy", make_vec_env(Both, seed=1), seed=1, **on()), []),
        agent(policy="MultiInputPolicy", **on()), {"id": f"{HERE}:Both"}, 128,
        fast="yes, in part",
    ),
    "monitor": Example(
        "`Monitor` files, and a callback that reads them and saves the best model",
        monitored, "the journal has every episode, and the best policy is kept",
        loop="yes, inexact",
    ),
    "evaluation": Example(
        "`EvalCallback`, `StopTrainingOnRewardThreshold`, `StopTrainingOnNoModelImprovement`",
        evaluated, agent(**on()), _CARTPOLE, every_run=True,
    ),
    "every-n": Example(
        "`CheckpointCallback`, `EveryNTimesteps`, `LogEveryNTimesteps`, `CallbackList`", every_n, agent(**on()), _CARTPOLE,
    ),
    "max-episodes": Example(
        "`StopTrainingOnMaxEpisodes`", lambda: with_callbacks(sb3_callbacks.StopTrainingOnMaxEpisodes(10_000)),
        agent(**on()), _CARTPOLE, hooks=({f"{_CALLBACKS}:StopTrainingOnMaxEpisodes": {"max_episodes": 10_000}},),
    ),
    "function": Example(
        "a function as a callback", lambda: with_callbacks(lambda seen, names: True), "only code that has a name",
    ),
    "own-callback": Example(
        "your own callback: logged values, figures, `HParam`", lambda: with_callbacks(Logs()),
        agent(**on()), _CARTPOLE, hooks=(f"{HERE}:Logs",),
    ),
    "atari": Example(
        "Atari: `make_atari_env`, `VecFrameStack`, `CnnPolicy`", atari,
        agent("A2C", "CnnPolicy", policy_kwargs={"features_extractor_kwargs": {"features_dim": 16}}),
        {"id": "PongNoFrameskip-v4", "n_envs": 2, "wrappers": [_ATARI], "wrappers_inside_monitor": False, "frame_stack": 4}, 20,
        fast="yes, in part",
    ),
    "normalize": Example(
        "`VecNormalize`", lambda: (PPO("MlpPolicy", VecNormalize(pendulum(2)), seed=1, **on()), []),
        agent(**on()), {**_PENDULUM, "n_envs": 2, "normalize": True}, every_run=True,
    ),
    "check-nan": Example(
        "`VecCheckNan`", lambda: (PPO("MlpPolicy", VecCheckNan(pendulum()), seed=1, **on()), []),
        "NaN in losses or weights ends every training",
    ),
    "her": Example(
        "hindsight experience replay", her,
        agent("DQN", "MultiInputPolicy", replay_buffer_class="HerReplayBuffer",
              replay_buffer_kwargs={"n_sampled_goal": 4, "goal_selection_strategy": "future"}, **off()),
        {"id": "stable_baselines3.common.envs:BitFlippingEnv", "kwargs": {"n_bits": 4, "continuous": False, "max_steps": 4}}, 128,
        make_env=f"{HERE}:bits",
        fast="yes, in part",
    ),
    "schedule": Example(
        "a learning-rate schedule, a function",
        lambda: (PPO("MlpPolicy", cartpole(), learning_rate=falling(1e-3), seed=1, **on()), []),
        agent(learning_rate={f"{HERE}:falling": {"start": 1e-3}}, **on()), _CARTPOLE,
    ),
    "saving": Example(
        "`save` and `load`, with the replay buffer, and training further", saved_and_loaded,
        "`start_from: RUN@version`, or [`rltrack import`](exchange.md)", steps=64,
    ),
    "parameters": Example(
        "`get_parameters`, `set_parameters`", changed_parameters, "a configuration begins with initial weights", steps=100,
    ),
    "own-vec-wrapper": Example(
        "your own vectorised wrapper, `VecMonitor`",
        lambda: (PPO("MlpPolicy", VecMonitor(TakesOneKey(make_vec_env(Both, seed=1), "place")), seed=1, **on()), []),
        "only known layers can be named", steps=128,
        loop=_SCRIPT, callback=_SCRIPT,
    ),
    "video": Example(
        "`VecVideoRecorder`", recorded, "`tracking.video` records the best policy",
    ),
    "network": Example(
        "`net_arch`, `activation_fn`",
        lambda: (PPO("MlpPolicy", cartpole(), seed=1, **on(net_arch={"pi": [16], "vf": [8, 8]}, activation_fn=torch.nn.ReLU)), []),
        agent(**on(net_arch={"pi": [16], "vf": [8, 8]}, activation_fn="ReLU")), _CARTPOLE,
    ),
    "extractor": Example(
        "your own feature extractor",
        own_extractor,
        agent(**on(features_extractor_class=f"{HERE}:TwoLayers", features_extractor_kwargs={"features_dim": 12})), _CARTPOLE,
        fast="yes, in part",
    ),
    "policy": Example(
        "your own policy class",
        lambda: (PPO(OwnPolicy, cartpole(), seed=1, n_steps=32, batch_size=32), []),
        agent(policy=f"{HERE}:OwnPolicy", n_steps=32, batch_size=32), _CARTPOLE,
        fast="yes, in part",
    ),
    "environment": Example(
        "your own environment class, not registered",
        lambda: (PPO("MlpPolicy", Line(size=6), seed=1, **on()), []),
        agent(**on()), {"id": f"{HERE}:Line", "kwargs": {"size": 6}}, every_run=True,
    ),
    "gsde": Example(
        "generalised state-dependent exploration (gSDE)",
        lambda: (SAC("MlpPolicy", pendulum(), use_sde=True, train_freq=8, gradient_steps=8, seed=1, **off()), []),
        agent("SAC", use_sde=True, train_freq=8, gradient_steps=8, **off()), _PENDULUM, 96,
        fast="yes, in part",
    ),
    "recurrent": Example(
        "recurrent PPO",
        lambda: contrib("RecurrentPPO", "MlpLstmPolicy", cartpole(2), **on(lstm_hidden_size=8)),
        agent("RecurrentPPO", "MlpLstmPolicy", **on(lstm_hidden_size=8)),
        {**_CARTPOLE, "n_envs": 2}, 128,
        fast="yes, in part",
    ),
    "masked": Example(
        "masked PPO: `ActionMasker`, `MaskableEvalCallback`", masked, agent("MaskablePPO", **on()),
        {"id": f"{HERE}:Line", "wrappers": [{_MASKER: {"action_mask_fn": f"{HERE}:mask_of"}}]}, 128,
        fast="yes, in part",
    ),
    "quantiles": Example(
        "TQC, QR-DQN, CrossQ, TRPO, ARS (tested: QR-DQN)",
        lambda: contrib("QRDQN", "MlpPolicy", cartpole(), **off(n_quantiles=8)),
        agent("QRDQN", **off(n_quantiles=8)), _CARTPOLE, 128,
        fast="yes, in part",
    ),
}  # fmt: skip


# ---- the doors ----


def _given(callbacks: list[Any]) -> Any:
    """What `learn` takes: a list of objects, or one function."""
    return callbacks[0] if len(callbacks) == 1 else callbacks or None


def _weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def _differ(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> bool:
    return not all(torch.equal(value, theirs[name]) for name, value in ours.items())


def _halves(make: Callable[[], tuple[TrainingLoop, Callable[[], Any]]]) -> None:
    """Train, stop at the first boundary from the middle on, and resume."""
    loop, run = make()
    loop.add_hook(_Half(loop, loop.settings.training.total_timesteps // 2))
    run()
    assert loop.statistics.state.value == "stopped", loop.statistics
    loop, run = make()
    run()
    assert loop.statistics.state.value == "completed", loop.statistics


class _Half:
    def __init__(self, loop: TrainingLoop, steps: int) -> None:
        self.loop, self.steps = loop, steps

    def on_iteration_end(self, progress: Any, stats: Any) -> None:
        if progress.env_steps >= self.steps:
            self.loop.stop("half")


def _outcome(name: str, learned: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> str:
    run = Root().find(name)
    last = run.attempts()[-1]
    if not last["exact"]:
        return "yes, inexact"
    assert not _differ(learned, weights), f"{name}: other weights than learn()"
    return "yes"


def tried(key: str) -> tuple[str, str, str, str]:
    """Run an example through each door; return what came out, as the table has it."""
    example = EXAMPLES[key]
    model, callbacks = example.build()
    model.learn(example.steps, callback=_given(callbacks))
    learned = _weights(model)
    model.env.close()
    options = {"total_timesteps": example.steps, "video": False, "sinks": [], "checkpoint_seconds": None}
    return (
        _by_configuration(key, example, learned, options),
        _by_loop(key, example, learned, options),
        _by_callback(key, example, learned),
        _accelerated(example, learned),
    )


def _by_configuration(key: str, example: Example, learned: Any, options: Any) -> str:
    if isinstance(example.agent, str):
        return f"no: {example.agent}"
    name = f"{key}-configured"
    config = {
        "name": name, "seed": 1, "agent": dict(example.agent), "environment": dict(example.environment),
        "training": {"total_timesteps": example.steps, "checkpoint_seconds": None}, "hooks": list(example.hooks),
        "evaluation": {"episodes": 1, "max_steps_per_episode": 50}, "tracking": {"video": False, "sinks": []},
    }  # fmt: skip

    def trainer() -> tuple[TrainingLoop, Callable[[], Any]]:
        made = Trainer(config)
        return made.loop, made.train

    _halves(trainer)
    return _outcome(name, learned, load_agent(name, "last").policy.state_dict())


def _by_loop(key: str, example: Example, learned: Any, options: Any) -> str:
    made: list[Any] = []

    def loop() -> tuple[TrainingLoop, Callable[[], Any]]:
        model, callbacks = example.build()
        made.append(model)
        found = TrainingLoop(model, callbacks=callbacks, name=key, resume=True, make_env=example.make_env, **options)
        return found, found.run

    _halves(loop)
    for model in made:
        model.env.close()
    return _outcome(key, learned, made[-1].policy.state_dict()) + _outside(key)


def _by_callback(key: str, example: Example, learned: Any) -> str:
    model, callbacks = example.build()
    objects = [item if isinstance(item, BaseCallback) else ConvertCallback(item) for item in callbacks]
    tracking = rltrack.TrackingCallback(f"{key}-tracked", make_env=example.make_env)
    model.learn(example.steps, callback=[*objects, tracking])
    model.env.close()
    assert Root().find(f"{key}-tracked").status().state == "completed"
    assert not _differ(learned, _weights(model)), f"{key}: other weights than learn()"
    return "yes" + _outside(f"{key}-tracked")


def _outside(name: str) -> str:
    """Whether other processes can evaluate the run."""
    try:
        config_of(Root().find(name))
        load_agent(name, "last")
    except RltrackError:
        return ", in its script only"
    return ""


def _accelerated(example: Example, learned: Any) -> str:
    model, callbacks = example.build()
    report = rltrack.accelerate(model)
    model.learn(example.steps, callback=_given(callbacks))
    report.undo()
    model.env.close()
    assert not _differ(learned, _weights(model)), "other weights than learn()"
    return {"on": "yes", "in part": "yes, in part"}[report.in_short()["chosen"]]
