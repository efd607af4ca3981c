"""What the configuration of a model in a registry may name: others can register models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rltrack.errors import RltrackError
from rltrack.permissions import Permissions
from rltrack.registry.loading import LoadedPolicy
from rltrack.runs import Root, RunRef


def check_names(
    stored: LoadedPolicy, root: Root, known: Sequence[Mapping[str, Any]] = (), *, to_train: bool = False
) -> None:
    """Refuse a configuration from a registry that names code, secrets, addresses or files that are not allowed here.

    Allowed are harmless names, those that the environment lists (`rltrack.permissions`), and those in the user's own
    configurations: that of the run under this root from which the model comes, and the challenger's.

    Args:
        stored: The policy, with the configuration that was stored with it.
        root: The root that may have the run that it comes from.
        known: Further configurations of the user.
        to_train: Check the whole configuration, not only the section `environment`.

    Raises:
        NotAllowed: The message lists the names and how to allow them.
    """
    asked = stored.config if to_train else {"environment": stored.config.get("environment") or {}}
    subject = (
        f"The configuration of {stored.source} in the registry names something that none of your own does. Nothing was "
        "built."
    )
    own = [*known, *_own_configuration(root, stored)]
    Permissions.from_environment().check(asked, own=own, subject=subject)


def _own_configuration(root: Root, stored: LoadedPolicy) -> list[Mapping[str, Any]]:
    """Return the configuration of the run that the model comes from, if it is under this root."""
    try:
        config = root.find(RunRef.parse(stored.source).run).configuration().values
    except (RltrackError, OSError, ValueError):
        return []
    return [config]
