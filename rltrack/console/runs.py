"""What `rltrack runs`, `show` and `prune` print."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from rltrack import damage
from rltrack.checkpoints import Version, best_first
from rltrack.console.deliveries import delivery_lines, delivery_state
from rltrack.console.tables import add_info_columns, age, number, size, styled, table_of, terminal
from rltrack.errors import JournalDamaged, RltrackError, RunDamaged
from rltrack.hash_seed import RANDOM
from rltrack.journal.values import means_of
from rltrack.runs import RunHistory, RunStatus
from rltrack.tracking.event_files import report_changed_events
from rltrack.training.session import journal_position

if TYPE_CHECKING:
    from rltrack.journal import Record
    from rltrack.registry.pruning import Candidate
    from rltrack.runs import Root, RunDirectory
    from rltrack.runs.completeness import JournalPosition


_RUN_KEYS = ("name", "state", "env_steps", "mean_return", "best_return", "mean_infos", "last_time", "reason")
_MOST_INFOS = 3
"""Number of `info_keywords` that have a column in the table of all runs; JSON has all."""


def run_rows(root: Root) -> list[dict[str, Any]]:
    """Return one mapping per run: name, state, env steps, best and last mean return, time of the last record."""
    rows: list[dict[str, Any]] = []
    for run in root.runs():
        try:
            status = run.status()
            best = best_first(run.store().versions())
        except (RltrackError, OSError) as error:  # the other runs are still listed
            damage.report(f"{run.name}: {error}")
            rows.append(dict.fromkeys(_RUN_KEYS) | {"name": run.name, "state": "unreadable", "reason": str(error)})
            continue
        rows.append(
            {
                "name": run.name,
                "state": status.state,
                "env_steps": status.env_steps,
                "mean_return": status.mean_return,
                "best_return": best[0].score if best else None,
                "mean_infos": dict(status.mean_infos),
                "last_time": status.last_time,
                "reason": status.reason,
            }
        )
    return rows


def print_runs(rows: Sequence[dict[str, Any]], root: Root) -> None:
    """Print the runs as a table."""
    out = terminal()
    if not rows:
        out.print(
            f"No runs under {root.path} yet. Start one: rltrack train --algo ppo --env CartPole-v1 --timesteps 20000"
        )
        return
    found = [*dict.fromkeys(key for row in rows for key in row["mean_infos"] or ())]
    infos = sorted(found, key=lambda key: key != "is_success")[:_MOST_INFOS]
    table = table_of("run | state | >env steps | >last eval | >best eval | >last record")
    add_info_columns(table, infos)
    for row in rows:
        table.add_row(
            row["name"],
            styled(row["state"]),
            "" if row["env_steps"] is None else f"{row['env_steps']:,}",
            number(row["mean_return"]),
            number(row["best_return"]),
            age(row["last_time"] or None),
            *(number((row["mean_infos"] or {}).get(key)) for key in infos),
        )
    out.print(table)


def run_details(run: RunDirectory) -> dict[str, Any]:
    """Return everything about one run as plain data; damaged parts are left out and reported."""
    with contextlib.suppress(RltrackError, OSError):  # whatever else is damaged is reported below
        report_changed_events(run)
    store = run.store()
    found = store.versions()  # before the journal, which may grow meanwhile
    newest = next((version for version in reversed(found) if version.is_resumable), None)
    position = journal_position(newest) if newest is not None and "journal" in newest.details else None
    history, status = _history(run, found, position)
    evaluations = history.evaluations
    versions = [
        {
            "name": version.name,
            "env_steps": version.env_steps,
            "score": version.score,
            "resumable": version.is_resumable,
            "bytes": version.size_bytes,
        }
        for version in found
    ]
    return {
        "name": run.name,
        "directory": str(run.path),
        "state": status.state,
        "reason": status.reason,
        "env_steps": status.env_steps,
        "attempts": len(history.attempts),
        "exact": history.is_exact and not history.missing,
        "missing": history.missing,
        "environments": history.environments,
        "hash_seed": history.hash_seed,
        "reproduction": _parts_of(
            [history.reproduction] if history.reproduction else [], ("reproduced", "result", "time")
        ),
        "choices": history.choices,
        "config": _config(run),
        "evaluations": [
            part | {"mean_infos": means_of(record.get("infos", {}))}
            for part, record in zip(
                _parts_of(evaluations, ("step", "mean", "std", "iqm", "interval")), evaluations, strict=True
            )
        ],
        "versions": versions,
        "decisions": _parts_of(history.decisions, ("step", "decision", "reason", "numbers")),
        "warnings": history.warnings,
        "errors": history.errors,
        "delivery": delivery_state(run),
        "plots": sorted(str(path) for path in run.exports.glob("*.png")),
    }


def _history(
    run: RunDirectory, versions: Sequence[Version], position: JournalPosition | None
) -> tuple[RunHistory, RunStatus]:
    """What the run's records say, and how it stands; without its journal, what its versions say."""
    try:
        history = run.history(position)
        return history, run.status(history=history)
    except JournalDamaged as error:
        damage.report(str(error))
        history = RunHistory()
        history.missing = ["all records: the file is missing or cannot be read"]
        steps = versions[-1].env_steps if versions else 0
        return history, RunStatus("unreadable", "its journal is missing or cannot be read", steps, 0.0, None)


