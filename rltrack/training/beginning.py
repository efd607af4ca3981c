"""A run that lost its journal, or the end of it, begins again from what its versions hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rltrack.errors import JournalDamaged, NameTaken
from rltrack.identity import identity_hash
from rltrack.runs import RunDirectory
from rltrack.runs.history import read_configuration
from rltrack.tracking.bookmark import Bookmark


def beginning_in_versions(directory: RunDirectory, identities: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return what begins the journal of a run that lost it, from its newest version; None for a new run.

    Raises:
        JournalDamaged: If there is a journal or there are versions, and none of them says which run this is.
        NameTaken: If the versions are those of a run with another identity.
    """
    path, store = directory.journal_file, directory.store()
    versions = [version for version in store.versions() if {"run_id", "identity"} <= version.details.keys()]
    if versions:
        ours = next((each for each in identities if identity_hash(each) == versions[-1].details["identity"]), None)
        if ours is None:
            raise NameTaken(
                f"{directory.path} holds versions of a run with another configuration, and its journal, which would say which, is "
                "missing or damaged. Choose another name, or pass the run's own configuration to resume it."
            )
        return {"run_id": versions[-1].run_id, "identity": ours}
    if path.exists() and path.read_bytes().find(b"\n") >= 0:
        what = f"{path} does not begin with the record of its run's configuration, and no version holds a copy."
    elif store.folders():
        what = f"{path} is missing or empty, and none of the {len(store.folders())} version(s) next to it can be read."
    else:
        return None
    raise JournalDamaged(
        f"{what} The run cannot be resumed. Restore the file from a backup, or move {directory.path} away to start a new run of "
        "this name."
    )


def refuse_copies(directory: RunDirectory, run_id: str) -> None:
    """Refuse to resume one of several copies of a run: all are delivered to one MLflow run, which would hold each step twice.

    Raises:
        NameTaken: If another folder next to it holds the same run.
    """
    others = [path for path in directory.path.parent.glob("*/journal.jsonl") if _begins_with(path, run_id)]
    for name in sorted(path.parent.name for path in others if not path.parent.samefile(directory.path)):
        raise NameTaken(
            f"The folders {directory.name} and {name} in {directory.path.parent} hold the same run: one is a copy of the other, "
            "and both are delivered to one MLflow run, which would hold each step twice. Move one of them out of that folder, or "
            f"begin a new run with its policy: rltrack train --from {directory.name} --name NAME."
        )


def _begins_with(journal: Path, run_id: str) -> bool:
    """Whether a journal's first record is that of this run; one that cannot be read is none."""
    try:
        with open(journal, "rb") as file:
            if run_id.encode() not in file.readline():
                return False
        return (read_configuration(journal) or {}).get("run_id") == run_id
    except (OSError, JournalDamaged):
        return False


def take_back_deliveries(directory: RunDirectory, run_id: str, journal_bytes: int) -> None:
    """Have what is written from here on delivered, where more was delivered before than the journal holds now."""
    if directory.bookmark_file.exists():
        bookmark = Bookmark.load(directory.bookmark_file, run_id)
        if bookmark.goes_back_to(journal_bytes):
            bookmark.save(directory.bookmark_file)
