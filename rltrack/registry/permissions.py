"""What the configuration of a model in a registry may name: somebody else may have registered it."""

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
    """Refuse a configuration from a registry that names code, secrets, addresses or files which nobody here asked for.

    What is harmless is allowed, what the reader's environment lists (`rltrack.permissions`), and what a configuration of the
    reader's own names too: that of the run under this root from which the model comes, or the challenger's.

    Args:
        stored: The policy, with the configuration that was stored beside it.
        root: Where the run that it comes from may lie.
        known: Further configurations of one's own.
        to_train: Check everything; else only what an environment is built from.

    Raises:
        NotAllowed: With what it names, and how to allow it.
    """
    asked = stored.config if to_train else {"environment": stored.config.get("environment") or {}}
    subject = (
        f"The configuration of {stored.source} in the registry names what no configuration of your own does. Nothing was "
        "built."
    )
    own = [*known, *_own_configuration(root, stored)]
    Permissions.from_environment().check(asked, own=own, subject=subject)


def _own_configuration(root: Root, stored: LoadedPolicy) -> list[Mapping[str, Any]]:
    """The configuration of the run that the model says it comes from, if it lies under this root."""
    try:
        config = root.find(RunRef.parse(stored.source).run).configuration().values
    except (RltrackError, OSError, ValueError):
        return []
    return [config]
