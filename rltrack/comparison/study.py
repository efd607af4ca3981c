"""Runs, grouped by everything but their seed, with the statistics of each group.

Scores are raw returns of the last and of the best evaluation. Intervals over episodes are stratified by seed: they describe
these trained agents. If each group has three seeds or more, the probability of improvement is over seeds, and describes the
algorithms (Agarwal et al. 2021, arXiv:2108.13264); with fewer, it is over episodes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rltrack.errors import ConfigurationError
from rltrack.evaluation.statistics import (
    Interval,
    bootstrap_interval,
    improvement_interval,
    interquartile_mean,
    optimality_gap,
    probability_of_improvement,
    stratified_interval,
)
from rltrack.identity import measured_environment
from rltrack.journal import JournalReader, Record
from rltrack.journal.values import means_of
from rltrack.plain_data import flatten
from rltrack.ranking import rank
from rltrack.runs import RunDirectory
from rltrack.tracking.metrics import MetricsTracker

SEEDS_AS_UNITS = 3
"""With at least this many seeds in each group, seeds are compared instead of episodes."""

MOST_SIDE_BY_SIDE = 12
"""Maximum number of groups to compare; of more, the best are taken."""

_GRID = 200
_ARGUMENTS = "agent.hyperparameters."
_NOT_COMPARED = ("seed", "device", "verbose", "tensorboard_log")
_LABEL_FIRST = ("agent.algorithm", "environment.id")
_LABEL_KEYS = 3


@dataclass(frozen=True, slots=True)
class RunFacts:
    """One run, as read from its files.

    Attributes:
        run: Its folder.
        seed: Its seed; None if unknown.
        settings: The settings that determine its result, without the seed, flat.
        environment: Those that determine what a return counts.
        history: Evaluations, episodes and metrics.
        env_steps: Env steps at its last record.
        seconds: Time spent training.
        memory_mb: Largest sampled resident memory, MB (1e6 bytes); NaN without samples.
        clock: For each evaluation, the seconds of training before it.
    """

    run: RunDirectory
    seed: int | None
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    history: MetricsTracker
    env_steps: int
    seconds: float
    memory_mb: float
    clock: Sequence[float]

    @property
    def final(self) -> Record:
        """The last evaluation."""
        return self.history.evaluations[-1]

    @property
    def best(self) -> Record:
        """The evaluation with the highest mean return."""
        best = self.history.facts.best
        assert best is not None, "runs without evaluations are not compared"
        return best

    def reached(self, threshold: float) -> tuple[int, float] | None:
        """Return env steps and seconds at the first evaluation whose mean return reaches a threshold; None if none does."""
        for record, seconds in zip(self.history.evaluations, self.clock, strict=True):
            if record["mean"] >= threshold:
                return int(record["step"]), seconds
        return None


@dataclass(frozen=True, slots=True)
class Curve:
    """Mean return over env steps.

    Attributes:
        steps: Env steps, shape ``(n,)``.
        mean: Mean over the seeds, shape ``(n,)``, in reward units.
        low: Lower end of the 95 % interval over seeds (over episodes with one seed; the minimum with two), shape ``(n,)``.
        high: Its upper end.
    """

    steps: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that differ in nothing but their seed.

    Attributes:
        label: Its label.
        runs: Its runs.
    """

    label: str
    runs: Sequence[RunFacts]

    def returns(self, which: str = "final") -> list[list[float]]:
        """Return the returns of each run's ``final`` or ``best`` evaluation."""
        return [list(getattr(run, which)["returns"]) for run in self.runs]

    def iqm(self, which: str = "final") -> float:
        """Interquartile mean over all episodes of all seeds."""
        return interquartile_mean([value for run in self.returns(which) for value in run])

    def interval(self, which: str = "final") -> Interval:
        """Its 95 % bootstrap interval, stratified by seed."""
        return stratified_interval(self.returns(which))

    def scores(self, by_seed: bool) -> list[float]:
        """Return the compared scores: each seed's mean return, or all episodes' returns, of the last evaluation."""
        if by_seed:
            return [float(np.mean(run)) for run in self.returns()]
        return [value for run in self.returns() for value in run]

    def final_infos(self) -> dict[str, float]:
        """Return the mean of each info over all episodes of the last evaluations; that of ``is_success`` is the success rate."""
        infos = [run.final.get("infos", {}) for run in self.runs]
        keys = dict.fromkeys(key for item in infos for key in item)
        return means_of({key: [value for item in infos for value in item.get(key, ())] for key in keys})

    def reached(self, threshold: float | None) -> tuple[float, float] | None:
        """Return median env steps and seconds to a threshold; None if one of the seeds does not reach it."""
        if threshold is None:
            return None
        found = [run.reached(threshold) for run in self.runs]
        if any(item is None for item in found):
            return None
        steps, seconds = zip(*(item for item in found if item is not None), strict=True)
        return float(np.median(steps)), float(np.median(seconds))

    def curve(self) -> Curve:
        """Return the learning curve, aligned on env steps; between two evaluations of a run it is interpolated."""
        tracks = [
            (
                np.array([record["step"] for record in run.history.evaluations], dtype=np.float64),
                run.history.evaluations,
            )
            for run in self.runs
        ]
        if len(tracks) == 1:
            steps, records = tracks[0]
            low, high = (np.array([record["interval"][side] for record in records]) for side in (0, 1))
            return Curve(steps, np.array([record["mean"] for record in records]), low, high)
        begin, end = max(steps[0] for steps, _ in tracks), min(steps[-1] for steps, _ in tracks)
        grid = np.unique(
            np.concatenate([steps[(steps >= begin) & (steps <= end)] for steps, _ in tracks] + [[begin, end]])
        )
        if grid.size > _GRID:
            grid = np.linspace(begin, end, _GRID)
        values = np.array([np.interp(grid, steps, [record["mean"] for record in records]) for steps, records in tracks])
        if len(tracks) < SEEDS_AS_UNITS:
            return Curve(grid, values.mean(axis=0), values.min(axis=0), values.max(axis=0))
        bands = [bootstrap_interval(column) for column in values.T]
        low, high = (np.array([band[side] for band in bands]) for side in (0, 1))
        return Curve(grid, values.mean(axis=0), low, high)


