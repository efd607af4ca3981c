"""Delivers a run's journal: TensorBoard events, plots and exports in its folder, and MLflow.

Runs as a process of its own, ``python -m rltrack.tracking.sync RUN_DIRECTORY``, so that training imports no MLflow and
waits for nothing. It may run as often as one likes: nothing is doubled.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rltrack.config import flatten
from rltrack.files import replace_text
from rltrack.runs import RunDirectory, RunStatus
from rltrack.tracking.journal import Record, read_journal
from rltrack.tracking.metrics import MetricsTracker, evaluation_metrics

RESULT_FILE = "sync.json"
DEFAULT_EXPERIMENT = "rltrack"
_TRIES = 3


def sync(run: RunDirectory, tell: Callable[[str], None] = print) -> dict[str, Any]:
    """Deliver everything; return what `read_result` returns later.

    What lies in the run's own folder comes first, because it cannot be refused by a server.
    """
    metrics = MetricsTracker.from_journal(run.journal_file)
    resources = _resources(run)
    status = run.status()
    plots = _export(run, metrics, resources)
    _write_tensorboard(run, status, resources, plots)
    result: dict[str, Any] = {"time": time.time(), "error": None}
    for attempt in range(1, _TRIES + 1):
        try:
            result["mlflow"] = _deliver_to_mlflow(run, status, metrics, resources, plots)
            result["error"] = None
            break
        except Exception as error:  # whatever a database or server answers is reported, and can be tried again later
            result["error"] = f"{type(error).__name__}: {' '.join(str(error).split())}"
            tell(f"delivery to MLflow, try {attempt} of {_TRIES}: {result['error']}")
            if attempt < _TRIES:
                time.sleep(2.0**attempt)
    replace_text(run.path / RESULT_FILE, json.dumps(result, indent=1))
    return result


def read_result(run: RunDirectory) -> dict[str, Any] | None:
    """Return the outcome of the last delivery: ``mlflow`` {tracking_uri, experiment_id, run_id, metrics} and ``error``."""
    try:
        found: dict[str, Any] = json.loads((run.path / RESULT_FILE).read_text())
        return found
    except (OSError, ValueError):
        return None


def _resources(run: RunDirectory) -> MetricsTracker:
    """Read the samples; their step is their number, since they go by the clock."""
    tracker = MetricsTracker()
    if run.resources_file.exists():
        for number, record in enumerate(read_journal(run.resources_file)):
            tracker.log(record["values"], number, record["time"])
    return tracker


def _export(run: RunDirectory, metrics: MetricsTracker, resources: MetricsTracker) -> list[Path]:
    from rltrack.tracking.plots import draw_run

    metrics.export_csv(run.exports / "metrics.csv")
    metrics.export_json(run.exports / "metrics.json")
    return draw_run(metrics, run.exports, run.name, resources)


def _records_of_metrics(run: RunDirectory) -> Iterator[tuple[Mapping[str, float], int, float]]:
    for record in read_journal(run.journal_file):
        if record["kind"] == "metrics":
            yield record["values"], record["step"], record["time"]
        elif record["kind"] == "evaluation":
            yield evaluation_metrics(record), record["step"], record["time"]


def _write_tensorboard(run: RunDirectory, status: RunStatus, resources: MetricsTracker, plots: list[Path]) -> None:
    """Write the whole run anew, and put it in the place of what was there: no step is doubled or missing."""
    from rltrack.tracking.sinks.tensorboard import TensorBoardSink, finite, replace_folder

    config = run.read_config()
    target = run.tensorboard
    target.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=target.parent))
    sink = TensorBoardSink(draft)
    for values, step, when in _records_of_metrics(run):
        sink.scalars(finite(values), step, when)
    for row in resources.rows():
        sink.scalars(finite({row["key"]: row["value"]}), row["step"], row["time"])
    for plot in plots:
        sink.image(f"plots/{plot.stem}", plot.read_bytes(), status.env_steps)
    sink.text("configuration", "```yaml\n" + run.config_file.read_text() + "```")
    plain = {k: v for k, v in _params(run, config).items() if isinstance(v, bool | int | float | str)}
    sink.hyperparameters(plain, ["eval/mean_reward", "rollout/ep_rew_mean"])
    sink.close()
    replace_folder(draft, target)


def _deliver_to_mlflow(
    run: RunDirectory, status: RunStatus, metrics: MetricsTracker, resources: MetricsTracker, plots: list[Path]
) -> dict[str, Any]:
    from rltrack.tracking.sinks.embedded import ensure_database
    from rltrack.tracking.sinks.mlflow import MlflowSink

    config = run.read_config()
    tracking = config.get("tracking") or {}
    first = run.configuration_record() or {"time": time.time(), "run_id": run.name}
    server = tracking.get("mlflow_tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI")
    uri = server or ensure_database(run.root)
    sink = MlflowSink(uri, tracking.get("experiment") or DEFAULT_EXPERIMENT, None if server else run.root)
    params = _params(run, config)
    sink.open(first["run_id"], run.name, int(first["time"] * 1000), _tags(run, status, params))
    sink.params(params)
    rows = (
        (key, value, when, step) for values, step, when in _records_of_metrics(run) for key, value in values.items()
    )
    sent = sink.metrics(rows)
    sink.metrics((row["key"], row["value"], row["time"], row["step"]) for row in resources.rows())
    sink.tags({"mlflow.note.content": _description(run, status, metrics)})
    for plot in plots:
        sink.artifact(plot, "plots")
    for path in (run.config_file, run.log_file, run.exports / "metrics.csv", run.exports / "metrics.json"):
        if path.exists():
            sink.artifact(path)
    sink.close(status.state, int(status.last_time * 1000))
    return {"tracking_uri": uri, "experiment_id": sink.experiment_id, "run_id": sink.run_id, "metrics": sent}


def _params(run: RunDirectory, config: Mapping[str, Any]) -> dict[str, Any]:
    """Every resolved setting under a short name: an algorithm's own hyperparameters without a prefix."""
    agent = (run.configuration_record() or {}).get("agent") or {}
    params: dict[str, Any] = {
        key: agent[key] for key in ("algorithm", "policy", "environment", "n_envs") if key in agent
    }
    params["seed"] = config.get("seed")
    params |= {key: value for key, value in (agent.get("hyperparameters") or {}).items() if key not in params}
    for section in ("environment", "training", "evaluation", "checkpoints"):
        if isinstance(config.get(section), Mapping):
            params |= {f"{section}.{key}": value for key, value in flatten(config[section])}
    for record in read_journal(run.journal_file):
        if record["kind"] == "attempt":
            params |= {f"version.{name}": number for name, number in record["versions"].items()}
            params["version.python"] = record["python"]
            break
    return {key: value for key, value in params.items() if value is not None}


