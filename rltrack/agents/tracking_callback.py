"""Tracking for people's own SB3 scripts: a callback and a logger's output, without the loop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter

from rltrack.agents.sb3_description import describe
from rltrack.agents.sb3_observing import EpisodeCounter, number
from rltrack.errors import ConfigurationError
from rltrack.tracking.recording import Recording

_SINKS = ("mlflow", "tensorboard")


class JournalOutputFormat(KVWriter):
    """An output of SB3's logger that records a run: its journal, MLflow and TensorBoard.

    ``model.set_logger(Logger(None, [rltrack.JournalOutputFormat("my-run")]))`` is all that it takes. What a writer excludes
    from ``mlflow`` or ``tensorboard`` is kept from there. `TrackingCallback` records more: episodes, hyperparameters, the
    end of training.

    Args:
        name: The run's name; None for a new unique one.
        recording: An open recording to write into, instead of one of its own.
        root: Folder of all runs; omitted: ``RLTRACK_ROOT``, or ``./mlruns``.
        resume: Whether a run of this name may go on.

    Raises:
        NameTaken: If the name exists and may not go on.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        recording: Recording | None = None,
        root: str | Path | None = None,
        resume: bool = False,
    ) -> None:
        self.recording = recording or Recording(name, {"algorithm": "sb3"}, root=root, resume=resume)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Record the numbers of one dump; anything else is left out."""
        values: dict[str, float] = {}
        excluded: dict[str, list[str]] = {}
        for key, value in key_values.items():
            found = number(value)
            if found is None or key == "time/total_timesteps":
                continue
            values[key] = found
            for sink in _SINKS:
                if sink in (key_excluded.get(key) or ()):
                    excluded.setdefault(sink, []).append(key)
        if values:
            self.recording.metrics(int(step), values, excluded)

    def close(self) -> None:
        """End the recording."""
        self.recording.end("completed", "the logger was closed")


class TrackingCallback(BaseCallback):
    """Records an SB3 training: journal, MLflow, TensorBoard, resources, plots; in two lines of any script.

    ::

        callback = rltrack.TrackingCallback("my-run")
        model.learn(100_000, callback=callback)

    Everything that the model logs is recorded, and every finished episode. Delivery goes on in a process of its own, which
    also sets the true status if the script dies. A further ``learn`` with the same callback and
    ``reset_num_timesteps=False`` goes on in the same run; otherwise it begins a new one.

    Args:
        name: The run's name; None for a new unique one.
        root: Folder of all runs; omitted: ``RLTRACK_ROOT``, or ``./mlruns``.
        experiment: MLflow experiment; omitted: the active one, or ``rltrack``.
        mlflow_tracking_uri: MLflow server or database; omitted: what the program set, ``MLFLOW_TRACKING_URI``, or the
            root's own.
        tags: Further tags of the run in MLflow.
        resume: Whether a run of this name may go on.
        verbose: SB3's level.

    Raises:
        NameTaken: When training starts, if the name exists and may not go on.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        root: str | Path | None = None,
        experiment: str | None = None,
        mlflow_tracking_uri: str | None = None,
        tags: Mapping[str, str] | None = None,
        resume: bool = False,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        self.name = name
        self._root, self._resume = root, resume
        self._tracking = {
            "experiment": experiment,
            "mlflow_tracking_uri": mlflow_tracking_uri,
            "tags": dict(tags or {}),
        }
        self._recording: Recording | None = None
        self._output: JournalOutputFormat | None = None
        self._last_step = 0
        self._counter: EpisodeCounter | None = None
        self._episodes: list[tuple[int, float, int]] = []

    @property
    def run(self) -> str | None:
        """The run's name; None before training started."""
        return None if self._recording is None else self._recording.run.name

    def wait_for_tracking(self, timeout: float | None = None) -> bool:
        """Wait until everything is in MLflow and TensorBoard.

        Args:
            timeout: Seconds to wait; None for as long as it takes.

        Returns:
            Whether it is there now. If not, it can be delivered later: nothing is lost.
        """
        return self._recording is None or self._recording.wait(timeout)

    def _on_training_start(self) -> None:
        before = self._recording
        if before is not None:
            before.end("failed", "learn() ended with an error")  # if it did not end well, this is what happened
        goes_on = before is not None and 0 < self._last_step <= self.model.num_timesteps
        name = before.run.name if before is not None and goes_on else self.name
        if before is not None and not goes_on and self.name is not None:
            raise ConfigurationError(
                f"This TrackingCallback recorded the run '{self.name}' already. Make another one with another name, or call "
                "learn(reset_num_timesteps=False) to go on in the same run."
            )
        self._recording = Recording(
            name,
            describe(self.model),
            root=self._root,
            resume=self._resume or goes_on,
            seed=self.model.seed,
            tracking=self._tracking,
        )
        self._output = JournalOutputFormat(recording=self._recording)
        self.logger.output_formats.append(self._output)
        self._counter = EpisodeCounter(self.training_env)

    def _on_step(self) -> bool:
        if self._counter is not None and self.locals.get("dones") is not None:
            for episode_return, length, _ in self._counter.count(self.locals):
                self._episodes.append((self.num_timesteps, episode_return, length))
        return True

    def _on_rollout_end(self) -> None:
        if self._recording is not None:
            self._recording.episodes(self.num_timesteps, self._episodes)
            self._episodes = []

    def _on_training_end(self) -> None:
        self._on_rollout_end()
        if self._output is not None:  # SB3 drops the losses of the last update
            values: dict[str, Any] = dict(self.logger.name_to_value)
            self._output.write(values, dict(self.logger.name_to_excluded), self.num_timesteps)
        self._last_step = self.num_timesteps
        if self._recording is not None:
            self._recording.end("completed", f"learn() ended at {self.num_timesteps} env steps")
