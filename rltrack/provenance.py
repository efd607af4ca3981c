"""What a run was made by and on: package versions, process, repository, machine."""

from __future__ import annotations

import contextlib
import functools
import getpass
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from rltrack.hash_seed import hash_seed

RECORDED_PACKAGES = ("rltrack", "stable-baselines3", "sb3-contrib", "sbx-rl", "gymnasium", "torch", "numpy")


@functools.cache
def package_versions() -> Mapping[str, str]:
    """Return the installed versions of the packages that decide about bits."""
    found: dict[str, str] = {}
    for package in RECORDED_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def process_facts() -> dict[str, Any]:
    """Return what an attempt's record says of its process."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "user": user_name(),
        "program": _program(),
        "python": platform.python_version(),
        "hash_seed": hash_seed(),
        "versions": package_versions(),
    }


def user_name() -> str | None:
    """Return the name of the user whose process this is; None for an id without a name."""
    with contextlib.suppress(KeyError, OSError, ImportError):  # a user id without a name, as in some containers
        return getpass.getuser()
    return None


def _program() -> str:
    """Return the script that runs; ``rltrack`` for its command line and where there is none."""
    name = Path(sys.argv[0] if sys.argv else "").name
    return name if name.endswith(".py") and name != "__main__.py" else "rltrack"


def context_now() -> dict[str, Any]:
    """Return the state of the program's repository and the machine, as parameters."""
    context: dict[str, Any] = {
        "machine.host": socket.gethostname(),
        "machine.system": f"{platform.system()} {platform.machine()}",
        "machine.cores": os.cpu_count(),
        "machine.memory_gb": round(psutil.virtual_memory().total / 1e9),
    }
    from rltrack.resources import gpu_names

    for index, name in enumerate(gpu_names()):
        context[f"machine.gpu_{index}"] = name
    commit = _git("rev-parse", "HEAD")
    if commit:
        context["git.commit"] = commit
        changes = _git("status", "--porcelain", "--untracked-files=no")
        if changes is not None:
            context["git.dirty"] = bool(changes)
    return context


def _git(*arguments: str) -> str | None:
    """Ask git about the current folder; None where there is no repository, no git, or no answer in time."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(
            ["git", *arguments], capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=True
        )
        return found.stdout.strip()
    return None
