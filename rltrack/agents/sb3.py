"""Stable-Baselines3's algorithms (and sb3-contrib's and SBX's) behind the Agent protocol.

``model.learn()`` is never called: it bends schedules at each call, and offers no consistent moment between two
iterations. The loop here is the body of ``learn()``, one iteration at a time, with the same calls in the same order, so
that the result is bit-identical (``tests/resume/test_same_as_learn.py`` holds this for each algorithm).
"""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    unwrap_vec_normalize,
)

from rltrack.agents import sb3_state
from rltrack.agents.algorithms import ScaledSchedule
from rltrack.agents.environments import SeededEpisodes, make_gym_env, rebuild
from rltrack.agents.protocol import EpisodeInfo, IterationStats, Observer, State, StepInfo
from rltrack.agents.random_state import untouched_random_streams
from rltrack.errors import ConfigurationError, EvaluationUnavailable

_KNOWN_PACKAGES = ("stable_baselines3.", "sb3_contrib.", "sbx.")
_NO_TOTAL = 2**62  # `_setup_learn` wants a total; schedules follow ours (`set_schedule`), so that it is never read


class SB3Agent:
    """Drives one SB3 model, iteration by iteration.

    Args:
        model: An SB3, sb3-contrib or SBX algorithm, new or trained before; its counters start from zero in `bind`.
        threads: Torch threads while this agent is bound. One repeats, and is fastest for small networks.
        eval_env_builder: Builds an evaluation ``VecEnv`` of n environments, each around ``prepare(env)``; without one,
            environments are rebuilt from the specification that the training environment carries.
    """

    def __init__(
        self,
        model: BaseAlgorithm,
        *,
        threads: int = 1,
        eval_env_builder: Callable[[int, Callable[[Any], Any]], VecEnv] | None = None,
    ) -> None:
        self.model = model
        self._threads = threads
        self._eval_env_builder = eval_env_builder
        self._iterate = _iteration_of(model)
        self._log_interval = 1
        self._iteration = 0
        self._remaining = 1.0
        self._updates_per_step: float | None = None
        self._relay = _Relay()
        self._writer = _Collector()
        self._undo: list[Callable[[], None]] = []

    # ---- the Agent protocol: what every agent has ----

    def bind(self, env: Any, seed: int | None) -> None:
        """Get ready to train from zero env steps, exactly as ``learn()`` begins."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        self._undo.append(lambda: torch.set_num_threads(threads))
        self._set_env(env)
        if seed is not None:
            self.model.set_random_seed(seed)
        self._attach_logger()
        _, callback = self.model._setup_learn(_NO_TOTAL, self._relay, True, type(self.model).__name__, False)
        self._relay = callback  # type: ignore[assignment]
        self._relay.prepare(self.env)
        self._iteration = 0
        self._remaining = 1.0
        self._relay.on_training_start({}, {})

    def advance(self, observer: Observer) -> IterationStats:
        """Collect a rollout and update, once."""
        before = self.model.num_timesteps
        self._relay.observer = observer
        with self._our_schedule():
            self._iterate(self)
        self._relay.observer = None
        values = getattr(self.model.logger, "name_to_value", {})
        losses = {**self._writer.losses, **_losses(values)}
        if isinstance(self.model, OnPolicyAlgorithm) and self._iteration % self._log_interval == 0:
            self.model.dump_logs(self._iteration)
        return IterationStats(self.model.num_timesteps - before, self._writer.take(), losses)

    def predict(
        self,
        observation: Any,
        *,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        **inputs: Any,
    ) -> tuple[Any, Any]:
        """Act as the model acts; observations come from the evaluation environment, normalised if the model's are."""
        return self.model.predict(
            observation, state=state, episode_start=episode_start, deterministic=deterministic, **inputs
        )

    def set_schedule(self, remaining: float) -> None:
        """Hear how much of the budget is left; the model reads it at the moments at which SB3 computes it."""
        self._remaining = remaining

    # ---- what an agent may have ----

    def capture(self) -> State:
        """Return the state of everything but the environments (see `sb3_state`)."""
        state = sb3_state.capture(self.model)
        state["counters"]["iteration"] = self._iteration
        return state

    def restore(self, state: State) -> None:
        """Overwrite the given parts in place."""
        sb3_state.restore(self.model, state)
        self._iteration = state.get("counters", {}).get("iteration", self._iteration)

    def make_evaluation_env(self, env: Any, n_envs: int) -> SB3Evaluation:
        """Build environments like the training ones, or take the given `env`, with frozen normalisation.

        Raises:
            EvaluationUnavailable: If none can be built.
        """
        with untouched_random_streams():
            if env is not None:
                venv = env if isinstance(env, VecEnv) else _one_env(SeededEpisodes(_made(env)))
            elif self._eval_env_builder is not None:
                venv = self._eval_env_builder(n_envs, SeededEpisodes)
            else:
                venv = self._mirror(n_envs)
            venv = self.model._wrap_env(venv, monitor_wrapper=False)
        if venv.observation_space != self.env.observation_space:
            raise EvaluationUnavailable(
                f"The evaluation environment has the observation space {venv.observation_space}, training has "
                f"{self.env.observation_space}. Pass an eval_env= that is wrapped as the training environment is."
            )
        return SB3Evaluation(venv, self.env, self.model)

    def scale_learning_rate(self, factor: float) -> None:
        """Multiply the model's learning-rate schedule by `factor` from now on."""
        schedule = self.model.lr_schedule
        inner = schedule.schedule if isinstance(schedule, ScaledSchedule) else schedule
        self.model.lr_schedule = ScaledSchedule(inner, factor)

    def update_per_episode(self) -> str | None:
        """Make one iteration of an off-policy agent one episode, with as many updates per env step as before."""
        if not isinstance(self.model, OffPolicyAlgorithm):
            return None
        if self.env.num_envs > 1:
            return f"SB3 counts in episodes for a single environment only, and here are {self.env.num_envs}"
        model: Any = self.model
        train_freq = model.train_freq
        if isinstance(train_freq, TrainFreq) and train_freq.unit == TrainFrequencyUnit.STEP:
            steps = model.gradient_steps
            self._updates_per_step = 1.0 if steps < 0 else steps / train_freq.frequency
            model.train_freq = TrainFreq(1, TrainFrequencyUnit.EPISODE)

            def put_back() -> None:
                model.train_freq = train_freq
                self._updates_per_step = None

            self._undo.append(put_back)
        return None

    def set_log_interval(self, interval: int) -> None:
        """Log every `interval` iterations (on-policy) or finished episodes (off-policy)."""
        self._log_interval = interval

    def describe(self) -> dict[str, Any]:
        """Return algorithm, every resolved hyperparameter, environment and spaces."""
        return describe(self.model)

    def release(self) -> None:
        """Put back threads, logger and what EPISODIC changed."""
        while self._undo:
            self._undo.pop()()

    # ---- inside ----

    @property
    def env(self) -> VecEnv:
        """The vectorised training environment."""
        assert self.model.env is not None
        return self.model.env

    def _set_env(self, env: Any) -> None:
        model = self.model
        if env is None or _same_env(model.env, env):
            if model.env is None:
                raise ConfigurationError("Neither the model nor TrainingLoop has an environment. Pass env=.")
            return
        model.set_env(_one_env(env) if not isinstance(env, VecEnv) else env, force_reset=True)

    def _attach_logger(self) -> None:
        model = self.model
        self._writer = _Collector()
        if model._custom_logger:
            formats = model.logger.output_formats
            formats.append(self._writer)
            self._undo.append(lambda: formats.remove(self._writer))
            return
        previous = getattr(model, "_logger", None)

        def put_back() -> None:
            model._custom_logger = False
            if previous is not None:
                model._logger = previous

        model.set_logger(Logger(folder=None, output_formats=[self._writer]))
        self._undo.append(put_back)

    @contextmanager
    def _our_schedule(self) -> Iterator[None]:
        """Where SB3 computes the remaining progress from its own total, give it ours instead."""

        def ours(num_timesteps: int, total_timesteps: int) -> None:
            self.model._current_progress_remaining = self._remaining

        self.model._update_current_progress_remaining = ours  # type: ignore[method-assign]
        self._relay.schedule = self.set_schedule
        try:
            yield
        finally:
            del self.model._update_current_progress_remaining

    def _mirror(self, n_envs: int) -> VecEnv:
        """Build a chain of wrappers like the training environment's around environments of its own."""
        chain: list[VecEnvWrapper] = []
        inner: VecEnv = self.env
        while isinstance(inner, VecEnvWrapper):
            chain.append(inner)
            inner = inner.venv
        spec = _spec_of(inner)
        envs = [Monitor(SeededEpisodes(rebuild(spec, inner))) for _ in range(n_envs)]
        venv: VecEnv = DummyVecEnv([lambda env=env: env for env in envs])  # type: ignore[misc]
        for wrapper in reversed(chain):
            if isinstance(wrapper, VecNormalize):
                venv = _like(wrapper, venv)
            elif isinstance(wrapper, VecFrameStack):
                venv = VecFrameStack(venv, wrapper.stacked_obs.n_stack)
            elif not isinstance(wrapper, VecTransposeImage | VecMonitor):
                raise EvaluationUnavailable(
                    f"The training environment is wrapped in {type(wrapper).__name__}, which cannot be built again for "
                    "evaluation. Pass eval_env=."
                )
        return venv


