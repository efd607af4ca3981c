"""The body of `learn()`, once: one function for each kind of algorithm."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from rltrack.agents.protocol import EpisodeInfo
from rltrack.errors import ConfigurationError
from rltrack.journal.values import episode_values

if TYPE_CHECKING:
    from rltrack.agents.sb3 import SB3Agent

_KNOWN_PACKAGES = ("stable_baselines3.", "sb3_contrib.", "sbx.")


def iteration_of(model: BaseAlgorithm) -> Callable[[SB3Agent], None]:
    """Return the function that collects and updates once, as this kind of model does in its `learn()`.

    Raises:
        ConfigurationError: If the model is of no kind that SB3 has.
    """
    if not type(model).learn.__module__.startswith(_KNOWN_PACKAGES):
        warnings.warn(
            f"{type(model).__name__} has a learn() of its own, which rltrack does not call: it collects and updates as "
            "SB3's own algorithms do. If that learn() does more, the result differs from it.",
            stacklevel=3,
        )
    if isinstance(model, OnPolicyAlgorithm):
        return _iterate_on_policy
    if isinstance(model, OffPolicyAlgorithm):
        return _iterate_off_policy
    if hasattr(model, "_do_one_update"):
        return _iterate_ars
    raise ConfigurationError(
        f"{type(model).__name__} is neither an on-policy nor an off-policy algorithm of SB3. Wrap it in an object with the "
        "methods of rltrack.agents.Agent."
    )


def _iterate_on_policy(agent: SB3Agent) -> None:
    model: Any = agent.model
    model.collect_rollouts(model.env, agent.relay, model.rollout_buffer, n_rollout_steps=model.n_steps)
    agent.iteration += 1
    model._update_current_progress_remaining(model.num_timesteps, model._total_timesteps)
    model.train()


def _iterate_off_policy(agent: SB3Agent) -> None:
    model: Any = agent.model
    rollout = model.collect_rollouts(
        model.env,
        train_freq=model.train_freq,
        action_noise=model.action_noise,
        callback=agent.relay,
        learning_starts=model.learning_starts,
        replay_buffer=model.replay_buffer,
        log_interval=agent.log_interval,
    )
    agent.iteration += 1
    if model.num_timesteps > 0 and model.num_timesteps > model.learning_starts:
        if agent.updates_per_step is not None:
            steps = max(1, round(agent.updates_per_step * rollout.episode_timesteps))
        else:
            steps = model.gradient_steps if model.gradient_steps >= 0 else rollout.episode_timesteps
        if steps > 0:
            model.train(batch_size=model.batch_size, gradient_steps=steps)


def _iterate_ars(agent: SB3Agent) -> None:
    model: Any = agent.model
    model._update_current_progress_remaining(model.num_timesteps, model._total_timesteps)
    model._do_one_update(agent.relay, None)
    agent.iteration += 1
    observer = agent.relay.observer
    for episode in list(model.ep_info_buffer):  # its own step loop shows no infos; it fills this buffer afterwards
        infos = episode_values({"episode": episode})
        observer.on_episode_end(EpisodeInfo(float(episode["r"]), int(episode["l"]), model.num_timesteps, infos=infos))
    if model._n_updates % agent.log_interval == 0:
        model.dump_logs()
