"""A registered model as data: its versions, its events, its names.

A tag holds an event, or the decision about a version, as one line of fields with `` | `` between them. Older versions of rltrack
wrote JSON, which is read too.
"""

from __future__ import annotations

import calendar
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rltrack.errors import ConfigurationError
from rltrack.registry.gate import Gate

CHAMPION, CHALLENGER = "champion", "challenger"


DECISION_TAG = "rltrack.decision"


EVENT_TAG = "rltrack.history."


_NAME = re.compile(r"[A-Za-z0-9][\w.\-]{0,99}")

_LONGEST_NAME = 200
"""Bytes: files are named after a model, and a file system takes 255."""

_DESCRIPTION_LIMIT = 4900
"""Characters; MLflow's column for a description has 5000."""

_REASON_LIMIT = 1000
_TIME = "%Y-%m-%d %H:%M:%S"


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
        decision: The first 8 digits of the id of the decision that it applies.
        time: Unix seconds; whole ones where it was read from a tag.
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

    def to_tag(self) -> str:
        """Return it as the text of a tag, without its number."""
        when = time.strftime(_TIME, time.gmtime(self.time))
        champion = "no champion" if self.champion is None else f"champion {self.champion}"
        return _line(
            self.kind,
            f"version {self.version}",
            champion,
            when,
            self.source,
            self.decision[:8],
            self.reason[:_REASON_LIMIT],
        )

    @classmethod
    def from_tag(cls, text: str, number: int) -> Event:
        """Return what a tag says."""
        if text.startswith("{"):
            data = json.loads(text)
            return cls(**{**data, "decision": data["decision"][:8]}, number=number)
        kind, version, champion, when, source, decision, reason = _fields(text, 7)
        return cls(
            kind,
            int(version.split()[-1]),
            reason,
            None if champion == "no champion" else int(champion.split()[-1]),
            source,
            decision,
            calendar.timegm(time.strptime(when, _TIME)),
            number,
        )


@dataclass(frozen=True, slots=True)
class VersionDecision:
    """The last decision about a version; the whole one is an artifact of its run.

    Attributes:
        id: Its id.
        promoted: Whether the version passed the gate.
        against: The champion that it was compared with; None for the first.
        gate: The gate, as `Gate.label`.
        reason: Why.
    """

    id: str
    promoted: bool
    against: int | None
    gate: str
    reason: str

    @property
    def level(self) -> float | None:
        """Coverage of its intervals."""
        found = re.search(r"\blevel ([0-9.]+)", self.gate)
        return float(found[1]) if found else None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> VersionDecision:
        """Return what a tag keeps of a whole decision."""
        reason = record["reason"][:_REASON_LIMIT]
        return cls(record["id"], record["promoted"], record["against"], Gate(**record["gate"]).label, reason)

    def to_tag(self) -> str:
        """Return it as the text of a tag."""
        against = "no champion yet" if self.against is None else f"against version {self.against}"
        return _line("promoted" if self.promoted else "refused", against, self.gate, self.id, self.reason)

    @classmethod
    def from_tag(cls, text: str) -> VersionDecision:
        """Return what a tag says."""
        if text.startswith("{"):
            return cls.of(json.loads(text))
        outcome, against, gate, decision_id, reason = _fields(text, 5)
        number = None if against == "no champion yet" else int(against.split()[-1])
        return cls(decision_id, outcome == "promoted", number, gate, reason)


def _line(*fields: str) -> str:
    return " | ".join(" ".join(field.replace("|", "/").split()) or "-" for field in fields)


def _fields(text: str, count: int) -> list[str]:
    fields = text.split(" | ")
    if len(fields) != count:
        raise ValueError(f"a tag of a registered model has {len(fields)} fields instead of {count}: {text[:200]!r}")
    return ["" if field == "-" else field for field in fields]


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
    def decision(self) -> VersionDecision | None:
        """The last decision about it."""
        text = self.tags.get(DECISION_TAG)
        return VersionDecision.from_tag(text) if text else None


def number_of(champion: Registered | None) -> int | None:
    """Return a champion's version; None without one."""
    return None if champion is None else champion.version


def check_model_name(name: str) -> str:
    """Return the name if it is a valid model name.

    Raises:
        ConfigurationError: If not.
    """
    if not _NAME.fullmatch(name) or len(name.encode()) > _LONGEST_NAME:
        raise ConfigurationError(
            f"Model name {name!r} is not allowed. Use 1 to 100 letters, digits, '.', '_' or '-', of {_LONGEST_NAME} bytes at most, "
            "beginning with a letter of the English alphabet or a digit; for example cartpole."
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
    """Return what MLflow's page of the model shows: its newest events, the last one first, as many as a description holds."""
    champion = events[-1].champion
    text = f"Champion: version {champion}." if champion else "No champion."
    text += "\n\n| | when (UTC) | what | version | policy | why | decision |\n|---:|---|---|---:|---|---|---|"
    for event in reversed(events):
        when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(event.time))
        fields = (str(event.number), when, event.kind, str(event.version), event.source, event.reason, event.decision)
        row = f"\n| {_line(*fields).replace(' | ', '&ensp; | ')} |"  # MLflow's page leaves no space between columns
        if len(text) + len(row) > _DESCRIPTION_LIMIT:
            return f"{text}\n\nThe newest of {len(events)} events; all of them: `rltrack models --json`."
        text += row
    return text


def event_key(number: int) -> str:
    """Return the tag that holds an event."""
    return f"{EVENT_TAG}{number:06d}"
