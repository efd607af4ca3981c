"""Watches an agent at work for the first NaN, infinity, refused action or error: where did it come from?

Nothing that is computed changes. Values are looked at where they arise: each layer of each environment, from the inside out; each
module of the policy; each loss when its gradient is taken; each function of the backward pass (torch's anomaly detection); the
gradient of each parameter; each step of an optimizer.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from rltrack.agents.base import ProtocolAgent
from rltrack.agents.env_state.layers import gym_layers, vec_layers
from rltrack.agents.env_state.recorder import streams_of
from rltrack.agents.gym_types import Env, Reset, Step
from rltrack.agents.sizes import Sizes, forward_line
from rltrack.checkpoints.encoding import State
from rltrack.secrets import one_line
from rltrack.text import printable

_SHOWN_LOSSES = 6


class CauseFound(BaseException):
    """The first cause was found; the training need not go on. No ``except Exception`` in between swallows it."""


@dataclass
class Episode:
    """What an environment was given since its last reset: enough to do it again.

    Attributes:
        streams: Its random streams before the reset; None if that came before the watch began.
        arguments: Of the reset.
        actions: Since then.
    """

    streams: State | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    actions: list[object] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Cause:
    """What went wrong first.

    Attributes:
        kind: ``observation``, ``reward``, ``action``, ``activation``, ``loss``, ``gradient``, ``weights``, ``exception`` or
            ``process``.
        text: In words: what, where, and with which value.
        env_index: Of the environment; None where it is none's.
        env_steps: Env steps of the run.
        episode: What that environment was given, where it raised.
    """

    kind: str
    text: str
    env_index: int | None
    env_steps: int
    episode: Episode | None = None


class FirstCause:
    """Watches an agent that is bound to its environment, until `remove`.

    Args:
        agent: Of Stable-Baselines3, or any other: then its attributes that are torch modules and optimizers are watched.
        env: That it was given; an SB3 model has its own.
        env_steps: Returns the env steps of the run.

    Attributes:
        cause: The first cause; None as long as all is well.
        doing: What the training does, for errors that nothing watched was part of, such as ``in an evaluation: ``.
        actions_out_of_bounds: The first action that a layer of an environment was given and that is not in its action space.
        sizes: Of weights, gradients and so on.
        limits: What of this agent cannot be watched, as a sentence; None for nothing.
    """

    def __init__(self, agent: Any, env: Any, env_steps: Callable[[], int]) -> None:
        agent = agent.agent if isinstance(agent, ProtocolAgent) else agent
        model: Any = getattr(agent, "model", None)
        is_sb3 = isinstance(model, BaseAlgorithm)
        self._env_steps: Callable[[], int] = (lambda: int(model.num_timesteps)) if is_sb3 else env_steps
        self.cause: Cause | None = None
        self.doing = ""
        self.actions_out_of_bounds: str | None = None
        self.episodes: dict[int, Episode] = {}
        self.sizes = Sizes(self._env_steps)
        self.limits: str | None = None
        self._undo: list[Callable[[], None]] = []
        self._backward_reached = "the loss"
        parts = {"": model.policy} if is_sb3 else _parts(agent, torch.nn.Module)
        modules = {
            _joined(part, name) or "policy": module
            for part, whole in parts.items()
            for name, module in whole.named_modules()
        }
        parameters = {
            _joined(part, name): value for part, whole in parts.items() for name, value in whole.named_parameters()
        }
        env = model.env if is_sb3 else env
        optimizers = _optimizers(model if is_sb3 else agent, modules)
        if not is_sb3:
            watched = (
                "its environments" if isinstance(env, gym.Env | VecEnv) else "not its environments, which it builds"
            )
            self.limits = (
                f"{type(agent).__name__} is not an agent of Stable-Baselines3: watched are {watched}, and of its attributes "
                f"{len(parts)} torch modules ({', '.join(parts) or 'none'}) and {len(optimizers)} optimizers"
            )
        self._vec_env = env if isinstance(env, VecEnv) else None
        self._watch_environments(env)
        self._watch_modules(modules)
        self._watch_losses(parameters)
        for optimizer in optimizers:
            self._replace(optimizer, "step", self._step_of(optimizer, optimizer.step))

    def remove(self) -> None:
        """Stop watching."""
        while self._undo:
            self._undo.pop()()

    def exception(self, error: BaseException) -> Cause:
        """Return the cause of an error that ended the training, where no watch found any before."""
        if self.cause is None:
            what = f"{self.doing}{type(error).__name__}: {one_line(error)[:300]}"
            if isinstance(error, EOFError | BrokenPipeError | ConnectionResetError):
                self._keep("process", f"the process of an environment died: {self._dead_workers() or what}")
            else:
                self._keep("exception", f"{what}{_place(error)}")
        assert self.cause is not None
        return self.cause

    # ---- environments ----

    def _watch_environments(self, env: Any) -> None:
        layers = list(vec_layers(env)) if isinstance(env, VecEnv) else []
        base = layers[-1] if layers else None
        envs = base.envs if isinstance(base, DummyVecEnv) else [env] if isinstance(env, gym.Env) else []
        for index, one in enumerate(envs):
            self.episodes[index] = Episode()
            stack = list(gym_layers(one))
            for place in reversed(range(len(stack))):
                giver = type(stack[place - 1]).__name__ if place else "the policy"
                self._watch_layer(stack[place], index, giver, outermost=place == 0)
        for layer in reversed(layers):
            self._watch_vec_layer(layer)

    def _watch_layer(self, layer: Env, index: int, giver: str, *, outermost: bool) -> None:
        step, reset, name = layer.step, layer.reset, type(layer).__name__

        def watched_reset(**arguments: Any) -> Reset:
            if outermost:
                self.episodes[index] = Episode(streams_of(layer.unwrapped), dict(arguments))
            result = reset(**arguments)
            self._look_at(result[0], "observation", f"the reset of {name}", index)
            return result

        def watched_step(action: object) -> Step:
            if outermost:
                self.episodes[index].actions.append(np.array(action) if isinstance(action, np.ndarray) else action)
            self._look_at(action, "action", f"{name} was given", index)
            self._look_at_bounds(layer, action, index, giver)
            try:
                result = step(action)
            except Exception as error:
                if self.cause is None:
                    bounds = f" (first: {self.actions_out_of_bounds})" if self.actions_out_of_bounds else ""
                    kind = "action" if bounds else "exception"
                    said = f"{type(error).__name__}: {one_line(error)[:300]}{_place(error)}{bounds}"
                    text = f"{name}.step({_value(action)}) raised {said}"
                    self._keep(kind, text, index, self.episodes[index])
                raise
            self._look_at(result[0], "observation", f"{name}.step({_value(action)}) returned", index)
            self._look_at(result[1], "reward", f"{name}.step({_value(action)}) returned", index)
            return result

        self._replace(layer, "step", watched_step)
        self._replace(layer, "reset", watched_reset)

    def _watch_vec_layer(self, layer: VecEnv) -> None:
        step_async, step_wait, name = layer.step_async, layer.step_wait, type(layer).__name__

        def watched_async(actions: np.ndarray) -> None:
            self._look_at(actions, "action", f"{name} was given", None)
            step_async(actions)

        def watched_wait() -> VecEnvStepReturn:
            result = step_wait()
            self._look_at(result[0], "observation", f"{name} returned", None)
            self._look_at(result[1], "reward", f"{name} returned", None)
            return result

        self._replace(layer, "step_async", watched_async)
        self._replace(layer, "step_wait", watched_wait)

    def _look_at_bounds(self, layer: Env, action: object, index: int, giver: str) -> None:
        space = layer.action_space
        if self.actions_out_of_bounds is not None or not isinstance(space, gym.spaces.Box | gym.spaces.Discrete):
            return
        if not space.contains(np.asarray(action, dtype=space.dtype) if isinstance(space, gym.spaces.Box) else action):
            self.actions_out_of_bounds = (
                f"{giver} gave {type(layer).__name__} the action {_value(action)}, which is not in {space}; env {index}, "
                f"{self._env_steps():,} env steps"
            )

    def _look_at(self, value: object, kind: str, where: str, index: int | None) -> None:
        if self.cause is not None:
            return
        for path, array in _arrays(value):
            bad = ~np.isfinite(array)
            if bad.any():
                place = np.argwhere(bad)[0].tolist() if array.ndim else []
                if index is None and place:
                    index = int(place[0])
                number = array[tuple(place)]
                at = f" at {place}" if place else ""
                self._found(kind, f"{where} the {kind}{path} {number}{at}", index)

    def _dead_workers(self) -> str:
        processes = () if self._vec_env is None else getattr(list(vec_layers(self._vec_env))[-1], "processes", ())
        for process in processes:
            process.join(1.0)
        codes = [(index, process.exitcode) for index, process in enumerate(processes) if process.exitcode is not None]
        return "; ".join(f"env {index} ended with exit code {code}" for index, code in codes)

    # ---- the policy and its training ----

    def _watch_modules(self, modules: Mapping[str, torch.nn.Module]) -> None:
        for name, module in modules.items():
            handle = module.register_forward_hook(self._after_module(name))
            self._undo.append(handle.remove)

    def _after_module(self, name: str) -> Callable[..., None]:
        def reached(gradient: torch.Tensor) -> None:
            self._backward_reached = name

        def look(module: Any, inputs: Any, output: Any) -> None:
            if self.cause is None and (bad := _bad(output)) is not None:
                given = next((f"; its input holds {value:g}" for one in inputs if (value := _bad(one)) is not None), "")
                weights = [own for own, value in module.named_parameters(recurse=False) if _bad(value) is not None]
                if weights:
                    self._found("weights", f"the weights {name}.{weights[0]} hold {bad:g}")
                self._found("activation", f"{name} ({type(module).__name__}) returned {bad:g}{given}")
            self.sizes.tensor("activation", output)
            if getattr(output, "requires_grad", False):
                output.register_hook(reached)

        return look

    def _watch_losses(self, parameters: Mapping[str, Any]) -> None:
        backward: Any = torch.Tensor.backward

        def watched(tensor: torch.Tensor, *arguments: Any, **more: Any) -> None:
            seen = sys._getframe(1).f_locals
            if self.cause is None and (bad := _bad(tensor)) is not None:
                terms = [
                    name for name, value in seen.items() if isinstance(value, torch.Tensor) and _bad(value) is not None
                ]
                first = next((name for name in terms if name != "loss"), terms[0] if terms else "the loss")
                others = [name for name in terms if name != first][:_SHOWN_LOSSES]
                also = f", and so {'are' if len(others) > 1 else 'is'} {', '.join(others)}" if others else ""
                self._found("loss", f"{first} is {bad:g}{also}")
            self.sizes.locals_of_update(seen)
            self._backward_reached = "the loss"
            self.sizes.begin_backward()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    backward(tensor, *arguments, **more)
                except RuntimeError as error:
                    if self.cause is None and "returned nan" in str(error):  # anomaly detection has no error of its own
                        line = forward_line([str(one.message) for one in caught])
                        where = ", ".join(filter(None, (self._backward_reached, line)))
                        self._found("gradient", f"{one_line(error)[:300]}. Its forward pass is in {where}")
                    raise
            self.sizes.end_backward()

        anomalies = torch.autograd.set_detect_anomaly(True)
        torch.Tensor.backward = watched  # type: ignore[method-assign, assignment]
        self._undo.append(lambda: setattr(torch.Tensor, "backward", backward))
        self._undo.append(lambda: anomalies.__exit__(None, None, None))
        for name, value in parameters.items():
            if value.requires_grad:
                handle: Any = value.register_hook(self._after_gradient(name))
                self._undo.append(handle.remove)

    def _after_gradient(self, name: str) -> Callable[[torch.Tensor], None]:
        def look(gradient: torch.Tensor) -> None:
            if self.cause is None and (bad := _bad(gradient)) is not None:
                self._found("gradient", f"the gradient of {name} is {bad:g}")
            self.sizes.gradient(gradient)

        return look

    def _step_of(self, optimizer: Any, step: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **more: Any) -> Any:
            result = step(*arguments, **more)
            weight = self.sizes.weights(optimizer)
            if self.cause is None and not np.isfinite(weight):
                self._found("weights", f"a step of {type(optimizer).__name__} made a weight {weight:g}")
            return result

        return watched

    # ---- inside ----

    def _replace(self, thing: object, name: str, function: Callable[..., object]) -> None:
        had, before = name in vars(thing), vars(thing).get(name)
        setattr(thing, name, function)
        self._undo.append(lambda: setattr(thing, name, before) if had else delattr(thing, name))

    def _keep(self, kind: str, text: str, index: int | None = None, episode: Episode | None = None) -> None:
        if self.cause is None:
            self.cause = Cause(kind, printable(text), index, self._env_steps(), episode)

    def _found(self, kind: str, text: str, index: int | None = None) -> None:
        growth = self.sizes.growth()
        if growth and index is None:
            kind, text = "weights", f"{growth}; then {text}"
        self._keep(kind, text, index)
        raise CauseFound(text)


def _arrays(value: object, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _arrays(item, f"{path}[{key!r}]")
    elif isinstance(value, tuple | list):
        for index, item in enumerate(value):
            yield from _arrays(item, f"{path}[{index}]")
    else:
        array = np.asarray(value)
        if np.issubdtype(array.dtype, np.floating):
            yield path, array


def _bad(value: object) -> float | None:
    """Return the first number of a tensor that is not finite; None where there is none."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or not value.numel():
        return None
    bad = ~torch.isfinite(value.detach())
    return float(value.detach()[bad].flatten()[0]) if bool(bad.any()) else None


def _parts(holder: Any, kind: type) -> dict[str, Any]:
    """Return the attributes of an object that are of a class, by name."""
    return {name: value for name, value in vars(holder).items() if isinstance(value, kind)}


def _optimizers(holder: Any, modules: Mapping[str, torch.nn.Module]) -> list[Any]:
    holders = (holder, *modules.values())
    return list({id(one): one for each in holders for one in _parts(each, torch.optim.Optimizer).values()}.values())


def _joined(part: str, name: str) -> str:
    return ".".join(filter(None, (part, name)))


def _value(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _place(error: BaseException) -> str:
    """Where in which file it was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"
