"""Deleting old runs, or their large files; never the origin of a registered model, nor one that trains or can be resumed.

First all candidates are listed with the reasons; only then is anything deleted.
"""

from __future__ import annotations

import contextlib
import fnmatch
import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rltrack import damage
from rltrack.checkpoints.retention import best_first
from rltrack.errors import ConfigurationError, RunDamaged
from rltrack.registry.deletion import Notify, delete_run, error_text, finish_interrupted, ids_of_runs, resumable_only
from rltrack.registry.origins import Origins, find_origins
from rltrack.runs import Root, RunDirectory, RunStatus, StoredConfiguration
from rltrack.studies.seeds import STUDY_TAG
from rltrack.tracking.bookmark import is_delivered, read_bookmark


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Selects the runs to delete: those to which all conditions apply.

    Attributes:
        older_than: Seconds since the last record; None: any age.
        study: Name of a study or sweep; None: any, or none.
        pattern: Pattern of the name, such as ``test-*``.
        below: Best mean return less than this; a run without an evaluation counts as below.
        keep_best: Of the runs that match the other conditions, keep this many, by best mean return.
        unfinished: Also runs that were interrupted or stopped and could be resumed.
    """

    older_than: float | None = None
    study: str | None = None
    pattern: str | None = None
    below: float | None = None
    keep_best: int | None = None
    unfinished: bool = False

    def check(self) -> None:
        """Refuse a filter without conditions, which would match everything.

        Raises:
            ConfigurationError: If there is no condition, or a number is negative.
        """
        if (self.older_than, self.study, self.pattern, self.below, self.keep_best) == (None,) * 5:
            raise ConfigurationError(
                "Which runs? Give one or more of --older-than 30d, --study NAME, --match 'test-*', --below SCORE, --keep-best N."
            )
        for name, value in (("older-than", self.older_than), ("keep-best", self.keep_best)):
            if value is not None and value < 0:
                raise ConfigurationError(f"--{name} is {value}; it cannot be negative.")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A run to which the conditions apply.

    Attributes:
        run: Its folder.
        bytes: What its deletion frees; 0 if it is kept.
        score: Best mean return; None without an evaluation.
        last_time: Unix seconds of its last record.
        kept: Why it is kept; None if it is to be deleted.
    """

    run: RunDirectory
    bytes: int
    score: float | None
    last_time: float
    kept: str | None


def find_prunable(root: Root, wanted: RunFilter, *, whole: bool, gone: Collection[str] = ()) -> list[Candidate]:
    """Return every run to which the conditions apply, with the reason for those that are kept.

    Args:
        root: The root.
        wanted: The conditions.
        whole: Delete whole runs, not only their checkpoints.
        gone: Addresses of registries that no longer exist; they are not queried.

    Raises:
        ConfigurationError: If there are no conditions, or the registries that the runs use cannot be determined.
        RegistryUnavailable: If one of those registries does not answer.
    """
    wanted.check()
    runs = root.runs()
    summaries = {run.name: _summary_of(run) for run in runs}
    models, origins = find_origins(root, runs, gone), _origins(summaries.values())
    now, found = time.time(), []
    for run in runs:
        summary = summaries[run.name]
        if wanted.pattern is not None and not fnmatch.fnmatchcase(run.name, wanted.pattern):
            continue
        if wanted.study is not None and summary.study != wanted.study:
            continue
        if wanted.older_than is not None and now - summary.last_time < wanted.older_than:
            continue
        if wanted.below is not None and summary.score is not None and summary.score >= wanted.below:
            continue
        kept = _reason_to_keep(run, summary, models, origins, unfinished=wanted.unfinished, whole=whole)
        freed = _size(run, whole=whole) if kept is None else 0
        found.append(Candidate(run, freed, summary.score, summary.last_time, kept))
    if wanted.keep_best:
        ranked = sorted(found, key=lambda item: float("-inf") if item.score is None else item.score, reverse=True)
        names = {item.run.name for item in ranked[: wanted.keep_best]}
        found = [item for item in found if item.run.name not in names]
    return found


