"""Environments: built from the configuration, and built again for evaluation.

Training environments are built as SB3's ``make_vec_env(id, n_envs, seed=seed)`` builds them, so that "the same as SB3"
has a meaning. Evaluation has environments of its own, never the training ones, with one seed per episode.
"""

from __future__ import annotations

import importlib.util
import inspect
import multiprocessing
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

from rltrack.agents.gym_types import Env, Reset, Step, Wrapper
from rltrack.agents.protocol import Observations
from rltrack.agents.wrappers import wrapper_stack
from rltrack.cleanup import close_all
from rltrack.config import EnvironmentConfig
from rltrack.errors import ConfigurationError, EvaluationUnavailable, MissingExtra, did_you_mean
from rltrack.named_code import import_code, import_module, is_code_name
from rltrack.secrets import one_line, shown, with_environment_values

_EXTRAS = {"box2d": "box2d", "mujoco": "mujoco", "ale": "atari", "atari": "atari"}


def make_gym_env(env_id: str, kwargs: Mapping[str, object] | None = None) -> Env:
    """Build one environment by its id.

    Args:
        env_id: Gymnasium id, or ``package.module:Name`` for a class, or for a function that returns an environment.
        kwargs: Its arguments; ``{env: NAME}`` stands for the value of an environment variable.

    Raises:
        ConfigurationError: If the id is unknown (the nearest ones are named), the arguments do not fit, or the environment
            cannot be built or has not Gymnasium's interface.
        MissingExtra: If the environment's own packages are not installed.
    """
    _register_atari(env_id)
    creator = environment_creator(env_id)
    given = with_environment_values(kwargs or {})
    try:
        env = gym.make(env_id, **given) if creator is None else creator(**given)
    except gym.error.DependencyNotInstalled as error:
        raise _missing_extra(env_id, error) from None
    except (ImportError, gym.error.NamespaceNotFound) as error:
        if _extra_for(f"{env_id} {error}"):
            raise _missing_extra(env_id, error) from None
        raise ConfigurationError(
            f"Environment '{env_id}': {_one_line(error)}.{did_you_mean(env_id, gym.registry)} "
            "To import the package that registers it, write package:Env-v0."
        ) from None
    except gym.error.DeprecatedEnv as error:
        raise ConfigurationError(f"Environment '{env_id}': {_one_line(error)}.") from None
    except gym.error.InvalidMetadata as error:
        raise ConfigurationError(
            f"Environment '{env_id}' cannot be built: {_one_line(error)}. Its class attribute `metadata` must be a dictionary, "
            'such as {"render_modes": []}.'
        ) from None
    except gym.error.UnregisteredEnv as error:
        said, _, _ = _one_line(error).partition(". Did you mean")  # ours follows
        raise ConfigurationError(
            f"Unknown environment '{env_id}': {said}.{did_you_mean(env_id, gym.registry)} "
            "Write an id that Gymnasium knows, or package:Env-v0 to import the package that registers it."
        ) from None
    except TypeError as error:
        asked = shown(dict(kwargs or {}))
        raise ConfigurationError(f"Environment '{env_id}' does not take {asked}: {_one_line(error)}.") from None
    except (ConnectionError, TimeoutError):
        raise  # may work the next time
    except Exception as error:
        raise ConfigurationError(
            f"Environment '{env_id}' cannot be built: {type(error).__name__}: {_one_line(error)}."
        ) from error
    try:
        _check_interface(env, env_id)
    except ConfigurationError:
        close_all(env)
        raise
    return env


def environment_creator(env_id: str) -> Callable[..., Any] | None:
    """Return the class or function that an id of the form ``package.module:Name`` stands for; None for one of Gymnasium's ids.

    Raises:
        ConfigurationError: If the module cannot be imported, or has no such name.
        MissingExtra: If the module belongs to an extra that is not installed.
    """
    module, colon, name = env_id.rpartition(":")
    if not colon:
        return None
    if (extra := _extra_for(module)) and importlib.util.find_spec(module.partition(".")[0]) is None:
        raise _missing_extra(env_id, f"{module} is not installed", extra)
    import_module(module, "environment.id")
    if name in gym.registry or not is_code_name(env_id):
        return None
    return import_code(env_id, "environment.id")  # type: ignore[no-any-return]


