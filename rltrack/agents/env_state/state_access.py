"""A wrapper through which a training process reaches the inside of an environment that lives in another process."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from rltrack.agents.env_state import layers
from rltrack.agents.env_state.probe import Finding, probe_copies
from rltrack.agents.env_state.recorder import record
from rltrack.agents.gym_types import Env, Reset, Wrapper
from rltrack.agents.random_state import capture_random, restore_random
from rltrack.checkpoints.encoding import State
from rltrack.cleanup import close_all
from rltrack.errors import NotCapturable, ResumeMismatch


class StateAccess(Wrapper):
    """Put outermost around an environment in a worker process, so that its run resumes exactly.

    With SB3: ``make_vec_env(id, n_envs, vec_env_cls=SubprocVecEnv, wrapper_class=StateAccess)``. An environment from a
    configuration with ``vectorization: subproc`` has it already.

    Args:
        env: The environment.
        build: Builds another one like it; needed for ``checkpoints.cut_freq`` only.
    """

    def __init__(self, env: Env, build: Callable[[], Env] | None = None) -> None:
        super().__init__(env)
        self._build = build

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        """Reset; in a worker process a seed also seeds the process-wide streams, which environments may draw from."""
        if seed is not None and multiprocessing.parent_process() is not None:
            random.seed(seed)
            np.random.seed(seed)
        return self.env.reset(seed=seed, options=options)

    def close(self) -> None:
        """Close the environment; an error there is reported, and does not end the worker before it has answered."""
        close_all(self.env)

    def rebuild(self, seed: int) -> None:
        """Replace the environment by a new one whose spaces are seeded; reset it before anything else.

        Raises:
            NotCapturable: Without a build function.
        """
        if self._build is None:
            raise NotCapturable(
                "StateAccess cannot rebuild this environment: it has no build function. Use StateAccess(env, build)."
            )
        close_all(self.env)
        self.env = seed_spaces(self._build(), seed)

    def probe_copies(self) -> Finding | None:
        """Find out on copies how the environment can be taken (`probe.probe_copies`); None where they cannot be played."""
        try:  # what is raised here ends the worker
            return probe_copies(self)
        except Exception:
            return None

    def record_episodes(self) -> None:
        """Begin to record what a replay needs."""
        record(self.unwrapped)

    def capture_state(self, method: str) -> State:
        """Return the state of the environment and of this process's random streams (`layers.capture`), or an ``error``."""
        try:  # what is raised here ends the worker
            return {"layers": layers.capture(self._layers, [self.unwrapped], method), "random": capture_random()}
        except NotCapturable as error:
            return {"error": str(error)}

    def digest_of_start(self, method: str) -> str | None:
        """Return a hash of what the environment holds after its first reset (`layers.digest_of_start`); None if there is none."""
        try:
            return layers.digest_of_start(self._layers, [self.unwrapped], method)
        except NotCapturable:
            return None

    def restore_state(self, state: State) -> str | None:
        """Put back what `capture_state` returned; return why that did not work, or None."""
        try:
            layers.restore(self._layers, [self.unwrapped], state["layers"])
        except (NotCapturable, ResumeMismatch) as error:
            return str(error)
        restore_random(state["random"])
        return None

    @property
    def _layers(self) -> list[Env]:
        return list(layers.gym_layers(self))


def seed_spaces(env: Env, seed: int) -> Env:
    """Seed both spaces of an environment, which some environments draw from; return it."""
    env.action_space.seed(seed)
    env.observation_space.seed(seed)
    return env
