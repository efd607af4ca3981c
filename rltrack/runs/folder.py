"""Where things are: the root, the folders of runs, who holds them, and how they stand.

``<root>/runs/<name>/{config.yaml, journal.jsonl, resources.jsonl, checkpoints/, tensorboard/, train.log, exports/}``.
Locks are ``flock``: not for network file systems.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rltrack import damage
from rltrack.addresses import check_addressable
from rltrack.checkpoints.retention import Retention
from rltrack.checkpoints.store import CheckpointStore
from rltrack.config import check_run_name
from rltrack.config_file import newest_description, read_config_file, what_is_wrong, write_config_file
from rltrack.errors import (
    ConfigurationError,
    JournalDamaged,
    RootNotWritable,
    RunBusy,
    RunDamaged,
    RunNotFound,
    did_you_mean,
)
from rltrack.files import inside, is_locked, leads_into, make_private_folder, take_lock
from rltrack.journal import Record
from rltrack.journal.seal import read_seal
from rltrack.processes import holder_in_words
from rltrack.runs.completeness import JournalPosition
from rltrack.runs.configuration import StoredConfiguration
from rltrack.runs.history import RunHistory, RunStatus, read_configuration

DEFAULT_ROOT = "mlruns"
CERTIFICATE = "reproduction.json"
"""In a run's folder: the certificate of the last `rltrack reproduce`."""


