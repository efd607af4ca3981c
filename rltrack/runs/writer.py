"""Writes the records of a run, of the training loop and of scripts alike: the only place that knows their shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rltrack.journal.values import as_floats, columns_of
from rltrack.provenance import process_facts

if TYPE_CHECKING:
    from rltrack.checkpoints.version import Version
    from rltrack.evaluation.results import EpisodeInfo
    from rltrack.journal import Journal


class RunWriter:
    """Writes a run's records into its journal; `rltrack.journal` lists their kinds and fields.

    Args:
        journal: Open for appending.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def configuration(self, run_id: str, description: Mapping[str, Any]) -> None:
        """Record which run this is.

        Args:
            run_id: The run's own id.
            description: ``identity``, ``agent``, and ``policy`` where it is known how that is built.
        """
        self.journal.note("configuration", run_id=run_id, **description)

    def attempt(
        self,
        number: int,
        *,
        resumed_from: str | None,
        env_steps: int,
        exact: bool,
        seed: int | None,
        environments: Mapping[str, Any] | None = None,
        missing: Sequence[str] = (),
        **chosen: Any,
    ) -> None:
        """Record that a process begins to train.

        Args:
            number: 1 for the first process.
            resumed_from: Name of the version that it resumes from; None for none.
            env_steps: Where it goes on.
            exact: Whether training and record are those of a run that was never interrupted.
            seed: Of the training.
            environments: By which tier the environments take part in a resume, with its reason.
            missing: Records that the journal has lost.
            chosen: ``choices``: what was chosen for the attempt, with the reasons; not of recordings.
        """
        self.journal.note(
            "attempt",
            number=number,
            resumed_from=resumed_from,
            env_steps=env_steps,
            exact=exact,
            environments=environments,
            **chosen,
            seed=seed,
            **({"missing": list(missing)} if missing else {}),
            **process_facts(),
        )

    def metrics(
        self, step: int, values: Mapping[str, Any], excluded: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        """Record values at a number of env steps; `excluded` keeps keys from a sink, by its name."""
        more = {"excluded": {sink: list(keys) for sink, keys in excluded.items()}} if excluded else {}
        self.journal.write("metrics", step, values=as_floats(values), **more)

    def episodes(self, step: int, episodes: Sequence[EpisodeInfo]) -> None:
        """Record finished episodes."""
        infos = columns_of([episode.infos for episode in episodes])
        self.journal.write(
            "episodes",
            step,
            returns=[episode.episode_return for episode in episodes],
            lengths=[episode.length for episode in episodes],
            steps=[episode.env_steps for episode in episodes],
            **({"infos": infos} if infos else {}),
        )

    def evaluation(self, step: int, record: Mapping[str, Any]) -> None:
        """Record an evaluation (`Evaluation.to_record`)."""
        self.journal.write("evaluation", step, **record)

    def decision(self, step: int, name: str, reason: str, numbers: Mapping[str, float]) -> None:
        """Record what a strategy decided, with its numbers."""
        known = {key: float(value) for key, value in numbers.items()}
        self.journal.write("decision", step, decision=name, reason=reason, numbers=known)

    def checkpoint(self, version: Version) -> None:
        """Record a committed version."""
        self.journal.note(
            "checkpoint",
            step=version.env_steps,
            version=version.name,
            score=version.score,
            resumable=version.is_resumable,
        )

    def warning(self, message: str) -> None:
        """Record a warning."""
        self.journal.note("warning", message=message)

    def signal(self, name: str) -> None:
        """Record a signal."""
        self.journal.note("signal", name=name)

    def error(self, error: BaseException, message: str) -> None:
        """Record what went wrong; `message` holds no secret."""
        self.journal.note("error", error=type(error).__name__, message=message)

    def reproduction(self, reproduced: bool, result: str) -> None:
        """Record whether training the run again gave the same bits, with the result in words; and fsync."""
        self.journal.note("reproduction", reproduced=reproduced, result=result)
        self.journal.sync()

    def end(
        self,
        state: str,
        reason: str,
        *,
        env_steps: int,
        episodes: int,
        seconds: float,
        mean_return: float | None,
        mean_infos: Mapping[str, float],
        goes_on: bool,
    ) -> None:
        """Record how this attempt ended, and whether the run may be resumed; and fsync."""
        self.journal.note(
            "end",
            state=state,
            reason=reason,
            env_steps=env_steps,
            episodes=episodes,
            seconds=seconds,
            mean_return=mean_return,
            **({"mean_infos": mean_infos} if mean_infos else {}),
            goes_on=goes_on,
        )
        self.journal.sync()
