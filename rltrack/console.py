"""What the command line prints: tables, summaries, records, and the wait for the delivery."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rltrack.checkpoints import Retention, best_first
from rltrack.errors import CheckpointNotFound, ConfigurationError, did_you_mean
from rltrack.runs import resolve_root
from rltrack.tracking.bookmark import SINKS, forget_delivery, is_delivered, read_bookmark
from rltrack.tracking.destination import without_password
from rltrack.tracking.journal import KINDS, Record, encode_record, read_from, read_journal
from rltrack.training.reporter import format_duration

if TYPE_CHECKING:
    from rltrack.comparison.study import Study
    from rltrack.registry.pruning import Candidate
    from rltrack.runs import Root, RunDirectory
    from rltrack.training.progress import TrainingStatistics

_STYLES = {"completed": "green", "running": "cyan", "stopped": "yellow", "interrupted": "yellow", "failed": "red"}


def _out() -> Console:
    return Console(soft_wrap=True)


def run_rows(root: Root) -> list[dict[str, Any]]:
    """Return one mapping per run: name, state, env steps, best and last mean return, time of the last record."""
    rows = []
    for run in root.runs():
        status = run.status()
        best = best_first(run.store().versions())
        rows.append(
            {
                "name": run.name,
                "state": status.state,
                "env_steps": status.env_steps,
                "mean_return": status.mean_return,
                "best_return": best[0].score if best else None,
                "last_time": status.last_time,
                "reason": status.reason,
            }
        )
    return rows


def print_runs(rows: Sequence[dict[str, Any]], root: Root) -> None:
    """Print the runs as a table."""
    out = _out()
    if not rows:
        out.print(
            f"No runs under {root.path} yet. Begin one: rltrack train --algo ppo --env CartPole-v1 --timesteps 20000"
        )
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column, justify in (("run", "left"), ("state", "left"), ("env steps", "right"), ("last eval", "right"),
                            ("best eval", "right"), ("last record", "right")):  # fmt: skip
        table.add_column(column, justify=justify, no_wrap=True, overflow="ignore")  # type: ignore[arg-type]
    for row in rows:
        style = _STYLES.get(row["state"], "")
        age = f"{format_duration(max(time.time() - row['last_time'], 0))} ago" if row["last_time"] else "–"
        table.add_row(
            row["name"],
            f"[{style}]{row['state']}[/]" if style else row["state"],
            f"{row['env_steps']:,}",
            _number(row["mean_return"]),
            _number(row["best_return"]),
            age,
        )
    out.print(table)


def run_details(run: RunDirectory) -> dict[str, Any]:
    """Return everything about one run as plain data."""
    status = run.status()
    evaluations, warnings, decisions, errors, attempts = [], [], [], [], 0
    environments: dict[str, Any] | None = None
    choices: dict[str, Any] = {}
    exact = True
    for record in read_journal(run.journal_file):
        kind = record["kind"]
        if kind == "evaluation":
            evaluations.append({key: record[key] for key in ("step", "mean", "std", "iqm", "interval")})
        elif kind == "warning":
            warnings.append(record["message"])
        elif kind == "decision":
            decisions.append({key: record[key] for key in ("step", "decision", "reason", "numbers")})
        elif kind == "error":
            errors.append(f"{record['error']}: {record['message']}")
        elif kind == "attempt":
            attempts += 1
            environments, exact = record["environments"], exact and record["exact"]
            choices = record.get("choices") or {}
    versions = [
        {
            "name": version.name,
            "env_steps": version.env_steps,
            "score": version.score,
            "resumable": version.is_resumable,
            "bytes": version.size_bytes,
        }
        for version in run.store().versions()
    ]
    return {
        "name": run.name,
        "directory": str(run.path),
        "state": status.state,
        "reason": status.reason,
        "env_steps": status.env_steps,
        "attempts": attempts,
        "exact": exact,
        "environments": environments,
        "choices": choices,
        "config": run.read_config(),
        "evaluations": evaluations,
        "versions": versions,
        "decisions": decisions,
        "warnings": warnings,
        "errors": errors,
        "delivery": _delivery(run),
        "plots": sorted(str(path) for path in run.exports.glob("*.png")),
    }


def print_details(details: dict[str, Any]) -> None:
    """Print one run for a person."""
    out = _out()
    style = _STYLES.get(details["state"], "")
    reason = f": {details['reason']}" if details["reason"] else ""
    out.print(f"[bold]{details['name']}[/]  [{style}]{details['state']}[/]{reason}", highlight=False)
    out.print(
        f"{details['env_steps']:,} env steps in {details['attempts']} attempt(s); {details['directory']}",
        highlight=False,
    )
    out.print(_resume_line(details), highlight=False)
    for what, choice in details["choices"].items():
        out.print(f"{what}: {choice['chosen']} ({escape(choice['reason'])})", highlight=False)
    if details["evaluations"]:
        table = Table(box=None, header_style="bold", pad_edge=False, title="Evaluations", title_justify="left")
        for column in ("env steps", "mean return", "95 % interval", "IQM"):
            table.add_column(column, justify="right")
        for item in details["evaluations"][-12:]:
            low, high = item["interval"]
            table.add_row(f"{item['step']:,}", _number(item["mean"]), f"{low:.5g} to {high:.5g}", _number(item["iqm"]))
        out.print()
        out.print(table)
    if details["versions"]:
        table = Table(box=None, header_style="bold", pad_edge=False, title="Versions", title_justify="left")
        for column in ("version", "env steps", "mean return", "size", "holds"):
            table.add_column(column, justify="right")
        for item in details["versions"]:
            holds = "everything" if item["resumable"] else "the policy"
            table.add_row(
                item["name"], f"{item['env_steps']:,}", _number(item["score"]), f"{item['bytes'] / 1e6:.2f} MB", holds
            )
        out.print()
        out.print(table)
    for title in ("errors", "warnings"):
        for message in details[title]:
            out.print(f"[yellow]{title[:-1]}[/]: {message}", highlight=False)
    for item in details["decisions"]:
        out.print(f"decision at {item['step']:,}: {item['decision']}: {item['reason']}", highlight=False)
    out.print()
    for line in _delivery_lines(details["delivery"]):
        out.print(line, highlight=False)


def _delivery(run: RunDirectory) -> dict[str, Any]:
    """How far a run is delivered, as plain data."""
    bookmark = read_bookmark(run)
    return {
        "complete": is_delivered(run),
        "going_on": run.is_shipped(),
        "journal_bytes": run.journal_file.stat().st_size,
        **({} if bookmark is None else {name: asdict(getattr(bookmark, name)) for name in SINKS}),
        "set_aside_file": str(run.set_aside_file) if run.set_aside_file.exists() else None,
    }


def _delivery_lines(delivery: dict[str, Any]) -> Iterator[str]:
    mlflow = delivery.get("mlflow")
    if mlflow is None or "run_id" not in mlflow["state"]:
        yield "MLflow: nothing was delivered yet"
    else:
        yield f"MLflow: run {mlflow['state']['run_id']} in {mlflow['state']['tracking_uri']}"
    for name in SINKS:
        found = delivery.get(name)
        if found is None:
            continue
        missing = delivery["journal_bytes"] - found["journal"]
        if found["problem"] is not None:
            yield f"[yellow]{name} takes nothing[/]: {escape(found['problem']['message'])}"
        if found["set_aside"]:
            yield f"[yellow]{name} refused {found['set_aside']} values for good[/]; with reasons: {delivery['set_aside_file']}"
        if missing and not delivery["going_on"]:
            yield f"{name} lacks {_size(missing)} of the journal; `rltrack sync` delivers"


def print_journal(run: RunDirectory, *, kinds: Sequence[str], follow: bool, as_json: bool) -> None:
    """Print a run's records, and with `follow` go on as long as it is trained.

    Raises:
        ConfigurationError: If there is no such kind of record.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigurationError(f"No record is a '{kind}'.{did_you_mean(kind, KINDS)} Kinds: {', '.join(KINDS)}.")
    position = 0
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        while True:
            training = run.is_locked()
            size = run.journal_file.stat().st_size
            while position < size:
                records, end = read_from(run.journal_file, position, size)
                for record in records:
                    if not kinds or record["kind"] in kinds:
                        print(
                            encode_record(record).decode().rstrip() if as_json else _record_line(record), flush=follow
                        )
                if end == position:
                    break
                position = end
            if not follow or not training:
                return
            time.sleep(0.3)


