"""Looks at the installation: versions, GPU, servers, extras; says what is missing and how to get it."""

from __future__ import annotations

import importlib.util
import os
import platform
import socket
from importlib import metadata
from pathlib import Path
from urllib.parse import urlparse

from rich.console import Console
from rich.markup import escape

from rltrack.errors import RltrackError
from rltrack.runs import Root

_REQUIRED = (
    "torch", "stable-baselines3", "gymnasium", "numpy", "mlflow", "prefect", "fastapi", "sqlalchemy", "tensorboard",
    "matplotlib", "psutil", "pydantic", "safetensors",
)  # fmt: skip
_EXTRAS = {
    "contrib": ("sb3_contrib", "TQC, TRPO, RecurrentPPO, MaskablePPO, QRDQN, CrossQ, ARS"),
    "sbx": ("sbx", "SB3's algorithms in JAX"),
    "zoo": ("rl_zoo3", "tuned settings: agent.preset: zoo"),
    "s3": ("s3fs", "remote copies of runs in S3: checkpoints.store"),
    "mujoco": ("mujoco", "MuJoCo environments"),
    "atari": ("ale_py", "Atari environments"),
    "box2d": ("Box2D", "LunarLander, BipedalWalker, CarRacing"),
    "sweep": ("optuna", "searches: rltrack sweep"),
    "video": ("moviepy", "a film of the best policy in MLflow"),
    "postgres": ("psycopg", "MLflow and Prefect on PostgreSQL"),
    "server": ("flask_wtf", "MLflow's server with accounts"),
}
_BROKEN_TOGETHER = (
    ("sqlalchemy", (2, 1), "Prefect 3.8's scheduler dies with SQLAlchemy 2.1; install 'sqlalchemy<2.1'"),
    ("fastapi", (0, 151), "Prefect 3.8's server cannot start with this FastAPI; install 'fastapi<0.151'"),
)


def print_report(root: str | Path | None) -> bool:
    """Print what was found; return whether everything that is needed is there."""
    out = Console(soft_wrap=True)
    good = True

    def line(ok: bool | None, what: str, found: str) -> None:
        nonlocal good
        mark = {True: "[green]ok [/]", False: "[red]bad[/]", None: "[dim]–  [/]"}[ok]
        good = good and ok is not False
        out.print(f"{mark} {what:<22} {escape(found)}", highlight=False)

    line(
        True,
        "python",
        f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    )
    for package in _REQUIRED:
        version = _version(package)
        line(
            version is not None,
            package,
            version or f"missing; install it with: pip install rltrack (it needs {package})",
        )
    for package, limit, advice in _BROKEN_TOGETHER:
        version = _version(package)
        if version is not None and _numbers(version) >= limit:
            line(False, package, f"{version}: {advice}")
    line(*_gpu())
    line(*_root(root))
    for variable in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        line(*_server(variable))
    for extra, (module, what) in _EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        line(True if there else None, f"extra {extra}", what if there else f"{what}: pip install 'rltrack[{extra}]'")
    out.print("\nAll is well." if good else "\nSomething is missing; see the lines marked bad.")
    return good


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _gpu() -> tuple[bool | None, str, str]:
    from rltrack.agents.devices import describe_cuda

    found = describe_cuda()
    return (True, "gpu", found) if found else (None, "gpu", "none that torch can use; training runs on the CPU")


def _root(path: str | Path | None) -> tuple[bool | None, str, str]:
    root = Root(path)
    try:
        root.check_writable()
    except RltrackError as error:
        return False, "root", str(error)
    return True, "root", f"{root.path} ({len(root.names())} runs)"


def _server(variable: str) -> tuple[bool | None, str, str]:
    address = os.environ.get(variable)
    if not address:
        return None, variable, "not set; a local one is used"
    parts = urlparse(address)
    if parts.scheme not in ("http", "https"):
        return True, variable, address
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=3):
            return True, variable, f"{parts.hostname}:{port} answers"
    except OSError as error:
        return False, variable, f"{parts.hostname}:{port} does not answer ({error}); start it, or unset {variable}"
