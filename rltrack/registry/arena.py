"""Where stored policies play: on the same fresh seeds, in environments built from their own configurations."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rltrack.agents import evaluation_environments
from rltrack.agents.exported_policy import ExportedPolicy
from rltrack.config import MAX_EVAL_ENVS, TrainingConfig
from rltrack.errors import ConfigurationError
from rltrack.evaluation.episodes import EVALUATION_STREAM, Evaluation, episode_seeds, play_episodes
from rltrack.registry.models import LoadedPolicy

PROMOTION_STREAM, BASELINE_STREAM, WATCH_STREAM = 0x9A7E, 0xBA5E, 0x3A7C
"""What seeds are for: each purpose has its own."""


def play(policy: ExportedPolicy, config: Mapping[str, Any], seeds: Sequence[int]) -> Evaluation:
    """Let a stored policy play, one episode a seed, in environments built from a run's configuration."""
    settings = TrainingConfig.from_mapping(config, source="the stored policy's configuration")
    env = evaluation_environments(settings, policy.policy, min(len(seeds), MAX_EVAL_ENVS))
    try:
        return play_episodes(policy, env, seeds)
    finally:
        env.close()


def fresh_seeds(stream: int, words: Sequence[str], count: int, configs: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return seeds that no evaluation of these configurations' trainings used; the same for the same words.

    Args:
        stream: What they are for.
        words: What they are made from.
        count: How many.
        configs: The configurations, as plain data.
    """
    used: set[int] = set()
    for config in configs:
        seed, episodes = int(config.get("seed") or 0), int((config.get("evaluation") or {}).get("episodes") or 0)
        for own in (seed, seed ^ EVALUATION_STREAM):
            used.update(episode_seeds(own, max(episodes, 1000)))
    digest = hashlib.sha256("\n".join(words).encode()).digest()
    drawn = np.random.SeedSequence([stream, *digest]).generate_state(count + len(used), dtype=np.uint32) >> 1
    return [int(value) for value in drawn if int(value) not in used][:count]


def check_comparable(policy: ExportedPolicy, config: Mapping[str, Any], rival: LoadedPolicy, which: str) -> None:
    """Refuse a challenger that could not take the champion's place.

    Raises:
        ConfigurationError: With what differs.
    """
    differences = []
    for what in ("id", "kwargs"):
        ours, theirs = (side.get("environment", {}).get(what) for side in (config, rival.config))
        if (ours or {}) != (theirs or {}):
            differences.append(f"environment.{what}: {theirs} → {ours}")
    if policy.observation_space != rival.policy.observation_space:
        differences.append(f"observations: {rival.policy.observation_space} → {policy.observation_space}")
    if policy.action_space != rival.policy.action_space:
        differences.append(f"actions: {rival.policy.action_space} → {policy.action_space}")
    if differences:
        raise ConfigurationError(
            f"The challenger cannot take the place of {which} (champion's → challenger's):\n  "
            + "\n  ".join(differences)
            + "\nPromote it under another model name."
        )
