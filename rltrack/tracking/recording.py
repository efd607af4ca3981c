"""A run that another program trains: its journal, its delivery, its end."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from rltrack.checkpoints import CheckpointStore, Retention
from rltrack.checkpoints.encoding import State
from rltrack.errors import NameTaken
from rltrack.evaluation.results import EpisodeInfo, Evaluation
from rltrack.identity import identity_hash
from rltrack.journal import Journal
from rltrack.provenance import package_versions
from rltrack.runs import Root, RunDirectory
from rltrack.runs.writer import RunWriter
from rltrack.secrets import redacted, without_secrets
from rltrack.tracking import delivery
from rltrack.tracking.destination import read_destination, resolve_destination, write_destination


class Recording:
    """An open run to write numbers into. Close it with `end`.

    Args:
        name: The run's name; None for a new unique one made from the agent's description.
        agent: The agent's description: algorithm, hyperparameters, environment, …
        root: Folder of all runs; omitted: ``RLTRACK_ROOT``, or ``./mlruns``.
        resume: Whether a run of this name may be resumed; records up to the env steps that it reached are then left out.
        seed: The seed, for the record.
        tracking: The configuration's section ``tracking``.
        config: The configuration that builds agent and environment, as far as it is known.
        policy: How the policy is built, for `keep`.

    Raises:
        NameTaken: If the name exists and may not be resumed.
        RunBusy: If another process writes into it.
        RootNotWritable: If nothing can be kept there.
        ConfigurationError: If MLflow can keep nothing at the address.
    """

    def __init__(
        self,
        name: str | None,
        agent: Mapping[str, Any],
        *,
        root: str | Path | None = None,
        resume: bool = False,
        seed: int | None = None,
        tracking: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        policy: Mapping[str, Any] | None = None,
    ) -> None:
        home, section = Root(root), dict(tracking or {})
        resolve_destination(section)  # a bad address is refused before anything starts
        if name is not None and home.exists(name) and not resume:
            raise NameTaken(
                f"A run '{name}' exists under {home.path}. Choose another name, leave it out for a new one, or pass "
                "resume=True to resume it."
            )
        base = f"{agent.get('algorithm', 'run')}-{agent.get('environment', 'env')}-s{seed or 0}"
        self.run: RunDirectory = home.create(name, base)
        self._process, self._thread = os.getpid(), threading.get_ident()
        self._last_error = getattr(sys, "last_value", None)
        self._open = contextlib.ExitStack()
        self._take_over()
        try:
            self._begin(agent, section, seed, config, policy)
        except BaseException:
            self._open.close()
            raise
        _recordings[self.run.path] = self
        self._at_exit = functools.partial(_end_with_program, weakref.ref(self))
        atexit.register(self._at_exit)

    def _take_over(self) -> None:
        """End what this thread recorded into the same run before: an interrupted cell of a notebook left it open."""
        before = _recordings.get(self.run.path)
        if before is not None and before.is_open and before.is_ours and before._thread == self._thread:
            before.end("stopped", "the program began to record into this run again")

    def _begin(
        self,
        agent: Mapping[str, Any],
        section: dict[str, Any],
        seed: int | None,
        config: Mapping[str, Any] | None,
        policy: Mapping[str, Any] | None,
    ) -> None:
        self._open.enter_context(self.run.lock())
        self._journal = Journal(self.run.journal_file)
        self._records = RunWriter(self._journal)
        self._open.callback(self._journal.close)
        self._env_steps = self._journal.high_water_step
        self._episodes = 0
        self._mean_return: float | None = None
        self._mean_infos: Mapping[str, float] = {}
        self._began = time.monotonic()
        described = redacted(orjson.loads(orjson.dumps(agent, default=str, option=orjson.OPT_NON_STR_KEYS)))
        known = self.run.configuration_record()
        is_new = known is None
        written = {"seed": seed, "agent": described, **(config or {}), "tracking": section, "name": self.run.name}
        self.run.write_config(redacted(written))
        identity = {"seed": seed, "agent": described}
        record = {"identity": identity, "agent": described, **({"policy": policy} if policy else {})}
        self._run_id = uuid.uuid4().hex if known is None else known["run_id"]
        self._details = {"run_id": self._run_id, "identity": identity_hash(identity)}
        self._store = CheckpointStore(self.run.path / "checkpoints", Retention(keep_last=1, keep_best=1))
        if is_new:
            self._records.configuration(self._run_id, record)
        else:
            self._journal.resume_from(self._journal.next_seq, 0, exact=False)
        number = len(self.run.attempts()) + 1
        self._details |= {"attempt": number, "configuration": {**record, "config": redacted(written)}}
        self._records.attempt(
            number,
            resumed_from=None,
            env_steps=self._env_steps,
            exact=is_new,
            environments={"tier": "recorded", "reason": "the script that trains keeps the rest of its state to itself"},
            seed=seed,
        )
        destination = resolve_destination(section, read_destination(self.run))
        write_destination(self.run, destination)
        self._delivery = delivery.Delivery(self.run) if destination.sinks else delivery.NoDelivery()
        self._delivery.look()

    def __del__(self) -> None:
        with contextlib.suppress(
            Exception
        ):  # where the interpreter or the constructor ended early, there is nothing to end
            if self.is_ours:
                self.end("stopped", "the program dropped the recording before its end")

    @property
    def is_ours(self) -> bool:
        """Whether this process made it: a forked child has a copy, which is not to end it."""
        return self._process == os.getpid()

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self._journal.is_open

    def metrics(
        self, step: int, values: Mapping[str, float], excluded: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        """Record values at a number of env steps; `excluded` keeps keys from a sink, by its name."""
        self._records.metrics(step, values, excluded)
        self._seen(step)

    def episodes(self, step: int, episodes: Sequence[EpisodeInfo]) -> None:
        """Record finished episodes."""
        if episodes:
            self._records.episodes(step, episodes)
            self._episodes += len(episodes)
        self._seen(step)

    def evaluation(self, step: int, evaluation: Evaluation) -> None:
        """Record an evaluation of the policy as it is at these env steps."""
        self._records.evaluation(step, evaluation.to_record())
        self._mean_return, self._mean_infos = evaluation.mean, evaluation.mean_infos
        self._seen(step)

    def warning(self, message: str) -> None:
        """Record a warning."""
        self._records.warning(message)

    def keep(self, state: State, step: int, score: float | None) -> None:
        """Commit a version: parts of the agent's state, at these env steps, with the mean return of their evaluation.

        Raises:
            CheckpointFailed: If it cannot be written.
        """
        self._journal.sync()
        details = {**self._details, "journal": self._journal.position, "versions": package_versions()}
        self._records.checkpoint(self._store.commit(state, env_steps=step, score=score, details=details))

    def end(self, state: str, reason: str, error: BaseException | None = None) -> None:
        """Record how it ended, and have the rest delivered; harmless if called twice.

        Args:
            state: ``completed``, ``stopped`` or ``failed``.
            reason: Why, as text.
            error: What made it fail.
        """
        if not self.is_open:
            return
        atexit.unregister(self._at_exit)
        _recordings.pop(self.run.path, None)
        if error is not None:
            self._records.error(error, _words_of(error))
        try:
            self._records.end(
                state,
                reason,
                env_steps=self._env_steps,
                episodes=self._episodes,
                seconds=time.monotonic() - self._began,
                mean_return=self._mean_return,
                mean_infos=self._mean_infos,
                goes_on=state != "completed",
            )
        finally:
            self._open.close()
        self._delivery.finish()

    def end_with(self, error: BaseException) -> None:
        """Record that an error ended it; Ctrl-C and ``sys.exit()`` stop it."""
        if isinstance(error, KeyboardInterrupt):
            self.end("stopped", "interrupted (KeyboardInterrupt)")
        elif isinstance(error, SystemExit) and not error.code:
            self.end("stopped", "the program called sys.exit()")
        else:
            self.end("failed", f"{type(error).__name__}: {_words_of(error)}", error)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until everything is delivered; return whether it is."""
        return self._delivery.wait(timeout)

    def _seen(self, step: int) -> None:
        self._env_steps = max(self._env_steps, step)
        self._delivery.look()


_recordings: weakref.WeakValueDictionary[Path, Recording] = weakref.WeakValueDictionary()
"""What this process records, by the run's folder."""


def _end_with_program(reference: weakref.ref[Recording]) -> None:
    recording = reference()
    if recording is None or not recording.is_ours:
        return
    error = getattr(sys, "last_value", None)  # what ended the program, if it was an error
    if error is None or error is recording._last_error or hasattr(sys, "ps1"):  # a prompt survives its errors
        recording.end("stopped", "the program ended before the training did")
    else:
        recording.end_with(error)


def _words_of(error: BaseException) -> str:
    return without_secrets(" ".join(str(error).split()))
