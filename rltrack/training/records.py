"""What a training writes into its journal: each iteration, warnings, and its end."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rltrack.journal.values import as_floats
from rltrack.tracking.metrics import CALLBACK_KEYS, EVALUATION_KEYS

if TYPE_CHECKING:
    from rltrack.agents.protocol import EpisodeInfo, IterationStats
    from rltrack.runs.writer import RunWriter
    from rltrack.training.progress import TrainingProgress

_logger = logging.getLogger("rltrack")


def record_warning(records: RunWriter, message: str) -> None:
    """Log a warning, and record it in the journal."""
    _logger.warning(message)
    records.warning(message)


def record_iteration(
    records: RunWriter,
    progress: TrainingProgress,
    stats: IterationStats,
    episodes: Sequence[EpisodeInfo],
    *,
    evaluates: bool,
) -> None:
    """Write the episodes that ended in an iteration, and the metrics that it dumped.

    Where rltrack `evaluates`, what else logs under the keys of its evaluations, such as SB3's EvalCallback, gets keys of its own
    (``eval_callback/…``), so that no key mixes two series. Where it does not, the evaluations of EvalCallbacks are records of
    their own, and what they log is left out.
    """
    if episodes:
        records.episodes(progress.env_steps, episodes)
    times = {
        "time/fps": progress.steps_per_second,
        "time/iterations": float(progress.iterations),
        "time/elapsed_seconds": progress.elapsed_seconds,
        "rollout/episodes": float(progress.episodes),
    }
    for index, (step, values) in enumerate(stats.metrics, start=1):
        last = index == len(stats.metrics)
        excluded = stats.excluded[index - 1] if index <= len(stats.excluded) else {}
        if evaluates and not EVALUATION_KEYS.isdisjoint(values):
            values = {_beside_ours(key): value for key, value in values.items()}
            excluded = {sink: [_beside_ours(key) for key in keys] for sink, keys in excluded.items()}
        elif stats.evaluations:
            values = {key: value for key, value in values.items() if key not in CALLBACK_KEYS}
        if not (values or last):
            continue
        records.metrics(step, {**as_floats(values), **times} if last else values, excluded)


def _beside_ours(key: str) -> str:
    return f"eval_callback/{key.removeprefix('eval/')}" if key in EVALUATION_KEYS else key


def record_end(records: RunWriter, progress: TrainingProgress, reason: str, *, goes_on: bool) -> None:
    """Write how this attempt ended, and whether it can be resumed; and fsync."""
    last = progress.last_evaluation
    records.end(
        progress.state.value,
        reason,
        env_steps=progress.env_steps,
        episodes=progress.episodes,
        seconds=progress.elapsed_seconds,
        mean_return=last.mean if last else None,
        mean_infos=last.mean_infos if last else {},
        goes_on=goes_on,
    )
