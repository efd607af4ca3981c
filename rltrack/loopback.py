"""Servers on this machine's own address: a free port, whether one answers, waiting for its first answer."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from rltrack.errors import ConfigurationError

HOST = "127.0.0.1"
_POLL_SECONDS = 0.2
_LAST_BYTES = 20_000


def free_port(port: int = 0, option: str = "another port") -> int:
    """Return a free port on loopback: this one, or any for 0.

    Raises:
        ConfigurationError: If it is taken or not allowed; the option that chooses another is named.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigurationError(
                f"Port {port} cannot be used ({reason}). Choose another with {option}; 0 takes any free one."
            ) from None
        return int(probe.getsockname()[1])


def refuse_equal_ports(ports: Mapping[str, int]) -> None:
    """Refuse one port for two servers.

    Args:
        ports: By the option that chooses it; 0 is any free one.

    Raises:
        ConfigurationError: If two are the same.
    """
    options: dict[int, str] = {}
    for option, port in ports.items():
        if port and (other := options.setdefault(port, option)) != option:
            raise ConfigurationError(f"{other} and {option} are both {port}. Choose two ports; 0 takes any free one.")


def answers(address: str, timeout: float = 2.0) -> bool:
    """Whether a server answers at an address, with anything but an error."""
    try:
        with urllib.request.urlopen(address, timeout=timeout):
            return True
    except (urllib.error.URLError, OSError, ValueError):
        return False


def wait_for(address: str, process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for a server's first answer; return whether it came before its process ended and the time was up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if answers(address):
            return True
        time.sleep(_POLL_SECONDS)
    return False


def last_words(log: Path) -> str:
    """Return the end of a server's log."""
    with contextlib.suppress(OSError), open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - _LAST_BYTES))
        return file.read().decode(errors="replace")
    return ""
