"""From a configuration to an SB3 model and its environment."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from rltrack.agents.algorithms import check_action_space, check_observation_space, load_class, model_arguments
from rltrack.agents.devices import choose_device, torch_threads
from rltrack.agents.environments import (
    SeededEpisodes,
    evaluation_builder,
    make_gym_env,
    make_vec_env_from,
    monitor_arguments,
)
from rltrack.agents.random_state import untouched_random_streams
from rltrack.agents.sb3 import SB3Agent
from rltrack.agents.sb3_environments import SB3Evaluation
from rltrack.agents.wrappers import wrapper_stack
from rltrack.algorithms import find_algorithm
from rltrack.cleanup import close_all
from rltrack.config import TrainingConfig
from rltrack.errors import ConfigurationError
from rltrack.named_code import resolve


def check(config: TrainingConfig) -> None:
    """Find out whether the agent could be built, without building it.

    Raises:
        ConfigurationError: If algorithm, environment or hyperparameters do not fit together.
        MissingExtra: If a package is missing.
    """
    algorithm = find_algorithm(config.agent.algorithm)
    model_class = load_class(algorithm)
    env = make_gym_env(config.environment.id, config.environment.kwargs)
    try:
        wrap = wrapper_stack(config.environment.wrappers)
        env = wrap(env) if wrap else env
        check_observation_space(env.observation_space, config.environment.id)
        check_action_space(algorithm, env.action_space, config.environment.id)
        model_arguments(algorithm, model_class, config.agent.hyperparameters, env.action_space)
        resolve(config.agent.policy, "agent.policy")
    finally:
        close_all(env)
    _check_device(config.agent.device)
    monitor_arguments(config.environment)
    if config.environment.restart_crashed and config.environment.vectorization != "subproc":
        raise ConfigurationError(
            f"environment.restart_crashed needs environments in processes of their own; environment.vectorization is "
            f"'{config.environment.vectorization}'. Set it to subproc."
        )


def build(config: TrainingConfig, *, evaluate_in_processes: bool = False) -> tuple[SB3Agent, Any]:
    """Build the agent and its vectorised environment, seeded as SB3 seeds them.

    Args:
        config: What to build.
        evaluate_in_processes: Each evaluation environment in a process of its own.
    """
    check(config)
    algorithm = find_algorithm(config.agent.algorithm)
    model_class = load_class(algorithm)
    gamma = config.agent.hyperparameters.get("gamma", 0.99)
    env = make_vec_env_from(config.environment, config.seed, gamma=gamma)
    evaluation = evaluation_builder(config.environment, gamma=gamma, in_processes=evaluate_in_processes)

    def make(device: str) -> Any:
        return model_class(
            resolve(config.agent.policy, "agent.policy"),
            env,
            seed=config.seed,
            device=device,
            verbose=0,
            **model_arguments(algorithm, model_class, config.agent.hyperparameters, env.action_space),
        )

    device, why = config.agent.device, "as configured"
    try:
        with torch_threads(config.agent.build_threads or config.agent.threads):
            model = make("cpu" if device == "auto" else device)
            if device == "auto":
                device, why = choose_device(model)
                model = model if device == "cpu" else make(device)
    except (AssertionError, ValueError, TypeError, KeyError) as error:
        close_all(env)
        raise ConfigurationError(
            f"{algorithm.name} refuses these settings for {config.environment.id}: {' '.join(str(error).split())}."
        ) from error
    choices = {"device": {"chosen": str(model.device), "reason": why}}
    agent = SB3Agent(
        model,
        threads=config.agent.threads,
        eval_env_builder=evaluation,
        choices=choices,
        acceleration=config.agent.acceleration,
    )
    return agent, model.env


def build_for_acting(config: TrainingConfig, *, evaluate_in_processes: bool = False) -> tuple[SB3Agent, Any]:
    """Build the agent in a single environment, to restore a policy into and to act; torch's threads become the agent's."""
    single = config.environment.model_copy(update={"n_envs": 1, "vectorization": "dummy"})
    with untouched_random_streams(), warnings.catch_warnings():
        # SB3's advice on batch sizes is about training, not about one environment to act in
        warnings.simplefilter("ignore")
        agent, env = build(
            config.model_copy(update={"environment": single}), evaluate_in_processes=evaluate_in_processes
        )
    torch.set_num_threads(config.agent.threads)
    return agent, env


def evaluation_environments(config: TrainingConfig, policy: Any, n_envs: int) -> SB3Evaluation:
    """Build environments that show raw observations, for a stored policy that normalises them itself.

    Args:
        config: Of the run that the policy comes from.
        policy: SB3's policy, which says whether it wants action masks.
        n_envs: How many.
    """
    section = config.environment.model_copy(update={"normalize": False, "vectorization": "dummy"})
    with untouched_random_streams():
        env = make_vec_env_from(section, None, n_envs=n_envs, prepare=SeededEpisodes)
    return SB3Evaluation(env, env, policy)


def _check_device(device: str) -> None:
    try:
        kind = torch.device("cpu" if device == "auto" else device)
    except RuntimeError:
        raise ConfigurationError(f"Unknown agent.device '{device}'. Allowed: auto, cpu, cuda, cuda:N.") from None
    if kind.type == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(
            f"agent.device is '{device}', but torch {torch.__version__} sees no CUDA device. Use auto or cpu."
        )