def resolve_root(root: str | Path | None = None) -> Path:
    """Return the root as an absolute path: the given one, ``RLTRACK_ROOT``, or ``./mlruns``."""
    return Path(root or os.environ.get("RLTRACK_ROOT") or DEFAULT_ROOT).expanduser().absolute()


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """One run's folder."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def root(self) -> Path:
        """The root under which it lies."""
        return self.path.parent.parent

    @property
    def config_file(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def journal_file(self) -> Path:
        """The journal."""
        return self.path / "journal.jsonl"

    @property
    def resources_file(self) -> Path:
        """Samples of memory, CPU and GPU."""
        return self.path / "resources.jsonl"

    @property
    def log_file(self) -> Path:
        """The log."""
        return self.path / "train.log"

    @property
    def lock_file(self) -> Path:
        """Held by the process that trains."""
        return self.path / "lock"

    @property
    def shipper_lock(self) -> Path:
        """Held by the process that delivers."""
        return self.path / "shipper.lock"

    @property
    def shipper_log(self) -> Path:
        """What the delivering process said."""
        return self.path / "shipper.log"

    @property
    def bookmark_file(self) -> Path:
        """How far the run is delivered."""
        return self.path / "delivered.json"

    @property
    def set_aside_file(self) -> Path:
        """What MLflow refused permanently, with its reasons."""
        return self.path / "undelivered.jsonl"

    @property
    def destination_file(self) -> Path:
        """Where the run's numbers go."""
        return self.path / "destination.json"

    @property
    def exports(self) -> Path:
        """Plots and exported metrics."""
        return self.path / "exports"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard events: in the run's folder, unless its configuration names another."""
        wanted = self.configuration().tracking.tensorboard_log_dir
        return Path(wanted) / self.name if wanted else self.path / "tensorboard"

    def link_tensorboard(self) -> None:
        """Make the run's events appear under its name in the root's folder for TensorBoard."""
        link, events = Root(self.root).tensorboard_folder / self.name, self.tensorboard.absolute()
        if self.path.is_symlink() and not leads_into(self.path, self.path.parent):
            return
        with contextlib.suppress(OSError):  # a file system without links: TensorBoard shows the run's own folder
            link.parent.mkdir(exist_ok=True)
            if not link.is_symlink() or Path(os.readlink(link)) != events:
                link.unlink(missing_ok=True)
                link.symlink_to(events)

    def store(self, retention: Retention | None = None) -> CheckpointStore:
        """Return the run's versions."""
        return CheckpointStore(self.path / "checkpoints", retention)

    def read_config(self) -> dict[str, Any]:
        """Return the resolved configuration; where its file is damaged, the copy in a version or in the journal.

        Raises:
            RunDamaged: If there is none that can be read.
        """
        try:
            return read_config_file(self.config_file, self.store())
        except (OSError, ValueError) as error:
            what = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({what_is_wrong(error)})"
        copy, where = self._config_elsewhere()
        if copy is None:
            raise RunDamaged(f"{self.config_file} {what}, and the run holds no copy of it. Put it back from a backup.")
        damage.report(
            f"{self.config_file} {what}; {where} is used in its place. The run's versions and records are not touched by that; a "
            f"resume writes the file again. Settings are changed with --set: rltrack resume {self.name} --set KEY=VALUE."
        )
        return copy

    def _config_elsewhere(self) -> tuple[dict[str, Any] | None, str]:
        """Return a copy of the configuration, and where it is."""
        found = newest_description(self.store())
        if found is not None:
            return {**found[1]["config"], "name": self.name}, f"the copy in its version {found[0].name}"
        with contextlib.suppress(JournalDamaged):
            record = self.configuration_record()
            if record is not None and record.get("identity"):
                where = "what its journal holds of it (not: settings of tracking, limits and retention)"
                return {**record["identity"], "name": self.name}, where
        return None, ""

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved configuration."""
        write_config_file(self.config_file, config)

    def configuration_record(self) -> Record | None:
        """Return the journal's first record, which holds the run's identity, or its copy in a version; None without both."""
        if self.journal_file.exists():
            with contextlib.suppress(JournalDamaged):  # readers of its records report it
                record = read_configuration(self.journal_file)
                if record is not None:
                    return record
        found = newest_description(self.store())
        if found is None:
            return None
        version, copy = found
        fields = {key: copy.get(key) for key in ("identity", "agent", "policy")}
        return {"kind": "configuration", "time": version.created, "run_id": version.run_id, **fields}

    def has_beginning(self) -> bool:
        """Whether the journal itself holds the record of the run's configuration."""
        return self.journal_file.exists() and read_configuration(self.journal_file) is not None

    def is_begun(self) -> bool:
        """Whether there is anything of a run: a journal, or versions without one."""
        return os.path.lexists(self.journal_file) or bool(self.store().folders())

    def attempts(self) -> list[Record]:
        """Return the records of the processes that trained it."""
        return self.history().attempts if self.journal_file.exists() else []

    def history(self, position: JournalPosition | None = None, *, report: bool = True) -> RunHistory:
        """Return what the run's records say (`RunHistory.read`).

        Raises:
            JournalDamaged: If the journal is gone or cannot be read.
        """
        return RunHistory.read(self.journal_file, position, report=report)

    @property
    def run_id(self) -> str:
        """The run's own id; its name, where nothing says which run it is."""
        record = self.configuration_record()
        return self.name if record is None else str(record["run_id"])

    def configuration(self) -> StoredConfiguration:
        """Return the resolved configuration as a typed value.

        Raises:
            RunDamaged: As `read_config`.
        """
        return StoredConfiguration.of(self.read_config(), str(self.config_file))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run: one trainer at a time.

        Raises:
            RunBusy: If another process holds it.
        """
        descriptor = take_lock(self.lock_file, wait_seconds=1.0)
        if descriptor is None:
            raise RunBusy(
                f"Run {self.name} is being trained by {holder_in_words(self.lock_file)}. Wait for it, stop it, or choose another "
                "name."
            )
        try:
            yield
        finally:
            os.close(descriptor)

    def is_locked(self) -> bool:
        """Whether a process is training it now."""
        return is_locked(self.lock_file)

    def is_shipped(self) -> bool:
        """Whether a process is delivering it now."""
        return is_locked(self.shipper_lock)

    def status(self, *, held: bool = False, history: RunHistory | None = None) -> RunStatus:
        """Return how the run stands.

        Args:
            held: Whether the caller itself has the lock.
            history: What its records say; omitted: the end of its journal is read.

        Raises:
            JournalDamaged: If the journal is gone or cannot be read.
        """
        status = (history or RunHistory.read_end(self.journal_file)).status()
        if status.state == "interrupted" and (failure := read_seal(self.journal_file).failure):
            status = replace(status, state="failed", reason=failure)
        if not held and self.is_locked():
            status = replace(status, state="running", reason="")
        return status


def run_stem(base: str, longest: int = 90) -> str:
    """Return a text, such as ``PPO-CartPole-v1-s0``, as it can begin a run's name; a long one is cut, and ends in a hash."""
    stem = re.sub(r"\.{2,}", ".", re.sub(r"[^a-z0-9._]+", "-", base.lower())).strip("-._") or "run"
    if len(stem) <= longest:
        return stem
    return f"{stem[: longest - 9].rstrip('-._')}-{hashlib.sha256(stem.encode()).hexdigest()[:8]}"


