"""What MLflow and TensorBoard get of a run besides its curves: parameters, tags, a description, plots."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rltrack import damage
from rltrack.errors import RltrackError, RunDamaged
from rltrack.files import replace_text
from rltrack.journal import JournalReader, Record, read_from
from rltrack.plain_data import flatten
from rltrack.ranking import rank
from rltrack.runs import RunDirectory, RunStatus, StoredConfiguration
from rltrack.runs.folder import CERTIFICATE
from rltrack.secrets import redacted
from rltrack.tracking.destination import without_password
from rltrack.tracking.metrics import INTERVAL_KEYS, MetricsTracker

DIRECTORY_TAG = "rltrack.directory"
"""Tag of an MLflow run: the folder that it was last delivered from."""

_POINTS = 2000
_SHOWN_EVALUATIONS = 10
_EVALUATIONS = "evaluations.csv"
_COLUMNS = ("step", "time", "eval/mean_reward", *INTERVAL_KEYS)


class RunReport:
    """Follows a run's records, in bounded memory.

    Args:
        run: The run.
        context: Facts of program and machine at the time of the first attempt (`context_now`).
    """

    def __init__(self, run: RunDirectory, context: Mapping[str, Any]) -> None:
        self.run = run
        self.context = context
        self.metrics = MetricsTracker(max_points=_POINTS)
        self.resources = MetricsTracker(max_points=_POINTS)
        self.configuration: Record = run.configuration_record() or {"run_id": run.name, "time": 0.0, "agent": {}}
        self.config = _config_of(run)
        self._journal_at = self._resources_at = 0
        self._reader = JournalReader(run.journal_file)
        self._resource_reader = JournalReader(run.resources_file, resources=True)
        self.plots: list[Path] = []
        """What was drawn last."""
        self._drawn_at: tuple[int, int] | None = None

    def catch_up(self, journal_end: int, resources_end: int) -> bool:
        """Read on up to these positions; return whether there was anything new."""
        before = self._journal_at
        while self._journal_at < journal_end:
            records, position = read_from(self.run.journal_file, self._journal_at, journal_end, reader=self._reader)
            for record in records:
                self.metrics.observe(record)
            if position == self._journal_at:
                break
            self._journal_at = position
        while self._resources_at < resources_end:
            records, position = read_from(
                self.run.resources_file, self._resources_at, resources_end, reader=self._resource_reader
            )
            for record in records:
                self.resources.log(record["values"], record["step"], record["time"])
            if position == self._resources_at:
                break
            self._resources_at = position
        self._reader.report()
        self._resource_reader.report()
        return self._journal_at > before

    @property
    def missing(self) -> list[str]:
        """What the journal lacks, as text: as attempts recorded it, and what is damaged in it now."""
        known = self.metrics.facts.labelled_missing
        return [*known, *(item for item in self._reader.wrong if item not in known)]

    @property
    def run_id(self) -> str:
        """The run's own id."""
        return str(self.configuration["run_id"])

    @property
    def start_time(self) -> float:
        """Unix seconds of the first record."""
        return float(self.configuration["time"])

    def status(self) -> RunStatus:
        """How the run stands; failed where its folder was removed."""
        if self.run.journal_file.exists():
            return self.run.status()
        mean = self.metrics.evaluations[-1]["mean"] if self.metrics.evaluations else None
        reason = f"its folder {self.run.path} was removed before the run had ended"
        return RunStatus("failed", reason, self.metrics.facts.env_steps, time.time(), mean)

    def params(self) -> dict[str, Any]:
        """Return every resolved setting under a short name: an algorithm's own hyperparameters without a prefix."""
        agent = self.configuration.get("agent") or {}
        params: dict[str, Any] = {
            key: agent[key] for key in ("algorithm", "policy", "environment", "n_envs") if key in agent
        }
        params["seed"] = self.config.seed
        params |= {key: value for key, value in (agent.get("hyperparameters") or {}).items() if key not in params}
        for section in ("environment", "training", "evaluation", "checkpoints"):
            values = self.config.values.get(section)
            if isinstance(values, Mapping):
                params |= {f"{section}.{key}": value for key, value in flatten(values)}
        for name, same in (("environment.id", "environment"), ("environment.n_envs", "n_envs"), ("verbose", None)):
            if same is None or same in params:
                params.pop(name, None)
        first = next(iter(self.metrics.facts.attempts), {})
        params |= {f"version.{name}": number for name, number in (first.get("versions") or {}).items()}
        if "python" in first:
            params["version.python"] = first["python"]
        params |= self.context
        return {
            key: without_password(value) if isinstance(value, str) else value
            for key, value in redacted(params).items()
            if value is not None
        }

    def hyperparameters(self) -> dict[str, bool | int | float | str]:
        """Return the parameters that runs are compared by: without versions, machine, and what changes no result."""
        return {
            key: value
            for key, value in self.params().items()
            if isinstance(value, bool | int | float | str)
            and not key.startswith(("version.", "machine.", "git.", "checkpoints.", "evaluation."))
        }

    def tags(self) -> dict[str, str]:
        """Return what runs are grouped and found by."""
        status, params, facts = self.status(), self.params(), self.metrics.facts
        tags = {
            "rltrack.run": self.run.name,
            DIRECTORY_TAG: str(self.run.path),
            "rltrack.state": status.state,
            "rltrack.reason": status.reason,
            "rltrack.env_steps": str(status.env_steps),
            "rltrack.attempts": str(len(facts.attempts)),
            "rltrack.seed_group": self._seed_group(),
            "mlflow.source.name": next(iter(facts.attempts), {}).get("program") or "rltrack",
            "mlflow.source.type": "JOB",
        }
        if facts.error or len(facts.attempts) > 1:  # what an earlier attempt left there is taken away
            tags["rltrack.error"] = facts.error
        if "git.commit" in params:
            tags["mlflow.source.git.commit"] = params["git.commit"]
        if facts.attempts:
            if user := facts.attempts[-1].get("user"):
                tags["mlflow.user"] = user
            tags["rltrack.host"] = facts.attempts[-1]["host"]
            tags["rltrack.resume"] = facts.tier
            tags["rltrack.exact"] = str(facts.is_exact).lower()
            acceleration = (facts.attempts[-1].get("choices") or {}).get("acceleration")
            if acceleration is not None:
                tags["rltrack.acceleration"] = f"{acceleration['chosen']} ({acceleration['reason']})"
        if facts.reproduction is not None:
            tags["rltrack.reproduced"] = str(facts.reproduction["reproduced"]).lower()
            tags["rltrack.reproduction"] = facts.reproduction["result"]
        if self.missing:
            tags["rltrack.missing"] = f"The journal lacks {'; '.join(self.missing)}."
        tags |= {key: str(params[key]) for key in ("algorithm", "environment", "seed") if key in params}
        return tags | {key: str(value) for key, value in redacted(self.config.tracking.tags).items()}

    def _seed_group(self) -> str:
        """The same for runs that differ in nothing but their seed."""
        identity = {key: value for key, value in (self.configuration.get("identity") or {}).items() if key != "seed"}
        agent = self.configuration.get("agent") or {}
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
        return f"{agent.get('algorithm', 'run')}-{agent.get('environment', 'env')}-{digest}"

    def description(self) -> str:
        """Return the run in a few lines of Markdown: how it stands, its curve, its decisions."""
        status, metrics = self.status(), self.metrics
        lines = [f"**{self.run.name}**: {status.state} at {status.env_steps:,} env steps"
                 + (f" ({status.reason})." if status.reason else ".")]  # fmt: skip
        best = metrics.facts.best
        if best is not None:
            lines[0] += f" Best evaluation: mean return {best['mean']:.5g} at {best['step']:,}."
            lines += ["", "| env steps | mean return | 95 % interval | IQM |", "|---:|---:|---:|---:|"]
            for record in _spread(metrics.evaluations, _SHOWN_EVALUATIONS):
                low, high = record["interval"]
                mean = f"**{record['mean']:.5g}**" if record is best else f"{record['mean']:.5g}"
                lines.append(f"| {record['step']:,} | {mean} | {low:.5g} to {high:.5g} | {record['iqm']:.5g} |")
        if metrics.decisions:
            lines += [
                "",
                *(f"- {item['step']:,}: {item['decision']}: {item['reason']}" for item in metrics.decisions[-10:]),
            ]
        if metrics.facts.error:
            lines += ["", f"Error: {metrics.facts.error}"]
        flow_run = self.config.tracking.tags.get("prefect.flow_run_url")
        if flow_run:
            lines += ["", f"[Flow run in Prefect]({flow_run})"]
        return "\n".join(lines)

    def policies(self) -> dict[str, str]:
        """Return the versions whose policies are stored as models, with their roles: the best, and the final of a finished run."""
        found: dict[str, str] = {}
        with contextlib.suppress(RltrackError, OSError):
            best = self.run.store().find("best")
            found[best.name] = "best"
            last = self.run.store().find("last")
            if self.status().is_finished and last.env_steps != best.env_steps:
                found[last.name] = "final"
        if not found and self.status().is_finished:
            with contextlib.suppress(RltrackError, OSError):
                found[self.run.store().find("last").name] = "final"
        return found

    def draw(self) -> list[Path]:
        """Draw the plots into the run's ``exports/``, if there is anything new; return their files. List the evaluations, too."""
        from rltrack.tracking.plots import draw_run

        if self._drawn_at != (self._journal_at, self._resources_at):
            self.plots = draw_run(self.metrics, self.run.exports, self.run.name, self.resources)
            if self.metrics.evaluations:
                replace_text(self.run.exports / _EVALUATIONS, _as_csv(self.metrics.evaluations))
            self._drawn_at = (self._journal_at, self._resources_at)
        return self.plots

    def files(self) -> list[tuple[Path, str]]:
        """Return the files that stand for the run, each with its folder: configuration, log, evaluations, plots."""
        run = self.run
        single = (run.config_file, run.log_file, run.path / CERTIFICATE, run.exports / _EVALUATIONS)
        found = [(path, "") for path in single if path.is_file()]
        found += [(path, "plots") for path in sorted(self.plots)]
        return found


def _config_of(run: RunDirectory) -> StoredConfiguration:
    """The configuration; where it is lost, everything else of the run is delivered."""
    try:
        return run.configuration()
    except RunDamaged as error:
        damage.report(str(error))
        return StoredConfiguration.of({})


def _as_csv(evaluations: list[Record]) -> str:
    rows = ([item["step"], item["time"], item["mean"], *item["interval"]] for item in evaluations)
    return "".join(",".join(map(str, row)) + "\n" for row in [_COLUMNS, *rows])


def _spread(items: list[Record], count: int) -> list[Record]:
    """At most `count` of them, evenly spread, with the best and the last."""
    if len(items) <= count:
        return items
    best = max(range(len(items)), key=lambda index: rank(items[index]["mean"]))
    chosen = {round(index * (len(items) - 1) / (count - 1)) for index in range(count)} | {best}
    return [items[index] for index in sorted(chosen)]