def _record_line(record: Record) -> str:
    """One record as a person reads it: when, at which env steps, what."""
    when = time.strftime("%m-%d %H:%M:%S", time.localtime(record["time"]))
    step = f"{record['step']:,}" if "step" in record else ""
    kind = record["kind"]
    if kind == "metrics":
        text = "  ".join(f"{key} {_number(value)}" for key, value in record["values"].items())
    elif kind == "episodes":
        text = "  ".join(
            f"{value:.5g} ({length})" for value, length in zip(record["returns"], record["lengths"], strict=True)
        )
    elif kind == "evaluation":
        low, high = record["interval"]
        text = f"mean {record['mean']:.5g} (95 % interval {low:.5g} to {high:.5g}), {len(record['returns'])} episodes"
    else:
        shown = {key: value for key, value in record.items() if key not in ("seq", "time", "kind", "step", "identity")}
        text = "  ".join(f"{key} {value}" for key, value in shown.items() if value is not None)
    return f"{when}  {step:>11}  {kind:<13} {text}"


def sync_runs(root: Root, run: RunDirectory | None, *, again: bool) -> bool:
    """Deliver one run, or all that are not delivered, in this process; return whether everything is there."""
    from rltrack.tracking import shipper

    out = _out()
    if run is None:
        waiting = shipper.left_behind(root)
        if not waiting:
            out.print("Everything is delivered, or is being delivered.")
            return True
    else:
        if run.is_locked():
            out.print(
                f"Run {run.name} is being trained, and delivered meanwhile; `rltrack show {run.name}` says how far."
            )
            return not again
        waiting = [run]
        if again:
            forget_delivery(run)
    shipper.prepare_process()
    good = True
    for item in waiting:
        with Console(stderr=True).status(f"delivering {item.name} …"):
            result = shipper.ship_run(item, patience=0.0, tell=lambda _: None)
        if result == shipper.EXIT_BUSY:
            out.print(f"{item.name}: another process is delivering it")
        elif result == shipper.EXIT_DELIVERED:
            out.print(f"{item.name}: delivered")
        else:
            out.print(f"{item.name}: [yellow]not delivered[/]", highlight=False)
            for line in _delivery_lines(_delivery(item)):
                out.print(f"  {line}", highlight=False)
        good = good and result != shipper.EXIT_NOT_DELIVERED
    return good


