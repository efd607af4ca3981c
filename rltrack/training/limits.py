"""What ends a training without a request: too much memory, and numbers that are no numbers."""

from __future__ import annotations

import contextlib
import math
import re
import time
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rltrack.agents.protocol import POLICY_PARTS, State
from rltrack.checkpoints.encoding import find_nonfinite
from rltrack.errors import EvaluationUnavailable, RltrackError, TrainingDiverged

if TYPE_CHECKING:
    from rltrack.agents import AgentBase
    from rltrack.training.progress import TrainingProgress

RESOURCES_EVERY_SECONDS = 5.0
MEMORY_EVERY_SECONDS = 1.0


class ResourceWatch:
    """Looks at memory, CPU and GPU now and then, at boundaries.

    Args:
        progress: Where the last look is kept.
        memory_limit_mb: Resident memory of training and its environment workers that is allowed, in MB; None for any.
    """

    def __init__(self, progress: TrainingProgress, memory_limit_mb: float | None) -> None:
        self.exceeded: str | None = None
        """What was exceeded, in words; None while all is well."""
        self._progress = progress
        self._limit = memory_limit_mb
        self._looked = float("-inf")

    def look(self) -> None:
        """Look if it is time to: each second where there is a limit, else every five."""
        now = time.monotonic()
        if now - self._looked < (RESOURCES_EVERY_SECONDS if self._limit is None else MEMORY_EVERY_SECONDS):
            return
        self._looked = now
        resources = self._progress.update_resource_usage()
        if self._limit is not None and resources.memory_mb > self._limit:
            self.exceeded = (
                f"training holds {resources.memory_mb:,.0f} MB, memory_limit_mb is {self._limit:,.0f}. A checkpoint was "
                "written; give it more memory, fewer environments or a smaller buffer, and resume."
            )


def refuse_nonfinite_losses(losses: Mapping[str, float], env_steps: int) -> None:
    """Raise if a loss is NaN or infinite.

    Raises:
        TrainingDiverged: With the loss's key and value.
    """
    for key, value in losses.items():
        if value - value != 0.0:  # NaN and infinities
            raise TrainingDiverged(
                f"{key} is {value} at {env_steps} env steps. The last version is good; lower the learning rate or normalise "
                "observations and rewards, and start a new run or from that version."
            )


class Divergence:
    """Recognises that training came to NaN or infinities.

    An array of the policy with infinities that never changes is none: attention layers have masks of that kind. (An agent without
    a `capture_parts` of its own is not looked at for that, as all of it would be captured.)

    Args:
        agent: What is trained, as it is before this attempt trains it.
    """

    def __init__(self, agent: AgentBase) -> None:
        self._agent = agent
        is_cheap = agent.is_capturable and agent.implements("capture_parts")
        before = agent.capture_parts(POLICY_PARTS) if is_cheap else {}
        self._before = {path: np.copy(value) for path, value in find_nonfinite(before.get("policy")).items()}

    def refuse_nonfinite_weights(self, state: Mapping[str, Any], env_steps: int) -> None:
        """Raise if a weight of the policy is NaN or infinite, so that no bad version is written.

        Raises:
            TrainingDiverged: With the names of the first such weights.
        """
        before, found = self._before, find_nonfinite(state.get("policy"))
        same = {path for path in before.keys() & found.keys() if np.array_equal(before[path], found[path])}  # never NaN
        bad = [path for path in found if path not in same]
        if bad:
            raise TrainingDiverged(
                f"Weights became NaN or infinite before {env_steps} env steps: {', '.join(bad[:5])}. No version was written. "
                "Lower the learning rate or normalise observations and rewards."
            )

    def explain(self, env_steps: int, error: Exception, policy: State | None = None) -> None:
        """Say what it was, if an error came of NaN or infinities, wherever it arose: collecting, updating, evaluating.

        Looks at the weights first: NaN, infinite, or so large that float32 does not hold their products. A policy's output may be
        NaN all the same, also because observations are: then torch's distributions refuse it.

        Args:
            env_steps: Where training is.
            error: What was raised.
            policy: The policy that was played; None for the agent's own, as it is.

        Raises:
            TrainingDiverged: If that is what happened.
        """
        if isinstance(error, RltrackError) and not isinstance(error, EvaluationUnavailable):
            return
        if policy is None and self._agent.is_capturable:
            with contextlib.suppress(Exception):  # a GPU whose kernel failed an assertion answers with errors only
                policy = self._agent.capture_parts(POLICY_PARTS)
        try:
            self.refuse_nonfinite_weights(policy or {}, env_steps)
        except TrainingDiverged as diverged:
            raise diverged from error
        largest = _largest((policy or {}).get("policy"))
        if largest > _TOO_LARGE:
            what = f"Weights grew to {largest:.3g}, whose products a float32 does not hold,"
        elif _was_refused_by_torch(error):
            what = "The policy's output became NaN or infinite, or a standard deviation 0,"
        else:
            return
        said = (str(error).splitlines() or [""])[0][:160]  # torch adds the whole tensor
        raise TrainingDiverged(
            f"{what} before {env_steps} env steps ({type(error).__name__}: {said}). The last version is "
            "good. Lower the learning rate, normalise observations and rewards, or look for NaN in the environment's observations "
            "(stable_baselines3.common.vec_env.VecCheckNan finds them)."
        ) from error


_TOO_LARGE = math.sqrt(float(np.finfo(np.float32).max))
_NO_NUMBER = re.compile(r"\b(nan|inf)\b", re.IGNORECASE)


def _largest(tree: Any) -> float:
    """Return the largest finite magnitude among the floats of a nested state."""
    if isinstance(tree, Mapping):
        return max(map(_largest, tree.values()), default=0.0)
    if isinstance(tree, list | tuple):
        return max(map(_largest, tree), default=0.0)
    if isinstance(tree, np.ndarray) and np.issubdtype(tree.dtype, np.floating) and tree.size:
        return float(np.max(np.abs(tree), where=np.isfinite(tree), initial=0.0))
    return 0.0


def _was_refused_by_torch(error: BaseException) -> bool:
    """Whether torch refused the parameters of a distribution: a policy's output, or what came of it."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    module = str(frames[-1].f_globals.get("__name__", "")) if frames else ""
    if module.startswith("torch.distributions"):
        return isinstance(error, ValueError | RuntimeError)
    return module.startswith("torch.") and isinstance(error, RuntimeError) and bool(_NO_NUMBER.search(str(error)))
