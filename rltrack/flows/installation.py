"""Identifies an installation on a Prefect server that others may use too.

An installation is what one root deploys. Everything that it creates on a server has its mark, a tag; nothing without the mark
is changed or removed. Two installations on one server have different names, which become part of the names of their
deployments, work pool and automations.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from rltrack.config import check_run_name
from rltrack.errors import ConfigurationError
from rltrack.files import replace_text, take_lock
from rltrack.runs import Root

VARIABLE = "RLTRACK_INSTALLATION"
"""Environment variable with the installation's name, for a container without a persistent root."""

DEFAULT_NAME = "rltrack"
OURS = "rltrack"
"""Tag of all deployments of rltrack's flows, of any installation."""

_MARK, _ROOT, _RUN = "rltrack.installation=", "rltrack.root=", "rltrack.run="
_LOCK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Installation:
    """What one root deploys.

    Attributes:
        id: Unique id; equal to the name if `VARIABLE` gives that.
        name: Part of the names of what it deploys, unless it is ``rltrack``.
    """

    id: str
    name: str = DEFAULT_NAME

    @property
    def mark(self) -> str:
        """The tag of everything that it creates on a server."""
        return f"{_MARK}{self.id}"

    @property
    def work_pool(self) -> str:
        """Name of its work pool."""
        return self.named(DEFAULT_NAME)

    def named(self, name: str) -> str:
        """Return a name with this installation's suffix: ``train``, or ``train-NAME``."""
        return name if self.name == DEFAULT_NAME else f"{name}-{self.name}"

    def deployment(self, flow: str) -> str:
        """Return the full name of one of rltrack's own deployments, such as ``train/train``."""
        return f"{flow}/{self.named(flow)}"

    def owns(self, tags: Iterable[str] | None) -> bool:
        """Whether these are the tags of something that it created."""
        return self.mark in (tags or ())


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that `deploy` or `undeploy` changes or keeps.

    Attributes:
        action: ``create``, ``update``, ``keep`` or ``remove``.
        what: ``work pool``, ``deployment`` or ``automation``.
        name: Its name on the server.
        details: Its differences from the file, or why it is kept.
    """

    action: str
    what: str
    name: str
    details: tuple[str, ...] = ()


def is_unmarked(tags: Iterable[str] | None) -> bool:
    """Whether these are the tags of a deployment that an rltrack without installations created."""
    found = list(tags or ())
    return OURS in found and not any(tag.startswith(_MARK) for tag in found)


def flow_run_tags(root: Root, run: str) -> list[str]:
    """Return the tags of a flow run that trains a run: together they identify one folder, and so one lock."""
    return [f"{_ROOT}{_stored(root, None).id}", f"{_RUN}{run}"]


def installation_of(root: Root, name: str | None = None) -> Installation:
    """Return a root's installation.

    Args:
        root: The root, which stores the name.
        name: A new name; omitted: its current name, that of `VARIABLE`, or ``rltrack``.

    Raises:
        ConfigurationError: If the name cannot be part of a deployment's name, or the file cannot be read.
    """
    given = os.environ.get(VARIABLE)
    if given and name in (None, given):
        return Installation(check_run_name(given), given)
    return _stored(root, None if name is None else check_run_name(name))


def _stored(root: Root, name: str | None) -> Installation:
    file = root.path / "installation.json"
    if name is None and file.exists():
        return _read(root)
    root.check_writable()
    lock = take_lock(root.path / ".installation.lock", _LOCK_SECONDS)
    if lock is None:
        raise ConfigurationError(f"Another process has been writing {file} for {_LOCK_SECONDS:.0f} s. Retry.")
    try:
        found = _read(root) if file.exists() else Installation(uuid.uuid4().hex[:16])
        wanted = found if name is None else Installation(found.id, name)
        if wanted != found or not file.exists():
            replace_text(file, json.dumps(asdict(wanted)))
        return wanted
    finally:
        os.close(lock)


def _read(root: Root) -> Installation:
    file = root.path / "installation.json"
    try:
        found = Installation(**json.loads(file.read_text(encoding="utf-8")))
        check_run_name(found.id)
        check_run_name(found.name)
        return found
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"{file} cannot be read: {error}. It identifies what this root has deployed on Prefect servers. Restore it; or "
            "delete it, and the deployments on Prefect's page."
        ) from None
