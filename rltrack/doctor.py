"""Checks the installation: versions, GPU, servers, extras; reports what is missing and how to install it."""

from __future__ import annotations

import base64
import http.client
import importlib.util
import json
import os
import platform
import shutil
import sqlite3
import stat
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from shlex import quote
from urllib.parse import unquote, urlparse

import psutil
from rich.console import Console
from rich.markup import escape

from rltrack import __version__
from rltrack.addresses import sqlite_path, without_account
from rltrack.checkpoints.kept import what_is_gone
from rltrack.console.tables import size
from rltrack.errors import RltrackError, SchemaMismatch
from rltrack.registry.audit import OldModel, old_models, runs_described_wrongly
from rltrack.runs import Root
from rltrack.tracking.destination import without_password
from rltrack.tracking.sinks.embedded import database_path, moved_from
from rltrack.tracking.sinks.schema import check_schema

_REQUIRED = (
    "torch", "stable-baselines3", "gymnasium", "numpy", "mlflow-skinny", "fastapi", "sqlalchemy", "tensorboard",
    "matplotlib", "psutil", "pydantic", "safetensors",
)  # fmt: skip
_EXTRAS = {
    "ui": ("flask_cors", "MLflow's page: rltrack ui"),
    "flow": ("prefect", "Prefect flows, schedules and the stack: rltrack flow, up, deploy"),
    "contrib": ("sb3_contrib", "TQC, TRPO, RecurrentPPO, MaskablePPO, QRDQN, CrossQ, ARS"),
    "sbx": ("sbx", "SB3's algorithms in JAX"),
    "zoo": ("rl_zoo3", "tuned settings: agent.preset: zoo"),
    "s3": ("s3fs", "remote copies of runs in S3: checkpoints.store"),
    "mujoco": ("mujoco", "MuJoCo environments"),
    "atari": ("ale_py", "Atari environments"),
    "box2d": ("Box2D", "LunarLander, BipedalWalker, CarRacing"),
    "sweep": ("optuna", "searches: rltrack sweep"),
    "video": ("moviepy", "a video of the best policy in MLflow"),
    "postgres": ("psycopg", "MLflow and Prefect on PostgreSQL"),
    "server": ("flask_wtf", "MLflow's server with accounts"),
    "hub": ("huggingface_hub", "models on the Hugging Face hub: rltrack push"),
    "onnx": ("onnxscript", "models for ONNX: rltrack export --format onnx"),
}
_BROKEN_TOGETHER = (
    ("sqlalchemy", (2, 1), "Prefect 3.8's scheduler dies with SQLAlchemy 2.1; install 'sqlalchemy<2.1'"),
    ("fastapi", (0, 151), "Prefect 3.8's server cannot start with this FastAPI; install 'fastapi<0.151'"),
)
"""Conflicts that `pip check` does not report; newer releases of Prefect declare them."""


