"""``RUN`` or ``RUN@VERSION``: how the user, a configuration or a model names a version of a run."""

from __future__ import annotations

from dataclasses import dataclass

from rltrack.config import check_run_name
from rltrack.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class RunRef:
    """A run, and perhaps one of its versions.

    Attributes:
        run: The run's name.
        version: ``best``, ``last``, ``v12`` or env steps, as text; None where the text names no version.
    """

    run: str
    version: str | None = None

    @classmethod
    def parse(cls, text: str) -> RunRef:
        """Read ``RUN`` or ``RUN@VERSION``.

        Raises:
            ConfigurationError: If the text is neither, or the name cannot be a run's.
        """
        name, at, version = text.partition("@")
        if at and (not version or "@" in version):
            raise ConfigurationError(
                f"'{text}' is neither RUN nor RUN@VERSION. Write for example {name or 'my-run'}@best, {name or 'my-run'}@last or "
                f"{name or 'my-run'}@v12, or leave the @ out."
            )
        return cls(check_run_name(name), version or None)

    def __str__(self) -> str:
        return self.run if self.version is None else f"{self.run}@{self.version}"
