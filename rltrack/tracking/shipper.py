"""The process that delivers a run to MLflow and TensorBoard while it is trained, and ends by itself.

``python -m rltrack.tracking.shipper RUN_FOLDER`` for one run, ``… --all ROOT`` for what dead processes left behind. It
holds the run's ``shipper.lock``, so that there is one at a time; training never waits for it, and starts another if it
dies. In words::

    take the lock; continue from the bookmark
    until training has ended and everything is delivered:
        sample memory, CPU and GPU of training and of the machine       (every five seconds)
        fsync the journal, and deliver what is new to each sink          (a failing one waits, the others continue)
        now and then: draw plots and update the description
    deliver the true status: as the journal says, also where the training process was killed
    film the best policy

Only what is fsynced is delivered, and where the run has a copy in a remote store, only what the copy holds: what a power
cut or another machine takes back was never delivered.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from rltrack import damage
from rltrack.checkpoints.mirror import mirrored_bytes
from rltrack.errors import CheckpointCorrupt, ConfigurationError, RltrackError
from rltrack.files import lock_holder, take_lock
from rltrack.journal.lines import encode_record, numbered_line
from rltrack.journal.reading import last_line
from rltrack.named_code import make_current_folder_importable
from rltrack.processes import python_command
from rltrack.provenance import context_now
from rltrack.resources import ResourceSampler
from rltrack.runs import Root, RunDirectory
from rltrack.text import print_in_any_encoding
from rltrack.tracking.bookmark import Bookmark, forget_delivery, is_delivered, waits_for_store
from rltrack.tracking.destination import Destination, read_destination
from rltrack.tracking.report import RunReport
from rltrack.tracking.route import Route
from rltrack.tracking.sinks import load_sink
from rltrack.tracking.sinks.base import Sink, Unusable
from rltrack.tracking.takeover import heartbeat
from rltrack.tracking.takeover import take_over as end_and_hold

SAMPLE_SECONDS = 5.0
DELIVER_SECONDS = 2.0
REFRESH_SECONDS = 60.0
PATIENCE_SECONDS = 600.0
"""How long it keeps trying after the end of training."""

FILM_SECONDS = 180.0

EXIT_DELIVERED, EXIT_NOT_DELIVERED, EXIT_BUSY = 0, 1, 75
_BEAT_SECONDS = 0.2
_LOCK_SECONDS = 10.0


class Shipper:
    """Delivers one run. Hold its lock.

    Args:
        run: The run.
        patience: Seconds to keep trying after training has ended.
        notify: Called with each message.
        home: Where training was started, from which its environment may be imported; omitted: here.
    """

    def __init__(
        self,
        run: RunDirectory,
        *,
        patience: float = PATIENCE_SECONDS,
        notify: Callable[[str], None] = print,
        home: Path | None = None,
    ) -> None:
        self.run = run
        self._home = home
        self._patience = patience
        self._notify = notify
        first = run.configuration_record()
        self._bookmark = Bookmark.load(run.bookmark_file, first["run_id"] if first else run.name)
        if not self._bookmark.context and run.is_locked():
            self._bookmark.context = context_now()
        if run.journal_file.exists():
            self._bookmark.goes_back_to(run.journal_file.stat().st_size)
        self.report = RunReport(run, self._bookmark.context)
        self._sampler: ResourceSampler | None = None
        self._samples: int | None = None
        self._sampled = self._delivered = float("-inf")
        self._refreshed = time.monotonic()
        if run.is_locked():
            self._sample()  # before the two seconds that it takes to load MLflow
        self._routes = list(self._make_routes())

    def _make_routes(self) -> Iterator[Route]:
        self._bookmark.follow((read_destination(self.run) or Destination()).sinks)
        for name, bookmark in self._bookmark.sinks.items():
            sink = self._make_sink(name, bookmark.state)
            if sink.is_lost(self.report):
                bookmark.journal = bookmark.resources = 0
                bookmark.finished_at = None
                sink.state.clear()
            yield Route(name, self.run, sink, bookmark, self._save, self._notify)

    def _make_sink(self, name: str, state: dict[str, Any]) -> Sink:
        try:
            return load_sink(name).for_run(self.run, state)
        except ConfigurationError as error:  # the others continue
            return Unusable(str(error), state)

    def ship(self) -> bool:
        """Deliver until training has ended and everything is there; return whether it is.

        Where the run's folder is removed meanwhile, what was delivered stays, and the run is shown as failed.
        """
        try:
            return self._ship()
        except OSError as error:
            if self.run.journal_file.exists():
                raise
            return self._end_of_removed(error)

    def _end_of_removed(self, error: OSError) -> bool:
        self._notify(f"{self.run.path} was removed ({error}): what is not delivered by now is lost")
        for route in self._routes:
            route.finish_removed(self.report)
            route.close()
        return False

    def _ship(self) -> bool:
        ended_at: float | None = None
        while True:
            training = self.run.is_locked()
            if training:
                ended_at = None
                self._sample()
                if time.monotonic() - self._delivered >= DELIVER_SECONDS:
                    self._deliver()
                    self._delivered = time.monotonic()
                    self._refresh()
                    self._prepare_end()
            else:
                ended_at = ended_at or time.monotonic()
                end = self._deliver()
                self._finish(end)
                if self._bookmark.is_complete(end) and not self.run.is_locked():
                    break
                hopeless = all(route.needs_a_person or route.bookmark.finished_at == end for route in self._routes)
                if hopeless or time.monotonic() - ended_at > self._patience:
                    break
            time.sleep(_BEAT_SECONDS)
        delivered = is_delivered(self.run)
        if delivered:
            self._film()
        for route in self._routes:
            route.close()
        return delivered

    def _prepare_end(self) -> None:
        """Plotting and models take a second each to import: better during training than at its end, when the user waits."""
        import rltrack.tracking.plots  # noqa: F401

        for route in self._routes:
            route.sink.prepare_end()

    def _deliver(self) -> int:
        """Deliver what is new; return up to where it was allowed to."""
        journal_end, resources_end = self._safe_end(), _size(self.run.resources_file)
        self.report.catch_up(journal_end, resources_end)
        for route in self._routes:
            route.deliver(self.report, journal_end, resources_end)
        return journal_end

    def _finish(self, end: int) -> None:
        resources_end = _size(self.run.resources_file)
        if any(route.has_all(end, resources_end) for route in self._routes):
            self.report.draw()
        for route in self._routes:
            if route.has_all(end, resources_end):
                route.finish(self.report, end)

    def _film(self) -> None:
        """Add a video of the best policy; nothing waits for it, and a run without one is complete."""
        config = self.report.config
        wanted = config.is_buildable and config.tracking.video and os.environ.get("RLTRACK_VIDEO") != "off"
        if not wanted or not self.report.status().is_finished or importlib.util.find_spec("moviepy") is None:
            return
        video, gif = self.run.exports / "best.mp4", self.run.exports / "best.gif"
        command = python_command("rltrack.training.film", str(self.run.path), str(video), str(gif))
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=FILM_SECONDS,
                stdin=subprocess.DEVNULL,
                cwd=self._home if self._home is not None and self._home.is_dir() else None,
            )
        except subprocess.TimeoutExpired:
            self._notify(f"no video: the episode took more than {FILM_SECONDS:.0f} s to film")
            return
        if done.returncode != 0:
            self._notify(f"no video: {(done.stderr.strip().splitlines() or ['its process died'])[-1]}")
            return
        for route in self._routes:
            route.add_video(self.report, video, gif)

    def _refresh(self) -> None:
        if time.monotonic() - self._refreshed < REFRESH_SECONDS:
            return
        self.report.draw()
        for route in self._routes:
            route.refresh(self.report)
        self._refreshed = time.monotonic()

    def _safe_end(self) -> int:
        """Return up to where the journal can no longer be taken back."""
        descriptor = os.open(self.run.journal_file, os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if self.report.config.checkpoints.store is None:
            return size
        try:
            return min(size, mirrored_bytes(self.run.path))
        except CheckpointCorrupt:
            return 0

    def _sample(self) -> None:
        """Look at what training uses; its step is the time since the run began, in seconds."""
        now = time.monotonic()
        if now - self._sampled < SAMPLE_SECONDS:
            return
        self._sampled = now
        try:
            self._sampler = self._sampler or ResourceSampler(lock_holder(self.run.lock_file))
            values = self._sampler.sample().to_metrics()
        except psutil.Error:  # it has just ended
            self._sampler = None
            return
        when = time.time()
        record = {"time": when, "kind": "resources", "step": int(when - self.report.start_time), "values": values}
        self._samples = (last_line(self.run.resources_file) if self._samples is None else self._samples) + 1
        with open(self.run.resources_file, "ab", buffering=0) as file:
            file.write(numbered_line(encode_record(record), self._samples))

    def _save(self) -> None:
        self._bookmark.save(self.run.bookmark_file)


def ship_run(
    run: RunDirectory,
    *,
    patience: float = PATIENCE_SECONDS,
    notify: Callable[[str], None] = print,
    home: Path | None = None,
    take_over: bool = False,
    rewrite: bool = False,
    again: bool = False,
) -> int:
    """Deliver one run under its lock; see `Shipper`. With `take_over`, a process that is at it is ended first.

    With `rewrite`, event files of TensorBoard that are gone or changed are written again, though all was delivered. With `again`,
    everything is delivered into a new MLflow run.

    Returns:
        ``EXIT_DELIVERED``, ``EXIT_NOT_DELIVERED``, or ``EXIT_BUSY`` if another process is at it.

    Raises:
        RunBusy: With `take_over`, if that process is not provably one that delivers the run.
    """
    lock = end_and_hold(run) if take_over else take_lock(run.shipper_lock, _LOCK_SECONDS)
    if lock is None:
        return EXIT_BUSY
    try:
        with heartbeat(lock):
            if again:
                forget_delivery(run)
            if is_delivered(run) and not run.is_locked() and not rewrite:
                return EXIT_DELIVERED
            shipper = Shipper(run, patience=patience, notify=notify, home=home)
            return EXIT_DELIVERED if shipper.ship() else EXIT_NOT_DELIVERED
    finally:
        os.close(lock)


def left_behind(root: Root) -> list[RunDirectory]:
    """Return the runs that no process trains or delivers now, and that are not delivered."""
    found = []
    for run in root.runs():
        try:
            if run.is_locked() or run.is_shipped() or not run.journal_file.exists() or is_delivered(run):
                continue
            if run.configuration_record() and not waits_for_store(run):
                found.append(run)
        except (RltrackError, OSError) as error:  # one that cannot be read keeps none of the others
            damage.report(f"{run.name}: {error}")
    return found


def ship_all(root: Root, *, notify: Callable[[str], None] = print, home: Path | None = None) -> list[RunDirectory]:
    """Deliver what dead processes left behind, one run after another; return those that could not be delivered."""
    missing = []
    for run in left_behind(root):

        def notify_of_run(text: str, name: str = run.name) -> None:
            notify(f"{name}: {text}")

        try:
            if ship_run(run, patience=0.0, notify=notify_of_run, home=home) == EXIT_NOT_DELIVERED:
                missing.append(run)
        except (RltrackError, OSError) as error:
            notify_of_run(str(error))
            missing.append(run)
    return missing


def prepare_process() -> None:
    """Set this process up for delivering: out of training's way, and with no repeated calls to MLflow."""
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"  # our own tries find what a lost answer created
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_LOGGING_LEVEL"] = "ERROR"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ.pop("MLFLOW_RUN_ID", None)  # the destination has it


def main(arguments: list[str]) -> int:
    """Deliver the run in the folder that is named, or with ``--all`` what was left behind under a root."""
    prepare_process()
    print_in_any_encoding()
    make_current_folder_importable()  # for the user's own sinks; this process leaves the folder
    os.nice(5)
    if arguments[0] == "--all":
        lock = take_lock(Path(arguments[1]) / ".deliver.lock")
        if lock is None:
            return EXIT_BUSY
        root = Root(arguments[1])
        return EXIT_NOT_DELIVERED if ship_all(root, notify=_say, home=_move_to(root.path)) else EXIT_DELIVERED
    run = RunDirectory(Path(arguments[0]).absolute())
    return ship_run(run, notify=_say, home=_move_to(run.root))


def _move_to(root: Path) -> Path | None:
    """Go where this process can stay, and return where it was: the folder of a flow run goes with the flow run."""
    try:
        home = Path.cwd()
    except FileNotFoundError:
        home = None
    os.chdir(root)
    return home


def _say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
