"""The inside of training environments: how it is taken at a boundary, and put back into fresh copies.

``layers`` takes what Python objects hold, in the pickles of ``streams``; ``simulators`` knows MuJoCo and ALE, ``recorder``
replays what can only be replayed, ``probe`` finds out which of these works, on ``copies`` where none can be built, and
``training_envs`` puts it together for SB3's vectorised environments.
"""

from rltrack.agents.env_state.state_access import StateAccess
from rltrack.agents.env_state.training_envs import TrainingEnvs, Wrappers

__all__ = ["StateAccess", "TrainingEnvs", "Wrappers"]