class Root:
    """The folder in which everything is kept.

    Args:
        path: Omitted: ``RLTRACK_ROOT``, or ``./mlruns``.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = resolve_root(path)

    @property
    def runs_folder(self) -> Path:
        """Where the runs are."""
        return self.path / "runs"

    def directory(self, name: str) -> RunDirectory:
        """Return the folder of a run, whether it exists or not: the only way from a name to a run.

        Raises:
            ConfigurationError: If the name cannot be a run's, or is a symbolic link that leads elsewhere.
        """
        return RunDirectory(inside(self.runs_folder, check_run_name(name)))

    def study_folder(self, name: str) -> Path:
        """Return the folder of a sweep or a study of seeds.

        Raises:
            ConfigurationError: As `directory`.
        """
        return inside(self.path / "studies", check_run_name(name))

    @property
    def tensorboard_folder(self) -> Path:
        """Links to all runs' TensorBoard events, by the runs' names."""
        return self.path / "tensorboard"

    def check_writable(self) -> None:
        """Find out whether runs can be kept here, making the folder.

        Raises:
            RootNotWritable, ConfigurationError: If not, with the reason.
        """
        check_addressable(self.path)
        try:
            make_private_folder(self.path)
            self.runs_folder.mkdir(exist_ok=True)
            tempfile.TemporaryFile(dir=self.runs_folder).close()
        except OSError as error:
            raise RootNotWritable(
                f"The root {self.path} cannot be written: {error.strerror or error}. Choose another with --root DIR or "
                "RLTRACK_ROOT."
            ) from None

    def names(self) -> list[str]:
        """Return the names of all runs, sorted."""
        if not self.runs_folder.is_dir():
            return []
        return sorted(
            path.name
            for path in self.runs_folder.iterdir()
            if self._is_ours(path.name) and self.directory(path.name).is_begun()
        )

    def _is_ours(self, name: str) -> bool:
        try:
            self.directory(name)
        except ConfigurationError:
            return False
        return True

    def runs(self) -> list[RunDirectory]:
        """Return all runs, by name."""
        return [self.directory(name) for name in self.names()]

    def find(self, name: str) -> RunDirectory:
        """Return a run by its name.

        Raises:
            RunNotFound: If there is none; the nearest names are given.
            ConfigurationError: If the name cannot be a run's, or is a symbolic link that leads elsewhere.
        """
        found = self.directory(name)
        if not self.exists(name):
            names = self.names()
            known = (
                f" Runs here: {', '.join(names[:20])}{' …' if len(names) > 20 else ''}."
                if names
                else " It has no runs yet: name another root with --root, or begin one: rltrack train --algo ppo --env CartPole-v1."
            )
            raise RunNotFound(f"No run '{name}' under {self.path}.{did_you_mean(name, names)}{known}")
        return found

    def exists(self, name: str) -> bool:
        """Whether there is a run of this name; one that lost its journal and has versions is one, too.

        Raises:
            ConfigurationError: As `directory`.
        """
        return self.directory(name).is_begun()

    def create(self, name: str | None, base: str) -> RunDirectory:
        """Make the folder of a new run.

        Args:
            name: Its name; must not exist yet. None: made from `base`, and unique.
            base: Such as ``ppo-cartpole-v1-s0``.
        """
        self.check_writable()
        if name is not None:
            made = self.directory(name)
            made.path.mkdir(exist_ok=True)  # one left without a journal holds nothing
            return made
        stem = run_stem(base)
        number = 1
        while True:
            path = self.runs_folder / (stem if number == 1 else f"{stem}-{number}")
            try:
                path.mkdir()
                return self.directory(path.name)
            except FileExistsError:
                number += 1
