"""The summary of a training, and of an evaluation."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from rltrack.addresses import without_account
from rltrack.console.tables import program, short_path, styled, terminal
from rltrack.errors import CheckpointNotFound
from rltrack.journal.values import info_title, means_of
from rltrack.runs import resolve_root
from rltrack.tracking.bookmark import read_bookmark
from rltrack.training.reporter import format_duration

if TYPE_CHECKING:
    from rltrack.runs import RunDirectory
    from rltrack.training.progress import TrainingStatistics


def print_summary(run: RunDirectory, statistics: TrainingStatistics, delivered: bool) -> None:
    """Print how a training ended and where to look."""
    out = terminal()
    out.print(f"\n[bold]{run.name}[/]  {styled(statistics.state.value)}: {escape(statistics.reason)}", highlight=False)
    line = f"{statistics.env_steps:,} env steps, {statistics.episodes:,} episodes"
    if statistics.seconds:
        line += f", {format_duration(statistics.seconds)} of training, {statistics.steps_per_second:,.0f} steps/s"
    out.print(line, highlight=False)
    final = statistics.final_evaluation
    if final is not None:
        out.print(f"final evaluation: {final.summary()}", highlight=False)
    rows: list[tuple[str, str]] = []
    store = run.store()
    for selector in ("best", "last"):
        try:
            version = store.find(selector)
        except CheckpointNotFound:
            continue
        score = f", mean return {version.score:.6g}" if version.score is not None else ""
        rows.append((f"{selector} version", f"{version.name} at {version.env_steps:,} env steps{score}"))
    curve = run.exports / "learning_curve.png"
    if curve.exists():
        rows.append(("plot", short_path(curve)))
    found = read_bookmark(run)
    state = {} if found is None else found.mlflow.state
    if delivered and "run_id" in state:
        uri = without_account(state["tracking_uri"])
        if uri.startswith("http"):
            rows.append(("MLflow", f"{uri}/#/experiments/{state['experiment_id']}/runs/{state['run_id']}"))
    elif not delivered and (found is None or "mlflow" in found.sinks):
        problem = found.mlflow.problem if found is not None else None
        reason = problem.message if problem else "the delivery continues"
        rows.append(("not in MLflow", f"{reason} (see `rltrack show {run.name}`)"))
    is_usual = run.root == resolve_root()
    rows.append(("pages", f"{program('rltrack')} {'' if is_usual else f'--root {quote(short_path(run.root))} '}ui"))
    labels = [label for label, _ in rows]
    if "last version" in labels:
        which = "" if "best version" in labels else ', version="last"'
        rows.append(("in Python", f'rltrack.load_agent("{run.name}"{which})'))
    if statistics.state.value == "stopped":
        rows.append(("resume", f"rltrack resume {run.name}"))
    out.print()
    width = max(len(label) for label, _ in rows)
    for label, value in rows:  # not in a table, which would wrap commands
        out.print(f"{label:<{width}}  {value}", highlight=False, markup=False)


def print_evaluation(record: dict[str, Any]) -> None:
    """Print an evaluation's statistics."""
    out = terminal()
    low, high = record["interval"]
    out.print(
        f"[bold]{record['run']}@{record['version']}[/] ({record['env_steps']:,} env steps), "
        f"{len(record['returns'])} {'deterministic' if record['deterministic'] else 'stochastic'} episodes",
        highlight=False,
    )
    out.print(f"mean return  {record['mean']:.6g}  (95 % interval {low:.6g} to {high:.6g})", highlight=False)
    low, high = record["iqm_interval"]
    out.print(f"IQM          {record['iqm']:.6g}  (95 % interval {low:.6g} to {high:.6g})", highlight=False)
    out.print(f"median {record['median']:.6g}, std {record['std']:.6g}", highlight=False)
    for key, mean in means_of(record.get("infos", {})).items():
        out.print(f"{info_title(key)} {mean:.6g}", highlight=False, markup=False)
    if "target" in record:
        gap, target = record["optimality_gap"], record["target"]
        out.print(f"optimality gap {gap:.6g} to the target of {target:.6g}", highlight=False)
    out.print(f"lowest {min(record['returns']):.6g}, highest {max(record['returns']):.6g}", highlight=False)
