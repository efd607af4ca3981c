"""Deleting old runs, or what is large of them. Never one that a registered model comes from, trains, or can still go on.

What would go is found out first, as a list with the reasons; only then is anything deleted.
"""

from __future__ import annotations

import fnmatch
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rltrack.checkpoints import Version
from rltrack.checkpoints.remote import RemoteRun, signing_key
from rltrack.checkpoints.retention import best_first
from rltrack.errors import ConfigurationError
from rltrack.registry.model_registry import ModelRegistry
from rltrack.runs import Root, RunDirectory, RunStatus
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


def find_prunable(root: Root, wanted: Wanted, *, whole: bool) -> list[Candidate]:
    """Return every run to which the conditions apply, and why some of them stay.

    Args:
        root: The root.
        wanted: The conditions.
        whole: The run as a whole is to go, not only its checkpoints.

    Raises:
        ConfigurationError: If there are no conditions.
        RegistryUnavailable: If the model registry does not say which runs its models come from.
    """
    wanted.check()
    everything = root.runs()
    runs = [run for run in everything if wanted.pattern is None or fnmatch.fnmatchcase(run.name, wanted.pattern)]
    if wanted.study is not None:
        runs = [run for run in runs if _tags(run).get(STUDY_TAG) == wanted.study]
    statuses = {run.name: run.status() for run in everything}
    models, origins = _models_by_run(root), _origins(everything, statuses)
    now, found = time.time(), []
    for run in runs:
        status = statuses[run.name]
        best = best_first(run.store().versions())
        score = best[0].score if best else status.mean_return
        if wanted.older_than is not None and now - status.last_time < wanted.older_than:
            continue
        if wanted.below is not None and score is not None and score >= wanted.below:
            continue
        kept = _why_kept(run, status, models, origins, unfinished=wanted.unfinished, whole=whole)
        freed = _size(run, whole=whole) if kept is None else 0
        found.append(Candidate(run, freed, score, status.last_time, kept))
    if wanted.keep_best:
        ranked = sorted(found, key=lambda item: float("-inf") if item.score is None else item.score, reverse=True)
        names = {item.run.name for item in ranked[: wanted.keep_best]}
        found = [item for item in found if item.run.name not in names]
    return found


def _why_kept(
    run: RunDirectory, status: RunStatus, models: dict[str, str], origins: set[str], *, unfinished: bool, whole: bool
) -> str | None:
    if run.is_locked():
        return "it is being trained"
    if run.is_shipped():
        return "it is being delivered"
    if run.name in models:
        return f"it is the origin of {models[run.name]}"
    if run.name in origins:
        return "an unfinished run begins with its policy"
    if not status.is_finished and not unfinished:
        return "it is not finished (--unfinished takes it too)"
    if whole and read_bookmark(run) is not None and not is_delivered(run):
        return "it is not delivered whole; rltrack sync"
    return None


def prune_run(run: RunDirectory, *, whole: bool) -> None:
    """Delete a run's checkpoints, or the run: its folder, its remote copy, and its MLflow run (`mlflow gc` removes that).

    Best policies and pinned versions stay where only checkpoints go.

    Args:
        run: The run; it is held while it goes.
        whole: The run as a whole.

    Raises:
        RunBusy: If it is being trained.
    """
    with run.lock():
        if not whole:
            _delete_checkpoints(run)
            return
        store = (run.read_config().get("checkpoints") or {}).get("store")
        if store is not None:
            RemoteRun(store, run.name, signing_key()).remove()
        _delete_in_mlflow(run)
        (Root(run.root).tensorboard_folder / run.name).unlink(missing_ok=True)
        aside = run.path.with_name(f".deleted-{run.name}")
        shutil.rmtree(aside, ignore_errors=True)
        run.path.rename(aside)  # whatever happens now, no half run is left under its name
    shutil.rmtree(aside, ignore_errors=True)


def _delete_checkpoints(run: RunDirectory) -> None:
    store = run.store()
    for version in _spendable(run):
        shutil.rmtree(version.path, ignore_errors=True)
    store.prune()  # and the segments that nothing refers to any more


def _spendable(run: RunDirectory) -> list[Version]:
    """Versions that serve to go on with the run only."""
    store = run.store()
    pinned = store.pinned()
    return [version for version in store.versions() if version.is_resumable and version.number not in pinned]


def _delete_in_mlflow(run: RunDirectory) -> None:
    bookmark = read_bookmark(run)
    run_id = None if bookmark is None else bookmark.mlflow.state.get("run_id")
    if run_id is not None:
        ModelRegistry(Root(run.root)).client.delete_run(run_id)


def _models_by_run(root: Root) -> dict[str, str]:
    """By the run's name, the registered version that comes from it."""
    registry = ModelRegistry(root)
    return {
        item.source.partition("@")[0]: f"version {item.version} of model '{name}'"
        for name in registry.names()
        for item in registry.versions(name)
    }


def _origins(runs: Sequence[RunDirectory], statuses: Mapping[str, RunStatus]) -> set[str]:
    """Runs with whose policies unfinished runs begin: they read them again when they are resumed."""
    unfinished = [run for run in runs if not statuses[run.name].is_finished]
    starts = [run.read_config().get("start_from") for run in unfinished if run.config_file.exists()]
    return {str(start).partition("@")[0] for start in starts if start}


def _tags(run: RunDirectory) -> dict[str, str]:
    return (run.read_config().get("tracking") or {}).get("tags") or {} if run.config_file.exists() else {}


def _size(run: RunDirectory, *, whole: bool) -> int:
    if whole:
        return sum(file.stat().st_size for file in run.path.rglob("*") if file.is_file() and not file.is_symlink())
    return sum(version.size_bytes for version in _spendable(run))


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


def prune(candidates: Sequence[Candidate], *, whole: bool, tell: Callable[[str], None]) -> None:
    """Delete what `find_prunable` found and nothing keeps."""
    for item in candidates:
        if item.kept is None:
            prune_run(item.run, whole=whole)
            tell(f"{item.run.name}: {'deleted' if whole else 'checkpoints deleted'}")