class SB3Evaluation:
    """A ``VecEnv`` for evaluation: one seed per episode, normalisation frozen at the training's statistics."""

    def __init__(self, venv: VecEnv, training: VecEnv, model: BaseAlgorithm) -> None:
        self.venv = venv
        self.n_envs = venv.num_envs
        self.reports_episodes = _is_monitored(venv)
        self._training = training
        self._masked = "action_masks" in inspect.signature(model.predict).parameters

    def start(self, seeds: Sequence[Sequence[int]]) -> Any:
        """Take over the training's statistics, seed the episodes and reset."""
        ours, theirs = unwrap_vec_normalize(self.venv), unwrap_vec_normalize(self._training)
        if ours is not None:
            ours.training = False
            ours.norm_reward = False
            if theirs is not None and ours is not theirs:
                ours.obs_rms = theirs.obs_rms
                ours.ret_rms = theirs.ret_rms
        if self._seedable:
            for index, own in enumerate(seeds):
                self.venv.env_method("set_episode_seeds", list(own), indices=[index])
        else:
            self.venv.seed(int(seeds[0][0]))
        return self.venv.reset()

    @property
    def _seedable(self) -> bool:
        try:
            return all(self.venv.env_is_wrapped(SeededEpisodes))
        except (AttributeError, NotImplementedError):
            return False

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, Sequence[Mapping[str, Any]]]:
        """Step all environments."""
        observations, rewards, dones, infos = self.venv.step(actions)
        return observations, np.asarray(rewards), np.asarray(dones), infos

    def prediction_inputs(self) -> dict[str, Any]:
        """Return the action masks, for algorithms that use them in environments that have them."""
        if not self._masked:
            return {}
        from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported

        return {"action_masks": get_action_masks(self.venv)} if is_masking_supported(self.venv) else {}

    def close(self) -> None:
        """Close the environments."""
        self.venv.close()


