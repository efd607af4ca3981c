"""Deleting one run, or its checkpoints: first the steps that can be undone, last those that cannot::

    lock the run
    mark its MLflow run deleted                  (MLflow restores it)
    move its folder to runs/.deleted             (in one step; it can be moved back)
    delete its copy in the remote store          (the folder is still complete)
    delete the folder

If a step fails, the steps before it are undone. Only what carries the run's own id is touched: a name is not enough.
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from rltrack.addresses import same_place
from rltrack.checkpoints import Version
from rltrack.checkpoints.mirror import attempt_of
from rltrack.checkpoints.remote import RemoteRun, signing_key
from rltrack.config import check_run_name
from rltrack.errors import RegistryUnavailable, RltrackError, RunBusy, RunNotFound
from rltrack.registry.origins import delivered_to, is_gone
from rltrack.runs import Root, RunDirectory, StoredConfiguration
from rltrack.tracking.bookmark import read_bookmark
from rltrack.tracking.destination import read_destination, without_password
from rltrack.tracking.report import DIRECTORY_TAG
from rltrack.tracking.sinks.answers import explain
from rltrack.tracking.sinks.mlflow import RUN_TAG

_DELETED = ".deleted"
"""Folder for the runs whose deletion has started."""

Notify = Callable[[str], None]


def delete_run(
    run: RunDirectory,
    *,
    whole: bool,
    known: Mapping[Path, str],
    gone: Collection[str] = (),
    notify: Notify = lambda text: None,
) -> None:
    """Delete a run's checkpoints, or the whole run: its MLflow run (`mlflow gc` removes that), its folder, its remote copy.

    If only checkpoints are deleted, best policies and pinned versions stay.

    Args:
        run: The run; it is locked meanwhile.
        whole: Delete the whole run.
        known: As `ids_of_runs`; what a copied folder shares with its original stays.
        gone: Addresses of MLflow servers that no longer exist.
        notify: Called with each progress message.

    Raises:
        RunNotFound: If it no longer exists.
        RunBusy: If it is being trained or delivered, or was resumed on another machine.
        RegistryUnavailable: If its MLflow does not answer or refuses. In all cases it is unchanged.
        RltrackError: If its folder, which is no longer a run, cannot be deleted.
    """
    if not run.journal_file.exists():
        raise RunNotFound(f"run {run.path} no longer exists")
    with run.lock():
        if run.is_shipped():
            raise RunBusy("it is being delivered")
        if whole:
            _delete_whole(run, known, gone, notify)
        else:
            run.store().delete(resumable_only(run))


def ids_of_runs(root: Root) -> dict[Path, str]:
    """Return the own ids of all runs under a root that can be read, by folder."""
    found = {}
    for run in root.runs():
        with contextlib.suppress(RltrackError, OSError):
            found[run.path] = run.run_id
    return found


def _has_run(folder: Path, run_id: str) -> bool:
    with contextlib.suppress(RltrackError, OSError):
        return RunDirectory(folder).journal_file.exists() and RunDirectory(folder).run_id == run_id
    return True  # it cannot be told: what may be its own stays


def _same_run(run: RunDirectory, known: Mapping[Path, str], notify: Notify) -> bool:
    """Whether another folder is the same run: a copy, or what this is a copy of."""
    record = run.configuration_record()
    own = None if record is None else record["run_id"]
    for path, run_id in known.items():
        if run_id == own and path != run.path and RunDirectory(path).journal_file.exists():  # not deleted since
            notify(f"{run.name}: {path.name} is the same run, whose MLflow run and remote copy are not deleted")
            return True
    return False


def _delete_whole(run: RunDirectory, known: Mapping[Path, str], gone: Collection[str], notify: Notify) -> None:
    is_shared = _same_run(run, known, notify)
    remote = None if is_shared else _own_copy(run, notify)
    with contextlib.ExitStack() as undo:
        if not is_shared and (restore := _delete_in_mlflow(run, gone, notify)):
            undo.callback(restore)
        aside = _move_to_deleted(run)
        undo.callback(_move_back, aside, run.path, notify)
        if remote is not None:
            remote.remove()
        undo.pop_all()
    try:
        link = Root(run.root).tensorboard_folder / run.name
        if link.is_symlink():
            link.unlink()
        _delete_folder(aside)
    except OSError as error:
        raise RltrackError(f"its remaining files are in {aside}: {error_text(error)}") from error


def _own_copy(run: RunDirectory, notify: Notify) -> RemoteRun | None:
    """Return the run's copy in a remote store; None if there is none, or it is another run's.

    Raises:
        RunBusy: If the run was resumed on another machine.
    """
    config = run.configuration() if run.config_file.exists() else StoredConfiguration.of({})
    store = config.checkpoints.store
    if store is None:
        return None
    remote = RemoteRun(store, check_run_name(config.name or run.name), signing_key())
    claims, record = remote.claims(), run.configuration_record()
    if not claims:
        return None
    if record is None or claims[-1].run_id != record["run_id"]:
        notify(f"{run.name}: {remote.url} is the copy of another run of this name, and is not deleted")
        return None
    if claims[-1].attempt > attempt_of(run.path):
        raise RunBusy(f"it was resumed on {claims[-1].host} (attempt {claims[-1].attempt} in {remote.url})")
    return remote


def _move_to_deleted(run: RunDirectory) -> Path:
    """Rename the folder out of the way in one step, so that no half-deleted run is ever listed."""
    aside = run.path.parent / _DELETED / uuid.uuid4().hex[:8] / run.name
    aside.parent.mkdir(parents=True)
    run.path.rename(aside)
    return aside


def _move_back(aside: Path, path: Path, notify: Notify) -> None:
    try:
        aside.rename(path)
        _remove_empty(aside.parent)
    except OSError as error:
        notify(f"{path.name}: its folder could not be moved back: {error_text(error)}. It is {aside}")


def _delete_folder(aside: Path) -> None:
    shutil.rmtree(aside)
    _remove_empty(aside.parent)


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()


def finish_interrupted(root: Root, notify: Notify) -> list[str]:
    """Delete what a killed prune had moved to `.deleted`; return the names of runs that could not be deleted."""
    failed, known = [], ids_of_runs(root)
    for aside in sorted((root.runs_folder / _DELETED).glob("*/*")):
        run = RunDirectory(aside)
        if run.is_locked():  # another process is deleting it
            continue
        try:
            is_whole = run.journal_file.exists()
            remote = _own_copy(run, notify) if is_whole and not _same_run(run, known, notify) else None
            if remote is not None:
                remote.remove()
            _delete_folder(aside)
            notify(f"{run.name}: the rest of an earlier deletion is deleted")
        except Exception as error:
            failed.append(run.name)
            notify(f"{run.name}: the rest of an earlier deletion is still in {aside}: {error_text(error)}")
    return failed


def resumable_only(run: RunDirectory) -> list[Version]:
    """Return versions that only a resume needs."""
    store = run.store()
    pinned = store.pinned()
    return [version for version in store.versions() if version.is_resumable and version.number not in pinned]


def _delete_in_mlflow(run: RunDirectory, gone: Collection[str], notify: Notify) -> Callable[[], None] | None:
    """Mark the run deleted in MLflow, if it is ours; return the function that restores it."""
    bookmark, destination, record = read_bookmark(run), read_destination(run), run.configuration_record()
    run_id = None if bookmark is None else bookmark.mlflow.state.get("run_id")
    uri = delivered_to(run)
    if run_id is None or uri is None:
        return None
    what = f"MLflow run {run_id} at {without_password(uri)}"
    if is_gone(uri, gone):
        notify(f"{run.name}: {what} is not deleted, since that server no longer exists")
        return None
    if destination is not None and destination.mlflow_run_id is not None:
        notify(f"{run.name}: {what} is your own program's, and is not deleted")
        return None
    with _mlflow_errors(what, without_password(uri)):
        client = MlflowClient(uri)
        try:
            found = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        tag = found.data.tags.get(RUN_TAG, "")
        if record is None or not (tag == record["run_id"] or tag.startswith(f"{record['run_id']}-")):
            notify(f"{run.name}: {what} does not carry this run's id, and is not deleted")
            return None
        folder = Path(found.data.tags.get(DIRECTORY_TAG) or run.path)
        if not same_place(folder, run.path) and _has_run(folder, record["run_id"]):
            notify(f"{run.name}: {what} is that of the same run in {folder}, and is not deleted")
            return None
        if found.info.lifecycle_stage == "deleted":
            return None
        client.delete_run(run_id)

    def restore() -> None:
        try:
            client.restore_run(run_id)
            notify(f"{run.name}: {what} is restored")
        except Exception as error:
            notify(
                f"{run.name}: {what} could not be restored: {error_text(error)}. mlflow runs restore --run-id {run_id}"
            )

    return restore


@contextlib.contextmanager
def _mlflow_errors(what: str, address: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise RegistryUnavailable(
            f"{what} cannot be marked deleted: {explain(error, address)[0].removesuffix('.')}"
        ) from error


def error_text(error: BaseException) -> str:
    """Return an error's message on one line and without passwords."""
    return without_password(" ".join(str(error).split()))[:400] or type(error).__name__
