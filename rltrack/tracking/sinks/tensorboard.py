"""Writes TensorBoard event files, without torch."""

from __future__ import annotations

import os
import re
import time as clock
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.text import metadata as text_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util import tensor_util

from rltrack.journal.values import number
from rltrack.tracking.event_files import changed_file
from rltrack.tracking.sinks.base import Point, Refused, Sink

if TYPE_CHECKING:
    from rltrack.tracking.report import RunReport


_EVENTS = re.compile(r"events\.out\.tfevents\.[0-9]+\.rltrack\.[0-9]+(?:\.video)*")


class EventFile:
    """An event file that knows its position, so that what was written after a bookmark can be cut off.

    Args:
        path: The file; made if missing.
        position: Where to continue, in bytes; what lies behind it is removed.
        time: Unix seconds of a new file's first event.
        checksum: CRC-32 of what is before the position; None if it is not known.
    """

    def __init__(self, path: Path, position: int, time: float, checksum: int | None = 0) -> None:
        self.checksum = checksum
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)  # a link may lead anywhere
        os.ftruncate(descriptor, position)
        self._file = os.fdopen(descriptor, "r+b", buffering=1 << 16)
        self._file.seek(position)
        self._records = RecordWriter(self)
        if position == 0:
            self.add_event(Event(wall_time=time, file_version="brain.Event:2"))

    def add_event(self, event: Event) -> None:
        """Append an event."""
        self._records.write(event.SerializeToString())

    def write(self, data: bytes) -> None:
        """Append bytes, and take them into the checksum."""
        self._file.write(data)
        if self.checksum is not None:
            self.checksum = zlib.crc32(data, self.checksum)

    def flush(self) -> int:
        """Hand everything to the operating system; return the position."""
        self._file.flush()
        return self._file.tell()

    def close(self) -> None:
        """Flush and close."""
        self._file.close()


class TensorBoardWriter:
    """One event file.

    Args:
        log_dir: The folder that TensorBoard shows as one run.
        writer: Where events go; omitted: a new file, written by a thread.
    """

    def __init__(self, log_dir: str | Path, writer: EventFile | None = None) -> None:
        self.log_dir = Path(log_dir)
        self._writer: Any = writer or EventFileWriter(str(self.log_dir), max_queue_size=1000, flush_secs=10)

    def scalars(self, values: Mapping[str, float], step: int, time: float | None = None) -> None:
        """Add one value to each of several curves; `step` in env steps, `time` in Unix seconds."""
        event = Event(wall_time=clock.time() if time is None else time, step=int(step))
        event.summary.value.extend(Summary.Value(tag=key, simple_value=float(value)) for key, value in values.items())
        self._writer.add_event(event)

    def text(self, tag: str, markdown: str, step: int, time: float) -> None:
        """Add a text, shown in the TEXT tab."""
        value = Summary.Value(
            tag=tag,
            metadata=text_metadata.create_summary_metadata(display_name=None, description=None),
            tensor=tensor_util.make_tensor_proto(np.array([markdown], dtype=object)),
        )
        self._add(Summary(value=[value]), step, time)

    def image(self, tag: str, png: bytes, step: int, time: float) -> None:
        """Add a PNG or an animated GIF, shown in the IMAGES tab."""
        image = Summary.Image(encoded_image_string=png, colorspace=4)
        self._add(Summary(value=[Summary.Value(tag=tag, image=image)]), step, time)

    def hyperparameters(self, values: Mapping[str, float | str | bool], metrics: list[str], time: float) -> None:
        """Add hyperparameters, for the HPARAMS tab, which compares runs by `metrics`.

        The messages are built by hand, as TensorBoard's own helpers for them need TensorFlow.
        """
        start = plugin_data_pb2.SessionStartInfo(start_time_secs=time)
        for key, value in values.items():
            if isinstance(value, bool):
                start.hparams[key].bool_value = value
            elif isinstance(value, str):
                start.hparams[key].string_value = value
            else:
                start.hparams[key].number_value = number(value) or 0.0
        experiment = api_pb2.Experiment(
            hparam_infos=[api_pb2.HParamInfo(name=key) for key in values],
            metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=key)) for key in metrics],
        )
        self._hparams(hparams_metadata.EXPERIMENT_TAG, plugin_data_pb2.HParamsPluginData(experiment=experiment), time)
        content = plugin_data_pb2.HParamsPluginData(session_start_info=start)
        self._hparams(hparams_metadata.SESSION_START_INFO_TAG, content, time)

    def session_end(self, time: float) -> None:
        """Say in the HPARAMS tab that the run was completed."""
        end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time)
        content = plugin_data_pb2.HParamsPluginData(session_end_info=end)
        self._hparams(hparams_metadata.SESSION_END_INFO_TAG, content, time)

    def _hparams(self, tag: str, content: Any, time: float) -> None:
        value = Summary.Value(
            tag=tag, metadata=hparams_metadata.create_summary_metadata(content), tensor=hparams_metadata.NULL_TENSOR
        )
        self._add(Summary(value=[value]), 0, time)

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()

    def _add(self, content: Summary, step: int, time: float) -> None:
        self._writer.add_event(Event(wall_time=time, step=int(step), summary=content))


