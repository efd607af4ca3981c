"""How far runs are delivered to MLflow and TensorBoard: `rltrack sync`, and the wait after a training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from rltrack import damage
from rltrack.console.tables import size, terminal
from rltrack.errors import RltrackError
from rltrack.tracking.bookmark import SINKS, forget_delivery, is_delivered, read_bookmark

if TYPE_CHECKING:
    from rltrack.runs import Root, RunDirectory


def delivery_state(run: RunDirectory) -> dict[str, Any]:
    """Return how far a run is delivered, as plain data."""
    bookmark = read_bookmark(run)
    return {
        "complete": is_delivered(run),
        "going_on": run.is_shipped(),
        "journal_bytes": run.journal_file.stat().st_size if run.journal_file.exists() else 0,
        **({} if bookmark is None else {name: asdict(getattr(bookmark, name)) for name in SINKS}),
        "set_aside_file": str(run.set_aside_file) if run.set_aside_file.exists() else None,
    }


def delivery_lines(delivery: dict[str, Any]) -> Iterator[str]:
    """Say how far a run is delivered, for a person."""
    mlflow = delivery.get("mlflow")
    if mlflow is None or "run_id" not in mlflow["state"]:
        yield "MLflow: nothing was delivered yet"
    else:
        yield f"MLflow: run {mlflow['state']['run_id']} in {mlflow['state']['tracking_uri']}"
    for name in SINKS:
        found = delivery.get(name)
        if found is None:
            continue
        missing = max(delivery["journal_bytes"] - found["journal"], 0)
        if found["problem"] is not None:
            yield f"[yellow]{name} takes nothing[/]: {escape(found['problem']['message'])}"
        if found["set_aside"]:
            yield f"[yellow]{name} refused {found['set_aside']} values for good[/]; with reasons: {delivery['set_aside_file']}"
        if missing and not delivery["going_on"]:
            yield f"{name} lacks {size(missing)} of the journal; `rltrack sync` delivers"


def sync_runs(root: Root, run: RunDirectory | None, *, again: bool) -> bool:
    """Deliver one run, or all that are not delivered, in this process; return whether everything is there."""
    from rltrack.tracking import shipper

    out = terminal()
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
        try:
            with Console(stderr=True).status(f"delivering {item.name} …"):
                result = shipper.ship_run(item, patience=0.0, tell=lambda _: None)
        except (RltrackError, OSError) as error:
            damage.report(f"{item.name} is not delivered: {error}")
            good = False
            continue
        if result == shipper.EXIT_BUSY:
            out.print(f"{item.name}: another process is delivering it")
        elif result == shipper.EXIT_DELIVERED:
            out.print(f"{item.name}: delivered")
        else:
            out.print(f"{item.name}: [yellow]not delivered[/]", highlight=False)
            for line in delivery_lines(delivery_state(item)):
                out.print(f"  {line}", highlight=False)
        good = good and result != shipper.EXIT_NOT_DELIVERED
    return good


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
