"""Runs flows from the command line: finds or starts a Prefect server, and keeps Prefect's log off the terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rltrack.config import TrainingConfig
from rltrack.errors import RltrackError
from rltrack.flows.server import ServerFolder, hold_server, is_healthy, refuses

if TYPE_CHECKING:
    from rltrack.flows.training import Outcome


def configured_server() -> str | None:
    """Return the API address that the user set, by ``PREFECT_API_URL`` or in a Prefect profile."""
    from prefect.settings import PREFECT_API_URL

    return PREFECT_API_URL.value() or os.environ.get("PREFECT_API_URL") or None


def configured_auth() -> str | None:
    """Return the password that the user set for Prefect's server, as ``user:password``; None without one."""
    from prefect.settings import PREFECT_API_AUTH_STRING

    found: str | None = PREFECT_API_AUTH_STRING.value()
    return found


def how_to_unset() -> str:
    """Return how to unset the user's own server, as part of a message."""
    if os.environ.get("PREFECT_API_URL"):
        return "unset PREFECT_API_URL"
    return "remove it from your Prefect profile: prefect config unset PREFECT_API_URL"


@contextlib.contextmanager
def prefect_server(root: Path) -> Iterator[str]:
    """Use the Prefect server that the user set, or else hold the root's.

    Args:
        root: Folder of all runs.

    Yields:
        The address of its API.

    Raises:
        RltrackError: If the user's server does not answer, or the root's own does not start.
    """
    from prefect.settings import (
        PREFECT_API_AUTH_STRING,
        PREFECT_API_URL,
        PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
        temporary_settings,
    )

    given, folder = configured_server(), ServerFolder(root)
    with contextlib.ExitStack() as held:
        if given is not None and given.rstrip("/") != folder.address():
            if not is_healthy(given, timeout=10.0):
                raise RltrackError(
                    f"PREFECT_API_URL, {given}, does not answer. Start that server, or correct the address; to use rltrack's "
                    f"own server, {how_to_unset()}."
                )
            if refuses(given, PREFECT_API_AUTH_STRING.value()):
                raise RltrackError(
                    f"The Prefect server at PREFECT_API_URL, {given}, asks for a password. Set PREFECT_API_AUTH_STRING to "
                    "user:password."
                )
            yield given
            return
        api = held.enter_context(hold_server(root))
        settings: dict[Any, Any] = {PREFECT_API_URL: api, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False}
        environment = {"PREFECT_API_URL": api}  # for child processes
        auth = folder.auth()
        if auth is not None:
            settings[PREFECT_API_AUTH_STRING] = environment["PREFECT_API_AUTH_STRING"] = auth
        held.enter_context(temporary_settings(settings))
        held.enter_context(_environment(**environment))
        yield api


@contextlib.contextmanager
def existing_server(root: Path) -> Iterator[str]:
    """Use the server that the user set, or that of the root's stack.

    Raises:
        RltrackError: If there is neither, or it does not answer.
    """
    if configured_server() is None and ServerFolder(root).address() is None:
        raise RltrackError(
            f"PREFECT_API_URL is not set, and there is no stack under {root}. Set it to your server's API, such as "
            "http://127.0.0.1:4200/api; or start a stack on this machine with `rltrack up`, which deploys there."
        )
    with prefect_server(root) as api:
        yield api


def train(
    config: TrainingConfig, root: Path, working: Callable[[str], contextlib.AbstractContextManager[None]]
) -> Outcome:
    """Train as a flow in this process.

    Args:
        config: The training.
        root: Folder of all runs.
        working: Context manager that shows a status line before training starts.

    Raises:
        ConfigurationError, MissingExtra: If the agent cannot be built; nothing was started.
        RltrackError: As `rltrack.flows.train.train_here`, and if there is no server.
    """
    os.environ.setdefault("DO_NOT_TRACK", "1")
    warnings.filterwarnings("ignore", message="The 'alias' attribute")  # Pydantic, of Prefect's own classes
    starts = ServerFolder(root).address() is None and configured_server() is None
    first = "" if (ServerFolder(root).path / "migrated.json").exists() else " (the first time takes longer)"
    with contextlib.ExitStack() as held:
        with working("Checking the configuration"):
            from rltrack.agents.factory import check

            check(config)
        with working(f"Starting a Prefect server for {root}{first}" if starts else "Getting ready"):
            held.enter_context(prefect_server(root))
            from rltrack.flows.train import train_here

            _quiet_console()
        held.enter_context(_environment(RLTRACK_ROOT=str(root)))
        return train_here(config, root)


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _quiet_console() -> None:
    """Show only Prefect's warnings on the terminal, which has the progress bar; all lines go to Prefect's page."""
    from prefect.logging.configuration import setup_logging
    from prefect.logging.handlers import PrefectConsoleHandler

    setup_logging()
    loggers = [logging.getLogger(name) for name in (None, *logging.root.manager.loggerDict)]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        if isinstance(handler, PrefectConsoleHandler):
            handler.setLevel(logging.WARNING)