def _check_interface(env: Env, env_id: str) -> None:
    """Refuse what is no environment, one without spaces, or one with the `reset` of the old package gym."""
    if not isinstance(env, gym.Env):
        raise ConfigurationError(
            f"Environment '{env_id}' gives a {type(env).__name__}, which is no gymnasium.Env. Name a subclass of gymnasium.Env, or "
            "a function that returns one."
        )
    for name in ("observation_space", "action_space"):
        if not isinstance(getattr(env.unwrapped, name, None), gym.Space):
            raise ConfigurationError(
                f"Environment '{env_id}' has no {name}; set self.{name} in its __init__, to one of gymnasium.spaces."
            )
    try:
        inspect.signature(env.unwrapped.reset).bind(seed=0, options=None)
    except TypeError:
        raise ConfigurationError(
            f"Environment '{env_id}': reset{inspect.signature(env.unwrapped.reset)} is of the old package gym. Write "
            "reset(self, *, seed=None, options=None), returning (observation, info), and a step that returns (observation, reward, "
            "terminated, truncated, info)."
        ) from None
    except ValueError:
        return  # a built-in without a signature


def is_rendered_as_pictures(env_id: str) -> bool | None:
    """Whether an environment says that it has the render mode ``rgb_array``; None where it does not say, without building it."""
    modes = render_modes(env_id)
    return None if modes is None else "rgb_array" in modes


def render_modes(env_id: str) -> tuple[str, ...] | None:
    """Return the render modes that an environment says it has; None where it does not say, without building it."""
    try:
        creator = environment_creator(env_id)
        if creator is None:
            entry = gym.spec(env_id.rpartition(":")[2]).entry_point
            creator = entry if callable(entry) else load_env_creator(str(entry))
        metadata = getattr(creator, "metadata", None)
    except Exception:  # whatever an import raises: building it says it in words
        return None
    return tuple(metadata.get("render_modes") or ()) if isinstance(metadata, Mapping) else None


def _register_atari(env_id: str) -> None:
    if env_id.startswith("ALE/") or "NoFrameskip" in env_id:
        try:
            gym.register_envs(importlib.import_module("ale_py"))
        except ImportError:
            raise _missing_extra(env_id, "ale_py is not installed", "atari") from None


def _extra_for(text: str) -> str | None:
    return next((extra for word, extra in _EXTRAS.items() if word in text.lower()), None)


def _missing_extra(env_id: str, error: object, extra: str | None = None) -> MissingExtra:
    extra = extra or _extra_for(f"{env_id} {error}")
    hint = f"pip install 'rltrack[{extra}]'" if extra else "the package that the message names"
    said, _, _ = _one_line(error).partition(", ")  # how Gymnasium would install it comes after
    return MissingExtra(f"Environment '{env_id}' needs a package: {said}. Install it with: {hint}.")


def _one_line(error: object) -> str:
    return one_line(error).partition(" was raised from the environment creator")[0].rstrip(".")


