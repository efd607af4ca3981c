"""SB3's vectorised environments: recognised, wrapped, and built again for evaluation."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    unwrap_vec_normalize,
)

from rltrack.agents.env_state import StateAccess, Wrappers
from rltrack.agents.env_state.layers import gym_layers, vec_layers
from rltrack.agents.environments import SeededEpisodes, make_gym_env, rebuild
from rltrack.agents.gym_types import Env
from rltrack.agents.protocol import Observations
from rltrack.agents.random_state import untouched_random_streams
from rltrack.cleanup import close_all
from rltrack.errors import ConfigurationError, EvaluationUnavailable
from rltrack.text import printable


class SB3Evaluation:
    """A ``VecEnv`` for evaluation: one seed per episode, normalisation frozen at the training's statistics.

    Each evaluation begins alike, whatever was played before.

    Args:
        venv: Where to play.
        training: Whose statistics to use.
        model: Whose policy plays.
        build: Rebuilds `venv` for each evaluation but the first, where a reset does not forget the past.
    """

    def __init__(
        self, venv: VecEnv, training: VecEnv, model: BaseAlgorithm, build: Callable[[], VecEnv] | None = None
    ) -> None:
        self.venv = venv
        self._build = build
        self._is_new = True
        self._wrappers = Wrappers(venv)
        self.n_envs = venv.num_envs
        self.reports_episodes = is_monitored(venv)
        self._training = training
        self._max_steps: int | None = None
        self._masked = "action_masks" in inspect.signature(model.predict).parameters

    def start(self, seeds: Sequence[Sequence[int]]) -> Observations:
        """Take over the training's statistics, seed the episodes and reset."""
        if self._build is not None and not self._is_new:
            close_all(self.venv)
            self.venv = self._build()
        elif not self._is_new:
            self._wrappers.restore()
        self._is_new = False
        ours, theirs = unwrap_vec_normalize(self.venv), unwrap_vec_normalize(self._training)
        if ours is not None:
            ours.training = False
            ours.norm_reward = False
            if theirs is not None and ours is not theirs:
                ours.obs_rms = theirs.obs_rms
                ours.ret_rms = theirs.ret_rms
        if self._seedable:
            self.venv.env_method("limit_episodes", self._max_steps)
            for index, own in enumerate(seeds):
                self.venv.env_method("set_episode_seeds", list(own), indices=[index])
        else:
            self.venv.seed(int(seeds[0][0]))
        return self.venv.reset()

    def limit_episodes(self, steps: int | None) -> bool:
        """End episodes after so many env steps, from the next `start` on; None: as `SeededEpisodes.limit_episodes`.

        Returns:
            False for a ``VecEnv`` that was given: it ends its episodes itself, or not at all.
        """
        self._max_steps = steps
        return self._seedable

    @property
    def _seedable(self) -> bool:
        try:
            return all(self.venv.env_is_wrapped(SeededEpisodes))
        except (AttributeError, NotImplementedError):
            return False

    def step(self, actions: np.ndarray) -> tuple[Observations, np.ndarray, np.ndarray, Sequence[Mapping[str, Any]]]:
        """Step all environments."""
        observations, rewards, dones, infos = self.venv.step(actions)
        return observations, np.asarray(rewards), np.asarray(dones), infos

    def picture(self) -> np.ndarray | None:
        """Return what the environments look like now, uint8, shape ``(height, width, 3)``; None if they cannot show it."""
        return self.venv.render("rgb_array")

    def prediction_inputs(self) -> dict[str, object]:
        """Return the action masks, for algorithms that use them in environments that have them."""
        if not self._masked:
            return {}
        from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported

        return {"action_masks": get_action_masks(self.venv)} if is_masking_supported(self.venv) else {}

    def close(self) -> None:
        """Close the environments."""
        close_all(self.venv)


