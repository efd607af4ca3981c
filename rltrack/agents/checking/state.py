"""Whether an agent's state is complete: restored into a copy, it gives the same next iterations bit for bit."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rltrack.agents.base import AgentBase, ProtocolAgent
from rltrack.agents.checking.iteration import Trace, Training
from rltrack.agents.checking.report import CheckAborted, Report, one_line
from rltrack.agents.protocol import POLICY_PARTS, State
from rltrack.agents.random_state import capture_random
from rltrack.checkpoints.difference import first_difference
from rltrack.checkpoints.encoding import decode, encode
from rltrack.errors import NotCapturable, ResumeMismatch

_UNINTERRUPTED = ("the uninterrupted training", "the resumed one")
_PROCESS_WIDE = {
    "python": "Python's module random",
    "numpy": "numpy.random",
    "torch": "torch's default generator",
    "cuda": "CUDA's default generators",
}


@dataclass(frozen=True)
class Checkpoint:
    """An agent at a boundary.

    Attributes:
        live: What `capture` returned.
        state: The same as a store would return it.
        env_steps: Env steps so far.
        inside: The agent's attributes and random streams, by name, to explain a difference.
    """

    live: State
    state: State
    env_steps: int
    inside: Mapping[str, object]


def check_state(training: Training, report: Report) -> Checkpoint | None:
    """Capture the state between two iterations and check it; None without `capture` and `restore`.

    Raises:
        CheckAborted: If it cannot be stored.
    """
    agent = training.agent
    if not agent.is_capturable:
        report.warning(
            "there is no capture() and restore(state)",
            "Implement both, or a training has no checkpoints and cannot resume",
        )
        return None
    training.set_schedule()
    live = report.calling("capture()", agent.capture)
    if not isinstance(live, dict) or not all(isinstance(part, str) for part in live):
        report.error(f"capture() returns a {type(live).__name__}", "Return a dictionary of parts, such as 'policy'")
        raise CheckAborted
    if "loop" in live:
        report.error("capture() returns a part 'loop', which the training loop uses itself", "Rename this part")
    if not live.get("policy"):
        report.error(
            "capture() returns no part 'policy'", "Put into it what predict() needs; the best version holds it"
        )
    try:
        state = _stored(live)
    except TypeError as error:
        report.error(
            f"capture() returns a state that cannot be stored: {error}",
            "Use numbers, text, bytes, None and numpy arrays in dictionaries, lists and tuples",
        )
        raise CheckAborted from None
    _, difference = first_difference(
        _compared(state), _compared(_stored(agent.capture())), ("the first call", "the second")
    )
    if difference is not None:
        report.error(
            f"two calls of capture() at one boundary differ: {difference}", "Capture changes nothing, and no time"
        )
    parts = report.calling("capture_parts(('policy',))", lambda: agent.capture_parts(("policy",)))
    if set(parts) - {"policy"}:
        report.error(f"capture_parts(('policy',)) returns {sorted(parts)}", "Return the parts that are asked for only")
    return Checkpoint(live, state, training.observer.env_steps, _inside(agent, training.env, training.streams_before))


def check_exactness(
    first: Training, resumed: Training, checkpoint: Checkpoint, expected: Trace, report: Report
) -> None:
    """Restore a checkpoint into another agent and compare its next iterations.

    Args:
        first: The training that was captured and continued; its agent is released.
        resumed: One with an agent that has not been trained.
        checkpoint: Of the first.
        expected: What the first reported after it.
        report: Where findings go.
    """
    continued = _stored(first.agent.capture())
    _, changed = first_difference(
        _without_rings(checkpoint.state),
        _without_rings(_stored(checkpoint.live)),
        ("the state", "the same state later"),
    )
    if changed is not None:
        report.error(
            f"the next iteration changes what capture() returned: {changed}", "Return copies of arrays and lists"
        )
    _use_other_random_streams()
    with resumed:
        agent = resumed.agent
        resumed.observer.env_steps = checkpoint.env_steps
        resumed.iterations = first.iterations - len(expected)
        if resumed.description != first.description:
            _, difference = first_difference(first.description, resumed.description, _UNINTERRUPTED)
            report.error(
                f"describe() changes between two trainings of the same agent: {difference}",
                "Describe settings only, or a run cannot be resumed",
            )
        try:
            agent.restore(copy.deepcopy(checkpoint.state))
        except (ResumeMismatch, NotCapturable) as error:
            report.warning(
                f"a resume is not exact: {str(error).rstrip('.')}", "It begins new episodes, and is labelled"
            )
            return
        except Exception as error:
            report.error(
                f"restore(state) raised {one_line(error)}", "It gets what capture() returned, in a new process"
            )
            raise CheckAborted from error
        resumed.set_schedule()
        missed = _missed(checkpoint.inside, _inside(agent, resumed.env))
        _, lost = first_difference(
            _compared(checkpoint.state), _compared(_stored(agent.capture())), ("the captured state", "the restored one")
        )
        if lost is not None:
            report.error(f"restore() does not bring back {lost}", "Overwrite everything that capture() returned")
            return
        trace = resumed.iterate(len(expected))
        whole = {"iterations": expected, "state": _compared(continued)}
        pieces = {"iterations": trace, "state": _compared(_stored(agent.capture()))}
        _, difference = first_difference(whole, pieces, _UNINTERRUPTED)
        _judge(agent, difference, missed, checkpoint.state, report)
        _check_partial_restore(agent, checkpoint.state, report)


def check_seed(again: Training, beginning: Trace, report: Report) -> None:
    """Compare the first iteration of a second training with the same seed, which `is_seeded` promises to be the same."""
    _use_other_random_streams()
    with again:
        _, difference = first_difference(beginning, again.iterate(len(beginning)), ("one training", "another"))
    if difference is not None:
        report.error(
            f"is_seeded() returns True, and two trainings with the same seed differ: {difference}",
            "Seed everything in bind(env, seed), or return False",
        )


def _judge(agent: AgentBase, difference: str | None, missed: list[str], state: State, report: Report) -> None:
    reason = agent.why_not_exact() if agent.implements("why_not_exact") else None
    if reason is not None:
        report.warning(f"the agent says that a resume is not exact: {reason.rstrip('.')}", "Resumed runs are labelled")
    elif difference is not None:
        remedy = "capture() lacks something that decides about the next iteration"
        if missed:
            remedy = f"capture() and restore() do not bring back {', '.join(missed)}"
        report.error(f"a resumed training differs from an uninterrupted one: {difference}", remedy)
    elif not agent.implements("why_not_exact"):
        report.warning(
            "a resume is exact, but there is no why_not_exact()",
            "Return None in it, or resumed runs are labelled as not exact",
        )
    elif state.get("environment") is None:
        report.error(
            "capture() returns no part 'environment', so that resumed runs are labelled as not exact",
            "Return {} in it if a resume needs nothing of the environment",
        )


def _check_partial_restore(agent: AgentBase, state: State, report: Report) -> None:
    """An agent gets only some parts when the policy of another version is loaded."""
    before = _stored(agent.capture())
    policy = {part: state[part] for part in POLICY_PARTS if part in state}
    try:
        agent.restore(copy.deepcopy(policy))
    except Exception as error:
        report.error(
            f"restore() with the part(s) {', '.join(policy)} only raised {one_line(error)}",
            "Restore the parts that are there, and leave the others as they are",
        )
        return
    others = [part for part in before if part not in policy]
    _, difference = first_difference(
        _compared(before, others), _compared(_stored(agent.capture()), others), ("the state before", "the state after")
    )
    if difference is not None:
        report.error(
            f"restore() with the part(s) {', '.join(policy)} only changes another part: {difference}",
            "Leave parts that are not given as they are",
        )


def _stored(state: State) -> State:
    encoded = encode(state)
    stored: State = decode(encoded.skeleton, encoded.tensors, copy.deepcopy(dict(encoded.rings)))
    return stored


def _without_rings(state: State) -> list[bytes]:
    """Rows of rings may be live (`rltrack.checkpoints.rings.Ring`); everything else is compared as bytes."""
    encoded = encode(state)
    return [encoded.skeleton, encoded.tensors]


def _compared(state: State, parts: Collection[str] | None = None) -> State:
    """Return the parts that must have the same bits; objects inside environments have no stable serialised form."""
    return {part: value for part, value in state.items() if part != "environment" and (parts is None or part in parts)}


def _use_other_random_streams() -> None:
    """As a new process would: nothing may depend on where the process-wide streams were."""
    random.seed(0x5EED)
    np.random.seed(0x5EED)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0x5EED)


def _inside(agent: AgentBase, env: Any, unused: Mapping[str, object] | None = None) -> dict[str, object]:
    """Return the agent's plain attributes and the states of random streams, by name.

    Args:
        agent: The agent.
        env: Its environment.
        unused: Process-wide streams as they were before training; one that is still the same is left out.
    """
    own = agent.agent if isinstance(agent, ProtocolAgent) else agent
    found: dict[str, object] = {}
    for name, value in vars(own).items():
        found |= _value(f"self.{name}", value)
        for inner, its_value in vars(value).items() if hasattr(value, "__dict__") and value is not env else ():
            found |= _stream(f"self.{name}.{inner}", its_value)
    if hasattr(env, "unwrapped"):
        found |= _stream("the environment's np_random", getattr(env.unwrapped, "_np_random", None))
    return found | {
        _PROCESS_WIDE[name]: copy.deepcopy(state)
        for name, state in capture_random().items()
        if unused is None or first_difference(state, unused.get(name))[1] is not None
    }


def _value(name: str, value: object) -> dict[str, object]:
    if isinstance(value, bool | int | float | str | np.ndarray | np.generic) or value is None:
        return {name: copy.deepcopy(value)}
    return _stream(name, value)


def _stream(name: str, value: object) -> dict[str, object]:
    torch = sys.modules.get("torch")
    if isinstance(value, np.random.Generator):
        return {name: copy.deepcopy(value.bit_generator.state)}
    if isinstance(value, np.random.RandomState):
        return {name: copy.deepcopy(value.get_state(legacy=False))}
    if isinstance(value, random.Random):
        return {name: value.getstate()}
    if torch is not None and isinstance(value, torch.Generator):
        return {name: value.get_state().numpy().copy()}
    return {}


def _missed(expected: Mapping[str, object], found: Mapping[str, object]) -> list[str]:
    """Return what is not as it was: the agent's own if there is any, else random streams of the environment and the process."""
    missed = [name for name, value in expected.items() if first_difference(value, found.get(name))[1] is not None]
    own = [name for name in missed if name.startswith("self.")]
    return own or missed