def make_vec_env_from(config: EnvironmentConfig, seed: int | None, *, n_envs: int | None = None, gamma: float = 0.99,
                      prepare: Callable[[Env], Env] | None = None) -> VecEnv:  # fmt: skip
    """Build the vectorised environment that a configuration describes.

    Args:
        config: What to build.
        seed: Seed of the first reset; environment i gets ``seed + i``.
        n_envs: Number of environments, if not the configuration's.
        gamma: Discount for the normalisation of rewards, if the configuration names none.
        prepare: Put around each bare environment, inside all wrappers.

    Returns:
        An SB3 ``VecEnv``: the wrappers and Monitor, then VecNormalize, then VecFrameStack.
    """
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

    from rltrack.agents.restarting import RestartingSubprocVecEnv

    in_processes = RestartingSubprocVecEnv if config.restart_crashed else SubprocVecEnv
    if config.vectorization == "subproc":  # else each worker imports torch and SB3
        multiprocessing.set_forkserver_preload(["__main__", "rltrack.agents.worker_imports"])
    close_all(make_gym_env(config.id, config.kwargs))  # errors in words, before any worker process starts
    wrap = wrapper_stack(config.wrappers)
    inside, outside = (wrap, None) if config.wrappers_inside_monitor else (None, wrap)
    render_mode = {} if is_rendered_as_pictures(config.id) is False else {"render_mode": "rgb_array"}

    def build(**kwargs: object) -> Env:
        if seed is not None and multiprocessing.parent_process() is not None:  # nothing else seeds its own streams
            random.seed(seed)
            np.random.seed(seed)
        try:
            env = make_gym_env(config.id, {**render_mode, **kwargs})
        except ConfigurationError:
            env = make_gym_env(config.id, kwargs)
        env = prepare(env) if prepare else env
        return inside(env) if inside else env

    venv: VecEnv = make_vec_env(
        build,
        n_envs=config.n_envs if n_envs is None else n_envs,
        seed=seed,
        env_kwargs=dict(config.kwargs),
        wrapper_class=_with_state_access(config, seed, outside),
        vec_env_cls=in_processes if config.vectorization == "subproc" else DummyVecEnv,
        vec_env_kwargs=dict(config.vec_env_kwargs) if config.vectorization == "subproc" else {},
        monitor_kwargs=monitor_arguments(config),
    )
    if config.normalize:
        options = {} if isinstance(config.normalize, bool) else config.normalize.model_dump()
        options["gamma"] = options.get("gamma") or gamma
        venv = VecNormalize(venv, **options)
    if config.frame_stack:
        venv = VecFrameStack(venv, config.frame_stack)
    return venv


def evaluation_builder(
    config: EnvironmentConfig, *, gamma: float, in_processes: bool = False
) -> Callable[[int, Callable[[Env], Env]], VecEnv]:
    """Return a function that builds an evaluation ``VecEnv`` of n environments, each around ``prepare(env)``."""
    section = config.model_copy(update={"vectorization": "subproc" if in_processes else "dummy"})

    def build(n_envs: int, prepare: Callable[[Env], Env]) -> VecEnv:
        return make_vec_env_from(section, None, n_envs=n_envs, gamma=gamma, prepare=prepare)

    return build


def monitor_arguments(config: EnvironmentConfig) -> dict[str, object]:
    """Return the arguments of SB3's Monitor.

    Raises:
        ConfigurationError: If one is unknown, or would write a file.
    """
    allowed = ("allow_early_resets", "reset_keywords")
    for key in config.monitor_kwargs:
        if key not in allowed:
            instead = {
                "info_keywords": " Set environment.info_keywords.",
                "filename": " The journal has every episode.",
            }.get(key, did_you_mean(key, allowed))
            raise ConfigurationError(f"environment.monitor_kwargs has '{key}'. Allowed: {', '.join(allowed)}.{instead}")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in config.monitor_kwargs.items()}
    return {**given, "info_keywords": tuple(config.info_keywords)} if config.info_keywords else given


def _with_state_access(
    config: EnvironmentConfig, seed: int | None, wrap: Callable[[Env], Env] | None
) -> Callable[[Env], Env] | None:
    """Make the inside of environments in worker processes reachable."""
    if config.vectorization != "subproc":
        return wrap
    from rltrack.agents.env_state import StateAccess

    def build_again() -> Env:
        here = config.model_copy(update={"vectorization": "dummy"})
        return make_vec_env_from(here, seed, n_envs=1).unwrapped.envs[0]  # type: ignore[attr-defined, no-any-return]

    def around(env: Env) -> Env:
        return StateAccess(wrap(env) if wrap else env, build_again)

    return around


UNLIMITED_EPISODE_STEPS = 120_000
"""Where an evaluation's episode ends, in an environment without ``max_episode_steps``: beyond ALE's own bound, 108,000 frames."""

CUT = "rltrack.episode_cut"
"""Set in the last info of an episode that was ended because it did not end."""