def evaluation_env(
    model: BaseAlgorithm, given: object, n_envs: int, build: Callable[[int, Callable[[Any], Any]], VecEnv] | None
) -> VecEnv:
    """Build environments like a model's, or take the given one; the process-wide random streams stay as they are.

    Args:
        model: With its training environment.
        given: An environment to evaluate in; None for ones like the training environment.
        n_envs: How many to build.
        build: Builds them, each around what its second argument makes of it; None to mirror the training environment.

    Raises:
        EvaluationUnavailable: If none can be built.
    """
    training: Any = model.env
    try:
        with untouched_random_streams():
            if given is not None:
                venv = given if isinstance(given, VecEnv) else one_env(SeededEpisodes(made(given)))  # type: ignore[arg-type]
            else:
                venv = mirror(training, n_envs) if build is None else build(n_envs, SeededEpisodes)
            venv = model._wrap_env(venv, monitor_wrapper=False)
    except EvaluationUnavailable:
        raise
    except Exception as error:  # training has one, so it is the second one that cannot be had
        raise EvaluationUnavailable(
            f"A second environment could not be built: {type(error).__name__}: {printable(' '.join(str(error).split()))}. "
            "Pass eval_env=, or let the environment allow several in one process."
        ) from error
    if venv.observation_space != training.observation_space:
        raise EvaluationUnavailable(
            f"The evaluation environment has the observation space {venv.observation_space}, training has "
            f"{training.observation_space}. Pass an eval_env= that is wrapped as the training environment is."
        )
    return venv


def mirror(training: VecEnv, n_envs: int) -> VecEnv:
    """Build a chain of wrappers like the training environment's around environments of its own."""
    *chain, inner = vec_layers(training)
    spec = spec_of(inner)
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


def spec_of(env: VecEnv) -> EnvSpec | None:
    """Return the Gymnasium specification of the sub-environments without SB3's Monitor and our access, or None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            spec: EnvSpec | None = env.get_attr("spec")[0]
        except Exception:  # whatever a VecEnv without sub-environments raises: it has no specification to show
            return None
    if spec is None:
        return None
    ours = (Monitor.class_name(), StateAccess.class_name())
    kept = tuple(wrapper for wrapper in spec.additional_wrappers if wrapper.name not in ours)
    return dataclasses.replace(spec, additional_wrappers=kept)


def environment_class(env: VecEnv) -> str:
    """Return the class name of the environments inside, or of the vectorised one where they are in other processes."""
    *_, base = vec_layers(env)
    return type(base.envs[0].unwrapped if isinstance(base, DummyVecEnv) else base).__name__


def made(env: str | Env) -> Env:
    """Return an environment; an id is made into one."""
    return make_gym_env(env) if isinstance(env, str) else env


def one_env(env: str | Env) -> VecEnv:
    """Return a single environment (or one of an id) as a vectorised one, under a Monitor."""
    env = made(env)
    return DummyVecEnv([lambda: env if is_wrapped(env, Monitor) else Monitor(env)])


def same_env(own: VecEnv | None, given: object) -> bool:
    """Whether the model already trains in the given environment, or in one of the given id."""
    if own is None:
        return False
    layers = list(vec_layers(own))
    if any(layer is given for layer in layers):
        return True
    layer = layers[-1]
    if isinstance(given, VecEnv) or not isinstance(layer, DummyVecEnv):
        return False
    if isinstance(given, str):
        specs = [getattr(env, "spec", None) for env in layer.envs]
        return all(spec is not None and spec.id == given for spec in specs)
    return len(layer.envs) == 1 and any(part is given for part in gym_layers(layer.envs[0]))


def is_monitored(env: VecEnv) -> bool:
    """Whether its infos carry each episode's raw return and length."""
    if any(isinstance(layer, VecMonitor) for layer in vec_layers(env)):
        return True
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


def use_environment(model: BaseAlgorithm, env: str | Env | VecEnv | None) -> None:
    """Give a model the environment to train in; None for the one that it has.

    Raises:
        ConfigurationError: If neither is there, or the model cannot train in it.
    """
    if env is None or same_env(model.env, env):
        if model.env is None:
            raise ConfigurationError("Neither the model nor TrainingLoop has an environment. Pass env=.")
        return
    try:
        model.set_env(one_env(env) if not isinstance(env, VecEnv) else env, force_reset=True)
    except (AssertionError, TypeError, ValueError) as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise ConfigurationError(
            f"The model cannot train in the environment that TrainingLoop was given: {said}. Pass an environment, an id or a "
            "VecEnv with the spaces and the number of environments of the model; or make the model with it."
        ) from error
