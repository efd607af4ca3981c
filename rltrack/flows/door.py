"""What the command line does before and after a flow: find a server, keep the terminal calm, say how it ended."""

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


def named_server() -> str | None:
    """Return the API's address of the server that the user named, by ``PREFECT_API_URL`` or in a profile of Prefect's."""
    from prefect.settings import PREFECT_API_URL

    return PREFECT_API_URL.value() or os.environ.get("PREFECT_API_URL") or None


def named_auth() -> str | None:
    """Return the password that the user set for Prefect's server, as ``user:password``; None without one."""
    from prefect.settings import PREFECT_API_AUTH_STRING

    found: str | None = PREFECT_API_AUTH_STRING.value()
    return found


def how_to_unset() -> str:
    """Return in words how the user's own server is left aside."""
    if os.environ.get("PREFECT_API_URL"):
        return "unset PREFECT_API_URL"
    return "take it out of your Prefect profile: prefect config unset PREFECT_API_URL"


@contextlib.contextmanager
def chosen_server(root: Path) -> Iterator[str]:
    """Hold the Prefect server that counts: the user's own setting, or else the root's.

    Yields:
        The address of its API.

    Raises:
        RltrackError: If nobody answers at the user's address, or the root's own server does not start.
    """
    from prefect.settings import (
        PREFECT_API_AUTH_STRING,
        PREFECT_API_URL,
        PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
        temporary_settings,
    )

    given, folder = named_server(), ServerFolder(root)
    with contextlib.ExitStack() as held:
        if given is not None and given.rstrip("/") != folder.address():
            if not is_healthy(given, timeout=10.0):
                raise RltrackError(
                    f"Nobody answers at PREFECT_API_URL, {given}. Start that server, or correct the address; for a server of "
                    f"rltrack's own, {how_to_unset()}."
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
def given_server(root: Path) -> Iterator[str]:
    """Give the server that the user named, or that of the root's stack.

    Raises:
        RltrackError: If there is neither, or nobody answers there.
    """
    if named_server() is None and ServerFolder(root).address() is None:
        raise RltrackError(
            f"PREFECT_API_URL is not set, and there is no stack under {root}. Set it to your server's API, such as "
            "http://127.0.0.1:4200/api; or start a stack on this machine with `rltrack up`, which deploys there by itself."
        )
    with chosen_server(root) as api:
        yield api


def train(
    config: TrainingConfig, root: Path, working: Callable[[str], contextlib.AbstractContextManager[None]]
) -> Outcome:
    """Train as a flow in this process.

    Args:
        config: The training.
        root: Folder of all runs.
        working: Shows what takes its time before training begins, as a context around it.

    Raises:
        RltrackError: As `rltrack.flows.train.train_here`, and if there is no server.
    """
    os.environ.setdefault("DO_NOT_TRACK", "1")
    warnings.filterwarnings("ignore", message="The 'alias' attribute")  # Pydantic, of Prefect's own classes
    starts = ServerFolder(root).address() is None and named_server() is None
    first = "" if (ServerFolder(root).path / "migrated.json").exists() else " (the first time takes longer)"
    with contextlib.ExitStack() as held:
        with working(f"Starting a Prefect server for {root}{first}" if starts else "Getting ready"):
            held.enter_context(chosen_server(root))
            from rltrack.flows.train import train_here

            _keep_terminal_calm()
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


def _keep_terminal_calm() -> None:
    """Leave the terminal to the progress bar: Prefect's lines go to its page only, its warnings to the terminal too."""
    from prefect.logging.configuration import setup_logging
    from prefect.logging.handlers import PrefectConsoleHandler

    setup_logging()
    loggers = [logging.getLogger(name) for name in (None, *logging.root.manager.loggerDict)]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        if isinstance(handler, PrefectConsoleHandler):
            handler.setLevel(logging.WARNING)
