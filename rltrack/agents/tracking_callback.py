"""Tracking of users' own SB3 scripts: a callback and a logger's output, without the loop."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.logger import KVWriter

from rltrack.agents.learning import EndOfLearning, EvaluationWatch, LearningWatch, callbacks_in
from rltrack.agents.policy_check import checked_description
from rltrack.agents.protocol import LEARNER_PARTS, POLICY_PARTS, EpisodeInfo, MakeEnv
from rltrack.agents.reconstruction import reconstruct
from rltrack.agents.sb3_description import describe
from rltrack.agents.sb3_observing import EpisodeCounter, recent_infos
from rltrack.agents.sb3_state import capture
from rltrack.config import TrainingConfig
from rltrack.errors import CheckpointFailed, ConfigurationError, RltrackError
from rltrack.evaluation.results import Evaluation
from rltrack.journal.values import columns_of, logged
from rltrack.ranking import is_better
from rltrack.tracking.metrics import CALLBACK_KEYS, further_evaluation_metrics
from rltrack.tracking.recording import Recording

_logger = logging.getLogger("rltrack")


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
        self.left_out: tuple[str, ...] = ("time/total_timesteps",)
        self.model: BaseAlgorithm | None = None
        self.recording = recording or Recording(name, {"algorithm": "sb3"}, root=root, resume=resume)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Record the numbers of one dump; anything else is left out, and everything once the recording has ended."""
        if not self.recording.is_open:
            return
        values, excluded = logged(key_values, key_excluded, leave_out=self.left_out)
        values |= recent_infos(self.model, values)
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

    Everything that the model logs is recorded, every finished episode, and the evaluations of an ``EvalCallback``. The policy
    that is best there and the last one are kept, with the normalisation statistics of that moment. Delivery goes on in a process
    of its own, which also sets the true status if the script dies. When ``learn`` ends, also by an error or Ctrl-C, so does the
    recording, and nothing of it is left in the model. A further ``learn`` with the same callback and
    ``reset_num_timesteps=False`` goes on in the same run; otherwise it begins a new one.

    Args:
        name: The run's name; None for a new unique one.
        root: Folder of all runs; omitted: ``RLTRACK_ROOT``, or ``./mlruns``.
        experiment: MLflow experiment; omitted: the active one, or ``rltrack``.
        mlflow_tracking_uri: MLflow server or database; omitted: what the program set, ``MLFLOW_TRACKING_URI``, or the
            root's own.
        tags: Further tags of the run in MLflow.
        resume: Whether a run of this name may go on.
        make_env: ``package.module:Name`` of the class or function that makes one environment, so that other processes can build
            it too; needed only where a message says so.
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
        make_env: MakeEnv | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        self.name = name
        self._root, self._resume, self._make_env = root, resume, make_env
        self._evaluations: list[EvaluationWatch] = []
        self._evaluating: list[EvalCallback] = []
        self._best: float | None = None
        self._tracking = {
            "experiment": experiment,
            "mlflow_tracking_uri": mlflow_tracking_uri,
            "tags": dict(tags or {}),
        }
        self._recording: Recording | None = None
        self._output: JournalOutputFormat | None = None
        self._formats: list[KVWriter] | None = None
        self._watch: LearningWatch | None = None
        self._ending: EndOfLearning | None = None
        self._last_step = 0
        self._counter: EpisodeCounter | None = None
        self._episodes: list[EpisodeInfo] = []

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
        self._detach()
        before = self._recording
        if before is not None:
            before.end("stopped", "another learn() began")  # if it did not end well, this is what happened
        goes_on = before is not None and self._last_step <= self.model.num_timesteps
        name = before.run.name if before is not None and goes_on else self.name
        if before is not None and not goes_on and self.name is not None:
            raise ConfigurationError(
                f"This TrackingCallback recorded the run '{self.name}' already. Make another one with another name, or call "
                "learn(reset_num_timesteps=False) to go on in the same run."
            )
        evaluating = [item for item in callbacks_in(self.locals.get("callback")) if isinstance(item, EvalCallback)]
        config, warnings = self._configuration(evaluating)
        self._recording = Recording(
            name,
            describe(self.model),
            root=self._root,
            resume=self._resume or goes_on,
            seed=self.model.seed,
            tracking=self._tracking,
            config=config,
            policy=checked_description(self.model),
        )
        for message in warnings:
            _logger.warning(message)
            self._recording.warning(message)
        self._last_step, self._episodes = self.model.num_timesteps, []
        self._evaluating = evaluating
        self._evaluations = [EvaluationWatch(item, partial(self._on_evaluation, item)) for item in evaluating]
        self._attach(self._recording)

    def _configuration(self, evaluating: list[EvalCallback]) -> tuple[dict[str, Any], list[str]]:
        """Return the configuration that trains alike, and what it lacks."""
        model = self.model
        found = reconstruct(model, self._make_env)
        if (threads := torch.get_num_threads()) != 1:
            found.agent["threads"] = threads
        total = max(1, int(self.locals.get("total_timesteps") or 1))
        training: dict[str, Any] = {"total_timesteps": total, "eval_freq": None}
        config: dict[str, Any] = {"agent": found.agent, "environment": found.environment, "training": training}
        if evaluating:
            first = evaluating[0]
            training["eval_freq"] = max(1, first.eval_freq * model.n_envs)
            config["evaluation"] = {"episodes": first.n_eval_episodes, "deterministic": first.deterministic}
        missing = list(found.missing)
        if found.is_complete:
            try:
                given = {**config, "seed": model.seed or 0, "script_only": list(found.script_only)}
                return TrainingConfig.from_mapping(given, source="the configuration of this script").to_mapping(), []
            except ConfigurationError as error:
                missing.append(" ".join(str(error).split()))
        note = f"This run cannot be evaluated or promoted outside this script: it lacks {'; '.join(missing)}."
        return {**config, "missing": missing}, [note]

    def _on_evaluation(
        self, source: EvalCallback, returns: list[float], lengths: list[int], infos: list[dict[str, float]]
    ) -> None:
        recording = self._recording
        if recording is None or not recording.is_open:
            return
        steps, deterministic = self.model.num_timesteps, source.deterministic
        evaluation = Evaluation.of(steps, returns, lengths, deterministic=deterministic, infos=columns_of(infos))
        which = self._evaluating.index(source) + 1
        if which > 1:  # one series of scores: of the first
            recording.metrics(steps, further_evaluation_metrics({**evaluation.to_record(), "step": steps}, which))
            return
        recording.evaluation(steps, evaluation)
        if is_better(evaluation.mean, self._best):
            self._best = evaluation.mean
            self._keep(POLICY_PARTS, evaluation.mean)

    def _keep(self, parts: Collection[str], score: float | None) -> None:
        """Keep the policy as it is, with the normalisation statistics of this moment."""
        assert self._recording is not None, "training has started"
        try:
            self._recording.keep(capture(self.model, parts), self.model.num_timesteps, score)
        except CheckpointFailed as error:
            _logger.warning(str(error))
            self._recording.warning(str(error))

    def _attach(self, recording: Recording) -> None:
        """Listen to the model until `learn` ends, however it ends."""
        self._output = JournalOutputFormat(recording=recording)
        self._output.model = self.model
        if self._evaluations:  # these come with the records of evaluations
            self._output.left_out += CALLBACK_KEYS
        formats = self.logger.output_formats
        formats[:] = [item for item in formats if not _is_over(item)]
        formats.append(self._output)
        self._formats = formats
        self._watch = LearningWatch(self.model, self._on_failure)
        self._ending = EndOfLearning(self.locals.get("callback"), self, self.on_training_end)
        self._counter = None if self._ending.is_needed else EpisodeCounter(self.training_env)

    def _detach(self) -> None:
        """Take everything away from the model again; harmless if called twice."""
        if self._formats is not None:
            self._formats[:] = [item for item in self._formats if item is not self._output]
        for attached in (self._watch, self._ending, *self._evaluations):
            if attached is not None:
                attached.close()
        self._formats = self._watch = self._ending = None
        self._evaluations = []

    def _on_step(self) -> bool:
        if self._counter is not None and self.locals.get("dones") is not None:
            self._episodes += self._counter.count(self.locals, self.num_timesteps)
        return True

    def _on_rollout_end(self) -> None:
        if self._recording is not None and self._recording.is_open:
            self._recording.episodes(self.num_timesteps, self._episodes)
            self._episodes = []

    def _on_training_end(self) -> None:
        if self._formats is None:  # this end was recorded before
            return
        self._on_rollout_end()
        if self._output is not None:  # SB3 drops the losses of the last update
            values: dict[str, Any] = dict(self.logger.name_to_value)
            self._output.write(values, dict(self.logger.name_to_excluded), self.model.num_timesteps)
        self._detach()
        self._last_step = self.model.num_timesteps
        if self._recording is not None:
            self._keep(LEARNER_PARTS, None)
            self._recording.end("completed", f"learn() ended at {self._last_step} env steps")

    def _on_failure(self, error: BaseException) -> None:
        """An error is about to end `learn`: it goes on from here, whatever becomes of the record."""
        self._detach()
        self._last_step = self.model.num_timesteps
        try:
            self._on_rollout_end()
            if self._recording is not None:
                self._recording.end_with(error)
        except (RltrackError, OSError) as failed:
            _logger.warning(f"The end of {self.run} could not be recorded: {failed}")


def _is_over(output: Any) -> bool:
    return isinstance(output, JournalOutputFormat) and not output.recording.is_open
