"""A registered model as data: its versions, its events, its names."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rltrack.errors import ConfigurationError

CHAMPION, CHALLENGER = "champion", "challenger"


DECISION_TAG = "rltrack.decision"


EVENT_TAG = "rltrack.history."


_NAME = re.compile(r"[A-Za-z0-9][\w.\-]{0,99}")


_SHOWN_EVENTS = 25


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a registered model.

    Attributes:
        kind: ``promoted``, ``refused``, ``rolled back``, ``moved`` (by another program), ``stored again``, ``degraded`` or
            ``pruned``.
        version: The version that it is about.
        reason: Why.
        champion: The champion afterwards; None without one.
        source: ``RUN@version`` of the policy.
        decision: Id of the decision that it applies.
        time: Unix seconds.
        number: 1, 2, 3, …
    """

    kind: str
    version: int
    reason: str
    champion: int | None
    source: str = ""
    decision: str = ""
    time: float = 0.0
    number: int = 0


@dataclass(frozen=True, slots=True)
class Registered:
    """One version of a registered model.

    Attributes:
        version: Its number.
        model_id: MLflow's id of the stored policy.
        run_id: MLflow's id of the run.
        tags: Its tags.
    """

    version: int
    model_id: str
    run_id: str | None
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """``RUN@version``."""
        return f"{self.tags.get('rltrack.run', '?')}@{self.tags.get('rltrack.version', '?')}"

    @property
    def decision(self) -> dict[str, Any] | None:
        """The last decision about it."""
        text = self.tags.get(DECISION_TAG)
        return json.loads(text) if text else None


def number_of(champion: Registered | None) -> int | None:
    """Return a champion's version; None without one."""
    return None if champion is None else champion.version


def check_model_name(name: str) -> str:
    """Return the name if it is a valid model name.

    Raises:
        ConfigurationError: If not.
    """
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"Model name {name!r} is not allowed. Use 1 to 100 letters, digits, '.', '_' or '-', beginning with a letter or "
            "digit; for example cartpole."
        )
    return name


def check_decision_id(text: str) -> str:
    """Return the text if it is a valid id of a decision: file names are made from it.

    Raises:
        ValueError: If not.
    """
    if not re.fullmatch(r"[0-9a-f]{8,64}", text):
        raise ValueError(f"{text[:80]!r} is not the id of a decision")
    return text


def as_markdown(events: Sequence[Event]) -> str:
    """Return what MLflow's page of the model shows: its newest events, the last one first."""
    champion = events[-1].champion
    lines = [
        f"Champion: version {champion}." if champion else "No champion.",
        "",
        "| | when | what | version | policy | why |",
    ]
    lines.append("|---:|---|---|---:|---|---|")
    for event in list(reversed(events))[:_SHOWN_EVENTS]:
        when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(event.time))
        reason = event.reason.replace("|", "/")
        lines.append(f"| {event.number} | {when} | {event.kind} | {event.version} | {event.source} | {reason} |")
    return "\n".join(lines)


def event_key(number: int) -> str:
    """Return the tag that holds an event."""
    return f"{EVENT_TAG}{number:06d}"
