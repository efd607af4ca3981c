"""The artifacts of a training on Prefect's page: progress, evaluations, a summary, a link to MLflow.

A separate thread sends them, so that a server that is down does not delay training. What cannot be sent in time is dropped;
the journal has everything.
"""

from __future__ import annotations

import base64
import contextvars
import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate

from rltrack.flows.links import mlflow_link
from rltrack.runs import RunDirectory
from rltrack.tracking.report import RunReport
from rltrack.training.hooks import TrainingHook
from rltrack.training.progress import TrainingProgress

if TYPE_CHECKING:
    from rltrack.registry.promotion import Decision

PROGRESS_SECONDS = 5.0
_QUEUE_SIZE = 100
"""Maximum number of waiting calls; further ones are dropped."""

_logger = logging.getLogger("rltrack")


def artifact_key(run: str, what: str) -> str:
    """Return an artifact's key: lower case, digits and dashes only."""
    return re.sub(r"[^a-z0-9]+", "-", f"{run}-{what}".lower()).strip("-")


class Page:
    """A flow run's artifacts.

    Args:
        flow_run_id: The flow run.
        run: The run's name.
    """

    def __init__(self, flow_run_id: UUID | str, run: str) -> None:
        self._flow_run_id, self._run = UUID(str(flow_run_id)), run
        self._calls: queue.Queue[Callable[[Any], None] | None] = queue.Queue(_QUEUE_SIZE)
        self._progress_id: UUID | None = None
        self._progress_waits = False
        self._shown = 0.0
        self._rows: dict[int, dict[str, Any]] = {}
        work = contextvars.copy_context().run  # Prefect's settings, its server's address among them, are in the context
        self._thread = threading.Thread(target=work, args=(self._work,), name="prefect-page", daemon=True)
        self._thread.start()

    def show_progress(self, progress: TrainingProgress, *, now: bool = False) -> None:
        """Show the percentage of the budget, every few seconds."""
        moment = time.monotonic()
        if (moment - self._shown < PROGRESS_SECONDS and not now) or self._progress_waits:
            return
        self._shown = moment
        percent = 100.0 * min(max(1.0 - progress.remaining, 0.0), 1.0)
        text = f"{self._run}: {progress.env_steps:,} env steps, {progress.steps_per_second:,.0f} steps/s"
        self._progress_waits = True
        self._enqueue(lambda client: self._send_progress(client, percent, text))

    def show_evaluation(self, record: Mapping[str, Any], *, best: bool) -> None:
        """Add an evaluation to the flow run's table; a repeated one replaces the earlier."""
        low, high = record["interval"]
        self._rows[record["step"]] = {
            "env steps": record["step"],
            "mean return": record["mean"],
            "95 % interval": f"{low:.6g} to {high:.6g}",
            "IQM": record["iqm"],
            "episodes": len(record["returns"]),
            "best so far": "yes" if best else "",
        }
        self._create("table", "evaluations", list(self._rows.values()), f"Evaluations of {self._run}")

    def show_summary(self, run: RunDirectory) -> None:
        """Show a summary of the finished training, its learning curve, and the MLflow run."""
        report = RunReport(run, {})
        report.catch_up(run.journal_file.stat().st_size, 0)
        link = mlflow_link(run)
        lines = [report.description(), "", *([f"[MLflow run]({link})"] if link else [])]
        lines += ["", f"Resume: `rltrack resume {run.name}`. Compare: `rltrack compare {run.name} …`."]
        self._create("markdown", "summary", "\n".join(lines), f"Summary of {run.name}")
        curve = run.exports / "learning_curve.png"
        if curve.exists():
            picture = "data:image/png;base64," + base64.b64encode(curve.read_bytes()).decode()
            self._create("image", "curve", picture, f"Learning curve of {run.name}")
        if link:
            self._create("markdown", "mlflow-run", f"[{run.name} in MLflow]({link})", "MLflow run")

    def show_decision(self, decision: Decision) -> None:
        """Show the decision about a challenger."""
        record = decision.record
        rows = [
            {"": who, "policy": side["source"], "mean return": side["mean"], "IQM": side["iqm"],
             "95 % interval": "{:.6g} to {:.6g}".format(*side["interval"]), "episodes": len(side["returns"])}
            for who in ("challenger", "champion") if (side := record.get(who)) is not None
        ]  # fmt: skip
        outcome = "promoted" if decision.promoted else "not promoted"
        text = f"**{decision.source}** was {outcome} to champion of **{decision.model}** (version {decision.version}): "
        text += f"{decision.reason}."
        self._create("markdown", "decision", text, f"Decision about {decision.source}")
        if rows:
            self._create("table", "challenge", rows, f"{decision.source} challenges {decision.model}")

    def close(self, timeout: float = 10.0) -> None:
        """Wait briefly for the calls in the queue."""
        try:
            self._calls.put(None, timeout=timeout)
        except queue.Full:
            return
        self._thread.join(timeout)

    def _create(self, kind: str, what: str, data: Any, description: str) -> None:
        artifact = self._artifact(kind, what, data, description)
        self._enqueue(lambda client: client.create_artifact(artifact))

    def _artifact(self, kind: str, what: str, data: Any, description: str) -> ArtifactCreate:
        key = artifact_key(self._run, what)
        return ArtifactCreate(key=key, type=kind, data=data, description=description, flow_run_id=self._flow_run_id)

    def _send_progress(self, client: Any, percent: float, text: str) -> None:
        self._progress_waits = False
        if self._progress_id is None:
            self._progress_id = client.create_artifact(self._artifact("progress", "progress", percent, text)).id
        else:
            client.update_artifact(self._progress_id, ArtifactUpdate(data=percent, description=text))

    def _enqueue(self, call: Callable[[Any], None]) -> None:
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            _logger.debug("The queue of updates for Prefect's page is full; one was dropped.")

    def _work(self) -> None:
        with get_client(sync_client=True) as client:
            while (call := self._calls.get()) is not None:
                try:
                    call(client)
                except Exception as error:  # a missing update must not stop training
                    self._progress_waits = False
                    _logger.debug(f"Prefect's page was not updated: {error}")


class PageHook(TrainingHook):
    """Shows what happens on Prefect's page and in its log.

    Args:
        page: The flow run's page.
        log: Returns the log of the current task.
    """

    def __init__(self, page: Page, log: Callable[[], logging.Logger | logging.LoggerAdapter[Any]]) -> None:
        self._page, self._log = page, log

    def on_training_start(self, progress: TrainingProgress) -> None:
        """Log the start."""
        self._log().info(f"training starts at {progress.env_steps:,} env steps")
        self._page.show_progress(progress, now=True)

    def on_iteration_end(self, progress: TrainingProgress, stats: Any) -> None:
        """Update the progress."""
        self._page.show_progress(progress)

    def on_evaluation_end(self, progress: TrainingProgress, evaluation: Any) -> None:
        """Log and show the evaluation."""
        best = progress.best_evaluation is evaluation
        self._log().info(f"evaluation at {evaluation.env_steps:,} env steps: {evaluation.summary()}")
        self._page.show_evaluation({"step": evaluation.env_steps, **evaluation.to_record()}, best=best)

    def on_checkpoint(self, progress: TrainingProgress, version: Any) -> None:
        """Log the version."""
        self._log().info(f"checkpoint {version.name} at {version.env_steps:,} env steps")

    def on_training_end(self, progress: TrainingProgress) -> None:
        """Show the final progress."""
        self._page.show_progress(progress, now=True)