_CREDENTIALS = {
    "MLFLOW_TRACKING_URI": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    "PREFECT_API_URL": "PREFECT_API_AUTH_STRING to user:password",
}
_LONGEST_ANSWER = 1_000_000
_LITTLE_SPACE = 1e9
_SHOWN = 10
_NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "fuse.sshfs", "lustre", "beegfs", "ceph")


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        good: True if it is in order; False if something will fail; None if it is optional.
        what: What was checked.
        found: What was found, and the remedy.
    """

    good: bool | None
    what: str
    found: str


def print_report(root: str | Path | None) -> bool:
    """Print the results of all checks; return whether nothing required is missing."""
    out = Console(soft_wrap=True)
    good = True
    for finding in examine(root):
        good = good and finding.good is not False
        mark = {True: "[green]ok [/]", False: "[red]bad[/]", None: "[dim]–  [/]"}[finding.good]
        out.print(f"{mark} {finding.what:<22} {escape(finding.found)}", highlight=False)
    out.print("\nAll is well." if good else "\nSomething is missing; see the lines marked bad.")
    return good


def examine(root: str | Path | None) -> Iterator[Finding]:
    """Check everything that a training, a flow or a page needs, one thing after another."""
    yield _python()
    yield _command()
    for package in _REQUIRED:
        version = _version(package)
        yield Finding(version is not None, package, version or "missing; install it: pip install --upgrade rltrack")
    for package, limit, advice in _BROKEN_TOGETHER:
        version = _version(package)
        prefect = _version("prefect")
        is_old = prefect is not None and _numbers(prefect) < (3, 9)
        if is_old and version is not None and _numbers(version) >= limit:
            yield Finding(False, package, f"{version}: {advice}")
    slow = _version("chardet")
    if slow is not None and _numbers(slow)[0] == 6:
        advice = "every process that loads MLflow takes a second longer with this release: pip install 'chardet<6'"
        yield Finding(None, "chardet", f"{slow}: {advice}")
    yield _gpu()
    yield from _root(Root(root))
    yield _server("MLFLOW_TRACKING_URI", os.environ.get("MLFLOW_TRACKING_URI"), "unset it")
    if _version("prefect") is not None:
        from rltrack.flows.client import configured_server, how_to_unset

        yield _server("PREFECT_API_URL", configured_server(), how_to_unset())
    for extra, (module, what) in _EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        yield Finding(
            True if there else None, f"extra {extra}", what if there else f"{what}: pip install 'rltrack[{extra}]'"
        )


def _python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Finding(
            False, "python", f"{found}; rltrack runs on Python 3.11 to 3.13: make an environment with one of them"
        )
    if platform.system() not in ("Linux", "Darwin"):
        return Finding(False, "python", f"{found}; rltrack runs on Linux and macOS: on Windows use WSL")
    return Finding(True, "python", found)


def _command() -> Finding:
    """Check for two installations: the command may be of one, and `import rltrack` of the other."""
    ours, on_path = Path(sys.executable).parent / "rltrack", shutil.which("rltrack")
    if on_path is None:
        return Finding(None, "command", f"rltrack is not on the PATH; activate its environment, or call {ours}")
    if ours.exists() and not os.path.samefile(on_path, ours):
        return Finding(None, "command", f"'rltrack' in this shell is {on_path}, and this is {ours}: two installations")
    return Finding(True, "command", f"{on_path}, rltrack {__version__}")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _gpu() -> Finding:
    from rltrack.agents.devices import describe_cuda

    found = describe_cuda()
    if found:
        return Finding(True, "gpu", found)
    if Path("/dev/nvidia0").exists():
        return Finding(
            None,
            "gpu",
            f"torch {_version('torch')} cannot use the GPU: install a CUDA build of torch, or a newer driver",
        )
    return Finding(None, "gpu", "none that torch can use; training runs on the CPU")


def _root(root: Root) -> Iterator[Finding]:
    try:
        root.check_writable()
    except RltrackError as error:
        yield Finding(False, "root", str(error))
        return
    yield Finding(True, "root", f"{root.path} ({len(root.names())} runs)")
    free = shutil.disk_usage(root.path).free
    if free < _LITTLE_SPACE:
        yield Finding(False, "disk", f"{size(free)} are free at {root.path}; `rltrack prune` frees what old runs take")
    for run in root.runs():
        for text in what_is_gone(run.path / "checkpoints"):
            yield Finding(False, "versions", f"{run.name}: {text}")
    kind = _file_system(root.path)
    if kind in _NETWORK_FILE_SYSTEMS:
        yield Finding(
            False,
            "file system",
            f"{root.path} is on {kind}, whose locks cannot be relied on. Keep the root on a local disk; to share, use "
            "checkpoints.store and MLFLOW_TRACKING_URI",
        )
    if root.path.stat().st_mode & stat.S_IWOTH:
        yield Finding(
            False,
            "permissions",
            f"any user may write to {root.path}, and a resume runs code from there: chmod o-w {root.path}",
        )
    try:
        moved, old = moved_from(root.path), old_models(root)
        if database_path(root.path).exists():
            check_schema(database_path(root.path))
    except SchemaMismatch as error:
        yield Finding(False, "database", str(error))
        return
    except sqlite3.Error as error:
        yield Finding(None, "database", f"{database_path(root.path)} could not be read: {error}")
        return
    if moved is not None:
        yield Finding(
            False,
            "root",
            f"was moved from {moved}; repair its database: rltrack relocate --root {quote(str(root.path))}",
        )
    yield from _models(root, old)


def _models(root: Root, old: Sequence[OldModel]) -> Iterator[Finding]:
    """Report models that an older rltrack stored, and how to store them again."""
    for item in old:
        if item.wrong:
            again = f"rltrack promote {item.source} --model {item.model}"
            yield Finding(
                False, "models", f"version {item.version} of '{item.model}': {item.wrong}. Store it again: {again}"
            )
    plain = [item for item in old if not item.wrong]
    if plain:
        listed = ", ".join(f"{item.model} {item.version}" for item in plain[:_SHOWN])
        yield Finding(
            None,
            "models",
            f"{listed}{' …' if len(plain) > _SHOWN else ''}: stored before models had a digest, so that changed files are not "
            f"detected. Store the versions in use again: rltrack promote {plain[-1].source} --model {plain[-1].model}",
        )
    runs = runs_described_wrongly(root)
    if runs:
        yield Finding(
            None,
            "runs",
            f"{', '.join(runs[:_SHOWN])}{' …' if len(runs) > _SHOWN else ''}: the policies that an older rltrack stored for "
            "them in MLflow act differently from the trained ones, or are described wrongly. Do not load those; `rltrack "
            "promote` stores them correctly",
        )


def _file_system(path: Path) -> str:
    """Return the type of the file system of a path; empty if it is unknown (on macOS)."""
    mounts = {
        Path(partition.mountpoint): partition.fstype
        for partition in psutil.disk_partitions(all=True)
        if partition.fstype
    }
    return next((mounts[folder] for folder in (path, *path.parents) if folder in mounts), "")


def _server(variable: str, address: str | None, unset: str) -> Finding:
    if not address:
        return Finding(None, variable, "not set; a local one is used")
    parts = urlparse(address)
    if parts.scheme not in ("http", "https"):
        if parts.scheme in ("", "file"):
            return Finding(
                False,
                variable,
                f"{address} is a folder, where MLflow 3 keeps no runs: unset it, or name a database or server",
            )
        database = sqlite_path(address)
        if database is not None and database.exists():
            try:
                check_schema(database)
            except (SchemaMismatch, sqlite3.Error) as error:
                return Finding(False, variable, str(error))
        return Finding(True, variable, without_password(address))
    shown = without_password(address)
    try:
        status, text = _ask(address, variable)
    except (OSError, ValueError, http.client.HTTPException) as error:
        why = getattr(error, "reason", None) or error
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return Finding(False, variable, f"{parts.hostname}:{port} does not answer ({why}); start it, or {unset}")
    if status in (401, 403):
        names = _CREDENTIALS[variable]
        return Finding(False, variable, f"{shown} answers {status}: it refuses this account. Set {names}, or {unset}")
    if status == 404 or (status == 200 and not _is_expected(variable, text)):
        name = "MLflow" if variable == "MLFLOW_TRACKING_URI" else "Prefect"
        return Finding(
            False,
            variable,
            f"{shown} answers {status}, and it is not {name}'s API: correct the address, or {unset}",
        )
    if status != 200:
        cut = " ".join(text.split())[:200]
        return Finding(
            False,
            variable,
            f"{shown} answers {status}: {cut or 'empty response'}. See its log, or {unset}",
        )
    return Finding(True, variable, f"{shown} answers")


def _ask(address: str, variable: str) -> tuple[int, str]:
    """Send a request that needs an account, with the credentials that are set; return status and response.

    Raises:
        OSError: If there is no answer.
    """
    url = urlparse(without_account(address))
    path = "/api/2.0/mlflow/experiments/search?max_results=1" if variable == "MLFLOW_TRACKING_URI" else "/admin/version"
    request = urllib.request.Request(f"{url.scheme}://{url.netloc}{url.path.rstrip('/')}{path}")
    account = urlparse(address)
    if variable == "MLFLOW_TRACKING_URI":
        user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
        token = os.environ.get("MLFLOW_TRACKING_TOKEN")
        pair = f"{user}:{password}" if user and password else None
    else:
        from rltrack.flows.client import configured_auth

        pair, token = configured_auth(), None
    if pair is None and account.username:
        pair = f"{unquote(account.username)}:{unquote(account.password or '')}"
    if pair is not None:
        request.add_header("Authorization", f"Basic {base64.b64encode(pair.encode()).decode()}")
    elif token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read(_LONGEST_ANSWER).decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(_LONGEST_ANSWER).decode(errors="replace")


def _is_expected(variable: str, text: str) -> bool:
    """Whether a response is MLflow's list of experiments, or Prefect's version."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict if variable == "MLFLOW_TRACKING_URI" else str)
