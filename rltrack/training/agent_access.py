"""What an agent may offer on top of the protocol, looked up by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rltrack.agents.protocol import State
from rltrack.hash_seed import hash_seed


def call(agent: Any, method: str, *arguments: Any) -> Any:
    """Call an optional method; None where the agent does not have it."""
    found = getattr(agent, method, None)
    return found(*arguments) if callable(found) else None


def can_capture(agent: Any) -> bool:
    """Whether the agent's state can be taken and put back."""
    return callable(getattr(agent, "capture", None)) and callable(getattr(agent, "restore", None))


def capture(agent: Any, parts: Sequence[str] | None = None) -> State:
    """Return the agent's state: the given parts, or all of them."""
    if parts is not None and callable(getattr(agent, "capture_parts", None)):
        return dict(agent.capture_parts(parts))
    state: State = agent.capture()
    return {part: value for part, value in state.items() if parts is None or part in parts}


def why_not_exact(agent: Any) -> str | None:
    """Return why a resume would differ from a run that was never interrupted, or None."""
    if not callable(getattr(agent, "why_not_exact", None)):
        return f"{type(agent).__name__} does not say that its state is complete (why_not_exact)"
    return agent.why_not_exact()  # type: ignore[no-any-return]


def describe_resume(agent: Any) -> dict[str, Any] | None:
    """Return by which tier the environments take part in a resume, if the agent knows."""
    described = call(agent, "describe_resume")
    return None if described is None else dict(described)


def numerics(agent: Any) -> dict[str, Any]:
    """Return what decides about bits beside the versions of packages."""
    return {**(call(agent, "numerics") or {}), "hash_seed": hash_seed()}