@dataclass(frozen=True, slots=True)
class _RunSummary:
    """What is known of a run; without a status, why it cannot be read."""

    status: RunStatus | None
    problem: str
    score: float | None
    last_time: float
    study: str | None
    starts_from: str | None


def _summary_of(run: RunDirectory) -> _RunSummary:
    try:
        with damage.collected() as found:
            status = run.status()
            record = run.configuration_record()  # its identity: without it, its models cannot be determined
            best = best_first(run.store().versions())
            config = run.configuration() if run.config_file.exists() else StoredConfiguration.of({})
        if found.new or record is None:
            raise RunDamaged(" ".join(found.new) or "its configuration record is missing")
        study = config.tracking.tags.get(STUDY_TAG)
        starts_from = config.start_from.run if config.start_from is not None and not status.is_finished else None
        score = best[0].score if best else status.mean_return
        if score is not None and math.isnan(score):  # cannot be compared
            score = None
        return _RunSummary(status, "", score, status.last_time, study, starts_from)
    except Exception as error:  # damaged or just deleted: it is kept, and the other runs are still listed
        changed = run.journal_file.stat().st_mtime if run.journal_file.exists() else time.time()
        return _RunSummary(None, error_text(error), None, changed, None, None)


def _reason_to_keep(
    run: RunDirectory, summary: _RunSummary, models: Origins, origins: set[str], *, unfinished: bool, whole: bool
) -> str | None:
    if summary.status is None:
        return f"it cannot be read: {summary.problem}"
    if run.is_locked():
        return "it is being trained"
    if run.is_shipped():
        return "it is being delivered"
    model = models.of(run)
    if model is not None:
        return f"it is the origin of {model}"
    if run.name in origins:
        return "an unfinished run starts from it"
    if not summary.status.is_finished and not unfinished:
        return "it is not finished (--unfinished takes it too)"
    if whole and read_bookmark(run) is not None and not is_delivered(run):
        return "it is not fully delivered; rltrack sync"
    return None


def _origins(summaries: Collection[_RunSummary]) -> set[str]:
    """Return the runs from which unfinished runs start: a resume reads them again."""
    return {summary.starts_from for summary in summaries if summary.starts_from is not None}


def _size(run: RunDirectory, *, whole: bool) -> int:
    if whole:
        size = 0
        for file in run.path.rglob("*"):
            with contextlib.suppress(OSError):  # just deleted
                size += file.stat().st_size if file.is_file() and not file.is_symlink() else 0
        return size
    return sum(version.size_bytes for version in resumable_only(run))


def parse_age(text: str) -> float:
    """Return seconds for an age such as ``30d``, ``12h``, ``2w``.

    Raises:
        ConfigurationError: If it is not an age.
    """
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
    try:
        seconds = float(text[:-1]) * units[text[-1]]
    except (ValueError, KeyError, IndexError):
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ConfigurationError(f"'{text}' is not an age. Write a number and s, m, h, d or w, such as 30d.")
    return seconds


def prune(
    root: Root, candidates: Sequence[Candidate], *, whole: bool, notify: Notify, gone: Collection[str] = ()
) -> list[str]:
    """Delete the candidates that have no reason to be kept; also finish a prune that was killed.

    Returns:
        The names of the runs that could not be deleted completely; `notify` got the reasons.
    """
    failed = finish_interrupted(root, notify) if whole else []
    known = ids_of_runs(root) if whole else {}
    for item in candidates:
        if item.kept is not None:
            continue
        try:
            delete_run(item.run, whole=whole, known=known, gone=gone, notify=notify)
        except Exception as error:  # any error of a store, a server or a disk: continue with the other runs
            failed.append(item.run.name)
            notify(f"{item.run.name}: not deleted: {error_text(error)}")
        else:
            notify(f"{item.run.name}: {'deleted' if whole else 'checkpoints deleted'}")
    return failed
