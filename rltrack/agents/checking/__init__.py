"""check_agent: what is missing or wrong in an agent, one line for each finding."""

from __future__ import annotations

import contextlib
import copy
import sys
from typing import Any

from rltrack.agents import as_agent
from rltrack.agents.checking.acting import check_predict
from rltrack.agents.checking.iteration import Training
from rltrack.agents.checking.methods import check_methods
from rltrack.agents.checking.report import CheckAborted, Finding, Report
from rltrack.agents.checking.state import check_exactness, check_seed, check_state
from rltrack.agents.random_state import untouched_random_streams

__all__ = ["Finding", "check_agent"]


def check_agent(agent: Any, env: Any = None, *, seed: int = 0, iterations: int = 3) -> list[Finding]:
    """Check an agent before it is trained.

    It checks the methods and their signatures; trains a few iterations and checks what they report; lets the policy act;
    captures the state, restores it into a copy and compares the next iterations of both bit for bit. An agent that
    ``copy.deepcopy`` can copy is not changed; another one, and an SB3 model, is trained itself: build a new one for training.
    Random streams are unchanged.

    Args:
        agent: An `rltrack.agents.AgentBase`, an object with the same methods, or an SB3 model.
        env: As for `rltrack.TrainingLoop`: an id, a Gymnasium environment, or what the agent's `bind` takes.
        seed: Seed of the training, passed to `bind`.
        iterations: Iterations before the state is captured; enough for the first update.

    Returns:
        The findings, each one line as text: what was found, and what to do. Empty if the agent is right.

    Raises:
        ConfigurationError: If `agent` is a class or neither an agent nor an SB3 model, or the environment cannot be made.
    """
    report = Report()
    if not check_methods(agent, report):
        return report.findings
    as_agent(agent)  # refuses a class, and what is no agent at all
    with untouched_random_streams():
        copies = _copies(agent, env, 3)
        first, resumed, again = (Training(one, its_env, seed, report) for one, its_env in copies)
        try:
            with first:
                beginning = first.iterate(1)
                first.iterate(iterations - 1)
                check_predict(first, copies[0][1], report)
                checkpoint = check_state(first, report)
                expected = first.iterate(2)
            if checkpoint is not None:
                check_exactness(first, resumed, checkpoint, expected, report)
            if first.agent.is_seeded() and copies[0][0] is not copies[1][0]:
                check_seed(again, beginning, report)
        except CheckAborted:
            pass
    return report.findings


def _copies(agent: Any, env: Any, n: int) -> list[tuple[Any, Any]]:
    """Return pairs of agent and environment that share nothing; where that is impossible, the same pair each time."""
    sb3 = sys.modules.get("stable_baselines3.common.base_class")
    if sb3 is None or not isinstance(
        getattr(agent, "model", agent), sb3.BaseAlgorithm
    ):  # a copied VecNormalize is empty
        with contextlib.suppress(Exception):  # an environment in another process, an open file
            return [copy.deepcopy((agent, env)) for _ in range(n)]
    return [(agent, env)] * n