class SeededEpisodes(Wrapper):
    """Begin each episode from the next seed of a list, whatever resets it; truncate one that does not end.

    An episode that is ended so is truncated, with `CUT` in its last info.
    """

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self._seeds: deque[int] = deque()
        self._steps = 0
        self._limit: int | None = None

    def set_episode_seeds(self, seeds: Sequence[int]) -> None:
        """Give the seeds of the episodes to come; after the last one, resets are unseeded."""
        self._seeds = deque(int(seed) for seed in seeds)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        """Reset with the next seed of the list, if one is left; spaces too, which some environments draw from."""
        self._steps = 0
        if self._seeds:
            seed = self._seeds.popleft()
            self.env.action_space.seed(seed)
            self.env.observation_space.seed(seed)
        return self.env.reset(seed=seed, options=options)

    def limit_episodes(self, steps: int | None) -> None:
        """End episodes after so many steps; None: after `UNLIMITED_EPISODE_STEPS`, where the environment has no limit itself."""
        known = self.env.spec is not None and self.env.spec.max_episode_steps is not None
        self._limit = UNLIMITED_EPISODE_STEPS if steps is None and not known else steps

    def step(self, action: object) -> Step:
        """Step, and truncate an episode that is too long."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._steps += 1
        if self._limit is not None and self._steps >= self._limit and not (terminated or truncated):
            return observation, reward, terminated, True, {**info, CUT: True}
        return observation, reward, terminated, truncated, info


class GymEvaluation:
    """Evaluation in plain Gymnasium environments, for agents that know no SB3."""

    reports_episodes = False

    def __init__(self, envs: Sequence[Env]) -> None:
        self._envs = [env if isinstance(env, SeededEpisodes) else SeededEpisodes(env) for env in envs]
        self.n_envs = len(self._envs)

    def start(self, seeds: Sequence[Sequence[int]]) -> Observations:
        """Begin; the i-th environment plays one episode for each of its seeds."""
        observations = []
        for env, own in zip(self._envs, seeds, strict=True):
            env.set_episode_seeds(own)
            observations.append(env.reset()[0])
        return _stack(observations)

    def limit_episodes(self, steps: int | None) -> bool:
        """As `SeededEpisodes.limit_episodes`."""
        for env in self._envs:
            env.limit_episodes(steps)
        return True

    def step(self, actions: np.ndarray) -> tuple[Observations, np.ndarray, np.ndarray, Sequence[Mapping[str, object]]]:
        """Step each environment, and reset those whose episode ended."""
        observations, rewards, dones, infos = [], [], [], []
        for env, action in zip(self._envs, actions, strict=True):
            observation, reward, terminated, truncated, info = env.step(action)
            done = bool(terminated or truncated)
            observations.append(env.reset()[0] if done else observation)
            rewards.append(float(reward))
            dones.append(done)
            infos.append(info)
        return _stack(observations), np.array(rewards), np.array(dones), infos

    def prediction_inputs(self) -> dict[str, object]:
        """Nothing further."""
        return {}

    def close(self) -> None:
        """Close the environments."""
        close_all(*self._envs)


def _stack(observations: Sequence[Any]) -> Observations:
    if isinstance(observations[0], Mapping):
        return {key: np.stack([item[key] for item in observations]) for key in observations[0]}
    return np.stack([np.asarray(item) for item in observations])


def rebuild(spec: EnvSpec | None, original: object) -> Env:
    """Build another environment like `original`, from the specification that it carries.

    Raises:
        EvaluationUnavailable: If it carries none, or a wrapper that cannot be built again.
    """
    if spec is None:
        raise EvaluationUnavailable(
            f"The environment {original} was not made by gymnasium.make, so that no second one can be built for evaluation. "
            "Pass eval_env=, or register the environment and make it by its id."
        )
    try:
        return gym.make(spec)
    except Exception as error:
        raise EvaluationUnavailable(
            f"No second environment like {spec.id} could be built for evaluation: {_one_line(error)}. Pass eval_env=."
        ) from None


def default_evaluation(env: object, n_envs: int) -> GymEvaluation:
    """Build evaluation environments for an agent that does not build its own."""
    if isinstance(env, str):
        return GymEvaluation([make_gym_env(env) for _ in range(n_envs)])
    return GymEvaluation([rebuild(getattr(env, "spec", None), env) for _ in range(n_envs)])
