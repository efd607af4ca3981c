"""Delivers a run to MLflow, exactly once: everything can be sent again without doubling.

Metrics carry the journal's own times, and MLflow drops identical rows. The MLflow run is found again by a tag of ours, so
that an attempt that died after creating it does not create another. No call is repeated by MLflow's HTTP client itself
(the process that delivers sees to that), since a repeated ``create_run`` makes two runs.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from rltrack.addresses import file_uri, same_address
from rltrack.errors import CheckpointCorrupt, CheckpointNotFound, PolicyNotStorable
from rltrack.journal.names import former_mlflow_name, mlflow_name
from rltrack.tracking.destination import Destination, read_destination, without_password
from rltrack.tracking.sinks.answers import explain
from rltrack.tracking.sinks.base import NotDelivered, Point, Refused, Sink
from rltrack.tracking.sinks.embedded import MetricRows, artifact_folder, database_uri, ensure_database, moved_from
from rltrack.tracking.sinks.mlflow_view import view_tags

if TYPE_CHECKING:
    from mlflow.entities import Run

    from rltrack.runs import RunDirectory
    from rltrack.tracking.report import RunReport

RUN_TAG = "rltrack.run_id"
NAMES_TAG = "rltrack.names"
"""Says that the run's names are those of `mlflow_name`. Runs of older versions lack it: they keep the names that they
began with, as a series that changed its name in the middle would be delivered again under the new one."""
ORIGINAL_TAG = "rltrack.name."
"""Followed by the end of a name that was changed; its value is the name as it was recorded."""
BATCH = 1000
_MAX_PARAM, _MAX_TAG = 6000, 5000
_DESCRIPTION = "mlflow.note.content"

STATUS = {
    "completed": "FINISHED",
    "stopped": "KILLED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}
_BAD_CONTENT = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST"}

Row = tuple[str, float, int, int]
"""Key, value, milliseconds, step."""

P = ParamSpec("P")
T = TypeVar("T")


def _explained(method: Callable[Concatenate[MlflowSink, P], T]) -> Callable[Concatenate[MlflowSink, P], T]:
    """Turn whatever a database or server answers into `NotDelivered`."""

    @functools.wraps(method)
    def wrapper(self: MlflowSink, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        except NotDelivered:
            raise
        except Exception as error:
            raise self._explain(error) from error

    return wrapper


class MlflowSink(Sink):
    """One run in MLflow.

    Args:
        destination: Where it goes.
        root: The root, for its own database and artifacts where the destination names no other.
        state: ``tracking_uri``, ``experiment_id``, ``run_id``, … as left by the process before.
    """

    def __init__(self, destination: Destination, root: Path, state: dict[str, Any]) -> None:
        super().__init__(state)
        self._destination, self._root = destination, root
        self._client: Any = None
        self._known_params: set[str] = set()
        self._named: Callable[[str], str] = mlflow_name
        self._told_names: set[str] = set()
        self._fast: MetricRows | None = None

    @classmethod
    def for_run(cls, run: RunDirectory, state: dict[str, Any]) -> Self:
        """Make the sink of a run: to where its last attempt said, or to the root's own database."""
        return cls(read_destination(run) or Destination(), run.root, state)

    def is_lost(self, report: RunReport) -> bool:
        """Whether `state` speaks of another place than the one that the run goes to now."""
        address = self._destination.shown or database_uri(self._root)
        wanted = self._destination.mlflow_run_id
        if "run_id" not in self.state:
            return False
        return not same_address(without_password(self.state["tracking_uri"]), address) or (
            wanted is not None and self.state["run_id"] != wanted
        )

    @_explained
    def open(self, report: RunReport) -> None:
        """Find the run with our tag, or create it, and say that it is running."""
        uri = self._destination.tracking_uri or self._own_database()
        self._client = MlflowClient(uri)
        run = self._find(report)
        if run is None:
            run = self._create(report)
        elif run.info.lifecycle_stage == "deleted":
            raise self._deleted(run.info.run_id)
        self.state.update(
            tracking_uri=without_password(uri), experiment_id=run.info.experiment_id, run_id=run.info.run_id
        )
        self.state.setdefault("artifacts", {})
        is_older = RUN_TAG in run.data.tags and NAMES_TAG not in run.data.tags
        self._named = former_mlflow_name if is_older else mlflow_name
        self._told_names = set()
        self._known_params = set(run.data.params)
        if report.status().state == "running" and run.info.status != "RUNNING" and not self._is_borrowed:
            self._client.update_run(self.run_id, status="RUNNING")
        self._describe(report)
        self._log_dataset(report)
        if self._destination.tracking_uri is None:
            fast = MetricRows(self._root)
            self._fast = fast if fast.is_usable else None

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""
        return str(self.state["run_id"])

    @_explained
    def write(self, points: Sequence[Point]) -> list[Refused]:
        """Log metrics in batches; one that MLflow refuses permanently is found by halving its batch."""
        self._tell_names(key for point in points for key in point.values_for("mlflow"))
        rows = [
            (self._named(key), float(value), int(point.time * 1000), int(point.step))
            for point in points
            for key, value in point.values_for("mlflow").items()
        ]
        if self._fast is not None:
            latest = {row[0]: row for row in sorted(rows, key=_recency)}
            refused = self._log_all(latest.values())
            self._fast.insert(self.run_id, (row for row in rows if row is not latest[row[0]]))
            return refused
        return self._log_all(rows)

    def _log_all(self, rows: Iterable[Row]) -> list[Refused]:
        entities = (Metric(key, value, timestamp, step) for key, value, timestamp, step in rows)
        return [refused for chunk in _chunks(entities, BATCH) for refused in self._log(chunk)]

    def prepare_end(self) -> None:
        """Import what stores models, and let MLflow list the installed packages, which it does once for the first model."""
        import rltrack.registry.models  # noqa: F401

        with contextlib.suppress(ImportError, AttributeError):  # not public: without it, a second passes later
            from mlflow.utils import requirements_utils

            requirements_utils._init_modules_to_packages_map()  # type: ignore[no-untyped-call]

    @_explained
    def refresh(self, report: RunReport) -> None:
        """Show description, tags and plots as they are now."""
        self._describe(report)
        self._upload(report)

    @_explained
    def finish(self, report: RunReport) -> None:
        """Show the end, with the true status."""
        self.refresh(report)
        self._store_models(report)
        status = report.status()
        # a user's own run is ended by the user's program, unless that died
        if status.state != "running" and (not self._is_borrowed or status.state == "interrupted"):
            self._client.set_terminated(self.run_id, STATUS[status.state], int(status.last_time * 1000))

    @_explained
    def add_video(self, report: RunReport, video: Path, gif: Path) -> None:
        """Upload the video; the same name again overwrites."""
        self._client.log_artifact(self.run_id, str(video), "video")

    def close(self) -> None:
        """Forget the client."""
        self._client = None
        if self._fast is not None:
            self._fast.close()
            self._fast = None

    # ---- inside ----

    def _own_database(self) -> str:
        uri = ensure_database(self._root)
        old = moved_from(self._root)
        if old is not None:
            raise NotDelivered(
                f"The root was moved from {old} to {self._root}, and its database still holds the old paths. Repair them with "
                f"`rltrack relocate --root {quote(str(self._root))}`.",
                needs_a_person=True,
            )
        return uri

    @property
    def _is_borrowed(self) -> bool:
        return self._destination.mlflow_run_id is not None

    def _tag(self, report: RunReport) -> str:
        """What our MLflow run is found by: the run's own id, unless it was asked to be delivered into a new one."""
        return str(self.state.get("tag", report.run_id))

    def _find(self, report: RunReport) -> Run | None:
        """Return our run, the active one where there are several; None without any."""
        known = self._destination.mlflow_run_id or self.state.get("run_id")
        if known is not None:
            found: Run = self._client.get_run(known)
            return found
        tagged = f"tags.`{RUN_TAG}` = '{self._tag(report)}'"
        experiment_id = self._experiment_id()
        active = self._client.search_runs([experiment_id], tagged, max_results=10)
        if not active:
            deleted: list[Run] = self._client.search_runs([experiment_id], tagged, ViewType.DELETED_ONLY, max_results=1)
            return deleted[0] if deleted else None
        kept: Run
        kept, *others = sorted(active, key=lambda run: run.info.run_id)
        for other in others:  # a create_run whose answer was lost, and that was asked again
            if not other.data.metrics:
                self._client.delete_run(other.info.run_id)
        return kept

    def _create(self, report: RunReport) -> Run:
        created: Run = self._client.create_run(
            self._experiment_id(),
            start_time=int(report.start_time * 1000),
            tags={RUN_TAG: self._tag(report), NAMES_TAG: "2"},
            run_name=report.run.name,
        )
        return created

    def _experiment_id(self) -> str:
        if self._destination.experiment_id is not None:
            return self._destination.experiment_id
        name = self._destination.experiment
        found = self._client.get_experiment_by_name(name)
        if found is None:
            embedded = self._destination.tracking_uri is None
            location = file_uri(artifact_folder(self._root, name)) if embedded else None
            try:
                return str(self._client.create_experiment(name, artifact_location=location, tags=view_tags()))
            except MlflowException:  # another process may have made it in between; if not, the error comes again below
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            raise NotDelivered(
                f"The MLflow experiment '{name}' was deleted. Restore it (mlflow experiments restore --experiment-id "
                f"{found.experiment_id}), or choose another with tracking.experiment; then `rltrack sync --all`.",
                needs_a_person=True,
            )
        return str(found.experiment_id)

    def _log(self, rows: list[Metric]) -> list[Refused]:
        try:
            self._client.log_batch(self.run_id, metrics=rows)
            return []
        except MlflowException as error:
            if error.error_code not in _BAD_CONTENT:
                raise
            self._check_is_active()
            if len(rows) == 1:
                row = rows[0]
                what = {"key": row.key, "value": row.value, "step": row.step, "time": row.timestamp / 1000}
                return [Refused(what, " ".join(str(error).split())[:500])]
        middle = len(rows) // 2
        return self._log(rows[:middle]) + self._log(rows[middle:])

    def _check_is_active(self) -> None:
        """A deleted run answers like bad content."""
        if self._client.get_run(self.run_id).info.lifecycle_stage == "deleted":
            raise self._deleted(self.run_id)

    def _describe(self, report: RunReport) -> None:
        self._tell_names(report.params())
        params = {self._named(key): str(value)[:_MAX_PARAM] for key, value in report.params().items()}
        # MLflow refuses a changed value, and an operational key may change from one attempt to the next
        new = [Param(key, value) for key, value in params.items() if key not in self._known_params]
        for chunk in _chunks(new, 100):
            self._client.log_batch(self.run_id, params=chunk)
        self._known_params |= params.keys()
        tags = report.tags() | {RUN_TAG: self._tag(report), _DESCRIPTION: report.description()}
        if self._is_borrowed:
            tags = {key: value for key, value in tags.items() if not key.startswith("mlflow.")}
        if self._named is mlflow_name:
            tags[NAMES_TAG] = "2"
        self._set_tags({mlflow_name(key): value for key, value in tags.items()})

    def _set_tags(self, tags: Mapping[str, str]) -> None:
        for chunk in _chunks((RunTag(key, value[:_MAX_TAG]) for key, value in tags.items()), 100):
            self._client.log_batch(self.run_id, tags=chunk)

    def _tell_names(self, names: Iterable[str]) -> None:
        """Keep the original of each name that is changed where it can be found: in a tag."""
        if self._named is not mlflow_name:
            return
        changed = {name: new for name in names if (new := mlflow_name(name)) != name and name not in self._told_names}
        if changed:
            self._set_tags({f"{ORIGINAL_TAG}{new.rpartition('-')[2]}": name for name, new in changed.items()})
            self._told_names |= changed.keys()

    def _log_dataset(self, report: RunReport) -> None:
        """Name the environment as what the run learned from."""
        params = report.params()
        if "environment" not in params:
            return
        built = {key: str(value) for key, value in params.items() if key.startswith("environment.")}
        digest = hashlib.sha256(json.dumps(built, sort_keys=True).encode()).hexdigest()[:8]
        source = json.dumps({"environment": params["environment"]})
        dataset = Dataset(
            self._named(str(params["environment"])), digest, "gymnasium", source, profile=json.dumps(built)
        )
        tags = [InputTag("mlflow.data.context", "training")]
        self._client.log_inputs(self.run_id, datasets=[DatasetInput(dataset, tags)])

    def _upload(self, report: RunReport) -> None:
        sent = self.state["artifacts"]
        for path, folder in report.files():
            try:
                stamp = [path.stat().st_size, path.stat().st_mtime_ns]
                if sent.get(f"{folder}/{path.name}") != stamp:
                    self._client.log_artifact(self.run_id, str(path), folder or None)
                    sent[f"{folder}/{path.name}"] = stamp
            except FileNotFoundError:  # another version became the best one: next time
                continue

    def _store_models(self, report: RunReport) -> None:
        """Store the policies that stand for the run as models; what they supersede goes, unless it is registered."""
        from rltrack.registry.models import policy_of, store_policy

        before, stored = dict(self.state.get("models", {})), {}
        try:
            for version, role in report.policies().items():
                policy = policy_of(report.run, version)
                stored[role] = store_policy(self._client, policy, run_id=self.run_id, role=role).model_id
        except (PolicyNotStorable, CheckpointNotFound, CheckpointCorrupt) as error:
            self._client.set_tag(self.run_id, "rltrack.model", str(error)[:_MAX_TAG])
        except MlflowException as error:
            if error.error_code != "ENDPOINT_NOT_FOUND":
                raise
            self._client.set_tag(self.run_id, "rltrack.model", "This MLflow server is too old to keep models of runs.")
        self.state["models"] = before | stored
        for role, model_id in before.items():
            if stored.get(role, model_id) != model_id and model_id not in stored.values():
                self._forget_model(model_id)

    def _forget_model(self, model_id: str) -> None:
        try:
            if "mlflow.modelVersions" not in self._client.get_logged_model(model_id).tags:
                self._client.delete_logged_model(model_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # it was deleted
                raise

    def _deleted(self, run_id: str) -> NotDelivered:
        return NotDelivered(
            f"The MLflow run {run_id} was deleted. Restore it (mlflow runs restore --run-id {run_id}) and `rltrack sync "
            "RUN`, or deliver everything into a new one with `rltrack sync RUN --again`.",
            needs_a_person=True,
        )

    def _explain(self, error: Exception) -> NotDelivered:
        message, person = explain(error, self._destination.shown or database_uri(self._root))
        if not person:
            message += " What was recorded is kept, and delivered when it answers."
        return NotDelivered(message, needs_a_person=person)


def _recency(row: Row) -> tuple[int, int, float]:
    """What MLflow calls the latest of a key: by step, then by time."""
    _, value, timestamp, step = row
    return step, timestamp, value


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