def describe(model: BaseAlgorithm) -> dict[str, Any]:
    """Return what the model is, as plain data: algorithm, arguments of its constructor as resolved, spaces."""
    arguments: dict[str, Any] = {}
    for cls in reversed(type(model).__mro__):
        for name in inspect.signature(vars(cls).get("__init__", object.__init__)).parameters:
            if name not in ("self", "env", "_init_setup_model", "policy", "args", "kwargs", "supported_action_spaces"):
                value = getattr(model, name, inspect.Parameter.empty)
                if value is not inspect.Parameter.empty:
                    arguments[name] = _readable(value)
    package = type(model).__module__.partition(".")[0]
    description = {
        "algorithm": type(model).__name__,
        "package": package,
        "policy": type(model.policy).__name__,
        "hyperparameters": arguments,
        "observation_space": str(model.observation_space),
        "action_space": str(model.action_space),
        "n_parameters": sum(p.numel() for p in model.policy.parameters())
        if hasattr(model.policy, "parameters")
        else None,
        "device": str(model.device),
    }
    if model.env is not None:
        spec = _spec_of(model.env)
        description["environment"] = spec.id if spec is not None else type(model.env.unwrapped).__name__
        description["n_envs"] = model.env.num_envs
    return description


def _readable(value: Any) -> Any:
    """Plain data stays; a class becomes its name; anything else its text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _readable(item) for key, item in value.items()}
    if isinstance(value, TrainFreq):
        return [value.frequency, value.unit.value]
    if isinstance(value, list | tuple):
        return [_readable(item) for item in value]
    if isinstance(value, type):
        return value.__name__
    inner = getattr(value, "value_schedule", None)  # SB3's FloatSchedule around a schedule
    if inner is not None:
        return str(getattr(inner, "val", inner))
    return str(value).partition(" at 0x")[0]


# ---- the body of learn(), once ----


def _iteration_of(model: BaseAlgorithm) -> Callable[[SB3Agent], None]:
    if not type(model).learn.__module__.startswith(_KNOWN_PACKAGES):
        warnings.warn(
            f"{type(model).__name__} has a learn() of its own, which rltrack does not call: it collects and updates as "
            "SB3's own algorithms do. If that learn() does more, the result differs from it.",
            stacklevel=3,
        )
    if isinstance(model, OnPolicyAlgorithm):
        return _iterate_on_policy
    if isinstance(model, OffPolicyAlgorithm):
        return _iterate_off_policy
    if hasattr(model, "_do_one_update"):
        return _iterate_ars
    raise ConfigurationError(
        f"{type(model).__name__} is neither an on-policy nor an off-policy algorithm of SB3. Wrap it in an object with the "
        "methods of rltrack.agents.Agent."
    )


def _iterate_on_policy(agent: SB3Agent) -> None:
    model: Any = agent.model
    model.collect_rollouts(model.env, agent._relay, model.rollout_buffer, n_rollout_steps=model.n_steps)
    agent._iteration += 1
    model._update_current_progress_remaining(model.num_timesteps, _NO_TOTAL)
    model.train()


def _iterate_off_policy(agent: SB3Agent) -> None:
    model: Any = agent.model
    rollout = model.collect_rollouts(
        model.env,
        train_freq=model.train_freq,
        action_noise=model.action_noise,
        callback=agent._relay,
        learning_starts=model.learning_starts,
        replay_buffer=model.replay_buffer,
        log_interval=agent._log_interval,
    )
    agent._iteration += 1
    if model.num_timesteps > 0 and model.num_timesteps > model.learning_starts:
        if agent._updates_per_step is not None:
            steps = max(1, round(agent._updates_per_step * rollout.episode_timesteps))
        else:
            steps = model.gradient_steps if model.gradient_steps >= 0 else rollout.episode_timesteps
        if steps > 0:
            model.train(batch_size=model.batch_size, gradient_steps=steps)


def _iterate_ars(agent: SB3Agent) -> None:
    model: Any = agent.model
    model._update_current_progress_remaining(model.num_timesteps, _NO_TOTAL)
    model._do_one_update(agent._relay, None)
    agent._iteration += 1
    observer = agent._relay.observer
    for episode in list(model.ep_info_buffer):  # its own step loop shows no infos; it fills this buffer afterwards
        observer.on_episode_end(EpisodeInfo(float(episode["r"]), int(episode["l"]), model.num_timesteps))
    if model._n_updates % agent._log_interval == 0:
        model.dump_logs()


class _Relay(BaseCallback):
    """SB3's callback: passes each step and each episode's end to the observer. Never stops anything."""

    def __init__(self) -> None:
        super().__init__()
        self.observer: Any = None
        self.schedule: Any = None
        self._returns: np.ndarray | None = None
        self._lengths: np.ndarray | None = None
        self._normalize: VecNormalize | None = None

    def prepare(self, env: VecEnv) -> None:
        """Find out whether the environment reports its episodes, or we must add them up."""
        monitored = _is_monitored(env)
        self._returns = None if monitored else np.zeros(env.num_envs)
        self._lengths = None if monitored else np.zeros(env.num_envs, dtype=int)
        self._normalize = unwrap_vec_normalize(env)

    def _on_step(self) -> bool:
        observer = self.observer
        seen = self.locals
        dones = seen.get("dones")
        n_envs = self.training_env.num_envs
        if dones is None:  # ARS steps inside evaluate_policy, and tells only that it stepped
            observer.on_step(n_envs, None)
            return True
        step = None
        if observer.wants_steps:
            step = StepInfo(self.num_timesteps, seen["new_obs"], seen["actions"], seen["rewards"], dones, seen["infos"])
        observer.on_step(n_envs, step)
        if self._returns is not None:
            rewards = seen["rewards"] if self._normalize is None else self._normalize.get_original_reward()
            self._returns += rewards
            if self._lengths is not None:
                self._lengths += 1
        if np.any(dones):
            for index in np.flatnonzero(dones):
                self._report(int(index), seen["infos"][index])
        return True

    def _report(self, index: int, info: Mapping[str, Any]) -> None:
        if self._returns is not None and self._lengths is not None:
            result = float(self._returns[index]), int(self._lengths[index])
            self._returns[index] = self._lengths[index] = 0
        elif "episode" in info:
            result = float(info["episode"]["r"]), int(info["episode"]["l"])
        else:
            return  # a wrapper ended the episode (a life lost), the environment did not
        self.observer.on_episode_end(EpisodeInfo(*result, env_steps=self.num_timesteps, env_index=index))


class _Collector(KVWriter):
    """Takes what the model logs. Times are left out: the loop measures its own."""

    def __init__(self) -> None:
        self._taken: list[tuple[int, dict[str, float]]] = []
        self.losses: dict[str, float] = {}

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Keep the numbers of one dump."""
        values: dict[str, float] = {}
        for key, value in key_values.items():
            if key.startswith("time/") or "mlflow" in (key_excluded.get(key) or ()):
                continue
            number = _number(value)
            if number is not None:
                values[key] = number
        self.losses.update(_losses(values))
        if values:
            self._taken.append((int(step), values))

    def take(self) -> list[tuple[int, dict[str, float]]]:
        """Return what was logged since the last call."""
        taken, self._taken, self.losses = self._taken, [], {}
        return taken

    def close(self) -> None:
        """Nothing is open."""


