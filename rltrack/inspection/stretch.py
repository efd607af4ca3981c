"""Trains one stretch of a run again, from a version to the next, and compares: ``python -m rltrack.inspection.stretch``.

The job is JSON on standard input, the outcome JSON on standard output.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from rltrack.checkpoints.difference import first_difference
from rltrack.errors import RltrackError
from rltrack.hash_seed import VARIABLE
from rltrack.inspection.scratch import copy_run, quiet_config, what_is_not_exact
from rltrack.journal import Record, read_journal
from rltrack.processes import python_command
from rltrack.runs import Root, RunDirectory
from rltrack.training.live import Due, LiveTraining
from rltrack.training.marks import Mark
from rltrack.training.reporter import ProgressReporter
from rltrack.training.trainer import Trainer

NAMES = ("the run", "the repetition")


@dataclass(frozen=True, slots=True)
class Stretch:
    """What is trained again.

    Attributes:
        begin: Name of the version that it begins with; None for the beginning of the run.
        end: Name of the version that it ends at.
    """

    begin: str | None
    end: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out.

    Attributes:
        begin: As of the stretch.
        end: Likewise.
        from_steps: Env steps at its beginning.
        to_steps: Env steps up to which it was compared.
        records: Number of journal records that were compared.
        values: Number of values and arrays that were compared in records and version.
        difference: The first record that differs, or else the first tensor, with both values; None for none.
        tensor: The first tensor of the version that differs; None for none.
        notes: What makes this process differ from the one that trained.
        seconds: How long it took.
        unchecked: Why it was not compared up to its end; None if it was.
    """

    begin: str | None
    end: str
    from_steps: int
    to_steps: int
    records: int
    values: int
    difference: str | None
    tensor: str | None
    notes: tuple[str, ...]
    seconds: float
    unchecked: str | None = None


def repeat_in_process(run: RunDirectory, stretch: Stretch) -> Outcome:
    """Train a stretch in a new process, with the hash seed of the version at its end.

    Raises:
        RltrackError: If the training fails.
    """
    seed = str(run.store().find(stretch.end).details.get("numerics", {}).get("hash_seed", "0"))
    done = subprocess.run(
        python_command("rltrack.inspection.stretch"),
        input=orjson.dumps({"run": str(run.path), **asdict(stretch)}),
        capture_output=True,
        env={**os.environ, VARIABLE: seed},
    )
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise RltrackError(
            f"From {stretch.begin or 'the start'} to {stretch.end}: {said[-1] if said else 'its process was killed'}"
        )
    data = orjson.loads(done.stdout.splitlines()[-1])
    return Outcome(**{**data, "notes": tuple(data["notes"])})


def repeat(run: RunDirectory, stretch: Stretch) -> Outcome:
    """Train a stretch in this process, and compare it with the run's records and version at its end."""
    began = time.monotonic()
    store = run.store()
    begin = None if stretch.begin is None else store.find(stretch.begin)
    end = store.find(stretch.end)
    with tempfile.TemporaryDirectory(prefix="rltrack-reproduce-") as folder:
        copy = copy_run(run, begin, Root(folder))
        trainer = Trainer(quiet_config(run, end), root=folder, reporter=ProgressReporter(console=False))
        trainer.loop.delivers = False
        live = trainer.prepare()
        try:
            lost = _train(live, end.env_steps, end.journal["next_seq"])
            reached, last = live.progress.env_steps, live.session.journal.next_seq
            count, tensor = 0, None
            if lost is None:
                made = live.checkpoint()
                if made is None:
                    raise RltrackError(
                        f"The agent of run {run.name} cannot be captured, so that no version can be compared."
                    )
                reached, last = end.env_steps, end.journal["next_seq"]
                theirs, ours = store.read(end), live.session.store.read(made)
                count, tensor = first_difference(_compared(theirs), _compared(ours), NAMES)
            not_exact = what_is_not_exact(live)
        finally:
            live.close()
            trainer.close()
        first = 1 if begin is None else begin.journal["next_seq"]
        there, here = (_numbered(item, first, last) for item in (run, copy))
        values, wrong = _first_record(there, here)
        notes = (
            ()
            if begin is None
            else tuple(f"a repetition from {begin.name} is not exact, as {why}" for why in not_exact)
        )
        return Outcome(
            stretch.begin, stretch.end, 0 if begin is None else begin.env_steps, reached, len(there), values + count,
            wrong or tensor, tensor, notes, round(time.monotonic() - began, 2),
            None if lost is None else f"{reached:,} to {end.env_steps:,} env steps not checked: {lost}",
        )  # fmt: skip


def _train(live: LiveTraining, env_steps: int, next_seq: int) -> str | None:
    """Train to the boundary at which a version was written: with what was recorded there before, and nothing after.

    Returns:
        Why it ended before: what the run itself returned to is gone. None if it did not.
    """
    live.start()
    until = Mark(env_steps=env_steps)
    while (due := live.due()) is not Due.END and live.evaluations.lost_best is None:
        there = until.is_reached(live.progress)
        if there and (due is Due.CHUNK or live.session.journal.next_seq >= next_seq):
            break
        live.perform(due, live.next_mark().earliest(until) if due is Due.CHUNK else None)
    return live.evaluations.lost_best


def _compared(state: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a version that must have the same bits; its pickles have none, and what follows from them has."""
    parts = {part: tree for part, tree in state.items() if part not in ("environment", "loop")}
    return {**parts, "progress": state["loop"]["progress"], "strategy": state["loop"]["strategy"]}


def _numbered(run: RunDirectory, first: int, last: int) -> dict[int, Record]:
    return {record["seq"]: record for record in read_journal(run.journal_file) if first <= record.get("seq", 0) < last}


def _first_record(theirs: Mapping[int, Record], ours: Mapping[int, Record]) -> tuple[int, str | None]:
    count = 0
    for seq in sorted(theirs.keys() | ours.keys()):
        if seq not in theirs or seq not in ours:
            return count, f"record {seq} is in {NAMES[seq not in theirs]} only"
        values, wrong = first_difference(theirs[seq], ours[seq], NAMES)
        count += values
        if wrong is not None:
            record = theirs[seq]
            return count, f"record {seq} ({record['kind']} at {record['step']:,} env steps): {wrong}"
    return count, None


def main() -> None:
    """Do the job that standard input describes."""
    job = orjson.loads(sys.stdin.buffer.read())
    try:
        outcome = repeat(RunDirectory(Path(job["run"])), Stretch(job["begin"], job["end"]))
    except RltrackError as error:
        sys.exit(str(error))
    sys.stdout.buffer.write(b"\n" + orjson.dumps(asdict(outcome)) + b"\n")


if __name__ == "__main__":
    main()
