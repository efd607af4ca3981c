"""Records what a root has deployed on which server, so that what was deleted there is not created again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from prefect.client.orchestration import SyncPrefectClient

from rltrack.files import replace_text
from rltrack.flows.installation import Installation, Step
from rltrack.flows.server import ServerFolder
from rltrack.runs import Root


class Deployed:
    """What one root created on one server.

    Args:
        root: Keeps the record.
        client: Of the server.
        installation: The root's.
    """

    def __init__(self, root: Root, client: SyncPrefectClient, installation: Installation) -> None:
        self._file = root.path / "deployed.json"
        address = str(client.api_url).rstrip("/")
        self._server = "own" if address == ServerFolder(root.path).address() else address
        try:
            self._names: dict[str, list[str]] = dict(json.loads(self._file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            self._names = {}
        is_new = not any(installation.owns(item.tags) for item in every(client.read_deployments))
        self._known = set() if is_new else set(self._names.get(self._server, ()))

    def knows(self, name: str) -> bool:
        """Whether it was created there before, and the server still has a deployment of this installation."""
        return name in self._known

    def remember(self, steps: Sequence[Step]) -> None:
        """Remember the names of everything that was created or kept."""
        self._names[self._server] = sorted(self._known | {f"{step.what} {step.name}" for step in steps})
        self._write()

    def forget(self) -> None:
        """Forget the server."""
        if self._names.pop(self._server, None) is not None:
            self._write()

    def _write(self) -> None:
        replace_text(self._file, json.dumps(self._names, indent=1))


def every(read: Any) -> list[Any]:
    """Return the items of all pages that a client's method reads."""
    found: list[Any] = []
    while page := read(limit=200, offset=len(found)):
        found += page
        if len(page) < 200:
            break
    return found