def print_evaluation(record: dict[str, Any]) -> None:
    """Print an evaluation's statistics."""
    out = _out()
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
    if "target" in record:
        gap, target = record["optimality_gap"], record["target"]
        out.print(f"optimality gap {gap:.6g} to the target of {target:.6g}", highlight=False)
    out.print(f"lowest {min(record['returns']):.6g}, highest {max(record['returns']):.6g}", highlight=False)


def print_stack(rows: list[dict[str, Any]]) -> None:
    """Print the parts of a stack."""
    table = Table(box=None, pad_edge=False)
    for column in ("part", "", "address", "process", "restarts"):
        table.add_column(column)
    for row in rows:
        mark = "[green]healthy[/]" if row["healthy"] else "[red]not there[/]"
        table.add_row(row["part"], mark, row["address"] or "", str(row["pid"] or ""), str(row["restarts"] or ""))
    _out().print(table)


def wait_for_delivery(wait: Callable[[float], bool], seconds: float) -> bool:
    """Wait for MLflow and TensorBoard, visibly and with a bound."""
    err = Console(stderr=True)
    try:
        if not err.is_terminal:
            return wait(seconds)
        with err.status("delivering to MLflow and TensorBoard (Ctrl-C leaves it to go on alone) …"):
            return wait(seconds)
    except KeyboardInterrupt:
        return False


def print_summary(run: RunDirectory, statistics: TrainingStatistics, delivered: bool) -> None:
    """Print how a training ended and where to look."""
    out = _out()
    style = _STYLES.get(statistics.state.value, "")
    out.print(f"\n[bold]{run.name}[/]  [{style}]{statistics.state.value}[/]: {statistics.reason}", highlight=False)
    line = f"{statistics.env_steps:,} env steps, {statistics.episodes:,} episodes"
    if statistics.seconds:
        line += f", {format_duration(statistics.seconds)} of training, {statistics.steps_per_second:,.0f} steps/s"
    out.print(line, highlight=False)
    final = statistics.final_evaluation
    if final is not None:
        out.print(
            f"final evaluation: mean return {final.mean:.6g} (95 % interval {final.interval.low:.6g} to "
            f"{final.interval.high:.6g}, {len(final.returns)} episodes)",
            highlight=False,
        )
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
        rows.append(("plot", _short(curve)))
    found = read_bookmark(run)
    state = {} if found is None else found.mlflow.state
    if delivered and "run_id" in state:
        uri = state["tracking_uri"]
        if uri.startswith("http"):
            rows.append(("MLflow", f"{uri}/#/experiments/{state['experiment_id']}/runs/{state['run_id']}"))
    else:
        problem = found.mlflow.problem if found is not None else None
        reason = problem.message if problem else "the delivery still goes on"
        rows.append(("not in MLflow", f"{reason} (see `rltrack show {run.name}`)"))
    is_usual = run.root == resolve_root()
    rows.append(("pages", f"{_program('rltrack')} {'' if is_usual else f'--root {_short(run.root)} '}ui"))
    labels = [label for label, _ in rows]
    if "last version" in labels:
        which = "" if "best version" in labels else ', version="last"'
        rows.append(("in Python", f'rltrack.load_agent("{run.name}"{which})'))
    if statistics.state.value == "stopped":
        rows.append(("go on", f"rltrack resume {run.name}"))
    out.print()
    width = max(len(label) for label, _ in rows)
    for label, value in rows:  # not in a table, which would break commands that one wants to copy
        out.print(f"{label:<{width}}  {value}", highlight=False, markup=False)