@dataclass(frozen=True, slots=True)
class Study:
    """Groups side by side.

    Attributes:
        groups: The groups.
        differences: Settings that differ, with the value of each group.
        threshold: The return to reach; None if there is none.
        by_seed: Whether seeds, rather than episodes, are compared.
        improvement: Probability that the row's group is better than the column's, with its interval.
        others: Groups beyond `MOST_SIDE_BY_SIDE`, the best first.
    """

    groups: Sequence[Group]
    differences: Mapping[str, Sequence[Any]]
    threshold: float | None
    by_seed: bool
    improvement: Sequence[Sequence[tuple[float, Interval]]] = field(default_factory=list)
    others: Sequence[Group] = ()

    @property
    def warning(self) -> str | None:
        """Why the scores are not comparable, or None."""
        first, *others = (group.runs[0].environment for group in self.groups)
        what = [key for key in first if any(other[key] != first[key] for other in others)]
        if not what:
            return None
        if "environment.id" in what:
            what = list(dict.fromkeys(str(side["environment.id"]) for side in (first, *others)))
        return f"These are different environments ({', '.join(what)}): their returns have no common scale."

    @property
    def note(self) -> str | None:
        """Which groups are left out, or None."""
        if not self.others:
            return None
        return (
            f"The {len(self.groups)} best of {len(self.groups) + len(self.others)} groups, by the IQM of the last evaluation; name "
            "fewer runs to see others."
        )

    def rows(self) -> list[dict[str, Any]]:
        """Return one mapping for each group, as plain data."""
        rows = []
        for group in self.groups:
            reached = group.reached(self.threshold)
            seconds = sum(run.seconds for run in group.runs)
            memory = [run.memory_mb for run in group.runs if math.isfinite(run.memory_mb)]
            rows.append(
                {
                    "group": group.label,
                    "runs": [run.run.name for run in group.runs],
                    "seeds": [run.seed for run in group.runs],
                    "final_iqm": group.iqm(),
                    "final_interval": list(group.interval()),
                    "final_mean": float(np.mean(group.scores(by_seed=False))),
                    "final_infos": group.final_infos(),
                    "best_iqm": group.iqm("best"),
                    "best_interval": list(group.interval("best")),
                    "optimality_gap": None
                    if self.threshold is None
                    else optimality_gap(group.scores(by_seed=False), self.threshold),
                    "env_steps": max(run.env_steps for run in group.runs),
                    "steps_to_threshold": None if reached is None else reached[0],
                    "seconds_to_threshold": None if reached is None else reached[1],
                    "steps_per_second": sum(run.env_steps for run in group.runs) / seconds if seconds else None,
                    "memory_mb": max(memory) if memory else None,
                }
            )
        return rows

    def to_record(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "groups": self.rows(),
            "left_out": [
                {"runs": [item.run.name for item in group.runs], "final_iqm": group.iqm()} for group in self.others
            ],
            "differences": {key: list(values) for key, values in self.differences.items()},
            "warning": self.warning,
            "threshold": self.threshold,
            "compared": "seeds" if self.by_seed else "episodes",
            "probability_of_improvement": [
                [{"probability": value, "interval": list(interval)} for value, interval in row]
                for row in self.improvement
            ],
        }


def compare_runs(runs: Sequence[RunDirectory], threshold: float | None = None) -> Study:
    """Compare runs; those that differ in nothing but their seed form a group.

    Args:
        runs: At least two, each with an evaluation.
        threshold: The return to reach; omitted: the configurations' convergence_threshold, or the environment's threshold
            for solved.

    Raises:
        ConfigurationError: If there are fewer than two, or one has no evaluation.
    """
    if len({run.name for run in runs}) < 2:
        raise ConfigurationError(
            "One run cannot be compared. Name two or more: rltrack compare RUN RUN…; one: rltrack show RUN."
        )
    return study_of(runs, threshold)


