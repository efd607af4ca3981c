"""Agents: the interface that the loop talks to, and Stable-Baselines3's algorithms behind it.

Importing this package loads neither torch nor SB3; building or wrapping an SB3 model does.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from rltrack.agents.base import REQUIRED_METHODS, AgentBase, ProtocolAgent
from rltrack.agents.protocol import (
    LEARNER_PARTS,
    POLICY_PARTS,
    Agent,
    EpisodeInfo,
    EvaluationEnvironment,
    IterationStats,
    Observer,
    State,
    StepInfo,
)
from rltrack.errors import ConfigurationError

if TYPE_CHECKING:
    from rltrack.agents.env_state import StateAccess
    from rltrack.agents.sb3 import SB3Agent
    from rltrack.config import EnvironmentConfig, TrainingConfig

__all__ = [
    "LEARNER_PARTS",
    "POLICY_PARTS",
    "Agent",
    "AgentBase",
    "EpisodeInfo",
    "EvaluationEnvironment",
    "IterationStats",
    "Observer",
    "State",
    "StateAccess",
    "StepInfo",
    "as_agent",
    "build_agent",
    "build_for_acting",
    "choose_vectorization",
    "evaluation_environments",
]


def __getattr__(name: str) -> Any:
    if name == "StateAccess":  # on demand: it imports SB3
        from rltrack.agents.env_state import StateAccess

        return StateAccess
    raise AttributeError(f"module {__name__} has no attribute {name}")


def as_agent(agent: Any) -> AgentBase:
    """Return an agent as `AgentBase`: itself, an adapter around an SB3 model, or one around an object with the same methods.

    Raises:
        ConfigurationError: If it is none of these; the missing methods are named.
    """
    if isinstance(agent, AgentBase):
        return agent
    sb3 = sys.modules.get("stable_baselines3.common.base_class")
    if sb3 is not None and isinstance(agent, sb3.BaseAlgorithm):
        from rltrack.agents.sb3 import SB3Agent

        return SB3Agent(agent)
    missing = [name for name in REQUIRED_METHODS if not callable(getattr(agent, name, None))]
    if missing or isinstance(agent, type):
        what = f"the class {agent.__name__}" if isinstance(agent, type) else f"a {type(agent).__name__}"
        raise ConfigurationError(
            f"agent is {what}, which is neither a Stable-Baselines3 model nor an rltrack.agents.AgentBase"
            f"{': it lacks ' + ', '.join(missing) if missing else ''}. Pass for example PPO('MlpPolicy', env)."
        )
    return ProtocolAgent(agent)


def build_agent(config: TrainingConfig) -> tuple[SB3Agent, Any]:
    """Build the agent that a configuration describes, with its environment.

    Returns:
        The agent, and its vectorised training environment.

    Raises:
        ConfigurationError: If algorithm, environment and hyperparameters do not fit together.
        MissingExtra: If a package is missing.
    """
    from rltrack.agents.factory import build

    return build(config)


def build_for_acting(config: TrainingConfig, *, evaluate_in_processes: bool = False) -> tuple[Any, Any]:
    """Build the agent in a single environment, to restore a policy into and to act.

    Args:
        config: Of the run.
        evaluate_in_processes: Each evaluation environment in a process of its own.

    Returns:
        The agent, and its environment.
    """
    from rltrack.agents.factory import build_for_acting as build

    return build(config, evaluate_in_processes=evaluate_in_processes)


def evaluation_environments(config: TrainingConfig, policy: Any, n_envs: int) -> Any:
    """Build environments that show raw observations, for a stored policy that normalises them itself.

    Returns:
        Something with the protocol `EvaluationEnvironment`.
    """
    from rltrack.agents.factory import evaluation_environments as build

    return build(config, policy, n_envs)


def choose_vectorization(config: EnvironmentConfig) -> tuple[str, str]:
    """Measure where parallel environments are faster: in this process, or each in a process of its own.

    Returns:
        ``dummy`` or ``subproc``, and the reason.
    """
    from rltrack.agents.vectorization import choose_vectorization as choose

    return choose(config)
