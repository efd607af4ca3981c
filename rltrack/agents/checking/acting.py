"""Whether an agent's policy acts as evaluations need it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from rltrack.agents.base import AgentBase
from rltrack.agents.checking.iteration import Training
from rltrack.agents.checking.report import CheckAborted, Report, one_line
from rltrack.agents.environments import default_evaluation, make_gym_env
from rltrack.agents.gym_types import Space
from rltrack.agents.protocol import EvaluationEnvironment
from rltrack.checkpoints.difference import first_difference, same
from rltrack.cleanup import close_all
from rltrack.errors import EvaluationUnavailable

N_ENVS, STEPS = 2, 5


def check_predict(training: Training, env: Any, report: Report) -> None:
    """Let the policy act in evaluation environments for a few steps, and check the actions.

    Args:
        training: Of the agent, between two iterations.
        env: As it was given to the check.
        report: Where findings go.
    """
    agent = training.agent
    try:
        evaluation = agent.make_evaluation_env(None, N_ENVS) or default_evaluation(env, N_ENVS)
    except EvaluationUnavailable as error:
        report.warning(
            f"no evaluation environment: {str(error).rstrip('.')}", "Without one predict() cannot be checked"
        )
        return
    except Exception as error:
        report.error(f"make_evaluation_env(None, {N_ENVS}) raised {one_line(error)}", "Return an EvaluationEnvironment")
        return
    before = agent.capture() if agent.is_capturable else {}
    try:
        space = _action_space(env, training)
        _play(agent, evaluation, space, report)
    finally:
        close_all(evaluation)
    if agent.is_capturable:
        _, difference = first_difference(before, agent.capture(), ("the state before", "the state after"))
        if difference is not None:
            report.error(
                f"predict(deterministic=True) changes the agent's state: {difference}",
                "Evaluations must not influence training: leave counters and random streams as they are",
            )
            raise CheckAborted


def _play(agent: AgentBase, env: EvaluationEnvironment, space: Space | None, report: Report) -> None:
    observation = env.start([[index] for index in range(env.n_envs)])
    state, starts = None, np.ones(env.n_envs, dtype=bool)
    for _ in range(STEPS):

        def predict(
            observation: Any = observation, state: Any = state, starts: np.ndarray = starts
        ) -> tuple[np.ndarray, Any]:
            answer: object = agent.predict(
                observation, state=state, episode_start=starts, deterministic=True, **env.prediction_inputs()
            )
            if not isinstance(answer, tuple) or len(answer) != 2:
                report.error(
                    f"predict() returns a {type(answer).__name__}",
                    "Return a pair: the actions, and the next state or None",
                )
                raise CheckAborted
            return np.asarray(answer[0]), answer[1]

        what = f"predict(observation of shape {_shape(observation)}, deterministic=True)"
        actions, state = report.calling(what, predict)
        if not same(report.calling(what, predict)[0], actions):
            report.error(
                "predict(deterministic=True) returns different actions for the same observation",
                "Act by the mode of the policy, not by a sample",
            )
            raise CheckAborted
        if space is not None:
            _check_actions(actions, space, env.n_envs, report)
        observation, _, starts, _ = report.calling("A step with predict()'s actions", lambda: env.step(actions))  # noqa: B023


def _check_actions(actions: np.ndarray, space: Space, n_envs: int, report: Report) -> None:
    expected = (n_envs, *(space.shape or ()))
    if actions.shape != expected:
        report.error(
            f"predict() returns actions of shape {actions.shape} for {n_envs} observations; the action space is {space}",
            f"Return the shape {expected}",
        )
        raise CheckAborted
    if space.dtype is not None and not np.can_cast(actions.dtype, space.dtype, "same_kind"):
        report.error(
            f"predict() returns actions of dtype {actions.dtype}; the action space is {space}",
            f"Return {space.dtype}",
        )
        raise CheckAborted
    cast = actions.astype(space.dtype) if space.dtype is not None else actions
    for action in cast:
        if not space.contains(action):
            report.error(f"predict() returns the action {action}, outside the action space {space}", "Clip or map it")
            raise CheckAborted


def _action_space(env: Any, training: Training) -> Space | None:
    for found in (training.env, getattr(training.agent, "env", None)):
        space = getattr(found, "action_space", None)
        if isinstance(space, gym.Space):
            return space
    if not isinstance(env, str):
        return None
    made = make_gym_env(env)
    try:
        return made.action_space
    finally:
        close_all(made)


def _shape(observation: Any) -> Any:
    if isinstance(observation, dict):
        return {key: np.shape(value) for key, value in observation.items()}
    return np.shape(observation)