def study_of(runs: Sequence[RunDirectory], threshold: float | None = None) -> Study:
    """Compare runs as `compare_runs` does, but accept a single one."""
    facts = [_facts(run) for run in {run.name: run for run in runs}.values()]
    blank = [item.run.name for item in facts if not item.history.evaluations]
    if blank:
        raise ConfigurationError(
            f"No evaluations, and so no scores: {', '.join(blank)}. Train with training.eval_freq, or leave them out."
        )
    grouped: dict[str, list[RunFacts]] = {}
    for item in facts:
        grouped.setdefault(repr(sorted((key, repr(value)) for key, value in item.settings.items())), []).append(item)
    members, others = _best(list(grouped.values()))
    keys = sorted({key for item in facts for key in item.settings})
    settings = {key: [group[0].settings.get(key) for group in members] for key in keys}
    differences = {key: values for key, values in settings.items() if len({repr(value) for value in values}) > 1}
    groups = [Group(_label(group, members, differences, index), group) for index, group in enumerate(members)]
    by_seed = len(groups) > 1 and all(len(group.runs) >= SEEDS_AS_UNITS for group in groups)
    scores = [group.scores(by_seed) for group in groups]
    improvement = [
        [(probability_of_improvement(ours, theirs), improvement_interval(ours, theirs)) for theirs in scores]
        for ours in scores
    ]
    wanted = threshold if threshold is not None else _threshold(facts)
    return Study(groups, differences, wanted, by_seed, improvement, others)


def _best(members: list[list[RunFacts]]) -> tuple[list[list[RunFacts]], list[Group]]:
    """Split groups into those that are compared, in their order, and the rest, the best first."""
    if len(members) <= MOST_SIDE_BY_SIDE:
        return members, []
    ranked = sorted(members, key=lambda group: rank(Group("", group).iqm()), reverse=True)
    best = {id(group) for group in ranked[:MOST_SIDE_BY_SIDE]}
    rest = [Group(", ".join(item.run.name for item in group), group) for group in ranked[MOST_SIDE_BY_SIDE:]]
    return [group for group in members if id(group) in best], rest


def _facts(run: RunDirectory) -> RunFacts:
    history = MetricsTracker.from_journal(run.journal_file)
    settings: dict[str, Any] = {}
    environment = measured_environment({})
    seed: int | None = None
    described = run.configuration_record()
    if described is not None and described.get("identity"):
        seed = described["identity"].get("seed")
        settings = _settings(described)
        environment = measured_environment(described["identity"])
        reported = settings.get("agent.environment")  # by the agent of a run with TrackingCallback
        environment["environment.id"] = environment["environment.id"] or reported
    facts = history.facts
    spent, clock = facts.seconds, facts.evaluation_seconds
    return RunFacts(run, seed, settings, environment, history, facts.env_steps, spent, _memory(run), clock)


def _settings(configuration: Record) -> dict[str, Any]:
    """Return the settings that determine a run's result, without its seed; the algorithm's arguments include defaults."""
    resolved = (configuration.get("agent") or {}).get("hyperparameters") or {}
    settings = {
        key.removeprefix(_ARGUMENTS): value
        for key, value in flatten(configuration["identity"])
        if key != "seed" and not (resolved and f"{key}.".startswith(_ARGUMENTS))
    }
    return settings | {key: value for key, value in resolved.items() if key not in _NOT_COMPARED}


def _memory(run: RunDirectory) -> float:
    """Return the largest sampled resident memory of training."""
    most = math.nan
    if run.resources_file.exists():
        with open(run.resources_file, "rb") as file:
            records = list(JournalReader(run.resources_file, resources=True).read(file))
        for record in records:
            value = record["values"].get("system/process_memory_megabytes")
            if value is not None and not value <= most:
                most = float(value)
    return most


def _label(group: list[RunFacts], members: list[list[RunFacts]], differences: Mapping[str, Any], index: int) -> str:
    """Return a single run's name; for several seeds the fewest settings that distinguish all groups."""
    if len(group) == 1:
        return group[0].run.name
    candidates = sorted(differences, key=lambda key: (key not in _LABEL_FIRST, key))
    for count in range(1, min(len(candidates), _LABEL_KEYS) + 1):
        chosen = candidates[:count]
        if len({repr([differences[key][other] for key in chosen]) for other in range(len(members))}) == len(members):
            own = {key: differences[key][index] for key in chosen}
            parts = [str(v) if key in _LABEL_FIRST else f"{key.rpartition('.')[2]}={v}" for key, v in own.items()]
            return f"{', '.join(parts)} ({len(group)} seeds)"
    name = group[0].run.name
    return f"{re.sub(r'[-_.]s?[0-9]+$', '', name) or name} ({len(group)} seeds)"


def _threshold(facts: Sequence[RunFacts]) -> float | None:
    """Return the threshold of the configurations, or of the environment."""
    wanted = [item.settings.get("training.convergence_threshold") for item in facts]
    own = {float(value) for value in wanted if value is not None}
    if len(own) == 1:
        return own.pop()
    ids = {str(item.environment["environment.id"]) for item in facts}
    if len(ids) != 1 or own:
        return None
    import gymnasium

    found = gymnasium.registry.get(ids.pop())
    return None if found is None or found.reward_threshold is None else float(found.reward_threshold)
