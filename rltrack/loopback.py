"""Servers on this machine's own address: a free port, whether one answers, waiting for its first answer."""

from __future__ import annotations

import contextlib
import errno
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from rltrack.errors import ConfigurationError

HOST = "127.0.0.1"
_LAST_PORT = 65_535
_NO_SUCH_ADDRESS = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
_POLL_SECONDS = 0.2
_LAST_BYTES = 20_000


def free_port(port: int = 0, option: str = "another port", host: str = HOST) -> int:
    """Return a free port, on loopback or another address of this machine: this one, or any for 0.

    Raises:
        ConfigurationError: If it is taken or not allowed; the option that chooses another is named.
    """
    where = "" if host == HOST else f" at {host}"
    remedy = f"Choose another with {option}; 0 takes any free one."
    if not 0 <= port <= _LAST_PORT:
        raise ConfigurationError(f"Port {port} does not exist; the last one is {_LAST_PORT}. {remedy}")
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, _, _, address in found:
            try:
                with socket.socket(family, kind) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind((address[0], port, *address[2:]))
                    port = int(probe.getsockname()[1])
            except OSError as error:  # localhost may also name ::1 where there is no IPv6
                if error.errno not in _NO_SUCH_ADDRESS or len(found) == 1:
                    raise
    except OSError as error:
        raise ConfigurationError(f"Port {port}{where} cannot be used ({error.strerror}). {remedy}") from None
    return port


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
