"""A run that went on elsewhere is fetched from its remote store."""

from __future__ import annotations

import logging
import shutil

from rltrack.checkpoints.mirror import attempt_of, write_state
from rltrack.checkpoints.remote import RemoteRun, signing_key
from rltrack.errors import ConfigurationError, NameTaken, RunNotFound
from rltrack.runs import Root, RunDirectory

_JOURNAL, _FETCHING = "journal.jsonl", ".fetching"
_logger = logging.getLogger("rltrack")


def open_remote(url: str, name: str | None) -> RemoteRun:
    """Return a run's copy in a remote store.

    Raises:
        ConfigurationError: If the run has no name, or there is no key to sign with.
        MissingExtra: If nothing installed can read such a URL.
    """
    if name is None:
        raise ConfigurationError(
            f"checkpoints.store ({url}) needs a run name, by which another machine finds the run again. Set name."
        )
    return RemoteRun(url, name, signing_key())


def fetch(root: Root, name: str, url: str) -> None:
    """Copy a run from a remote store to this root, if it is not here in its newest state.

    Raises:
        RunNotFound: If the store has no such run, or no more than its configuration.
        RunBusy: If it is being trained here.
    """
    remote = open_remote(url, name)
    if not remote.claims():
        raise RunNotFound(f"{url} holds no run '{name}'. Runs get there with checkpoints.store={url}.")
    directory = root.create(name, "")
    with directory.lock():
        fetch_if_elsewhere(directory, remote)
    if not directory.journal_file.exists():
        raise RunNotFound(
            f"{url} holds only the configuration of run '{name}': its training ended before the first version was copied. Train it "
            f"from the beginning: rltrack train {directory.path / 'config.yaml'}"
        )


def fetch_if_elsewhere(directory: RunDirectory, remote: RemoteRun) -> None:
    """Copy the run from the remote store if it went on elsewhere since it was last here, or never was here.

    What is here and stale is kept aside.

    Raises:
        NameTaken: If another run of this name is here.
        CheckpointCorrupt: If a signature in the store does not hold, or something there is not as rltrack writes it; what is
            here is as it was.
    """
    claims = remote.claims()
    if not claims:
        return
    known, attempt = directory.configuration_record(), attempt_of(directory.path)
    if known is not None and known["run_id"] != claims[-1].run_id:
        raise NameTaken(
            f"{remote.url} holds another run of the name {directory.name} than {directory.path}. Choose another."
        )
    if known is not None and claims[-1].attempt <= attempt:
        return
    fetched = directory.path / _FETCHING
    shutil.rmtree(fetched, ignore_errors=True)  # of a copy that was cut short
    fetched.mkdir()
    size = remote.download(fetched, _logger.warning)  # whole and verified, before anything here is touched
    if known is not None:
        aside = directory.path / f"stale-{attempt:06d}"
        aside.mkdir()
        for path in list(directory.path.iterdir()):
            if path not in (aside, fetched) and path.name != "lock":
                path.rename(aside / path.name)
    shutil.rmtree(directory.path / "checkpoints", ignore_errors=True)
    for path in sorted(fetched.iterdir(), key=lambda path: path.name == _JOURNAL):  # last: with it, there is a run
        path.rename(directory.path / path.name)
    fetched.rmdir()
    write_state(directory.path, claims[-1].attempt, size)
