"""Evaluation games of stored policies: on the same fresh seeds, in environments built from their own configurations."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rltrack.agents import POLICY_PARTS, evaluation_environments
from rltrack.agents.devices import torch_threads
from rltrack.agents.exported_policy import ExportedPolicy
from rltrack.cleanup import close_all
from rltrack.config import MAX_EVAL_ENVS, TrainingConfig
from rltrack.errors import ConfigurationError, PolicyNotStorable
from rltrack.evaluation.episodes import EVALUATION_STREAM, Evaluation, episode_seeds, play_episodes
from rltrack.identity import measured_environment
from rltrack.registry.loading import LoadedPolicy
from rltrack.registry.models import POLICY, StoredPolicy, described_as, is_described_today, write_model
from rltrack.registry.permissions import check_names
from rltrack.runs import Root
from rltrack.training.trainer import config_of

PROMOTION_SEEDS, BASELINE_SEEDS, EVALUATION_SEEDS = 0x9A7E, 0xBA5E, 0x3A7C
"""Each purpose has its own seeds."""


def play(policy: ExportedPolicy, config: Mapping[str, Any], seeds: Sequence[int]) -> Evaluation:
    """Let a stored policy play, one episode a seed, in environments built from a run's configuration."""
    settings = TrainingConfig.from_mapping(config, source="the stored policy's configuration")
    env = evaluation_environments(settings, policy.policy, min(len(seeds), MAX_EVAL_ENVS))
    try:
        with torch_threads(settings.agent.threads):
            return play_episodes(policy, env, seeds, limits=settings.evaluation.limits)
    finally:
        close_all(env)


def play_stored(
    stored: LoadedPolicy, root: Root, seeds: Sequence[int], known: Sequence[Mapping[str, Any]] = ()
) -> Evaluation:
    """Let a policy from a registry play, if its configuration names only code that is allowed here.

    Args:
        stored: The policy, with the configuration that was stored with it.
        root: The root that may have the run that it comes from.
        seeds: One for each episode.
        known: Configurations of one's own that name the same environment.

    Raises:
        ConfigurationError: As `check_names`.
    """
    check_names(stored, root, known)
    return play(stored.policy, stored.config, seeds)


def fresh_seeds(stream: int, words: Sequence[str], count: int, configs: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return seeds that no evaluation of these configurations' trainings used; the same for the same words.

    Args:
        stream: Their purpose, such as `PROMOTION_SEEDS`.
        words: Texts that the seeds are derived from.
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


def as_stored(challenger: StoredPolicy) -> tuple[StoredPolicy, ExportedPolicy]:
    """Store the policy in a temporary folder and load it again, so that the stored policy is what plays.

    Raises:
        PolicyNotStorable: If it acts differently from the run's agent with the weights of that version.
    """
    from rltrack.agents.policy_check import LivePolicy  # on demand: it imports torch

    state = challenger.run.store().read(challenger.version, POLICY_PARTS)
    live = LivePolicy(config_of(challenger.run), state)
    try:
        if not is_described_today(challenger.run):
            challenger = described_as(challenger, live.description())
        with tempfile.TemporaryDirectory() as scratch:
            write_model(challenger, Path(scratch) / "model")
            policy = ExportedPolicy.load(Path(scratch) / "model" / "artifacts" / POLICY)
        difference = live.difference(policy)
    finally:
        live.close()
    if difference is not None:
        raise PolicyNotStorable(
            f"{challenger.label} would act differently once stored: {difference}. The agent was built from the run's "
            "configuration for this check; if its code changed since, restore the code. Nothing was changed."
        )
    return challenger, policy


def check_comparable(policy: ExportedPolicy, config: Mapping[str, Any], rival: LoadedPolicy, which: str) -> None:
    """Refuse a challenger that could not replace the champion, or whose returns count something else.

    Raises:
        ConfigurationError: With what differs.
    """
    ours, theirs = measured_environment(config), measured_environment(rival.config)
    differences = [f"{key}: {theirs[key]} → {ours[key]}" for key in ours if ours[key] != theirs[key]]
    if policy.observation_space != rival.policy.observation_space:
        differences.append(f"observations: {rival.policy.observation_space} → {policy.observation_space}")
    if policy.action_space != rival.policy.action_space:
        differences.append(f"actions: {rival.policy.action_space} → {policy.action_space}")
    if differences:
        raise ConfigurationError(
            f"The challenger cannot replace {which} (champion's → challenger's):\n  "
            + "\n  ".join(differences)
            + "\nPromote it under another model name."
        )
