"""How far runs are delivered to MLflow and TensorBoard: `rltrack sync`, and the wait after a training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from rltrack import damage
from rltrack.console.tables import size, terminal
from rltrack.errors import RltrackError
from rltrack.files import lock_holder
from rltrack.tracking.bookmark import is_delivered, read_bookmark, waits_for_store
from rltrack.tracking.delivery import wait_until_delivered
from rltrack.tracking.event_files import lost_events
from rltrack.tracking.takeover import STALLED_SECONDS, is_stalled, silent_seconds

if TYPE_CHECKING:
    from rltrack.runs import Root, RunDirectory


_POLL_SECONDS = 0.1


def delivery_state(run: RunDirectory) -> dict[str, Any]:
    """Return how far a run is delivered, as plain data."""
    bookmark = read_bookmark(run)
    return {
        "complete": is_delivered(run),
        "going_on": run.is_shipped(),
        "waits_for_store": waits_for_store(run),
        "silent_seconds": silent_seconds(run),
        "journal_bytes": run.journal_file.stat().st_size if run.journal_file.exists() else 0,
        "sinks": [] if bookmark is None else list(bookmark.sinks),
        **({} if bookmark is None else {name: asdict(sink) for name, sink in bookmark.sinks.items()}),
        "set_aside_file": str(run.set_aside_file) if run.set_aside_file.exists() else None,
    }


def delivery_lines(delivery: dict[str, Any]) -> Iterator[str]:
    """Yield lines that show how far a run is delivered."""
    mlflow = delivery.get("mlflow")
    if mlflow is None and (delivery["sinks"] or delivery["complete"]):
        yield "MLflow: not among the run's tracking.sinks"
    elif mlflow is None or "run_id" not in mlflow["state"]:
        yield "MLflow: nothing was delivered yet"
    else:
        yield f"MLflow: run {mlflow['state']['run_id']} in {mlflow['state']['tracking_uri']}"
    for name in delivery["sinks"]:
        found = delivery[name]
        missing = max(delivery["journal_bytes"] - found["journal"], 0)
        if found["problem"] is not None:
            yield f"[yellow]{name} does not accept records[/]: {escape(found['problem']['message'])}"
        if found["set_aside"]:
            yield f"[yellow]{name} refused {found['set_aside']} values[/]; values and reasons: {delivery['set_aside_file']}"
        silent = delivery["silent_seconds"]
        if missing and silent is not None and silent > STALLED_SECONDS:
            yield f"[yellow]the shipper sent no heartbeat for {silent:.0f} s[/]; `rltrack sync RUN --take-over` ends it"
        if missing and delivery["waits_for_store"]:
            yield (
                f"{name} lacks {size(missing)} of the journal, as the run's remote store does: it is delivered after the run is "
                "resumed here, and replaced if it is resumed elsewhere"
            )
        elif missing and not delivery["going_on"]:
            yield f"{name} lacks {size(missing)} of the journal; `rltrack sync` delivers"


def sync_runs(root: Root, run: RunDirectory | None, *, again: bool, take_over: bool = False) -> bool:
    """Deliver one run, or all undelivered ones, in this process; return whether everything is delivered.

    Args:
        root: The root.
        run: The run; None for all.
        again: Deliver everything into a new MLflow run.
        take_over: First end the shipper of the run; with all runs, only shippers without a heartbeat.
    """
    from rltrack.tracking import shipper

    out = terminal()
    if run is None:
        stalled = [item for item in root.runs() if is_stalled(item)]
        waiting = sorted([*shipper.left_behind(root), *stalled], key=lambda item: item.name)
        if not waiting:
            out.print("Everything that can be delivered is delivered, or is being delivered.")
            return True
    else:
        if run.is_locked() and not is_stalled(run):
            out.print(f"Run {run.name} is being trained and delivered; `rltrack show {run.name}` shows how far.")
            return not again
        waiting = [run]
    shipper.prepare_process()
    good = True
    for item in waiting:
        try:
            with Console(stderr=True).status(f"delivering {item.name} …"):
                if not take_over:
                    _wait_for_shipper(item)
                lost = lost_events(item) if item is run else None
                if lost is not None:
                    out.print(f"{escape(lost)}: TensorBoard's damaged files are written again", highlight=False)
                result = (
                    shipper.EXIT_BUSY
                    if is_stalled(item) and not take_over
                    else shipper.ship_run(
                        item,
                        patience=0.0,
                        notify=lambda _: None,
                        take_over=take_over,
                        rewrite=lost is not None,
                        again=again,
                    )
                )
        except (RltrackError, OSError) as error:
            damage.report(f"{item.name} is not delivered: {error}")
            good = False
            continue
        if result == shipper.EXIT_BUSY:
            out.print(f"{item.name}: [yellow]not delivered[/]", highlight=False)
            out.print(f"  {escape(_shipper_state(item))}", highlight=False)
        elif result == shipper.EXIT_DELIVERED:
            out.print(f"{item.name}: delivered")
        else:
            out.print(f"{item.name}: [yellow]not delivered[/]", highlight=False)
            for line in delivery_lines(delivery_state(item)):
                out.print(f"  {line}", highlight=False)
        good = good and result == shipper.EXIT_DELIVERED
    return good


def _wait_for_shipper(run: RunDirectory) -> None:
    """Wait while another process delivers the run and makes progress."""
    while run.is_shipped() and not is_stalled(run) and not run.is_locked():
        found = read_bookmark(run)
        if found is not None and found.problem is not None:
            return
        time.sleep(_POLL_SECONDS)


def _shipper_state(run: RunDirectory) -> str:
    """Return which process delivers the run, since when it sent no heartbeat, and how to end it."""
    silent, pid = silent_seconds(run), lock_holder(run.shipper_lock) or "unknown"
    if silent is None:
        return f"the process that delivered it has ended: rltrack sync {run.name}"
    if silent > STALLED_SECONDS:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() - silent))
        how = f"sent no heartbeat since {since} ({silent:.0f} s): it is stopped (kill -CONT {pid} continues it)"
    else:
        how = f"is delivering it; last heartbeat {silent:.0f} s ago"
    return f"process {pid} {how}. End it and deliver here: rltrack sync {run.name} --take-over"


def wait_for_delivery(run: RunDirectory, wait: Callable[[float], bool], seconds: float) -> bool:
    """Wait for MLflow and TensorBoard, with a status line and a timeout; only briefly if MLflow does not answer."""
    err = Console(stderr=True)
    try:
        if not err.is_terminal:
            return wait_until_delivered(run, wait, seconds)
        with err.status("delivering to MLflow and TensorBoard (Ctrl-C: continue in the background) …"):
            return wait_until_delivered(run, wait, seconds)
    except KeyboardInterrupt:
        return False