def _parts_of(records: Iterable[Record], keys: Sequence[str]) -> list[dict[str, Any]]:
    return [{key: record[key] for key in keys} for record in records]


def _config(run: RunDirectory) -> dict[str, Any] | None:
    try:
        return dict(run.configuration().values)
    except RunDamaged as error:
        damage.report(str(error))
        return None


def print_details(details: dict[str, Any]) -> None:
    """Print one run in the terminal."""
    out = terminal()
    reason = f": {escape(details['reason'])}" if details["reason"] else ""
    out.print(f"[bold]{details['name']}[/]  {styled(details['state'])}{reason}", highlight=False)
    out.print(
        f"{details['env_steps']:,} env steps in {details['attempts']} attempt(s); {details['directory']}",
        highlight=False,
    )
    out.print(_resume_line(details), highlight=False)
    for item in details["reproduction"]:
        style = "green" if item["reproduced"] else "red"
        out.print(f"[{style}]reproduction[/]: {escape(item['result'])} ({age(item['time'])})", highlight=False)
    if details["missing"]:
        out.print(
            f"[yellow]record[/]: not complete: the journal lacks {escape('; '.join(details['missing']))}. Weights and versions are "
            "complete. If a backup has the whole journal, restore it before you resume the run.",
            highlight=False,
        )
    for what, choice in details["choices"].items():
        out.print(escape(f"{what}: {choice['chosen']} ({choice['reason']})"), highlight=False)
    if details["evaluations"]:
        shown = details["evaluations"][-12:]
        infos = [*dict.fromkeys(key for item in shown for key in item["mean_infos"])]
        table = table_of(">env steps | >mean return | >95 % interval | >IQM", title="Evaluations")
        add_info_columns(table, infos)
        for item in shown:
            low, high = item["interval"]
            means = (number(item["mean_infos"].get(key)) for key in infos)
            row = f"{item['step']:,}", number(item["mean"]), f"{low:.5g} to {high:.5g}", number(item["iqm"])
            table.add_row(*row, *means)
        out.print()
        out.print(table)
    if details["versions"]:
        table = table_of(">version | >env steps | >mean return | >size | >holds", title="Versions")
        for item in details["versions"]:
            holds = "everything" if item["resumable"] else "the policy"
            table.add_row(
                item["name"], f"{item['env_steps']:,}", number(item["score"]), f"{item['bytes'] / 1e6:.2f} MB", holds
            )
        out.print()
        out.print(table)
    for title in ("errors", "warnings"):
        for message in details[title]:
            out.print(f"[yellow]{title[:-1]}[/]: {escape(message)}", highlight=False)
    for item in details["decisions"]:
        out.print(escape(f"decision at {item['step']:,}: {item['decision']}: {item['reason']}"), highlight=False)
    out.print()
    for line in delivery_lines(details["delivery"]):
        out.print(line, highlight=False)


def _resume_line(details: dict[str, Any]) -> str:
    """Return a line on whether a resume of this run is exact, and whether earlier ones were."""
    environments = details["environments"] or {}
    tier, reason = environments.get("tier", "unknown"), environments.get("reason", "")
    how = {
        "capture": "exact: the environments' state is in each version",
        "replay": "exact: each environment's running episode is replayed",
        "cut": "exact: the environments are rebuilt at marks, and versions are taken there",
        "recorded": "none: TrackingCallback keeps policies, and no state of the training",
        "inexact": f"not exact: the environments start a new episode ({escape(reason)})",
    }.get(tier, "not known to be exact")
    if how.startswith("exact") and details["hash_seed"] == RANDOM:
        how += "; the hash seed was random, so not where the environment depends on the order of a set"
    if details["missing"]:
        return f"resume: {how}; but the record of this run has a gap"
    return f"resume: {how}" + ("" if details["exact"] else "; an earlier resume was not exact")


def print_prunable(found: Sequence[Candidate], *, whole: bool, done: bool) -> None:
    """Print which runs would be deleted, and which are kept and why."""
    out = terminal()
    if not found:
        out.print("No run matches.")
        return
    table = table_of("run | >best eval | >last record | >frees")
    for item in found:
        frees = "kept" if item.kept else size(item.bytes)
        table.add_row(item.run.name, number(item.score), age(item.last_time), frees)
    out.print(table)
    for item in found:
        if item.kept is not None:
            out.print(f"{escape(item.run.name)} is kept: {escape(item.kept)}")
    going = [item for item in found if item.kept is None]
    what = "whole runs" if whole else "the files that a resume needs; best policies and records stay"
    out.print(f"{len(going)} of {len(found)}: {what}, {size(sum(item.bytes for item in going))}")
    if going and not done:
        out.print("Nothing was deleted; add --yes to delete.")
