"""Deleting old runs, or what is large of them. Never one that a registered model comes from, trains, or can still go on.

What would go is found out first, as a list with the reasons; only then is anything deleted.
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
from rltrack.registry.deletion import Tell, delete_run, finish_begun, spendable, words_of
from rltrack.registry.origins import Origins, find_origins
from rltrack.runs import Root, RunDirectory, RunStatus, StoredConfiguration
from rltrack.studies.seeds import STUDY_TAG
from rltrack.tracking.bookmark import is_delivered, read_bookmark


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which runs are to go: those to which all of it applies.

    Attributes:
        older_than: Seconds since the last record; None: of any age.
        study: Name of a study or sweep; None: of any, and of none.
        pattern: Of the name, such as ``test-*``.
        below: Best mean return less than this; a run without an evaluation counts as below.
        keep_best: So many of the best that remain after the other conditions stay, by best mean return.
        unfinished: Also runs that were interrupted or stopped and could go on.
    """

    older_than: float | None = None
    study: str | None = None
    pattern: str | None = None
    below: float | None = None
    keep_best: int | None = None
    unfinished: bool = False

    def check(self) -> None:
        """Refuse to want everything by leaving everything out.

        Raises:
            ConfigurationError: If nothing is said, or a number makes no sense.
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
        bytes: What deleting it frees; 0 if it stays.
        score: Best mean return; None without an evaluation.
        last_time: Unix seconds of its last record.
        kept: Why it stays all the same; None if it goes.
    """

    run: RunDirectory
    bytes: int
    score: float | None
    last_time: float
    kept: str | None


def find_prunable(root: Root, wanted: Wanted, *, whole: bool, gone: Collection[str] = ()) -> list[Candidate]:
    """Return every run to which the conditions apply, and why some of them stay.

    Args:
        root: The root.
        wanted: The conditions.
        whole: The run as a whole is to go, not only its checkpoints.
        gone: Addresses of registries that exist no more, as a person says; they are not asked.

    Raises:
        ConfigurationError: If there are no conditions, or it cannot be found out which registries the runs use.
        RegistryUnavailable: If one of those registries does not say which runs its models come from.
    """
    wanted.check()
    runs = root.runs()
    looks = {run.name: _look(run) for run in runs}
    models, origins = find_origins(root, runs, gone), _origins(looks.values())
    now, found = time.time(), []
    for run in runs:
        look = looks[run.name]
        if wanted.pattern is not None and not fnmatch.fnmatchcase(run.name, wanted.pattern):
            continue
        if wanted.study is not None and look.study != wanted.study:
            continue
        if wanted.older_than is not None and now - look.last_time < wanted.older_than:
            continue
        if wanted.below is not None and look.score is not None and look.score >= wanted.below:
            continue
        kept = _why_kept(run, look, models, origins, unfinished=wanted.unfinished, whole=whole)
        freed = _size(run, whole=whole) if kept is None else 0
        found.append(Candidate(run, freed, look.score, look.last_time, kept))
    if wanted.keep_best:
        ranked = sorted(found, key=lambda item: float("-inf") if item.score is None else item.score, reverse=True)
        names = {item.run.name for item in ranked[: wanted.keep_best]}
        found = [item for item in found if item.run.name not in names]
    return found


@dataclass(frozen=True, slots=True)
class _Look:
    """What is known of a run; without a status, why it cannot be read."""

    status: RunStatus | None
    problem: str
    score: float | None
    last_time: float
    study: str | None
    begins_with: str | None


def _look(run: RunDirectory) -> _Look:
    try:
        with damage.collected() as found:
            status = run.status()
            record = run.configuration_record()  # its identity: without it, nobody knows which models are its own
            best = best_first(run.store().versions())
            config = run.configuration() if run.config_file.exists() else StoredConfiguration.of({})
        if found.new or record is None:
            raise RunDamaged(" ".join(found.new) or "nothing says which run it is")
        study = config.tracking.tags.get(STUDY_TAG)
        begins_with = config.start_from.run if config.start_from is not None and not status.is_finished else None
        score = best[0].score if best else status.mean_return
        if score is not None and math.isnan(score):  # cannot be compared
            score = None
        return _Look(status, "", score, status.last_time, study, begins_with)
    except Exception as error:  # damaged, or gone meanwhile: it stays, and hides none of the others
        changed = run.journal_file.stat().st_mtime if run.journal_file.exists() else time.time()
        return _Look(None, words_of(error), None, changed, None, None)


def _why_kept(
    run: RunDirectory, look: _Look, models: Origins, origins: set[str], *, unfinished: bool, whole: bool
) -> str | None:
    if look.status is None:
        return f"it cannot be read: {look.problem}"
    if run.is_locked():
        return "it is being trained"
    if run.is_shipped():
        return "it is being delivered"
    model = models.of(run)
    if model is not None:
        return f"it is the origin of {model}"
    if run.name in origins:
        return "an unfinished run begins with its policy"
    if not look.status.is_finished and not unfinished:
        return "it is not finished (--unfinished takes it too)"
    if whole and read_bookmark(run) is not None and not is_delivered(run):
        return "it is not delivered whole; rltrack sync"
    return None


def _origins(looks: Collection[_Look]) -> set[str]:
    """Runs with whose policies unfinished runs begin: they read them again when they are resumed."""
    return {look.begins_with for look in looks if look.begins_with is not None}


def _size(run: RunDirectory, *, whole: bool) -> int:
    if whole:
        size = 0
        for file in run.path.rglob("*"):
            with contextlib.suppress(OSError):  # gone meanwhile
                size += file.stat().st_size if file.is_file() and not file.is_symlink() else 0
        return size
    return sum(version.size_bytes for version in spendable(run))


def parse_age(text: str) -> float:
    """Return seconds for an age such as ``30d``, ``12h``, ``2w``.

    Raises:
        ConfigurationError: If it is none.
    """
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
    try:
        return float(text[:-1]) * units[text[-1]]
    except (ValueError, KeyError, IndexError):
        raise ConfigurationError(f"'{text}' is no age. Write a number and s, m, h, d or w, such as 30d.") from None


def prune(
    root: Root, candidates: Sequence[Candidate], *, whole: bool, tell: Tell, gone: Collection[str] = ()
) -> list[str]:
    """Delete what `find_prunable` found and nothing keeps; also what an earlier one that was killed had begun.

    Returns:
        The names of the runs of which something could not be deleted; `tell` has heard why.
    """
    failed = finish_begun(root, tell) if whole else []
    for item in candidates:
        if item.kept is not None:
            continue
        try:
            delete_run(item.run, whole=whole, gone=gone, tell=tell)
        except Exception as error:  # whatever a store, a server or a disk says: the other runs are not its business
            failed.append(item.run.name)
            tell(f"{item.run.name}: not deleted: {words_of(error)}")
        else:
            tell(f"{item.run.name}: {'deleted' if whole else 'checkpoints deleted'}")
    return failed
