"""Writes TensorBoard event files, without torch."""

from __future__ import annotations

import math
import os
import shutil
import time as clock
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.text import metadata as text_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util import tensor_util


class TensorBoardSink:
    """One event file.

    Args:
        log_dir: The folder that TensorBoard shows as one run.
    """

    def __init__(self, log_dir: str | Path) -> None:
        self.log_dir = Path(log_dir)
        self._writer = EventFileWriter(str(self.log_dir), max_queue_size=1000, flush_secs=10)

    def scalars(self, values: Mapping[str, float], step: int, time: float | None = None) -> None:
        """Add one value to each of several curves; `step` in env steps, `time` in Unix seconds."""
        event = Event(wall_time=clock.time() if time is None else time, step=int(step))
        event.summary.value.extend(Summary.Value(tag=key, simple_value=float(value)) for key, value in values.items())
        self._writer.add_event(event)

    def text(self, tag: str, markdown: str, step: int = 0) -> None:
        """Add a text, shown in the TEXT tab."""
        value = Summary.Value(
            tag=tag,
            metadata=text_metadata.create_summary_metadata(display_name=None, description=None),
            tensor=tensor_util.make_tensor_proto(np.array([markdown], dtype=object)),
        )
        self._add(Summary(value=[value]), step)

    def image(self, tag: str, png: bytes, step: int) -> None:
        """Add a PNG picture, shown in the IMAGES tab."""
        image = Summary.Image(encoded_image_string=png, colorspace=4)
        self._add(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def hyperparameters(self, values: Mapping[str, float | str | bool], metrics: list[str]) -> None:
        """Add hyperparameters, for the HPARAMS tab, which compares runs by `metrics`.

        The messages are built by hand, as TensorBoard's own helpers for them need TensorFlow.
        """
        start = plugin_data_pb2.SessionStartInfo(start_time_secs=clock.time())
        for key, value in values.items():
            if isinstance(value, bool):
                start.hparams[key].bool_value = value
            elif isinstance(value, str):
                start.hparams[key].string_value = value
            else:
                start.hparams[key].number_value = float(value)
        experiment = api_pb2.Experiment(
            hparam_infos=[api_pb2.HParamInfo(name=key) for key in values],
            metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=key)) for key in metrics],
        )
        end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=clock.time())
        for tag, content in (
            (hparams_metadata.EXPERIMENT_TAG, plugin_data_pb2.HParamsPluginData(experiment=experiment)),
            (hparams_metadata.SESSION_START_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_start_info=start)),
            (hparams_metadata.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=end)),
        ):
            value = Summary.Value(
                tag=tag,
                metadata=hparams_metadata.create_summary_metadata(content),
                tensor=hparams_metadata.NULL_TENSOR,
            )
            self._add(Summary(value=[value]), 0)

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()

    def _add(self, content: Summary, step: int) -> None:
        self._writer.add_event(Event(wall_time=clock.time(), step=int(step), summary=content))


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """Leave out what TensorBoard cannot draw."""
    return {key: value for key, value in values.items() if math.isfinite(value)}


def replace_folder(source: Path, target: Path) -> None:
    """Put the event files in `source` in the place of those in `target`."""
    target.mkdir(parents=True, exist_ok=True)
    old = [path for path in target.iterdir() if path.name.startswith("events.out.tfevents.")]
    for path in source.iterdir():
        os.replace(path, target / path.name)
    for path in old:
        path.unlink(missing_ok=True)
    shutil.rmtree(source, ignore_errors=True)
