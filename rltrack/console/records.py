"""What `rltrack journal` prints."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rltrack.console.tables import number
from rltrack.errors import ConfigurationError, did_you_mean
from rltrack.journal import KINDS, JournalReader, Record, encode_record, read_from
from rltrack.journal.reading import unreadable
from rltrack.journal.values import info_title, means_of

if TYPE_CHECKING:
    from rltrack.runs import RunDirectory


def print_journal(run: RunDirectory, *, kinds: Sequence[str], follow: bool, as_json: bool) -> None:
    """Print a run's records; with `follow`, new ones too while it is trained.

    Raises:
        ConfigurationError: If there is no such kind of record.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigurationError(f"No record is a '{kind}'.{did_you_mean(kind, KINDS)} Kinds: {', '.join(KINDS)}.")
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        for record in new_records(run, follow=follow):
            if record is not None and (not kinds or record["kind"] in kinds):
                print(encode_record(record).decode().rstrip() if as_json else _record_line(record), flush=follow)


def new_records(run: RunDirectory, *, follow: bool) -> Iterator[Record | None]:
    """Yield a run's records; with `follow`, new ones too until its training ends, and None each time there is none by now."""
    position, reader = 0, JournalReader(run.journal_file)
    while True:
        training = run.is_locked()
        size = _size(run)
        while position < size:
            records, end = read_from(run.journal_file, position, size, reader=reader)
            yield from records
            if end == position:
                break
            position = end
        if not follow or not training:
            reader.finish()
            return
        yield None
        time.sleep(0.3)


def _size(run: RunDirectory) -> int:
    try:
        with open(run.journal_file, "rb") as file:
            return os.fstat(file.fileno()).st_size
    except OSError as error:
        raise unreadable(run.journal_file, error) from error


def _record_line(record: Record) -> str:
    """Return one record as a line: time, env steps, kind, content."""
    when = time.strftime("%m-%d %H:%M:%S", time.localtime(record["time"]))
    step = f"{record['step']:,}" if "step" in record else ""
    kind = record["kind"]
    if kind == "metrics":
        text = "  ".join(f"{key} {number(value)}" for key, value in record["values"].items())
    elif kind == "episodes":
        text = "  ".join(
            f"{value:.5g} ({length})" for value, length in zip(record["returns"], record["lengths"], strict=True)
        ) + _infos(record)
    elif kind == "evaluation":
        low, high = record["interval"]
        text = f"mean {record['mean']:.5g} (95 % interval {low:.5g} to {high:.5g}), {len(record['returns'])} episodes"
        text += _infos(record)
    else:
        shown = {key: value for key, value in record.items() if key not in ("seq", "time", "kind", "step", "identity")}
        text = "  ".join(f"{key} {value}" for key, value in shown.items() if value is not None)
    return f"{when}  {step:>11}  {kind:<13} {text}"


def _infos(record: Record) -> str:
    return "".join(f", {info_title(key)} {mean:.5g}" for key, mean in means_of(record.get("infos", {})).items())
