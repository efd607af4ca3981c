"""Runs without a training: a journal, a configuration and versions, as a training leaves them."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path

import numpy as np

from rltrack.checkpoints import CheckpointStore, Retention
from rltrack.journal import Journal
from rltrack.runs import Root, RunDirectory
from rltrack.tracking.bookmark import Bookmark, SinkBookmark
from rltrack.tracking.destination import Destination, without_password, write_destination


def made_run(
    root: Path,
    name: str,
    *,
    run_id: str | None = None,
    destination: Destination | None = None,
    mlflow_run_id: str | None = None,
    store: str | None = None,
    state: str = "completed",
) -> RunDirectory:
    """A finished run with a best policy and two versions to go on from; delivered whole, if it has an MLflow run.

    Args:
        root: The root.
        name: Its name.
        run_id: Its own id; omitted: a new one.
        destination: Where its numbers went; omitted: the root's own database.
        mlflow_run_id: MLflow's id of it.
        store: Its remote store.
        state: How it ended.
    """
    run = Root(root).create(name, "")
    run.write_config({"name": name, "checkpoints": {"store": store}, "tracking": {}})
    journal = Journal(run.journal_file)
    own = run_id or uuid.uuid4().hex
    journal.note("configuration", run_id=own, identity={}, agent={"algorithm": "none"}, policy=None)
    journal.note("attempt", number=1, resumed_from=None, env_steps=0, exact=True, environments=None, host="here", pid=1,
                 versions={})  # fmt: skip
    versions = CheckpointStore(run.path / "checkpoints", Retention(keep_last=9, keep_best=9))
    for step in (10, 20, 30):
        journal.write("metrics", step, values={"train/loss": 1.0 / step})
        details = {"journal": journal.position, "run_id": own, "identity": "i", "attempt": 1, "versions": {}}
        tree = {"policy": {"w": np.full(3, step)}, "loop": {"n": step}}
        if step == 20:
            del tree["loop"]
        versions.commit(tree, env_steps=step, score=5.0 if step == 20 else None, details=details)
    journal.note("end", state=state, reason="done", env_steps=30, episodes=3, seconds=1.0, mean_return=5.0,
                 goes_on=state != "completed")  # fmt: skip
    journal.close()
    if destination is not None:
        write_destination(run, destination)
    if mlflow_run_id is not None:
        size = run.journal_file.stat().st_size
        address = (destination and destination.tracking_uri) or f"sqlite:///{Path(root) / 'mlflow.db'}"
        known = {"tracking_uri": without_password(address), "run_id": mlflow_run_id, "experiment_id": "1"}
        sink = SinkBookmark(journal=size, finished_at=size, state=known)
        Bookmark(own, {"mlflow": sink, "tensorboard": SinkBookmark(journal=size, finished_at=size)}).save(
            run.bookmark_file
        )
    return run


def run_id_of(run: RunDirectory) -> str:
    """The run's own id."""
    record = run.configuration_record()
    assert record is not None
    return str(record["run_id"])


def append(run: RunDirectory, **record) -> None:
    """Write a line into the journal, whatever it holds."""
    with open(run.journal_file, "ab") as file:
        file.write(json.dumps({"time": time.time(), **record}).encode() + b"\n")
