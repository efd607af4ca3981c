"""Which methods an agent has, and whether they can be called as the training loop calls them."""

from __future__ import annotations

import difflib
import inspect
import sys
from typing import Any

from rltrack.agents.base import OPTIONAL_METHODS, REQUIRED_METHODS, AgentBase
from rltrack.agents.checking.report import Report

_CALLS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "bind": (("env", "seed"), ()),
    "advance": (("observer",), ()),
    "predict": (("observation",), ("state", "episode_start", "deterministic")),
    "set_schedule": (("remaining",), ()),
    "capture_parts": (("parts",), ()),
    "restore": (("state",), ()),
    "make_evaluation_env": (("env", "n_envs"), ()),
    "allow_probe": (("allowed",), ()),
    "cut_environments": (("wanted",), ()),
    "scale_learning_rate": (("factor",), ()),
    "set_log_interval": (("interval",), ()),
}
"""Positional and keyword arguments of each call; methods that are not here are called without."""
_TOGETHER = (("capture", "restore"), ("restore", "capture"), ("cut_environments", "cut"), ("capture_parts", "capture"))


def check_methods(agent: Any, report: Report) -> bool:
    """Check the methods of an agent without calling them; return whether the check can continue.

    SB3 models and classes have none; `rltrack.agents.as_agent` takes or refuses them.
    """
    sb3 = sys.modules.get("stable_baselines3.common.base_class")
    if isinstance(agent, type) or (sb3 is not None and isinstance(agent, sb3.BaseAlgorithm)):
        return True
    for name in REQUIRED_METHODS:
        if not callable(getattr(agent, name, None)):
            report.error(f"{name}() is missing", f"Implement {_written(name)}, or inherit rltrack.agents.AgentBase")
    own = [name for name in (*REQUIRED_METHODS, *OPTIONAL_METHODS) if _is_own(agent, name)]
    for name in own:
        problem = _signature_problem(agent, name)
        if problem is not None:
            report.error(f"{name}{problem} cannot be called as {_written(name)}", "Give it these parameters")
    for name, partner in _TOGETHER:
        if name in own and partner not in own:
            report.error(f"there is {name}() and no {partner}()", f"Implement {_written(partner)} too")
    for name in dir(type(agent)):
        if name.startswith("_") or hasattr(AgentBase, name) or not callable(getattr(agent, name, None)):
            continue
        close = difflib.get_close_matches(name, OPTIONAL_METHODS, 1, 0.85)
        if close and close[0] not in own:
            report.warning(f"{name}() is never called", f"If {close[0]}() is meant, rename it")
    return not any(finding.severity == "error" for finding in report.findings)


def _is_own(agent: Any, name: str) -> bool:
    """Whether the agent has a method of its own, not the default of `AgentBase`."""
    if isinstance(agent, AgentBase):
        return agent.implements(name)
    return callable(getattr(agent, name, None))


def _written(name: str) -> str:
    positional, keywords = _CALLS.get(name, ((), ()))
    return f"{name}({', '.join([*positional, *(f'{key}={key}' for key in keywords)])})"


def _signature_problem(agent: Any, name: str) -> str | None:
    """Return the signature of a method if it does not take the call of the training loop."""
    positional, keywords = _CALLS.get(name, ((), ()))
    try:
        signature = inspect.signature(getattr(agent, name))
    except (TypeError, ValueError):  # a built-in
        return None
    try:
        signature.bind(*positional, **dict.fromkeys(keywords))
    except TypeError:
        return str(signature)
    return None
