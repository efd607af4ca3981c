"""Delivers a run to MLflow, exactly once: everything can be sent again without doubling.

Metrics carry the journal's own times, and MLflow drops identical rows. The MLflow run is found again by a tag of ours, so
that an attempt that died after creating it does not create another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from rltrack.tracking.sinks.embedded import artifact_folder

RUN_TAG = "rltrack.run_id"
BATCH = 1000
_MAX_KEY, _MAX_PARAM, _MAX_TAG = 250, 6000, 5000
_FORBIDDEN = re.compile(r"[^/\w.\- :]")

STATUS = {
    "completed": "FINISHED",
    "stopped": "KILLED",
    "failed": "FAILED",
    "interrupted": "FAILED",
    "running": "RUNNING",
}


class MlflowSink:
    """One run in MLflow.

    Args:
        tracking_uri: Address of the database or server.
        experiment: Name of the experiment; made if missing.
        root: The root, for the artifacts of an embedded database; None for a server, which has its own place.
    """

    def __init__(self, tracking_uri: str, experiment: str, root: Path | None) -> None:
        self.tracking_uri = tracking_uri
        self._client = MlflowClient(tracking_uri)
        self.experiment_id = self._experiment(experiment, root)
        self.run_id = ""

    def open(self, own_id: str, name: str, start_ms: int, tags: Mapping[str, str]) -> str:
        """Find the run with our tag, or create it; return MLflow's id."""
        found = self._client.search_runs([self.experiment_id], f"tags.`{RUN_TAG}` = '{own_id}'", max_results=1)
        if found:
            self.run_id = found[0].info.run_id
        else:
            created = self._client.create_run(
                self.experiment_id, start_time=start_ms, tags={RUN_TAG: own_id}, run_name=name
            )
            self.run_id = created.info.run_id
        self.tags(tags)
        return self.run_id

    def tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; the same key again overwrites."""
        entities = [RunTag(key, str(value)[:_MAX_TAG]) for key, value in tags.items()]
        self._client.log_batch(self.run_id, tags=entities)

    def params(self, params: Mapping[str, Any]) -> None:
        """Log parameters that are not there yet: MLflow refuses a changed value, and an operational key may change."""
        known = self._client.get_run(self.run_id).data.params
        new = [Param(_key(key), str(value)[:_MAX_PARAM]) for key, value in params.items() if _key(key) not in known]
        for chunk in _chunks(new, 100):
            self._client.log_batch(self.run_id, params=chunk)

    def metrics(self, rows: Iterable[tuple[str, float, float, int]]) -> int:
        """Log ``(key, value, Unix seconds, step)`` in batches; return how many there were."""
        sent = 0
        entities = (Metric(_key(key), float(value), int(time * 1000), int(step)) for key, value, time, step in rows)
        for chunk in _chunks(entities, BATCH):
            self._client.log_batch(self.run_id, metrics=chunk)
            sent += len(chunk)
        return sent

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Upload a file; the same name again overwrites."""
        self._client.log_artifact(self.run_id, str(path), folder)

    def close(self, state: str, end_ms: int) -> None:
        """Set the run's final status."""
        self._client.set_terminated(self.run_id, STATUS[state], end_ms)

    def _experiment(self, name: str, root: Path | None) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            location = None if root is None else artifact_folder(root, name).as_uri()
            try:
                return str(self._client.create_experiment(name, artifact_location=location))
            except Exception:  # another process may have made it in between; if not, the error comes again below
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)


def _key(key: str) -> str:
    """Replace what MLflow refuses in a key; one bad key would reject its whole batch."""
    return re.sub(r"/{2,}", "/", _FORBIDDEN.sub("_", key)).replace("..", "__").strip("/")[:_MAX_KEY]


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
