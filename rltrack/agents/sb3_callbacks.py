"""Callbacks of Stable-Baselines3 in rltrack's loop: called as ``learn(callback=…)`` calls them, and part of each checkpoint.

A callback's state is what its attributes changed since training began, as far as that has a form as plain data
(`attribute_state`). What else it holds (open files, models) is built again by the script or the configuration that made the
callback. Where such a part changes during training, as an environment does, a resume cannot give it back, and the run says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, EvalCallback, EventCallback
from stable_baselines3.common.vec_env import VecEnv

from rltrack.agents import sb3_state
from rltrack.agents.attribute_state import AttributeState
from rltrack.agents.env_state import TrainingEnvs
from rltrack.agents.learning import EvaluationWatch
from rltrack.agents.protocol import POLICY_PARTS, CallbackEvaluation
from rltrack.agents.sb3_attributes import OF_CALLBACKS, attributes_of_callback
from rltrack.agents.stored_values import copied
from rltrack.errors import ConfigurationError
from rltrack.evaluation.results import Evaluation
from rltrack.journal.values import columns_of

NO_TOTAL = 2**62
"""What stands for the total env steps where the budget has none; schedules follow ours (`set_schedule`)."""


def as_callbacks(given: Iterable[Any]) -> list[BaseCallback]:
    """Return callbacks as objects, functions included.

    Raises:
        ConfigurationError: If one is a class, or neither a callback nor a function.
    """
    found = []
    for item in given:
        if isinstance(item, type):
            raise ConfigurationError(f"The callback {item.__name__} is a class. Pass an object: {item.__name__}().")
        if isinstance(item, BaseCallback):
            found.append(item)
        elif callable(item):
            found.append(ConvertCallback(item))
        else:
            raise ConfigurationError(
                f"callbacks has a {type(item).__name__}. Pass objects of stable_baselines3's BaseCallback, or functions of locals "
                "and globals."
            )
    return found


class CallbackRelay:
    """Passes what happens in ``collect_rollouts`` on to a user's callbacks.

    Args:
        callbacks: In the order in which they are called.
        total_timesteps: What ``self.locals["total_timesteps"]`` shows; None where the budget is not in env steps.
    """

    def __init__(self, callbacks: Iterable[Any] = (), total_timesteps: int | None = None) -> None:
        self.callbacks = as_callbacks(callbacks)
        self._list = CallbackList(self.callbacks)
        self.total = NO_TOTAL if total_timesteps is None else total_timesteps
        self._envs: dict[str, TrainingEnvs] = {}
        self._attributes: list[tuple[BaseCallback, AttributeState]] = []
        self._watches: list[EvaluationWatch] = []
        self._evaluated: list[CallbackEvaluation] = []
        self.stopped_by: str | None = None

    def __bool__(self) -> bool:
        return bool(self.callbacks)

    def start(self, model: BaseAlgorithm, log_interval: int) -> None:
        """Give the callbacks their model, and call their `on_training_start`; `close` comes after it, also after an error."""
        self._envs, self.stopped_by = {}, None
        for index, callback in enumerate(_flat(self.callbacks)):
            for name, value in vars(callback).items():
                if name not in OF_CALLBACKS and isinstance(value, VecEnv):
                    self._envs[f"{index}.{name}"] = envs = TrainingEnvs(value, None, wants_probe=False)
                    envs.prepare()
                    envs.try_capture()
        evaluating = [item for item in _flat(self.callbacks) if isinstance(item, EvalCallback)]
        self._watches = [
            EvaluationWatch(item, partial(self._keep_evaluation, model, item, number))
            for number, item in enumerate(evaluating, start=1)
        ]
        self._list.init_callback(model)
        seen = {"self": model, "callback": self._list, "log_interval": log_interval, "reset_num_timesteps": True}
        self._list.on_training_start({**seen, "total_timesteps": self.total}, {})
        self._attributes = [(callback, attributes_of_callback(callback, model)) for callback in _flat(self.callbacks)]

    def on_rollout_start(self) -> None:
        """A rollout begins."""
        if self.stopped_by is None:
            self._list.on_rollout_start()

    def on_step(self, seen: dict[str, Any]) -> None:
        """All environments took a step; `seen` is what ``self.locals`` holds. After one returned False none is called."""
        if self.stopped_by is not None:
            return
        self._list.update_locals(seen)
        self._list.n_calls += 1
        self._list.num_timesteps = self._list.model.num_timesteps
        stopped = [type(callback).__name__ for callback in self.callbacks if not callback.on_step()]
        if stopped:
            self.stopped_by = f"the callback {', '.join(stopped)} returned False"

    def on_rollout_end(self, seen: dict[str, Any]) -> None:
        """A rollout ended."""
        if self.stopped_by is None:
            self._list.update_locals(seen)
            self._list.on_rollout_end()

    def end(self) -> None:
        """Training ended."""
        self._list.on_training_end()

    def take(self) -> tuple[str | None, list[CallbackEvaluation]]:
        """Return why training should end, if it should, and what EvalCallbacks evaluated since the last call."""
        taken, self._evaluated = self._evaluated, []
        return self.stopped_by, taken

    def _keep_evaluation(
        self,
        model: BaseAlgorithm,
        source: EvalCallback,
        number: int,
        returns: list[float],
        lengths: list[int],
        infos: list[dict[str, float]],
    ) -> None:
        evaluation = Evaluation.of(
            model.num_timesteps, returns, lengths, deterministic=source.deterministic, infos=columns_of(infos)
        )
        policy = sb3_state.capture(model, POLICY_PARTS) if number == 1 else None
        self._evaluated.append(CallbackEvaluation(evaluation, policy, number))

    def close(self) -> None:
        """Leave the callbacks as they were; harmless if called twice."""
        for watch in self._watches:
            watch.close()
        self._watches = []

    def state_dict(self) -> list[dict[str, Any]]:
        """Return class name of each callback, those inside others included, and what of it changed since `start`."""
        return [{"callback": type(callback).__name__, "changed": own.capture()} for callback, own in self._attributes]

    @property
    def not_captured(self) -> str | None:
        """What the last `state_dict` left out, as a reason why a resume is not exact; None if nothing."""
        return next((own.not_captured for _, own in self._attributes if own.not_captured is not None), None)

    def capture_environments(self) -> dict[str, Any]:
        """Return the state of the callbacks' own environments."""
        return {name: envs.capture() for name, envs in self._envs.items()}

    def restore_environments(self, states: Mapping[str, Any]) -> None:
        """Put the state of the callbacks' own environments back."""
        for name, envs in self._envs.items():
            if states.get(name) is not None:
                envs.restore(states[name])

    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Give each callback its state back.

        Raises:
            ConfigurationError: If the callbacks are not those of the time when it was taken.
        """
        saved = [state["callback"] for state in states]
        names = [type(callback).__name__ for callback, _ in self._attributes]
        if names != saved:
            raise ConfigurationError(
                f"The checkpoint holds the state of the callbacks {', '.join(saved) or '(none)'}; now there are "
                f"{', '.join(names) or '(none)'}. Give the same callbacks in the same order to resume."
            )
        for (callback, attributes), state in zip(self._attributes, states, strict=True):
            for name, value in state.get("state", {}).items():  # versions of before: all that was plain
                setattr(callback, name, copied(value))
            attributes.restore(state.get("changed", ()))

    def why_not_exact(self) -> str | None:
        """Return which environment of a callback cannot be given back, or None."""
        for index, callback in enumerate(_flat(self.callbacks)):
            kind = type(callback).__name__
            for name, value in vars(callback).items():
                if name in OF_CALLBACKS:
                    continue
                envs = self._envs.get(f"{index}.{name}")
                if isinstance(value, gym.Env) or (envs is not None and envs.tier == "inexact"):
                    why = f": {envs.reason}" if envs is not None else ""
                    return f"the environment of the callback {kind} cannot be part of a checkpoint{why}"
        return None


def _flat(callbacks: Iterable[BaseCallback]) -> Iterator[BaseCallback]:
    for callback in callbacks:
        yield callback
        if isinstance(callback, CallbackList):
            yield from _flat(callback.callbacks)
        elif isinstance(callback, EventCallback):
            inner = [callback.callback, getattr(callback, "callback_on_new_best", None)]
            yield from _flat(item for item in dict.fromkeys(inner) if item is not None)