def _same_folder(saved: Any, folder: Path) -> bool:
    return isinstance(saved, str) and Path(saved).resolve() == folder.resolve()


_LARGEST = float(np.finfo(np.float32).max)
"""TensorBoard keeps float32; beyond this it would show an infinity."""


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """Leave out what TensorBoard cannot draw: NaN, infinities, and what is too large for its float32."""
    return {key: value for key, value in values.items() if -_LARGEST <= value <= _LARGEST}


class TensorBoardSink(Sink):
    """Delivers a run to TensorBoard, exactly once: what was written after the bookmark is cut off and written again.

    An event file is only ever appended to, so that a TensorBoard that is open shows the run as it grows. Each time that
    training is resumed after an end it gets a new file.

    Args:
        state: ``folder``, ``file`` and ``position``, as left by the process before.
    """

    dies_with_the_run = True

    def __init__(self, state: dict[str, Any]) -> None:
        super().__init__(state)
        self._file: EventFile | None = None
        self._writer: TensorBoardWriter | None = None

    def is_lost(self, report: RunReport) -> bool:
        """Whether the files are not those that `state` speaks of, so that the run must be rewritten."""
        if not self.state:
            return False
        files = self.state.get("files", {})
        folder = report.run.tensorboard
        if (
            not _same_folder(self.state.get("folder"), folder)
            or "open" not in self.state
            or (self.state["open"] and not files)
        ):
            return True
        unlike_ours = any(  # what is cut off must be one of our own files
            not _EVENTS.fullmatch(name) or type(size) is not int or size < 0 for name, size in files.items()
        )
        return unlike_ours or changed_file(folder, self.state) is not None

    def open(self, report: RunReport) -> None:
        """Go on with the file of the bookmark, or begin one."""
        folder = report.run.tensorboard
        folder.mkdir(parents=True, exist_ok=True)
        report.run.link_tensorboard()
        if not self.state:
            for leftover in folder.glob("events.out.tfevents.*"):
                leftover.unlink()
            self.state.update(folder=str(folder), files={}, checksums={}, open=False)
        files: dict[str, int] = self.state["files"]
        if self.state["open"]:
            name = max(files)
            position = files[name]
        else:
            name, position = f"events.out.tfevents.{int(report.start_time):010d}.rltrack.{len(files):06d}", 0
        checksum = self._checksums.get(name) if position else 0
        self._file = EventFile(folder / name, position, report.start_time, checksum)
        self._writer = TensorBoardWriter(folder, self._file)
        if position == 0:
            self._begin(self._writer, report, first=not files)
            self.state["open"] = True
        self._keep(name)

    def write(self, points: Sequence[Point]) -> list[Refused]:
        """Append points; what cannot be drawn (`finite`) is left out."""
        assert self._writer is not None, "open() comes first"
        for point in points:
            values = finite(point.values_for("tensorboard"))
            if values:
                self._writer.scalars(values, point.step, point.time)
        self._keep(max(self.state["files"]))
        return []

    def finish(self, report: RunReport) -> None:
        """Add the plots, and say that the run was completed."""
        if not self.state["open"]:
            self.open(report)
        assert self._writer is not None, "open() comes first"
        status = report.status()
        for plot in report.draw():
            self._writer.image(f"plots/{plot.stem}", plot.read_bytes(), status.env_steps, status.last_time)
        if report.metrics.decisions:
            text = "\n".join(
                f"- {item['step']:,}: {item['decision']}: {item['reason']}" for item in report.metrics.decisions
            )
            self._writer.text("decisions", text, status.env_steps, status.last_time)
        if status.is_finished:
            self._writer.session_end(status.last_time)
        self._keep(max(self.state["files"]))
        self.state["open"] = False
        self.close()

    def add_video(self, report: RunReport, video: Path, gif: Path) -> None:
        """Add the animated picture, in a file of its own, as the run's is closed by then."""
        folder, status = report.run.tensorboard, report.status()
        name = f"{max(self.state['files'])}.video"
        file = EventFile(folder / name, 0, report.start_time)
        TensorBoardWriter(folder, file).image(f"video/{gif.stem}", gif.read_bytes(), status.env_steps, status.last_time)
        self.state["files"][name], self._checksums[name] = file.flush(), file.checksum
        file.close()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        self._file = self._writer = None

    def _begin(self, writer: TensorBoardWriter, report: RunReport, *, first: bool) -> None:
        if first:
            writer.hyperparameters(
                report.hyperparameters(), ["eval/mean_reward", "rollout/ep_rew_mean"], report.start_time
            )
            if report.run.config_file.exists():
                text = f"```yaml\n{report.run.config_file.read_text(encoding='utf-8')}```"
                writer.text("configuration", text, 0, report.start_time)

    def _keep(self, name: str) -> None:
        assert self._file is not None, "open() comes first"
        self.state["files"][name], self._checksums[name] = self._file.flush(), self._file.checksum

    @property
    def _checksums(self) -> dict[str, int | None]:
        found: dict[str, int | None] = self.state.setdefault("checksums", {})
        return found
