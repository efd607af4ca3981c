"""A copy of a run that stands where one of its versions was written, so that a training can go on from there."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rltrack.checkpoints import Version
from rltrack.checkpoints.segments import FOLDER
from rltrack.config import TrainingConfig
from rltrack.journal.lines import decode_line
from rltrack.runs import Root, RunDirectory, RunRef
from rltrack.training.live import LiveTraining
from rltrack.training.trainer import config_of


def copy_run(run: RunDirectory, version: Version | None, root: Root) -> RunDirectory:
    """Put into another root what a training needs to go on from a version of a run.

    Args:
        run: The run; it is only read.
        version: From where; None for the beginning.
        root: Where the copy is made, under the run's name.

    Returns:
        The copy. What the run began with, another run's version, is there too.
    """
    copy = root.directory(run.name)
    copy.path.mkdir(parents=True)
    if version is None:
        copy.journal_file.write_bytes(_before(run.journal_file, 1))
        _copy_origin(run, root)
        return copy
    with open(run.journal_file, "rb") as file:
        records = file.read(version.journal["bytes"])
    if not records.endswith(b"\n"):  # lines before were changed: whether bits are the same is still to be found out
        records = _before(run.journal_file, version.journal["next_seq"])
    copy.journal_file.write_bytes(records)
    for earlier in run.store().versions():  # the strategy may go back to the best of them
        if earlier.number <= version.number:
            _copy_version(earlier, copy)
    _copy_origin(run, root)
    return copy


def versions_to_repeat_from(run: RunDirectory) -> list[Version]:
    """Return the versions from which a training can be resumed with the records that were there, oldest first."""
    return [version for version in run.store().versions() if version.is_resumable and "journal" in version.details]


def quiet_config(run: RunDirectory, version: Version | None = None) -> TrainingConfig:
    """Return a run's configuration without its own checkpoints, limits, remote store and deliveries, which change no bit.

    Args:
        run: The run.
        version: Log as often as when this one was written; omitted: as in the last attempt.
    """
    data: dict[str, Any] = config_of(run).to_mapping()
    training = {
        "checkpoint_freq": None,
        "checkpoint_freq_episodes": None,
        "checkpoint_seconds": None,
        "memory_limit_mb": None,
    }
    if data["training"].get("total_timesteps") or data["training"].get("total_episodes"):
        training["max_seconds"] = None
    changed: Mapping[str, Mapping[str, Any]] = {
        "training": training,
        "checkpoints": {"store": None, "resume": "exact", "keep_last": 10_000},
        "tracking": {"mlflow_tracking_uri": None, "tensorboard_log_dir": None, "video": False},
    }
    for section, values in changed.items():
        data[section] = {**data[section], **values}
    if version is not None:
        then = version.details.get("configuration", {}).get("config", {}).get("tracking", {})
        data["tracking"] |= {key: then[key] for key in ("log_interval",) if key in then}
    return TrainingConfig.from_mapping({**data, "name": run.name}, source=f"run {run.name}")


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Log no warnings while the copy's training is prepared: that it begins again is no fault of the run."""
    logger = logging.getLogger("rltrack")

    def is_shown(record: logging.LogRecord) -> bool:
        return record.levelno > logging.WARNING

    logger.addFilter(is_shown)
    try:
        yield
    finally:
        logger.removeFilter(is_shown)


def what_is_not_exact(live: LiveTraining) -> list[str]:
    """Return why a training that goes on from a version of a run does not give the bits of the run; nothing where it does."""
    why_not = live.agent.why_not_exact()
    return list(live.session.resume_differences) or ([why_not] if why_not else [])


def _copy_origin(run: RunDirectory, root: Root) -> None:
    ref = run.configuration().start_from
    if ref is None:
        return
    origin = Root(run.root).find(ref.run)
    version = origin.store().find(RunRef(ref.run, ref.version).version or "last")
    there = root.directory(origin.name)
    if not there.path.exists():
        there.path.mkdir(parents=True)
        there.journal_file.write_bytes(origin.journal_file.read_bytes())
        _copy_version(version, there)


def _copy_version(version: Version, copy: RunDirectory) -> None:
    folder = copy.path / "checkpoints"
    folder.mkdir(exist_ok=True)
    shutil.copytree(version.path, folder / version.path.name, copy_function=_link)
    for segment in version.segments():
        (folder / FOLDER).mkdir(exist_ok=True)
        if not (folder / FOLDER / segment.file).exists():
            _link(version.path.parent / FOLDER / segment.file, folder / FOLDER / segment.file)


def _link(source: str | Path, target: str | Path) -> None:
    """Versions and segments are written once: a second name for a file is as good as a copy."""
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)


def _before(journal: Path, seq: int) -> bytes:
    """The records of a journal before this number; before the first, which run this is, and what was chosen for it."""
    kept = b""
    with open(journal, "rb") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                if decode_line(line)[1].get("seq", 0) >= seq:
                    break
            kept += line
    return kept
