"""Prefect flows over rltrack's verbs, and what runs them: a server for each root, the local stack, deployments."""

from importlib.util import find_spec

from rltrack.errors import MissingExtra

if find_spec("prefect") is None:
    raise MissingExtra(
        "Flows and the stack of servers need Prefect, which is not installed: pip install 'rltrack[flow]'."
    )
