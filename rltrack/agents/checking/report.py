"""What a check has found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from rltrack.text import printable

Result = TypeVar("Result")


class CheckAborted(Exception):
    """The agent cannot be checked further; a finding says why."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is missing or wrong; as text it is one line.

    Attributes:
        severity: ``error``: training, evaluation or a resume fails or is wrong; ``warning``: something is not available.
        found: What was found.
        remedy: What to do.
    """

    severity: Literal["error", "warning"]
    found: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.found}. {self.remedy}."


class Report:
    """Collects findings: of those with the same remedy the first one."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def error(self, found: str, remedy: str) -> None:
        """Add an error."""
        self._add(Finding("error", found, remedy))

    def warning(self, found: str, remedy: str) -> None:
        """Add a warning."""
        self._add(Finding("warning", found, remedy))

    def calling(self, what: str, function: Callable[[], Result]) -> Result:
        """Call a method of the agent and return its result.

        Raises:
            CheckAborted: If it raised; the error is a finding.
        """
        try:
            return function()
        except CheckAborted:
            raise
        except Exception as error:
            self.error(
                f"{what} raised {one_line(error)}", "It is called like this in every training; see the traceback"
            )
            raise CheckAborted from error

    def _add(self, finding: Finding) -> None:
        if finding.remedy not in [one.remedy for one in self.findings]:
            self.findings.append(finding)


def one_line(error: BaseException) -> str:
    """Return type and message of an error in one line."""
    return f"{type(error).__name__}: {printable(' '.join(str(error).split()))[:300]}"
