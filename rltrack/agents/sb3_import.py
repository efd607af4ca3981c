"""A model that plain SB3 wrote, as a configuration and the state that goes into an agent built from it."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from rltrack.agents import sb3_state
from rltrack.agents.algorithms import load_class
from rltrack.agents.environments import make_vec_env_from
from rltrack.agents.protocol import LEARNER_PARTS, State
from rltrack.agents.random_state import untouched_random_streams
from rltrack.agents.reconstruction import reconstruct
from rltrack.algorithms import find_algorithm
from rltrack.cleanup import close_all
from rltrack.config import EnvironmentConfig
from rltrack.errors import ConfigurationError
from rltrack.zoo_logs import AgentFiles


@dataclass(frozen=True, slots=True)
class ImportedAgent:
    """What goes into a run.

    Attributes:
        config: Sections ``agent`` and ``environment``, and the seed.
        state: Policy, optimizer and normalisation.
        env_steps: How long it was trained.
        notes: What could not be taken over, a line each.
    """

    config: Mapping[str, Any]
    state: State
    env_steps: int
    notes: tuple[str, ...]


def read_sb3(files: AgentFiles) -> ImportedAgent:
    """Load a model with its environment, and find out its configuration. This runs the code in the files: they are pickles.

    Raises:
        ConfigurationError: If the files cannot be loaded, or something that acting needs cannot be found out.
    """
    section = EnvironmentConfig.model_validate(
        {**files.environment, "n_envs": 1, "normalize": False, "frame_stack": None}
    )
    with untouched_random_streams():
        env = make_vec_env_from(section, None)
        try:
            env = _wrapped(env, files)
            try:
                model = load_class(find_algorithm(files.algorithm)).load(files.model, env=env, device="cpu")
                data, _, _ = load_from_zip_file(files.model, device="cpu")
            except Exception as error:  # whatever a foreign pickle raises
                raise _not_loaded(files.model, error) from error
            found = reconstruct(model)
            if found.missing:
                raise ConfigurationError(f"{files.model} cannot become a run. It lacks {'; '.join(found.missing)}.")
            state = sb3_state.capture(model, LEARNER_PARTS)
        finally:
            close_all(env)
    taken = {key: value for key, value in files.hyperparameters.items() if key not in found.agent["hyperparameters"]}
    lost = [line for line in found.script_only if not any(f"hyperparameter {key}:" in line for key in taken)]
    needed = {
        key: value
        for key, value in taken.items()
        if any(f"hyperparameter {key}:" in line for line in found.script_only)
    }
    agent = {**found.agent, "hyperparameters": {**found.agent["hyperparameters"], **needed}}
    # where rl_zoo3's settings name the wrappers, their order around Monitor is known; they cannot be seen from outside
    environment = {
        **found.environment,
        **{key: value for key, value in files.environment.items() if key != "normalize"},
    }
    environment["n_envs"] = int((data or {}).get("n_envs") or 1)
    seed = model.seed if isinstance(model.seed, int) else 0
    notes = tuple(f"for further training, {line}" for line in lost)
    return ImportedAgent(
        {"seed": seed, "agent": agent, "environment": environment}, state, int(model.num_timesteps), notes
    )


def _wrapped(env: Any, files: AgentFiles) -> Any:
    """Put SB3's layers around the environment, in the order in which rl_zoo3 and rltrack have them."""
    if files.statistics is not None:
        try:
            env = VecNormalize.load(str(files.statistics), env)
        except (
            pickle.UnpicklingError,
            AttributeError,
            EOFError,
            ImportError,
            IndexError,
            TypeError,
            ValueError,
        ) as error:
            raise _not_loaded(files.statistics, error) from error
        env.training = False
    elif files.environment.get("normalize"):
        raise ConfigurationError(
            f"The settings next to {files.model} say that observations are normalised, and the statistics are missing. Give them: "
            "--vecnormalize vecnormalize.pkl."
        )
    stacked = files.environment.get("frame_stack")
    return VecFrameStack(env, int(stacked)) if stacked else env


def _not_loaded(path: Path, error: Exception) -> ConfigurationError:
    text = " ".join(str(error).split())[:300]
    return ConfigurationError(
        f"{path} cannot be loaded with the algorithm and environment as given: {type(error).__name__}: {text}"
    )
