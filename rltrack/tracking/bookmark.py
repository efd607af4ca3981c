"""How far a run is delivered: one small file in its folder, replaced in one step."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rltrack import damage
from rltrack.addresses import moved
from rltrack.checkpoints.mirror import has_mirror, mirrored_bytes
from rltrack.config import DEFAULT_SINKS
from rltrack.errors import CheckpointCorrupt, RunDamaged
from rltrack.files import replace_text
from rltrack.runs import RunDirectory
from rltrack.sealed import seal_json, unseal_json
from rltrack.tracking.destination import read_destination

_FORMAT = 2
_OWN_STATES = {
    "mlflow": (("run_id", "tracking_uri", "experiment_id", "tag"), ("artifacts", "models")),
    "tensorboard": (("folder",), ("files", "checksums")),
}
"""What our own sinks keep: texts, and tables."""


@dataclass
class Problem:
    """Why nothing is delivered just now.

    Attributes:
        kind: ``passing`` (tried again by itself), or ``person`` (the user must act first).
        message: What was asked, what was answered, what to do.
        since: Unix seconds of the first failure in a row.
    """

    kind: str
    message: str
    since: float


@dataclass
class SinkBookmark:
    """How far one sink is.

    Attributes:
        journal: Position in the journal up to which it has everything, in bytes.
        resources: The same for the samples of memory, CPU and GPU.
        finished_at: Position in the journal at which status and plots were delivered; None before.
        set_aside: Records it refused permanently; they are in ``undelivered.jsonl``.
        problem: Why it has no more.
        state: The sink's own: addresses, ids, positions.
    """

    journal: int = 0
    resources: int = 0
    finished_at: int | None = None
    set_aside: int = 0
    problem: Problem | None = None
    state: dict[str, Any] = field(default_factory=dict)


@dataclass
class Bookmark:
    """How far each sink is.

    Attributes:
        run_id: Of the run, as in its journal; a bookmark of another run does not count.
        sinks: By name, those that the run is delivered to.
        former: Those that it was delivered to before, and is no longer.
        context: Facts of the machine and the program at the time of the first attempt.
    """

    run_id: str
    sinks: dict[str, SinkBookmark] = field(
        default_factory=lambda: {name: SinkBookmark() for name in DEFAULT_SINKS},
    )
    former: dict[str, SinkBookmark] = field(default_factory=dict)
    context: dict[str, Any] = field(default_factory=dict)

    def follow(self, names: Sequence[str]) -> None:
        """Deliver to these sinks from now on; each continues where it was."""
        known = self.former | self.sinks
        self.sinks = {name: known.pop(name, SinkBookmark()) for name in names}
        self.former = {name: sink for name, sink in known.items() if sink != SinkBookmark()}

    def of(self, name: str) -> SinkBookmark:
        """Return a sink's; one that knows of nothing where nothing is delivered there."""
        return self.sinks.get(name) or self.former.get(name) or SinkBookmark()

    @property
    def mlflow(self) -> SinkBookmark:
        """MLflow's."""
        return self.of("mlflow")

    @property
    def tensorboard(self) -> SinkBookmark:
        """TensorBoard's."""
        return self.of("tensorboard")

    @property
    def problem(self) -> Problem | None:
        """Why some sink has no more; what needs the user comes first."""
        found = [sink.problem for sink in self.sinks.values() if sink.problem is not None]
        return min(found, key=lambda problem: problem.kind != "person", default=None)

    def is_complete(self, journal_bytes: int) -> bool:
        """Whether everything is delivered, the final status too."""
        return all(sink.finished_at == journal_bytes for sink in self.sinks.values())

    def save(self, path: Path) -> None:
        """Write it in one step. It is not fsynced: what it lacks after a power cut is delivered again."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(seal_json({"format": _FORMAT, **asdict(self)}), encoding="utf-8")
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path, run_id: str) -> Bookmark:
        """Return the bookmark of this run; an empty one where there is none, or where it is damaged, which is reported."""
        try:
            data = unseal_json(path.read_bytes())
            if data["format"] == 1:  # of before there were others
                data |= {"format": 2, "sinks": {name: data[name] for name in DEFAULT_SINKS}, "former": {}}
            if data["format"] == _FORMAT and data["run_id"] == run_id:
                return cls(run_id, _sinks(data["sinks"]), _sinks(data["former"]), dict(data["context"]))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            damage.report(
                f"{path}, which says how far the run is delivered, is damaged ({error}). Nothing is lost: `rltrack sync "
                f"{path.parent.name}` finds the run in MLflow and delivers it again, which doubles nothing."
            )
        return cls(run_id)

    def goes_back_to(self, journal_bytes: int) -> bool:
        """Take back what is behind the end of a journal that lost its end; return whether anything was."""
        changed = False
        for sink in (*self.sinks.values(), *self.former.values()):
            if sink.journal > journal_bytes or (sink.finished_at or 0) > journal_bytes:
                sink.journal, sink.finished_at, changed = min(sink.journal, journal_bytes), None, True
        return changed


def _sinks(data: Any) -> dict[str, SinkBookmark]:
    return {name: _sink(name, item) for name, item in dict(data).items()}


def _sink(name: str, data: Any) -> SinkBookmark:
    """Raises TypeError if a field is not of its type: such a bookmark counts as none, and everything is delivered again."""
    if not isinstance(data, dict) or not isinstance(data["state"], dict):
        raise TypeError("no mapping")
    problem = data.pop("problem")
    sink = SinkBookmark(**data, problem=Problem(**problem) if problem else None)
    counts = [sink.journal, sink.resources, sink.set_aside, 0 if sink.finished_at is None else sink.finished_at]
    texts, tables_of = _OWN_STATES.get(name, ((), ()))
    ids = [sink.state.get(key, "") for key in texts]
    tables = [sink.state.get(key, {}) for key in tables_of]
    if not (
        all(type(count) is int and count >= 0 for count in counts)
        and all(isinstance(text, str) for text in ids)
        and all(isinstance(table, dict) for table in tables)
        and (sink.problem is None or isinstance(sink.problem.message, str))
    ):
        raise TypeError("a field is not of its type")
    return sink


def read_bookmark(run: RunDirectory) -> Bookmark | None:
    """Return how far a run is delivered; None if nothing was begun."""
    first = run.configuration_record()
    if first is None or not run.bookmark_file.exists():
        return None
    return Bookmark.load(run.bookmark_file, first["run_id"])


def is_delivered(run: RunDirectory) -> bool:
    """Whether everything a run recorded is delivered."""
    found = read_bookmark(run)
    try:
        if found is None:
            destination = read_destination(run)
            return destination is not None and not destination.sinks  # there is nothing to be begun
        return found.is_complete(run.journal_file.stat().st_size)
    except (FileNotFoundError, RunDamaged):
        return False


def waits_for_store(run: RunDirectory) -> bool:
    """Whether a run's remote store lacks what is not delivered: it is delivered after the next resume, if that repeats it."""
    found = read_bookmark(run)
    try:
        begin = mirrored_bytes(run.path)
        waits = has_mirror(run.path) and begin < run.journal_file.stat().st_size
    except (FileNotFoundError, CheckpointCorrupt):
        return False
    return waits and found is not None and all(sink.journal >= begin for sink in found.sinks.values())


def move_bookmark(run: RunDirectory, old: Path, new: Path) -> None:
    """Have the bookmark name the new place of a root that was moved; one that is damaged is left, and counts as none."""
    try:
        data = unseal_json(run.bookmark_file.read_bytes())
    except (OSError, ValueError):
        return
    after = _mapped(data, lambda text: moved(text, old, new))
    if after != data:
        replace_text(run.bookmark_file, seal_json(after))


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """Plain data with every text in it changed; keys stay."""
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_mapped(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


def forget_delivery(run: RunDirectory) -> None:
    """Have everything delivered into a new MLflow run, whatever became of the one before."""
    found = read_bookmark(run)
    if found is not None:
        found.sinks["mlflow"] = SinkBookmark(state={"tag": f"{found.run_id}-{uuid.uuid4().hex[:8]}"})
        found.save(run.bookmark_file)