def _number(value: Any) -> float | None:
    if isinstance(value, str | bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _losses(values: Mapping[str, Any]) -> dict[str, float]:
    """Explained variance and means over nothing are NaN legitimately; losses never are."""
    found = {}
    for key, value in values.items():
        if key.startswith("train/") and "loss" in key:
            number = _number(value)
            if number is not None:
                found[key] = number
    return found


# ---- environments given by the user ----


def _spec_of(env: VecEnv) -> Any:
    """Return the Gymnasium specification of the sub-environments without SB3's Monitor, or None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            spec = env.get_attr("spec")[0]
        except Exception:  # whatever a VecEnv without sub-environments raises: it has no specification to show
            return None
    if spec is None:
        return None
    kept = tuple(wrapper for wrapper in spec.additional_wrappers if wrapper.name != Monitor.class_name())
    return dataclasses.replace(spec, additional_wrappers=kept)


def _made(env: Any) -> Any:
    return make_gym_env(env) if isinstance(env, str) else env


def _one_env(env: Any) -> VecEnv:
    env = monitored = _made(env)
    while hasattr(monitored, "env") and not isinstance(monitored, Monitor):
        monitored = monitored.env
    return DummyVecEnv([lambda: env if isinstance(monitored, Monitor) else Monitor(env)])


def _same_env(own: VecEnv | None, given: Any) -> bool:
    """Whether the model already trains in the given environment, or in one of the given id."""
    if own is None:
        return False
    layer: Any = own
    while isinstance(layer, VecEnvWrapper):
        if layer is given:
            return True
        layer = layer.venv
    if layer is given:
        return True
    if isinstance(given, VecEnv) or not isinstance(layer, DummyVecEnv):
        return False
    if isinstance(given, str):
        specs = [getattr(env, "spec", None) for env in layer.envs]
        return all(spec is not None and spec.id == given for spec in specs)
    chain: Any = layer.envs[0]
    while chain is not given and hasattr(chain, "env"):
        chain = chain.env
    return len(layer.envs) == 1 and chain is given


def _is_monitored(env: VecEnv) -> bool:
    layer: Any = env
    while isinstance(layer, VecEnvWrapper):
        if isinstance(layer, VecMonitor):
            return True
        layer = layer.venv
    try:
        return all(env.env_is_wrapped(Monitor))
    except (AttributeError, NotImplementedError):
        return False


def _like(wrapper: VecNormalize, venv: VecEnv) -> VecNormalize:
    return VecNormalize(
        venv,
        training=False,
        norm_obs=wrapper.norm_obs,
        norm_reward=False,
        clip_obs=wrapper.clip_obs,
        epsilon=wrapper.epsilon,
        norm_obs_keys=wrapper.norm_obs_keys,
    )


__all__ = ["SB3Agent", "SB3Evaluation", "describe"]