def _program(name: str) -> str:
    """How to call a program of our environment from where the user stands."""
    beside = Path(sys.executable).parent / name
    on_path = shutil.which(name)
    if on_path and Path(on_path) == beside:
        return name
    return _short(beside) if beside.exists() else name


def _short(path: Path) -> str:
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.5g}"


def _resume_line(details: dict[str, Any]) -> str:
    """How a resume of this run comes out, and how those before did."""
    environments = details["environments"] or {"tier": "unknown", "reason": ""}
    tier, reason = environments["tier"], environments["reason"]
    how = {
        "capture": "exact: the environments' inside is in each version",
        "replay": "exact: each environment's running episode is replayed",
        "cut": "exact: the environments are built anew at marks, and versions taken there",
        "inexact": f"not exact: the environments begin a new episode ({reason})",
    }.get(tier, "not known to be exact")
    return f"resume: {how}" + ("" if details["exact"] else "; an earlier resume was not exact")


def checkpoint_rows(
    run: RunDirectory, *, verify: bool, prune: bool, pin: Sequence[str], unpin: Sequence[str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Pin, unpin and prune as asked; return one mapping per version, and what is wrong with folders that are none.

    Raises:
        CheckpointNotFound: If a version to pin or unpin does not exist.
        RunBusy: If the run is being trained, and is to be pruned.
    """
    section = (run.read_config().get("checkpoints") or {}) if run.config_file.exists() else {}
    kept = {key: section[key] for key in ("keep_last", "keep_best", "keep_every") if section.get(key) is not None}
    store = run.store(Retention(**kept))
    for selector in pin:
        store.pin(store.find(selector))
    for selector in unpin:
        store.unpin(store.find(selector))
    if prune:
        with run.lock():
            store.prune()
    pinned = store.pinned()
    rows = [
        {
            "name": version.name,
            "env_steps": version.env_steps,
            "score": version.score,
            "resumable": version.is_resumable,
            "environments": (version.details.get("environments") or {}).get("tier"),
            "attempt": version.details.get("attempt"),
            "created": version.created,
            "bytes": version.size_bytes,
            "pinned": version.number in pinned,
            "problem": store.verify(version) if verify else None,
        }
        for version in store.versions()
    ]
    return rows, store.problems()


def print_checkpoints(rows: Sequence[dict[str, Any]], problems: Sequence[str], *, verified: bool) -> None:
    """Print the versions as a table, and what is wrong below it."""
    out = _out()
    if not rows and not problems:
        out.print("No versions yet.")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column, justify in (("version", "left"), ("env steps", "right"), ("mean return", "right"), ("holds", "left"),
                            ("size", "right"), ("age", "right"), ("", "left")):  # fmt: skip
        table.add_column(column, justify=justify, no_wrap=True, overflow="ignore")  # type: ignore[arg-type]
    for row in rows:
        marks = ["pinned"] if row["pinned"] else []
        if verified:
            marks.append("[red]damaged[/]" if row["problem"] else "[green]verified[/]")
        table.add_row(
            row["name"],
            f"{row['env_steps']:,}",
            _number(row["score"]),
            f"all, {row['environments'] or 'no env'}" if row["resumable"] else "policy",
            _size(row["bytes"]),
            format_duration(max(time.time() - row["created"], 0)),
            " ".join(marks),
        )
    out.print(table)
    for problem in [*(row["problem"] for row in rows if row["problem"]), *problems]:
        out.print(f"[red]{problem}[/]")


def print_prunable(found: Sequence[Candidate], *, whole: bool, done: bool) -> None:
    """Print which runs would go, and which stay and why."""
    out = _out()
    if not found:
        out.print("There is no such run.")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column, justify in (("run", "left"), ("best eval", "right"), ("last record", "right"), ("frees", "right")):
        table.add_column(column, justify=justify, no_wrap=True, overflow="ignore")  # type: ignore[arg-type]
    for item in found:
        age = f"{format_duration(max(time.time() - item.last_time, 0))} ago"
        table.add_row(item.run.name, _number(item.score), age, "stays" if item.kept else _size(item.bytes))
    out.print(table)
    for item in found:
        if item.kept is not None:
            out.print(f"{escape(item.run.name)} stays: {escape(item.kept)}")
    going = [item for item in found if item.kept is None]
    what = "whole runs" if whole else "what resuming them needs; their best policies and records stay"
    out.print(f"{len(going)} of {len(found)}: {what}, {_size(sum(item.bytes for item in going))}")
    if going and not done:
        out.print("Nothing was deleted; the same command with --yes does it.")


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def print_models(rows: Sequence[dict[str, Any]], uri: str) -> None:
    """Print registered models with their history."""
    out = _out()
    if not rows:
        out.print(
            "No models yet. Make a run's policy the first champion: rltrack promote RUN --model NAME --floor SCORE"
        )
        return
    for row in rows:
        out.print(f"[bold]{escape(row['name'])}[/]")
        for role in ("champion", "challenger"):
            item = row[role]
            if item is not None:
                out.print(
                    f"  {role:10}  version {item['version']}  {escape(item['source'])}  mean return {item['mean_return']} "
                    f"(95 % interval {item['interval']})"
                )
        for event in row["history"]:
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(event["time"]))
            style = {"promoted": "green", "refused": "yellow", "degraded": "red"}.get(event["kind"], "")
            what = f"[{style}]{event['kind']:11}[/]" if style else f"{event['kind']:11}"
            out.print(f"  {event['number']:>4}  {when}  {what}  version {event['version']}  {escape(event['source'])}")
            out.print(f"        {escape(event['reason'])}")
        out.print()
    out.print(
        f"To load or serve a champion: export MLFLOW_TRACKING_URI={without_password(uri)}, then models:/NAME@champion"
    )


_SHOWN_TRIALS = 10


def print_trials(rows: Sequence[dict[str, Any]], seeds: int) -> None:
    """Print how many trials of a sweep stand how, and the best ones as a table."""
    out = _out()
    counts = Counter(row["state"] for row in rows)
    out.print(f"{len(rows)} trials: {', '.join(f'{count} {state}' for state, count in counts.items())}")
    shown = [row for row in rows if row["value"] is not None][:_SHOWN_TRIALS]
    if shown:
        table = Table(box=None, header_style="bold", pad_edge=False)
        names = list(dict.fromkeys(name for row in shown for name in row["values"]))
        table.add_column("trial", justify="right")
        table.add_column("mean return" if seeds == 1 else f"mean of {seeds} seeds", justify="right")
        for name in ("state", *names):
            table.add_column(name)
        for row in shown:
            values = [_setting(row["values"].get(name)) for name in names]
            table.add_row(str(row["trial"]), _number(row["value"]), row["state"], *map(escape, values))
        out.print(table)
    for row in [row for row in rows if row["state"] == "failed"][:_SHOWN_TRIALS]:
        out.print(f"[red]trial {row['trial']} failed[/]: {escape(row['reason'] or 'without a word')}")


def _setting(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def print_comparison(study: Study) -> None:
    """Print groups of runs side by side, one column each."""
    from rltrack.comparison.page import COLUMNS, shown_setting, shown_value

    rows, out = study.rows(), Console()
    several = len(rows) > 1
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("", no_wrap=True)
    for number, row in enumerate(rows, 1):
        label = f"[{number}] {row['group']}" if several else row["group"]
        table.add_column(escape(label), justify="right", overflow="fold")
    for key, title in COLUMNS:
        if any(row[key] is not None for row in rows):
            table.add_row(f"  {title}" if title.startswith("95") else title, *(shown_value(row[key]) for row in rows))
    for index in range(len(rows) if several else 0):
        chances = [study.improvement[other][index][0] for other in range(len(rows))]
        cells = ["" if other == index else f"{chance:.2f}" for other, chance in enumerate(chances)]
        table.add_row(escape(f"P(better than [{index + 1}])"), *cells)
    out.print(table)
    if study.note:
        out.print(escape(study.note))
    if study.warning:
        out.print(f"[yellow]{escape(study.warning)}[/]")
    if study.threshold is not None:
        out.print(
            f"threshold {study.threshold:g}; P over {'seeds' if study.by_seed else 'episodes'} of the last evaluation"
        )
    if study.differences:
        out.print("\n[bold]what differs[/]")
        differing = Table(box=None, show_header=False, pad_edge=False)
        for key, values in study.differences.items():
            differing.add_row(key, *(escape(shown_setting(value)) for value in values))
        out.print(differing)