def _tags(run: RunDirectory, status: RunStatus, params: Mapping[str, Any]) -> dict[str, str]:
    tags = {
        "rltrack.run": run.name,
        "rltrack.directory": str(run.path),
        "rltrack.state": status.state,
        "rltrack.reason": status.reason,
        "mlflow.source.name": "rltrack",
        "mlflow.source.type": "JOB",
    }
    attempts = [record for record in read_journal(run.journal_file) if record["kind"] == "attempt"]
    if attempts:
        tags["rltrack.resume"] = (attempts[-1]["environments"] or {}).get("tier", "unknown")
        tags["rltrack.exact"] = str(all(record["exact"] for record in attempts)).lower()
    return tags | {key: str(params[key]) for key in ("algorithm", "environment", "seed") if key in params}


def _description(run: RunDirectory, status: RunStatus, metrics: MetricsTracker) -> str:
    lines = [
        f"**{run.name}**: {status.state} at {status.env_steps:,} env steps"
        + (f" ({status.reason})." if status.reason else ".")
    ]
    if metrics.evaluations:
        lines += ["", "| env steps | mean return | 95 % interval | IQM |", "|---|---|---|---|"]
        shown: list[Record] = metrics.evaluations[-10:]
        for record in shown:
            low, high = record["interval"]
            lines.append(
                f"| {record['step']:,} | {record['mean']:.5g} | {low:.5g} to {high:.5g} | {record['iqm']:.5g} |"
            )
    if metrics.decisions:
        lines += [
            "",
            *(f"- {item['step']:,}: {item['decision']}: {item['reason']}" for item in metrics.decisions[-10:]),
        ]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Deliver the run in the folder that is named; 0 if everything was delivered."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # our own tries find a run that was created before
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    run = RunDirectory(Path(arguments[0]).absolute())
    result = sync(run)
    return 0 if result["error"] is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
