"""Compares each replacement with what it replaces, bit by bit, on copies.

A part that differs is left to Stable-Baselines3, as one that could not be tried is. Another version of torch or another CPU may
cost speed therefore, but not correctness. The model and all streams of random numbers are afterwards as they were before.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit

from rltrack.acceleration import environments as vectorised
from rltrack.acceleration.optimizers import flat_optimizer
from rltrack.acceleration.parts import NAMES, Installation, optimizers_of
from rltrack.acceleration.trial import STEPS, RandomEnv, Silent, fill, random_gradients, twin

_SEED = 7


def differences(model: Any, recognised: set[str]) -> dict[str, str]:
    """Return the reason for each recognised part that must stay off.

    Args:
        model: A model of SB3, not accelerated yet.
        recognised: The names of the parts to check.
    """
    checks: dict[str, Callable[[Any], Iterator[tuple[Any, Any]]]] = {
        "environments": _environments,
        "networks": _networks,
        "collection": _collection,
        "optimizers": _optimizers,
        "update": _update,
    }
    found: dict[str, str] = {}
    with unchanged_random_streams():
        for name in NAMES:
            if name not in recognised:
                continue
            try:
                if any(not same(*pair) for pair in checks[name](model)):
                    found[name] = "its results differ from Stable-Baselines3's on this machine"
            except Exception as error:  # whatever goes wrong here must not prevent a training
                found[name] = f"it could not be checked: {type(error).__name__}: {error}"
    return found


@contextmanager
def unchanged_random_streams() -> Iterator[None]:
    """Put the global streams of random numbers back at the end."""
    streams = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(streams[0])
        np.random.set_state(streams[1])
        random.setstate(streams[2])


def same(first: Any, second: Any) -> bool:
    """Return whether two values are equal in every bit."""
    if isinstance(first, torch.Tensor):
        first, second = first.detach().cpu().numpy(), second.detach().cpu().numpy()
    if isinstance(first, np.ndarray):
        return bool(first.shape == second.shape and first.dtype == second.dtype and first.tobytes() == second.tobytes())
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(own, second[key]) for key, own in first.items())
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, float):
        return type(first) is type(second) and np.float64(first).tobytes() == np.float64(second).tobytes()
    return type(first) is type(second) and bool(first == second)


def _seed() -> None:
    torch.manual_seed(_SEED)
    np.random.seed(_SEED)


def _pair(model: Any, *parts: str) -> tuple[Any, Any]:
    """Return a plain twin, and one with these parts replaced."""
    plain, fast = twin(model), twin(model)
    for own in (plain, fast):
        own.action_space.seed(_SEED)
    missing = Installation(fast, {name: "not tried here" for name in NAMES if name not in parts}).reasons
    for name in parts:
        if name in missing:
            raise RuntimeError(missing[name])
    return plain, fast


def _run(model: Any, function: Callable[[Any], Any]) -> list[Any]:
    _seed()
    found = function(model)
    streams = [torch.get_rng_state(), list(np.random.get_state()), model.action_space.np_random.bit_generator.state]
    return [found, streams]


def _environments(model: Any) -> Iterator[tuple[Any, Any]]:
    env = vectorised.innermost(model.env)
    arrays = {"array": np.arange(6.0).reshape(2, 3).T, "list": [1, {"nested": np.zeros(2)}], "number": np.float64(1.5)}
    for infos in (env.buf_infos, env.reset_infos, [arrays]):
        yield copy.deepcopy(infos), vectorised.copied(infos)


def _networks(model: Any) -> Iterator[tuple[Any, Any]]:
    plain, fast = _pair(model, "networks")
    env = RandomEnv(model.observation_space, model.action_space, 5)
    batches = [env.reset(), env.reset()[:1]]
    for batch in batches:
        for deterministic in (True, False):

            def predict(own: Any, batch: Any = batch, deterministic: bool = deterministic) -> Any:
                return own.policy.predict(batch, deterministic=deterministic)[0]

            yield _run(plain, predict), _run(fast, predict)


def _collection(model: Any) -> Iterator[tuple[Any, Any]]:
    plain, fast = _pair(model, "networks", "collection")
    yield _run(plain, _collect), _run(fast, _collect)


def _collect(model: Any) -> Any:
    callback = Silent()
    callback.init_callback(model)
    buffer: Any
    if hasattr(model, "replay_buffer"):
        buffer = model.replay_buffer
        frequency = TrainFreq(STEPS, TrainFrequencyUnit.STEP)
        model.collect_rollouts(
            model.env, callback, frequency, buffer, model.action_noise, learning_starts=model.learning_starts
        )
    else:
        buffer = model.rollout_buffer
        model.collect_rollouts(model.env, callback, buffer, STEPS)
    arrays = {name: own for name, own in vars(buffer).items() if isinstance(own, np.ndarray | int | bool)}
    return [arrays, model._last_obs, model._last_episode_starts, model.num_timesteps, sorted(callback.locals)]


def _optimizers(model: Any) -> Iterator[tuple[Any, Any]]:
    for optimizer in optimizers_of(model).values():
        plain, fast = copy.deepcopy(optimizer), copy.deepcopy(optimizer)
        flat = flat_optimizer(fast)
        for step in range(3):
            gradients = random_gradients(plain.param_groups[0]["params"], step)
            for own in (plain, fast):
                for parameter, gradient in zip(own.param_groups[0]["params"], gradients, strict=True):
                    parameter.grad = gradient.clone()
            type(plain).step(plain)
            flat.step()
        yield _contents(plain), _contents(fast)


def _contents(optimizer: Any) -> Any:
    return [optimizer.state_dict()["state"], optimizer.param_groups[0]["params"]]


def _update(model: Any) -> Iterator[tuple[Any, Any]]:
    plain, fast = _pair(model, "networks", "optimizers", "update")
    yield _run(plain, _train), _run(fast, _train)


def _train(model: Any) -> Any:
    fill(model)
    if isinstance(model, OffPolicyAlgorithm):
        steps = max(2, min(getattr(model, "policy_delay", 1), 4))
        model.train(gradient_steps=steps, batch_size=model.batch_size)
    else:
        model.train()
        fill(model)
        model.train()
    names, variables = model._get_torch_save_params()
    weights = [getattr(model, name) for name in variables] + [model.policy.state_dict()]
    states = [optimizer.state_dict()["state"] for optimizer in optimizers_of(model).values()]
    return [weights, states, dict(model.logger.name_to_value), model._n_updates, len(names)]
